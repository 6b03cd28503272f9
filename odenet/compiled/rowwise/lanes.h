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

// The times that F is shown, which at an end of a piece of depth where F jumps is the next one inside.
struct Shown {
  const Samples* c;
  alignas(64) double first[R] = {}, after[R] = {}, last[R] = {}, before[R] = {};
  explicit Shown(const Samples* c) : c(c) {}
  void enter(long r, long place) {  // place: of a segment of a sample's way in the tables
    if (!c->shown) return;
    const long n = c->batch * c->segments;
    first[r] = c->shown[place], after[r] = c->shown[n + place];
    last[r] = c->shown[2 * n + place], before[r] = c->shown[3 * n + place];
  }
  void operator()(const double* t, T* time) const {
    if (!c->shown) {
      EACH_LANE time[r] = T(t[r]);
      return;
    }
    EACH_LANE time[r] = T(t[r] == first[r] ? after[r] : t[r] == last[r] ? before[r] : t[r]);
  }
  // of stage i of the steps from t to t_next
  void operator()(long i, const double* t, const double* t_next, const double* h, T* time) const {
    alignas(64) double at[R];
    EACH_LANE at[r] = C[i] == 1 ? t_next[r] : t[r] + C[i] * h[r];
    (*this)(at, time);
  }
};

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
