// Numbers in lanes: every quantity of F is kept as [element][lane], one lane for a sample, so that all arithmetic goes
// over R samples at once, whatever their size. T, R and the register's width in bytes, WIDTH, are defined before.
#include <cmath>
#include <cstring>
#include <cstdint>

#define NOINLINE __attribute__((noinline))
typedef T V __attribute__((vector_size(WIDTH), aligned(WIDTH)));
typedef T U __attribute__((vector_size(WIDTH), aligned(alignof(T)), may_alias));  // at any address
constexpr long LANES = WIDTH / sizeof(T), NV = R / LANES;
static_assert(R % LANES == 0, "R is a multiple of a register's lanes");

static inline const V& at(const T* p, long v) { return reinterpret_cast<const V*>(p)[v]; }
static inline V& at(T* p, long v) { return reinterpret_cast<V*>(p)[v]; }

// ---- functions ------------------------------------------------------------------------------------------------------
#if defined(__x86_64__) && defined(__GLIBC__)
#define SIMD _Pragma("omp declare simd notinbranch")
extern "C" {
SIMD float expf(float) noexcept;
SIMD double exp(double) noexcept;
SIMD float logf(float) noexcept;
SIMD double log(double) noexcept;
SIMD float sinf(float) noexcept;
SIMD double sin(double) noexcept;
SIMD float cosf(float) noexcept;
SIMD double cos(double) noexcept;
SIMD float powf(float, float) noexcept;
SIMD double pow(double, double) noexcept;
}
#endif
static inline float exp_(float x) { return ::expf(x); }
static inline double exp_(double x) { return ::exp(x); }
static inline float log_(float x) { return ::logf(x); }
static inline double log_(double x) { return ::log(x); }
static inline float sin_(float x) { return ::sinf(x); }
static inline double sin_(double x) { return ::sin(x); }
static inline float cos_(float x) { return ::cosf(x); }
static inline double cos_(double x) { return ::cos(x); }
static inline float pow_(float x, float y) { return ::powf(x, y); }
static inline double pow_(double x, double y) { return ::pow(x, y); }

// tanh of float32 as a quotient of polynomials of degree 13 and 6; its error is below 4 units in the last place.
static inline float tanh_(float x) {
  const float y = x < -7.90531110763549805f ? -7.90531110763549805f : (x > 7.90531110763549805f ? 7.90531110763549805f : x);
  const float s = y * y;
  float p = -2.76076847742355e-16f;
  p = p * s + 2.00018790482477e-13f;
  p = p * s - 8.60467152213735e-11f;
  p = p * s + 5.12229709037114e-08f;
  p = p * s + 1.48572235717979e-05f;
  p = p * s + 6.37261928875436e-04f;
  p = p * s + 4.89352455891786e-03f;
  float q = 1.19825839466702e-06f;
  q = q * s + 1.18534705686654e-04f;
  q = q * s + 2.26843463243900e-03f;
  q = q * s + 4.89352518554385e-03f;
  const float r = p * y / q;
  return x != x ? x : r;
}
static inline double tanh_(double x) {  // by exp, with a series where that would cancel
  const double a = x < 0 ? -x : x, s = x * x, e = exp_(-2 * a);
  const double far = (1 - e) / (1 + e);
  const double near = a * (1 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835
    + s * (-1382.0 / 155925 + s * (21844.0 / 6081075 + s * (-929569.0 / 638512875
    + s * (6404582.0 / 10854718875.0)))))))));
  const double r = a < 0.125 ? near : far;
  return x < 0 ? -r : r;
}
static inline T sigmoid_(T x) { return T(0.5) * tanh_(T(0.5) * x) + T(0.5); }

// ---- products -------------------------------------------------------------------------------------------------------
// out[j] = start[j] + sum_k a[k * ak] * b[k * bk + j * bj] for N columns j, with the lanes of a.
template <long N, long K>
static inline void columns(const T* __restrict a, long ak, const T* __restrict b, long bk, long bj,
                           const T* __restrict start, long sj, T* __restrict out, long oj) {
  V sum[N][NV];
  for (long n = 0; n < N; n++)
    for (long v = 0; v < NV; v++) sum[n][v] = (start ? start[n * sj] : T(0)) - V{};
  for (long k = 0; k < K; k++) {
    V w[N];
    for (long n = 0; n < N; n++) w[n] = b[k * bk + n * bj] - V{};
    for (long v = 0; v < NV; v++) {
      const V x = at(a + k * ak * R, v);
      for (long n = 0; n < N; n++) sum[n][v] += x * w[n];
    }
  }
  for (long n = 0; n < N; n++)
    for (long v = 0; v < NV; v++) at(out + n * oj * R, v) = sum[n][v];
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
