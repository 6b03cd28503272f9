// Numbers in lanes: every quantity of F is kept as [element][lane], one lane for a sample, so that all arithmetic goes
// over R samples at once, whatever their size. T, R and the register's width in bytes, WIDTH, are defined before.
typedef T V __attribute__((vector_size(WIDTH), aligned(WIDTH)));
typedef T U __attribute__((vector_size(WIDTH), aligned(alignof(T)), may_alias));  // at any address
constexpr long LANES = WIDTH / sizeof(T), NV = R / LANES;
static_assert(R % LANES == 0, "R is a multiple of a register's lanes");

static inline const V& at(const T* p, long v) { return reinterpret_cast<const V*>(p)[v]; }
static inline V& at(T* p, long v) { return reinterpret_cast<V*>(p)[v]; }

// ---- products -------------------------------------------------------------------------------------------------------
// out[j] = start[j] + sum_k a[k * ak] * b[k * bk + j * bj] for N columns j, with the lanes of a.
template <long N, long K>
static inline void columns(const T* __restrict a, long ak, const T* __restrict b, long bk, long bj,
                           const T* __restrict start, long sj, T* __restrict out, long oj) {
  V sum[N][NV];
  for (long n = 0; n < N; n++)
    for (long v = 0; v < NV; v++) sum[n][v] = V{};
  for (long k = 0; k < K; k++) {
    V w[N];
    for (long n = 0; n < N; n++) w[n] = b[k * bk + n * bj] - V{};
    for (long v = 0; v < NV; v++) {
      const V x = at(a + k * ak * R, v);
      for (long n = 0; n < N; n++) sum[n][v] += x * w[n];
    }
  }
  for (long n = 0; n < N; n++)
    for (long v = 0; v < NV; v++) at(out + n * oj * R, v) = start ? sum[n][v] + start[n * sj] : sum[n][v];
}

template <long K, long J>
static inline void product(const T* a, long ak, const T* b, long bk, long bj, const T* start, long sj, T* out, long oj) {
  constexpr long N = NV >= 4 ? 3 : NV == 3 ? 4 : NV == 2 ? 6 : 8;
  long j = 0;
  for (; j + N <= J; j += N)
    columns<N, K>(a, ak, b + j * bj, bk, bj, start ? start + j * sj : nullptr, sj, out + j * oj * R, oj);
  for (; j < J; j++)
    columns<1, K>(a, ak, b + j * bj, bk, bj, start ? start + j * sj : nullptr, sj, out + j * oj * R, oj);
}

// sum[i * J + j] += sum over lanes of s[i * si] * l[j * lj], for I x J elements.
template <long N, long M, long J>
static inline void tile(const T* __restrict s, long si, const T* __restrict turned, T* __restrict sum) {
  V part[N][M];
  for (long n = 0; n < N; n++)
    for (long m = 0; m < M; m++) part[n][m] = V(*reinterpret_cast<const U*>(sum + n * J + m * LANES));
  for (long r = 0; r < R; r++) {
    V x[M];
    for (long m = 0; m < M; m++) x[m] = V(*reinterpret_cast<const U*>(turned + r * J + m * LANES));
    for (long n = 0; n < N; n++)
      for (long m = 0; m < M; m++) part[n][m] += x[m] * s[n * si * R + r];
  }
  for (long n = 0; n < N; n++)
    for (long m = 0; m < M; m++) *reinterpret_cast<U*>(sum + n * J + m * LANES) = U(part[n][m]);
}

template <long N, long J>
static inline void rows(const T* __restrict s, long si, const T* __restrict turned, T* __restrict sum) {
  long j = 0;
  for (; j + 2 * LANES <= J; j += 2 * LANES) tile<N, 2, J>(s, si, turned + j, sum + j);
  for (; j + LANES <= J; j += LANES) tile<N, 1, J>(s, si, turned + j, sum + j);
  for (; j < J; j++)
    for (long n = 0; n < N; n++) {
      T part = 0;
      for (long r = 0; r < R; r++) part += s[n * si * R + r] * turned[r * J + j];
      sum[n * J + j] += part;
    }
}

template <long I, long J>
static inline void outer(const T* s, long si, const T* l, long lj, T* sum) {
  alignas(64) T turned[R * J];
  for (long j = 0; j < J; j++)
    for (long r = 0; r < R; r++) turned[r * J + j] = l[j * lj * R + r];
  long i = 0;
  for (; i + 6 <= I; i += 6) rows<6, J>(s + i * si * R, si, turned, sum + i * J);
  for (; i + 2 <= I; i += 2) rows<2, J>(s + i * si * R, si, turned, sum + i * J);
  for (; i < I; i++) rows<1, J>(s + i * si * R, si, turned, sum + i * J);
}
