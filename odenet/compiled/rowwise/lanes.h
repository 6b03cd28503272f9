// Steps in lanes, each of a sample of its own: t, h, acceptance, controller and end are those of its sample, whose place
// another one takes when it is done. What a lane does is what odenet.solvers.per_sample does with a row, and does not
// depend on the other lanes. A lane without a sample takes steps of length zero from a state that some sample had.
#define EACH_LANE _Pragma("omp simd") for (long r = 0; r < R; r++)
constexpr long BLOCK = D * R;
enum Outcome { STEPPED, FULL, FAILED };

static inline void put(const T* from, long count, long r, T* lanes) {
  for (long e = 0; e < count; e++) lanes[e * R + r] = from[e];
}
static inline void get(const T* lanes, long count, long r, T* to) {
  for (long e = 0; e < count; e++) to[e] = lanes[e * R + r];
}
// y = (x) + h sum_j weights[j] k_j over the first n stages
static inline void combine(const T* x, const T* h, const double* weights, long n, const T* k, T* y) {
  for (long v = 0; v < D * NV; v++) {
    V sum = V{};
    bool begun = false;
    for (long j = 0; j < n; j++)
      if (weights[j] != 0) {
        const V term = at(k + j * BLOCK, v) * T(weights[j]);
        sum = begun ? sum + term : term;
        begun = true;
      }
    const V step = at(h, v % NV);
    at(y, v) = x ? at(x, v) + step * sum : step * sum;
  }
}
static inline void moments(long i, const double* t, const double* t_next, const double* h, T* time) {
  EACH_LANE time[r] = C[i] == 1 ? T(t_next[r]) : T(t[r] + C[i] * h[r]);
}

// The inputs of F as a block of lanes sees them: those with a row a sample lie in lanes.
struct Inputs {
  std::vector<const T*> given;
  T* rows;
  const Samples* c;
  Inputs(const Samples* c, T*& p) : given(c->given, c->given + c->inputs), rows(next(p, ROWS_SIZE * R)), c(c) {
    T* q = rows;
    for (long i = 0; i < INPUTS; i++)
      if (ROWS[i]) given[i] = q, q += ROWS[i] * R;
  }
  void fill(long r, long sample) {
    T* q = rows;
    for (long i = 0; i < INPUTS; i++)
      if (ROWS[i]) put(c->given[i] + sample * ROWS[i], ROWS[i], r, q), q += ROWS[i] * R;
  }
  void copy(long from, long to) {
    for (long e = 0; e < ROWS_SIZE; e++) rows[e * R + to] = rows[e * R + from];
  }
};

#ifdef FORWARD
constexpr long KEPT = KEPT_SIZE * R + 64;
constexpr long OWN = ((S + 3) * BLOCK + KEPT + ROWS_SIZE * R + 16 * 16) / 16 * 16;

struct Lanes {
  Samples* c;
  Log& log;
  const T* s;
  Inputs inputs;
  T *x, *to, *y, *k, *w;
  long sample[R], last[R], number[R], active = 0, padded = 0;
  bool finished = false;
  alignas(64) double t[R], h[R], e1[R], e2[R], bad[R], tries[R], accepted[R], forced[R];
  alignas(64) double end[R], sign[R], resolution[R], due[R], on[R], done[R];

  Lanes(Samples* c, Log& log, const T* s, T* p)
      : c(c), log(log), s(s), inputs(c, p), x(next(p, BLOCK)), to(next(p, BLOCK)), y(next(p, BLOCK)),
        k(next(p, S * BLOCK)), w(next(p, KEPT)) {}
  ~Lanes() { log.padded.fetch_add(padded); }

  double& of(long field, long n) { return c->at[field * c->batch + n]; }
  void field(const T* time, const T* state, T* slope) {
    forward(inputs.given.data(), s, time, state, w, slope);
    padded += R;
  }

  // ---- lanes and their samples ---------------------------------------------------------------------------------------
  void fill(long r, long n) {
    sample[r] = n, on[r] = 1, active++;
    t[r] = of(TIME, n), h[r] = of(SIZE, n), e1[r] = of(ERROR, n), e2[r] = of(ERROR_BEFORE, n), bad[r] = of(BAD, n);
    tries[r] = of(TRIES, n), accepted[r] = of(ACCEPTED, n), forced[r] = of(FORCED, n);
    last[r] = long(of(LAST, n)), number[r] = long(of(UPCOMING, n));
    end[r] = c->end[n], sign[r] = c->end[n] < c->begin[n] ? -1 : 1;
    resolution[r] = 16 * std::numeric_limits<double>::epsilon() * std::max(std::fabs(c->begin[n]), std::fabs(c->end[n]));
    look(r);
    put(c->x + n * D, D, r, x), put(c->slope + n * D, D, r, k);
    inputs.fill(r, n);
  }
  void evict(long r) {
    const long n = sample[r];
    of(TIME, n) = t[r], of(SIZE, n) = h[r], of(ERROR, n) = e1[r], of(ERROR_BEFORE, n) = e2[r], of(BAD, n) = bad[r];
    of(TRIES, n) = tries[r], of(ACCEPTED, n) = accepted[r], of(FORCED, n) = forced[r];
    of(LAST, n) = double(last[r]), of(UPCOMING, n) = double(number[r]);
    get(x, D, r, c->x + n * D), get(k, D, r, c->slope + n * D);
    sample[r] = -1, on[r] = 0, end[r] = t[r], due[r] = INFINITY, active--;
  }
  void blank(long r, long like) {  // of lanes that never had a sample
    sample[r] = -1, on[r] = 0, t[r] = end[r] = t[like], h[r] = 1, sign[r] = 1, resolution[r] = 0, due[r] = INFINITY;
    e1[r] = e2[r] = bad[r] = tries[r] = accepted[r] = forced[r] = 0;
    for (long e = 0; e < D; e++) x[e * R + r] = x[e * R + like], k[e * R + r] = k[e * R + like];
    inputs.copy(like, r);
  }
  void look(long r) {  // where the next time of the answer is, in the direction of the walk
    const long j = number[r];
    due[r] = j < c->outputs ? sign[r] * c->times[j * c->batch + sample[r]] : INFINITY;
  }
  void outputs(long r, const double* t_next, const double* size) {
    for (; due[r] <= sign[r] * t_next[r]; number[r]++, look(r)) {
      T* out = c->at_times + (number[r] * c->batch + sample[r]) * D;
      const double time = c->times[number[r] * c->batch + sample[r]];
      if (time == t_next[r]) {
        get(to, D, r, out);
        continue;
      }
      double weights[S];
      dense((time - t[r]) / size[r], weights);
      for (long e = 0; e < D; e++) {
        T sum = 0;
        for (long j = 0; j < S; j++) sum += k[j * BLOCK + e * R + r] * T(weights[j]);
        out[e] = x[e * R + r] + T(size[r]) * sum;
      }
    }
  }
  // The accepted steps get their places; false if there is no room.
  bool note(const double* ok, const double* t_next, const double* size) {
    long count = 0;
    for (long r = 0; r < R; r++) count += ok[r] != 0;
    if (!count) return true;
    long n = log.take(count);
    if (n < 0) return false;
    for (long r = 0; r < R; r++) {
      if (ok[r] == 0) continue;
      c->whose[n] = sample[r], c->sizes[n] = size[r];
      if (c->keep || !FSAL) c->tried[n] = long(tries[r]) + 1, c->ends[n] = t_next[r];
      if (c->keep) c->before[n] = last[r], c->ts[n] = t[r], get(x, D, r, c->xs + n * D);
      last[r] = c->base + n++;
    }
    return true;
  }
  static double total(const double* x) {
    double sum = 0;
    for (long r = 0; r < R; r++) sum += x[r];
    return sum;
  }
  void land() {
    EACH_LANE done[r] = t[r] == end[r] ? on[r] : 0.0;
    finished = total(done) != 0;
  }

#ifdef ADAPTIVE
  // ---- the first steps of some samples --------------------------------------------------------------------------------
  bool begin(const int64_t* order, long count) {
    alignas(64) double sum[R], d0[R], d1[R], h0[R], size[R], probe[R], length[R];
    alignas(64) T time[R], step[R];
    for (long r = 0; r < R; r++) {
      const long n = order[std::min(r, count - 1)];
      put(c->x + n * D, D, r, x);
      inputs.fill(r, n);
      t[r] = c->begin[n], end[r] = c->end[n], sign[r] = end[r] < t[r] ? -1 : 1, time[r] = T(t[r]);
    }
    field(time, x, k);
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
      time[r] = T(probe[r]), step[r] = T(size[r]), h[r] = c->first_step;
    }
    if (!(c->first_step > 0)) {
      for (long v = 0; v < D * NV; v++) at(y, v) = at(x, v) + at(k, v) * at(step, v % NV);
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

  // ---- one try of every lane ------------------------------------------------------------------------------------------
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
      moments(i, t, t_next, size, time);
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
      EACH_LANE time[r] = T(t[r]);
      field(time, x, y);
      for (long v = 0; v < D * NV; v++) at(k, v) = at(take, v % NV) != 0 ? at(y, v) : at(k, v);
    }
    land();
    return STEPPED;
  }
#else
  // ---- one given step of every lane -----------------------------------------------------------------------------------
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
    for (long r = 0; r < R; r++) time[r] = T(t[r]), step[r] = T(size[r]);
    field(time, x, k);
#pragma GCC unroll 16
    for (long i = 1; i < USED; i++) {
      combine(x, step, A[i], i, k, y);
      moments(i, t, t_next, size, time);
      field(time, y, k + i * BLOCK);
    }
    combine(x, step, B, USED, k, to);
    for (long r = 0; r < R; r++)
      if (on[r] != 0) tries[r] += 1, accepted[r] += 1, outputs(r, t_next, size);
    std::memcpy(x, to, BLOCK * sizeof(T));
    for (long r = 0; r < R; r++) t[r] = t_next[r];
    land();
    return STEPPED;
  }
#endif

  // Take samples from the queue until it is empty, or closed because a sample broke down or the record is full.
  void run(Queue& queue) {
    for (long r = 0; r < R; r++) {
      const long n = queue.take();
      if (n >= 0) fill(r, n);
      else if (active) blank(r, 0);
      else return;
    }
    while (active) {
      const Outcome outcome = step();
      if (outcome == FAILED) log.failed.store(true);
      if (outcome != STEPPED) queue.closed.store(true);
      if (queue.closed.load(std::memory_order_relaxed)) break;
      if (!finished) continue;
      for (long r = 0; r < R; r++) {
        if (done[r] == 0) continue;
        evict(r);
        const long n = queue.take();
        if (n >= 0) fill(r, n);
      }
    }
    for (long r = 0; r < R; r++)
      if (sample[r] >= 0) evict(r);
  }
};
#endif
