// The walk over depth, for samples that do not see each other: a block of R samples at a time, each block on its own
// from one decision about a step to the next. D: elements of a sample; S, USED, A, B, C, E, E2, DENSE: the method;
// prepare, forward, backward, finish: F. What the steps do is what odenet.solvers.loop does.
struct Walk {
  double sign, rtol, atol, h_min, h_max, resolution, max_steps;
  double begin, t1, begin_shown, t1_shown;  // the piece of depth, and the times that F is shown at its ends
  double n, t, h, e1, e2, tries, forced, bad;
  int64_t batch, threads, capacity, keep, fresh, first, count, outputs;
  const T* const* inputs;
  const double* landing;  // the next time at which a step has to end; the last one is t1
  const T *x0;
  T *x1;
  double *ts, *hs;
  T *xs;
  const double *times;
  T *at_times;
  T *work;
  T *const *gradients;
};

constexpr long BLOCK = D * R;
static inline long blocks_of(const Walk* c) { return (c->batch + R - 1) / R; }
static inline T* next(T*& p, long n) { T* here = p; p += (n + 15) / 16 * 16; return here; }

// n numbers of each sample of a block
static void load(const T* from, long n, const Walk* c, long block, T* to, bool padded) {
  for (long r = 0; r < R; r++) {
    const long row = block * R + r, last = std::min<long>(row, c->batch - 1);
    for (long e = 0; e < n; e++) to[e * R + r] = padded || row == last ? from[last * n + e] : T(0);
  }
}
static void store(const T* from, long n, const Walk* c, long block, T* to) {
  for (long r = 0; r < R && block * R + r < c->batch; r++)
    for (long e = 0; e < n; e++) to[(block * R + r) * n + e] = from[e * R + r];
}

// The inputs of F as each block sees them: those with a row for each sample lie in lanes.
struct Inputs {
  const T* const* shared;
  std::vector<const T*> own;
  Inputs(const Walk* c, T*& p) : shared(c->inputs) {
    if (!ROWS_SIZE) return;
    const long blocks = blocks_of(c);
    for (long b = 0; b < blocks; b++)
      for (long i = 0; i < INPUTS; i++) {
        own.push_back(ROWS[i] ? p : c->inputs[i]);
        if (ROWS[i]) load(c->inputs[i], ROWS[i], c, b, next(p, ROWS[i] * R), true);
      }
  }
  const T* const* of(long block) const { return ROWS_SIZE ? own.data() + block * INPUTS : shared; }
  static long size(long blocks) { return blocks * (ROWS_SIZE * R + INPUTS * 16); }
};
// What F makes of the time alone, for each stage of a step: made anew where the time is another than it was.
struct Moments {
  static constexpr long SLOT = MOMENT_SIZE ? MOMENT_SIZE + 16 : 0, SIZE = L * SLOT;
  T* at;
  void forget() {
    for (long i = 0; i < L && MOMENT_SIZE; i++) at[i * SLOT + MOMENT_SIZE] = std::numeric_limits<T>::quiet_NaN();
  }
  const T* of(long stage, const T* const* inputs, const T* s, const T* time) const {
    T *m = at + stage * SLOT;
    if (MOMENT_SIZE && m[MOMENT_SIZE] != time[0]) moment(inputs, s, time, m), m[MOMENT_SIZE] = time[0];
    return m;
  }
};
static inline void field(const T* const* inputs, const T* s, Moments m, long stage, double t, const T* x, T* w, T* k) {
  alignas(64) T time[R];
  for (long r = 0; r < R; r++) time[r] = T(t);
  forward(inputs, s, m.of(stage, inputs, s, time), time, x, w, k);
}
static inline double shown(const Walk* c, double t) { return t == c->begin ? c->begin_shown : t == c->t1 ? c->t1_shown : t; }
static inline double time_of(const Walk* c, long i, double t, double t_next, double h) {
  return shown(c, i == 0 ? t : C[i] == 1 ? t_next : t + C[i] * h);
}

// y = (x) + h sum_j weights[j] k_j over the first n stages
static inline void combine(const T* x, T h, const double* weights, long n, const T* k, T* y) {
  for (long v = 0; v < D * NV; v++) {
    V sum = V{};
    bool begun = false;
    for (long j = 0; j < n; j++)
      if (weights[j] != 0) {
        const V term = at(k + j * BLOCK, v) * T(weights[j]);
        sum = begun ? sum + term : term;
        begun = true;
      }
    at(y, v) = x ? at(x, v) + h * sum : h * sum;
  }
}
template <long N>
static inline void stages(const Walk* c, const T* const* inputs, const T* s, Moments m, double t, double t_next, double h,
                          const T* x, T* y, T* w, T* k) {
#pragma GCC unroll 16
  for (long i = 1; i < N; i++) {
    combine(x, T(h), A[i], i, k, y);
    field(inputs, s, m, i, time_of(c, i, t, t_next, h), y, w, k + i * BLOCK);
  }
}
static inline double squares(const T* e, const Walk* c, long block) {
  const long lanes = std::min<long>(R, c->batch - block * R);
  double sum = 0;
  for (long i = 0; i < D; i++)
    for (long r = 0; r < lanes; r++) sum += double(e[i * R + r]) * double(e[i * R + r]);
  return sum;
}

#ifdef FORWARD
struct Areas {
  T *p, *s, *x, *next_x, *k, *y, *w, *moments;
  Inputs inputs;
  Areas(const Walk* c) : p(c->work), s(next(p, SHARED_SIZE)), inputs(c, p) {
    const long blocks = blocks_of(c);
    x = next(p, blocks * BLOCK), next_x = next(p, blocks * BLOCK), k = next(p, blocks * S * BLOCK);
    y = next(p, c->threads * BLOCK), w = next(p, c->threads * (KEPT_SIZE * R + 64));
    moments = next(p, c->threads * Moments::SIZE);
    for (long i = 0; i < c->threads; i++) at(i).forget();
  }
  Moments at(long thread) const { return {moments + thread * Moments::SIZE}; }
  T* own(long thread) const { return w + thread * (KEPT_SIZE * R + 64); }
};
extern "C" int64_t work_size(int64_t batch, int64_t threads) {
  const long blocks = (batch + R - 1) / R;
  return SHARED_SIZE + Inputs::size(blocks) + blocks * BLOCK * (S + 2) + threads * (BLOCK + KEPT_SIZE * R + 64 + Moments::SIZE) + 128;
}

template <class Body> static void each_block(const Walk* c, Body body) {
  const long blocks = blocks_of(c);
  if (c->threads <= 1) {
    for (long b = 0; b < blocks; b++) body(b, 0);
    return;
  }
#pragma omp parallel for num_threads(c->threads) schedule(static)
  for (long b = 0; b < blocks; b++) body(b, omp_get_thread_num());
}

extern "C" void walk_fixed(Walk* c) {
  Areas m(c);
  prepare(c->inputs, m.s);
  const long blocks = blocks_of(c);
  auto step = [&](long n, long b, long thread) {
    T *x = m.x + b * BLOCK, *k = m.k + b * S * BLOCK, *y = m.y + thread * BLOCK, *w = m.own(thread);
    const double t = c->ts[n], t_next = c->ts[n + 1], h = c->hs[n];
    if (n == c->first) load(c->x0, D, c, b, x, true);
    if (c->keep) std::memcpy(c->xs + (n * blocks + b) * BLOCK, x, BLOCK * sizeof(T));
    field(m.inputs.of(b), m.s, m.at(thread), 0, shown(c, t), x, w, k);
    stages<USED>(c, m.inputs.of(b), m.s, m.at(thread), t, t_next, h, x, y, w, k);
    combine(x, T(h), B, USED, k, x);
    if (n == c->count - 1) store(x, D, c, b, c->x1);
  };
  if (MOMENT_SIZE) {  // step by step, so that blocks share what is of the time alone
    for (long n = c->first; n < c->count; n++) each_block(c, [&](long b, long thread) { step(n, b, thread); });
  } else {
    each_block(c, [&](long b, long thread) {
      for (long n = c->first; n < c->count; n++) step(n, b, thread);
    });
  }
}

#ifdef ADAPTIVE
static double first_size(const Walk* c, const Areas& m, double numel) {
  const long blocks = blocks_of(c);
  std::vector<double> d0(blocks), d1(blocks), d2(blocks);
  auto weighted = [&](const T* x, const T* value, const T* less, long b) {
    const long lanes = std::min<long>(R, c->batch - b * R);
    double sum = 0;
    for (long i = 0; i < D; i++)
      for (long r = 0; r < lanes; r++) {
        const T weight = T(c->atol + c->rtol * std::fabs(double(x[i * R + r])));
        const double q = (value[i * R + r] - (less ? less[i * R + r] : T(0))) / weight;
        sum += q * q;
      }
    return sum;
  };
  auto total = [&](const std::vector<double>& parts) {
    double sum = 0;
    for (double part : parts) sum += part;
    return std::sqrt(sum / numel);
  };
  each_block(c, [&](long b, long) {
    const T *x = m.x + b * BLOCK, *k = m.k + b * S * BLOCK;
    d0[b] = weighted(x, x, nullptr, b), d1[b] = weighted(x, k, nullptr, b);
  });
  const double a = total(d0), e = total(d1), length = std::fabs(c->t1 - c->t);
  double h0 = a < 1e-5 || e < 1e-5 ? 1e-6 : 0.01 * a / e;
  h0 = std::min(h0, length);
  const double signed_h = c->sign * h0, probe = h0 == length ? c->t1 : c->t + signed_h;
  each_block(c, [&](long b, long thread) {
    const T *x = m.x + b * BLOCK, *k = m.k + b * S * BLOCK;
    T *y = m.y + thread * BLOCK, *slope = m.next_x + b * BLOCK;
    for (long i = 0; i < BLOCK; i++) y[i] = x[i] + k[i] * T(signed_h);
    field(m.inputs.of(b), m.s, m.at(thread), 0, shown(c, probe), y, m.own(thread), slope);
    d2[b] = weighted(x, slope, k, b);
  });
  const double change = total(d2) / h0, largest = std::max(e, change);
  if (!std::isfinite(change)) return h0;
  const double h1 = largest <= 1e-15 ? std::max(h0 * 1e-3, 1e-6) : std::pow(0.01 / largest, 1.0 / (ORDER + 1));
  return std::min(std::min(100 * h0, h1), length);
}

static void outputs(const Walk* c, long b, double t, double t_next, double h, const T* x, const T* next_x, const T* k, T* y) {
  for (long j = 0; j < c->outputs; j++) {
    const double at_time = c->times[j];
    if (!(c->sign * (at_time - t) > 0 && c->sign * (at_time - t_next) <= 0)) continue;
    T* to = c->at_times + j * c->batch * D;
    if (at_time == t_next) {
      store(next_x, D, c, b, to);
      continue;
    }
    double weights[L];
    dense((at_time - t) / h, weights);
    combine(x, T(h), weights, S, k, y);
    store(y, D, c, b, to);
  }
}

extern "C" void walk_adaptive(Walk* c) {
  Areas m(c);
  const long blocks = blocks_of(c);
  const double numel = double(c->batch) * D;
  std::vector<double> fine(blocks), coarse(blocks);
  if (c->fresh) {
    prepare(c->inputs, m.s);
    each_block(c, [&](long b, long thread) {
      T *x = m.x + b * BLOCK, *k = m.k + b * S * BLOCK;
      load(c->x0, D, c, b, x, true);
      field(m.inputs.of(b), m.s, m.at(thread), 0, shown(c, c->t), x, m.own(thread), k);
      fine[b] = squares(x, c, b) + squares(k, c, b);
    });
    for (double part : fine)
      if (!std::isfinite(part)) c->bad = 1e3;
    if (!(c->h > 0)) c->h = first_size(c, m, numel);
  }
  while (c->t != c->t1 && c->n < c->capacity && c->bad <= RETRIES && c->tries < c->max_steps) {
    const double t = c->t, end = *c->landing, left = std::fabs(end - t), h = std::min(std::max(c->h, c->h_min), c->h_max);
    if (!(std::min(h, left) > c->resolution)) break;
    const bool lands = h >= left || (h * STRETCH >= left && left <= c->h_max + c->resolution);
    const double t_next = lands ? end : t + c->sign * h, size = t_next - t;
    each_block(c, [&](long b, long thread) {
      T *x = m.x + b * BLOCK, *to = m.next_x + b * BLOCK, *k = m.k + b * S * BLOCK, *y = m.y + thread * BLOCK;
      if (FSAL) {
        stages<S - 1>(c, m.inputs.of(b), m.s, m.at(thread), t, t_next, size, x, y, m.own(thread), k);
        combine(x, T(size), A[S - 1], S - 1, k, to);
        field(m.inputs.of(b), m.s, m.at(thread), S - 1, shown(c, t_next), to, m.own(thread), k + (S - 1) * BLOCK);
      } else {
        stages<S>(c, m.inputs.of(b), m.s, m.at(thread), t, t_next, size, x, y, m.own(thread), k);
        combine(x, T(size), B, S, k, to);
      }
      auto estimate = [&](const double* weights) {
        combine(nullptr, T(size), weights, S, k, y);
        for (long i = 0; i < BLOCK; i++)
          y[i] /= T(c->atol) + T(c->rtol) * std::max(std::fabs(x[i]), std::fabs(to[i]));
        return squares(y, c, b);
      };
      fine[b] = estimate(E);
      if (TWO_ESTIMATES) coarse[b] = estimate(E2);
    });
    double error = 0, second = 0;
    for (long b = 0; b < blocks; b++) error += fine[b], second += coarse[b];
    error = std::sqrt(error / numel);
    if (TWO_ESTIMATES && error != 0) error = error * (error / std::hypot(error, std::sqrt(second / numel) / 10));
    const bool finite = std::isfinite(error), ok = finite && (error <= 1 || h <= c->h_min);
    const double length = std::fabs(size);
    c->tries += 1;
    c->bad = finite ? 0 : c->bad + 1;
    if (!ok) {
      c->h = length * (finite ? std::min(1.0, std::max(SHRINK, SAFETY * std::pow(error, -1.0 / ORDER_OF_ERROR))) : SHRINK);
      continue;
    }
    double factor = SAFETY * std::pow(std::max(error, LEAST), -BETA1);
    if (BETA2 != 0) factor *= std::pow(c->e1, -BETA2);
    if (BETA3 != 0) factor *= std::pow(c->e2, -BETA3);
    const double grown = length * std::min(GROW, std::max(LEAST_FACTOR, factor));
    const long n = long(c->n);
    c->ts[n] = t, c->hs[n] = size;
    each_block(c, [&](long b, long thread) {
      T *x = m.x + b * BLOCK, *to = m.next_x + b * BLOCK, *k = m.k + b * S * BLOCK;
      if (c->keep) std::memcpy(c->xs + (n * blocks + b) * BLOCK, x, BLOCK * sizeof(T));
      if (c->outputs) outputs(c, b, t, t_next, size, x, to, k, m.y + thread * BLOCK);
      std::memcpy(x, to, BLOCK * sizeof(T));
      if (FSAL) std::memcpy(k, k + (S - 1) * BLOCK, BLOCK * sizeof(T));
      else if (t_next != c->t1) field(m.inputs.of(b), m.s, m.at(thread), 0, t_next, x, m.own(thread), k);
    });
    c->h = lands ? std::max(h, grown) : grown;
    c->e2 = c->e1, c->e1 = std::max(error, LEAST_ERROR);
    if (t_next == end && end != c->t1) c->landing++;
    c->t = t_next, c->n += 1, c->forced += error > 1;
  }
  each_block(c, [&](long b, long) { store(m.x + b * BLOCK, D, c, b, c->x1); });
}
#endif
#endif
