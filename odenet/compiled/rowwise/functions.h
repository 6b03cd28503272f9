// What does not depend on how many samples go together: functions of numbers of type T.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include <omp.h>

#define NOINLINE __attribute__((noinline))

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
