// Samples in lanes on their way: what each lane knows of its sample, and what it leaves when it gives it up.
constexpr long KEPT = KEPT_SIZE * R + 64;
constexpr long OWN = ((L + 3) * BLOCK + KEPT + ROWS_SIZE * R + 16 * 16) / 16 * 16;

struct Walkers {
  Samples* c;
  Log& log;
  const T* s;
  Inputs inputs;
  Shown shown;
  T *x, *to, *y, *k, *w;
  long sample[R], segment[R], last[R], number[R], active = 0, padded = 0;
  bool finished = false;
  alignas(64) double t[R], h[R], e1[R], e2[R], bad[R], tries[R], accepted[R], forced[R];
  alignas(64) double end[R], sign[R], resolution[R], due[R], on[R], done[R];

  Walkers(Samples* c, Log& log, const T* s, T* p)
      : c(c), log(log), s(s), inputs(c, p), shown(c), x(next(p, BLOCK)), to(next(p, BLOCK)), y(next(p, BLOCK)),
        k(next(p, L * BLOCK)), w(next(p, KEPT)) {}
  ~Walkers() { log.padded.fetch_add(padded); }

  double& of(long field, long n) { return c->at[field * c->batch + n]; }
  void field(const T* time, const T* state, T* slope) {
    forward(inputs.given.data(), s, nullptr, time, state, w, slope);
    padded += R;
  }

  void fill(long r, long n) {
    sample[r] = n, on[r] = 1, active++;
    t[r] = of(TIME, n), h[r] = of(SIZE, n), e1[r] = of(ERROR, n), e2[r] = of(ERROR_BEFORE, n), bad[r] = of(BAD, n);
    tries[r] = of(TRIES, n), accepted[r] = of(ACCEPTED, n), forced[r] = of(FORCED, n);
    last[r] = long(of(LAST, n)), number[r] = long(of(UPCOMING, n)), segment[r] = long(of(SEGMENT, n));
    sign[r] = c->end[n] < c->begin[n] ? -1 : 1;
    resolution[r] = 16 * std::numeric_limits<double>::epsilon() * std::max(std::fabs(c->begin[n]), std::fabs(c->end[n]));
    enter(r), look(r);
    put(c->x + n * D, D, r, x), put(c->slope + n * D, D, r, k);
    inputs.fill(r, n);
  }
  void enter(long r) {  // a segment of the way
    const long place = sample[r] * c->segments + segment[r];
    end[r] = c->landings[place];
    shown.enter(r, place);
  }
  void evict(long r) {
    const long n = sample[r];
    of(TIME, n) = t[r], of(SIZE, n) = h[r], of(ERROR, n) = e1[r], of(ERROR_BEFORE, n) = e2[r], of(BAD, n) = bad[r];
    of(TRIES, n) = tries[r], of(ACCEPTED, n) = accepted[r], of(FORCED, n) = forced[r];
    of(LAST, n) = double(last[r]), of(UPCOMING, n) = double(number[r]), of(SEGMENT, n) = double(segment[r]);
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
  double upcoming(long r) const { return c->times[number[r] * c->batch + sample[r]]; }
  // The states at times of the answer in an accepted step, by the slopes in k where they are not its end.
  void outputs(long r, const double* t_next, const double* size) {
    for (; due[r] <= sign[r] * t_next[r]; number[r]++, look(r)) {
      T* out = c->at_times + (number[r] * c->batch + sample[r]) * D;
      const double time = upcoming(r);
      if (time == t_next[r]) {
        get(to, D, r, out);
        continue;
      }
      double weights[L];
      dense((time - t[r]) / size[r], weights);
      for (long e = 0; e < D; e++) {
        T sum = 0;
        for (long j = 0; j < SLOPES; j++) sum += k[j * BLOCK + e * R + r] * T(weights[j]);
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
      if (c->keep || !FSAL || c->outputs || c->segments > 1) c->tried[n] = long(tries[r]) + 1, c->ends[n] = t_next[r];
      if (c->segments > 1) c->segment[n] = segment[r];
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
};
