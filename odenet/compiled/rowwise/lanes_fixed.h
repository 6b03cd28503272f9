// Steps of every lane that are given.
struct Lanes : Walkers {
  using Walkers::Walkers;

  void go_on(const T*, const T*) {}  // F is evaluated where a step begins

  // Whether times of the answer lie inside the steps that were noted last, which is noted as well.
  bool inside(const double* t_next) {
    bool any = false;
    for (long r = 0; r < R; r++) {
      if (on[r] == 0 || !(due[r] < sign[r] * t_next[r])) continue;
      any = true, c->inner[last[r] - c->base] = 1;
    }
    return any;
  }

  Outcome step() {
    alignas(64) double t_next[R], size[R];
    alignas(64) T step[R], time[R];
    for (long r = 0; r < R; r++) {
      t_next[r] = t[r], size[r] = 0;
      if (on[r] == 0) continue;
      const long g = c->which[sample[r]];
      t_next[r] = c->grid[g * c->width + long(accepted[r]) + 1];
      size[r] = c->grid_size ? c->grid_size[g] : t_next[r] - t[r];
    }
    if (!note(on, t_next, size)) return FULL;
    EACH_LANE step[r] = T(size[r]);
    shown(t, time);
    field(time, x, k);
#pragma GCC unroll 16
    for (long i = 1; i < USED; i++) {
      combine(x, step, A[i], i, k, y);
      shown(i, t, t_next, size, time);
      field(time, y, k + i * BLOCK);
    }
    combine(x, step, B, USED, k, to);
    if (c->outputs && inside(t_next) && SLOPES > USED) {
      shown(t_next, time);
      field(time, to, k + USED * BLOCK);
    }
    for (long r = 0; r < R; r++)
      if (on[r] != 0) tries[r] += 1, accepted[r] += 1, outputs(r, t_next, size);
    std::memcpy(x, to, BLOCK * sizeof(T));
    for (long r = 0; r < R; r++) t[r] = t_next[r];
    land();
    return STEPPED;
  }
};
