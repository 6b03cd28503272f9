// The way back in lanes, each over the recorded steps of a sample of its own, from its last one on:
//   a_n = (dPsi_n/dx_n)^T a_{n+1},   theta_bar += (dPsi_n/dtheta)^T a_{n+1},   x_{n+1} = Psi_n(x_n)
// A lane without a sample goes over a step of length zero with the cotangent zero.
constexpr long KEPT = KEPT_SIZE * R;
constexpr long OWN =
    (L * (3 * BLOCK + KEPT) + 3 * BLOCK + (SCRATCH_SIZE + ROWS_SIZE) * R + SUMS_SIZE + 16 * 16) / 16 * 16;

struct Lanes {
  const Samples* c;
  const T* s;
  Inputs inputs;
  Shown shown;
  T *g, *ys, *k, *back, *a, *cot, *b, *w;
  long sample[R], step[R], number[R], active = 0;
  alignas(64) double t[R], t_next[R], h[R];

  Lanes(const Samples* c, const T* s, T* p)
      : c(c), s(s), inputs(c, p), shown(c), g(next(p, SUMS_SIZE)), ys(next(p, L * BLOCK)), k(next(p, L * BLOCK)),
        back(next(p, L * BLOCK)), a(next(p, BLOCK)), cot(next(p, BLOCK)), b(next(p, SCRATCH_SIZE * R)),
        w(next(p, L * KEPT)) {
    std::memset(g, 0, SUMS_SIZE * sizeof(T));
  }

  void fill(long r, long n) {
    sample[r] = n, active++;
    step[r] = long(c->at[LAST * c->batch + n]), number[r] = long(c->at[UPCOMING * c->batch + n]);
    put(c->a + n * D, D, r, a);
    inputs.fill(r, n);
  }
  void evict(long r) {
    const long n = sample[r];
    c->at[LAST * c->batch + n] = double(step[r]), c->at[UPCOMING * c->batch + n] = double(number[r]);
    get(a, D, r, c->a + n * D);
    for (long i = 0; i < ROW_GRADIENTS; i++)
      for (long e = 0; e < ROW_COUNT[i]; e++) {
        T& sum = g[ROWS_AT + (ROW_START[i] + e) * R + r];
        c->gradients[ROW_PLACE[i]][n * ROW_COUNT[i] + e] += sum, sum = 0;
      }
    for (long e = 0; e < D; e++) a[e * R + r] = 0;
    sample[r] = -1, h[r] = 0, active--;
  }
  void blank(long r, long like) {
    sample[r] = -1, t[r] = t_next[r] = t[like], h[r] = 0;
    for (long e = 0; e < D; e++) ys[e * R + r] = ys[e * R + like], a[e * R + r] = 0;
    inputs.copy(like, r);
  }
  void load(long r) {
    const long n = step[r];
    t[r] = c->ts[n], t_next[r] = c->ends[n], h[r] = c->sizes[n];
    if (c->segments > 1) shown.enter(r, sample[r] * c->segments + c->segment[n]);
    else shown.enter(r, sample[r]);
    put(c->xs + n * D, D, r, ys);
  }
  // k_i += h w_i seed for the outputs inside the steps, once `inside` is set; those at their ends are added to a before
  bool seeds(bool inside) {
    bool any = false;
    for (long r = 0; r < R; r++) {
      if (sample[r] < 0) continue;
      for (; number[r] >= 0; number[r]--) {
        const double time = c->times[number[r] * c->batch + sample[r]];
        if ((time - t[r]) * h[r] <= 0) break;
        const T* seed = c->seeds + (number[r] * c->batch + sample[r]) * D;
        const bool at_end = time == t_next[r];
        if (!at_end && !inside) {
          any = true, c->inner[step[r]] = 1;
          break;
        }
        if (!at_end) {
          double weights[L];
          dense((time - t[r]) / h[r], weights);
          for (long i = 0; i < SLOPES; i++)
            for (long e = 0; e < D; e++) k[i * BLOCK + e * R + r] += T(h[r] * weights[i]) * seed[e];
        }
        for (long e = 0; e < D; e++) a[e * R + r] += seed[e];
      }
    }
    return any;
  }
  void go() {
    alignas(64) T time[R], size[R];
    EACH_LANE size[r] = T(h[r]);
    shown(t, time);
    const bool inside = c->outputs && seeds(false);
    const long used = inside ? SLOPES : USED;
    const T* const* given = inputs.given.data();
    forward(given, s, nullptr, time, ys, w, k);
    for (long i = 1; i < used; i++) {
      combine(ys, size, A[i], i, k, ys + i * BLOCK);
      shown(i, t, t_next, h, time);
      forward(given, s, nullptr, time, ys + i * BLOCK, w + i * KEPT, k + i * BLOCK);
    }
    // k now takes the cotangents of the stages
    for (long i = 0; i < used; i++)
      for (long v = 0; v < D * NV; v++)
        at(k + i * BLOCK, v) = at(size, v % NV) * T(i < USED ? B[i] : 0) * at(a, v);
    if (inside) seeds(true);
    for (long i = used - 1; i >= 0; i--) {
      shown(i, t, t_next, h, time);
      std::memcpy(cot, k + i * BLOCK, BLOCK * sizeof(T));
      for (long j = i + 1; j < used; j++)
        if (A[j][i] != 0)
          for (long v = 0; v < D * NV; v++) at(cot, v) += at(size, v % NV) * T(A[j][i]) * at(back + j * BLOCK, v);
      backward(given, s, nullptr, time, ys + i * BLOCK, w + i * KEPT, cot, b, back + i * BLOCK, g);
    }
    for (long i = 0; i < used; i++)
      for (long v = 0; v < D * NV; v++) at(a, v) += at(back + i * BLOCK, v);
  }
  void run(const std::vector<int64_t>& samples) {
    size_t taken = 0;
    auto take = [&](long r) {
      if (taken == samples.size()) return false;
      fill(r, samples[taken++]), load(r);
      return true;
    };
    for (long r = 0; r < R; r++)
      if (!take(r)) {
        if (!active) return;
        blank(r, 0);
      }
    while (active) {
      go();
      for (long r = 0; r < R; r++) {
        if (sample[r] < 0) continue;
        step[r] = c->before[step[r]];
        if (step[r] >= c->first) load(r);
        else evict(r), take(r);
      }
    }
  }
};

// The way back of all samples. The sums over them are made in an order that depends on the number of threads, and on
// nothing that is different the next time.
extern "C" int64_t samples_size(int64_t threads) { return SHARED_SIZE + LATE_SIZE + threads * OWN + 256; }

extern "C" void samples_back(Samples* c) {
  T* p = c->work;
  T *s = next(p, SHARED_SIZE), *l = next(p, LATE_SIZE);
  prepare(c->given, s);
  std::vector<std::vector<int64_t>> parts(c->threads);
  std::vector<T*> sums(c->threads);
  for (long i = 0; i < c->moving; i++) parts[i % c->threads].push_back(c->order[i]);
  on_threads(c->threads, [&](long thread) {
    Lanes lanes(c, s, p + thread * OWN);
    lanes.run(parts[thread]);
    sums[thread] = lanes.g;
  });
  for (long i = 1; i < c->threads; i++)
    for (long e = 0; e < ROWS_AT; e++) sums[0][e] += sums[i][e];
  finish(c->given, s, sums[0], l, c->gradients);
}
