// Steps of every lane that hold the error of its sample at its tolerance.
struct Lanes : Walkers {
  using Walkers::Walkers;

  // F where some samples are, at times t.
  void slopes(const int64_t* order, long count) {
    alignas(64) T time[R];
    for (long r = 0; r < R; r++) {
      const long n = order[std::min(r, count - 1)];
      shown.enter(r, n * c->segments + long(of(SEGMENT, n)));
      put(c->x + n * D, D, r, x);
      inputs.fill(r, n);
    }
    shown(t, time);
    field(time, x, k);
  }
  // The same on a piece of depth that begins there.
  void renew(const int64_t* order, long count) {
    for (long r = 0; r < R; r++) t[r] = of(TIME, order[std::min(r, count - 1)]);
    slopes(order, count);
    for (long r = 0; r < std::min(R, count); r++) get(k, D, r, c->slope + order[r] * D);
  }
  // The first steps of some samples.
  bool begin(const int64_t* order, long count) {
    alignas(64) double sum[R], d0[R], d1[R], h0[R], size[R], probe[R], length[R];
    alignas(64) T time[R], step[R];
    for (long r = 0; r < R; r++) {
      const long n = order[std::min(r, count - 1)];
      t[r] = c->begin[n], end[r] = c->first_end[n], sign[r] = end[r] < t[r] ? -1 : 1;
    }
    slopes(order, count);
    auto norm = [&](const T* value, const T* less, double* result) {
      EACH_LANE sum[r] = 0;
      for (long e = 0; e < D; e++)
        EACH_LANE {
          const T weight = T(c->atol) + T(c->rtol) * std::fabs(x[e * R + r]);
          const double q = (value[e * R + r] - (less ? less[e * R + r] : T(0))) / weight;
          sum[r] += q * q;
        }
      EACH_LANE result[r] = std::sqrt(sum[r] / D);
    };
    norm(x, nullptr, d0), norm(k, nullptr, d1);
    EACH_LANE sum[r] = 0;
    for (long e = 0; e < D; e++)
      EACH_LANE sum[r] += 0 * (x[e * R + r] + k[e * R + r]);
    for (long r = 0; r < R; r++)
      if (sum[r] != 0) return false;
    EACH_LANE {
      length[r] = std::fabs(end[r] - t[r]);
      h0[r] = std::min(d0[r] < 1e-5 || d1[r] < 1e-5 ? 1e-6 : 0.01 * d0[r] / d1[r], length[r]);
      size[r] = sign[r] * h0[r], probe[r] = h0[r] == length[r] ? end[r] : t[r] + size[r];
      step[r] = T(size[r]), h[r] = c->first_step;
    }
    if (!(c->first_step > 0)) {
      for (long v = 0; v < D * NV; v++) at(y, v) = at(x, v) + at(k, v) * at(step, v % NV);
      shown(probe, time);
      field(time, y, to);
      norm(to, k, sum);
      EACH_LANE {
        const double d2 = sum[r] / h0[r], large = std::max(d1[r], d2);
        const double h1 = large <= 1e-15 ? std::max(h0[r] * 1e-3, 1e-6) : exp_(log_(0.01 / large) / (ORDER + 1));
        h[r] = d2 < INFINITY ? std::min(std::min(100 * h0[r], h1), length[r]) : h0[r];
      }
    }
    for (long r = 0; r < std::min(R, count); r++) {
      const long n = order[r];
      get(k, D, r, c->slope + n * D);
      of(TIME, n) = t[r], of(SIZE, n) = h[r], of(LAST, n) = -1;
    }
    return true;
  }

  // F where the steps of some lanes begin.
  void begin_steps(const T* which) {
    alignas(64) T time[R];
    shown(t, time);
    field(time, x, y);
    for (long v = 0; v < D * NV; v++) at(k, v) = at(which, v % NV) != 0 ? at(y, v) : at(k, v);
  }
  // Lanes have begun another segment; `anew` where a piece of depth begins with it.
  void go_on(const T* more, const T* anew) { begin_steps(FSAL ? anew : more); }

  // One try of every lane.
  Outcome step() {
    alignas(64) double t_next[R], size[R], length[R], now[R], lands[R], error[R], second[R], ok[R], spare[R];
    alignas(64) T step[R], time[R], take[R];
    const double h_min = c->h_min, h_max = c->h_max, most = c->max_steps;
    EACH_LANE {
      now[r] = std::min(std::max(h[r], h_min), h_max);
      const double left = std::fabs(end[r] - t[r]);
      const bool landing = (now[r] * STRETCH >= left) & ((now[r] >= left) | (left <= h_max + resolution[r]));
      lands[r] = landing ? 1.0 : 0.0;
      t_next[r] = landing ? end[r] : t[r] + sign[r] * now[r];
      size[r] = t_next[r] - t[r], length[r] = std::fabs(size[r]), step[r] = T(size[r]);
      const bool over = (length[r] <= resolution[r]) | (bad[r] > RETRIES) | (tries[r] >= most);
      spare[r] = over ? on[r] : 0.0;
    }
    if (total(spare) != 0) return FAILED;
#pragma GCC unroll 16
    for (long i = 1; i < S; i++) {
      const bool end_state = FSAL && i == S - 1;
      T* const state = end_state ? to : y;
      combine(x, step, A[i], i, k, state);
      shown(i, t, t_next, size, time);
      field(time, state, k + i * BLOCK);
    }
    if (!FSAL) combine(x, step, B, S, k, to);
    const T atol = T(c->atol), rtol = T(c->rtol);
    auto estimate = [&](const double* weights, double* result) {
      combine(nullptr, step, weights, S, k, y);
      EACH_LANE result[r] = 0;
      for (long e = 0; e < D; e++)
        EACH_LANE {
          const T a = std::fabs(x[e * R + r]), b = std::fabs(to[e * R + r]);
          const double q = y[e * R + r] / (atol + rtol * (a > b ? a : b));
          result[r] += q * q;
        }
      EACH_LANE result[r] = std::sqrt(result[r] / D);
    };
    estimate(E, error);
    if (TWO_ESTIMATES) {
      estimate(E2, second);
      EACH_LANE {
        const double fine = error[r], part = second[r] / 10;
        error[r] = fine == 0 ? fine : fine * (fine / std::sqrt(fine * fine + part * part));
      }
    }
    EACH_LANE {
      const bool fits = (error[r] <= 1) | ((now[r] <= h_min) & (error[r] < INFINITY));
      ok[r] = fits ? on[r] : 0.0, take[r] = T(ok[r]);
    }
    if (!note(ok, t_next, size)) return FULL;
    EACH_LANE {
      const bool finite = error[r] < INFINITY;
      const double level = log_(std::max(finite ? error[r] : 1.0, LEAST));
      const double grow = SAFETY * exp_(-BETA1 * level - BETA2 * e1[r] - BETA3 * e2[r]);
      const double grown = length[r] * std::min(GROW, std::max(LEAST_FACTOR, grow));
      const double again = SAFETY * exp_(level * (-1.0 / ORDER_OF_ERROR));
      const double retried = length[r] * (finite ? std::min(1.0, std::max(SHRINK, again)) : SHRINK);
      const double landed = lands[r] != 0 ? std::max(now[r], grown) : grown;
      const bool taken = ok[r] != 0, here = on[r] != 0;
      h[r] = here ? (taken ? landed : retried) : h[r];
      e2[r] = taken ? e1[r] : e2[r], e1[r] = taken ? std::max(level, LEVEL) : e1[r];
      bad[r] = finite ? 0 : bad[r] + on[r];
      tries[r] += on[r], accepted[r] += ok[r], forced[r] += taken & (error[r] > 1) ? 1.0 : 0.0;
      spare[r] = taken & (sign[r] * t_next[r] >= due[r]) ? 1.0 : 0.0;
      second[r] = taken & (t_next[r] != end[r]) ? 1.0 : 0.0;
    }
    if (total(spare) != 0)
      for (long r = 0; r < R; r++)
        if (spare[r] != 0) outputs(r, t_next, size);
    EACH_LANE t[r] = ok[r] != 0 ? t_next[r] : t[r];
    for (long v = 0; v < D * NV; v++) at(x, v) = at(take, v % NV) != 0 ? at(to, v) : at(x, v);
    if (FSAL) {
      const T* ending = k + (S - 1) * BLOCK;
      for (long v = 0; v < D * NV; v++) at(k, v) = at(take, v % NV) != 0 ? at(ending, v) : at(k, v);
    } else if (total(second) != 0) {
      begin_steps(take);
    }
    land();
    return STEPPED;
  }
};
