// What samples with their own steps share: where each is, and the record of accepted steps.
#include <atomic>
#include <numeric>

enum Field { TIME, SIZE, ERROR, ERROR_BEFORE, BAD, TRIES, ACCEPTED, FORCED, LAST, UPCOMING, SEGMENT };
enum Fresh { GOES_ON, BEGINS, RENEWED };  // from where a full record ended, at t0, on another piece of weights

struct Samples {
  double rtol, atol, h_min, h_max, max_steps, first_step;
  int64_t batch, moving, threads, inputs, outputs, fresh, keep, capacity, base, used, failed, padded, width,
      segments, first;
  const T* const* given;              // the inputs of F beside time and state; those with a row a sample as (batch, ...)
  const double *begin, *end;          // (batch,)
  const double* first_end;            // (batch,): end of the first piece of depth
  const double* landings;             // (batch, segments): ends of the segments of each way
  const uint8_t* anew;                // (batch, segments): whether a piece of depth begins with it
  const double* shown;                // (4, batch, segments): of its piece the first time and what F is shown there, the
                                      // last one and what it is shown there; or null
  const int64_t* until;               // (batch,): the segment after the last one of this piece of weights
  T *x, *slope;                       // (batch, D): where each sample is, and F there
  double* at;                         // (fields, batch)
  int64_t* order;                     // (moving,): samples as they are taken
  const double* times;                // (outputs, batch)
  T* at_times;                        // (outputs, batch, D)
  int64_t *whose, *before, *tried, *segment;  // (capacity,): of a step its sample, the step before or -1, which try it
                                              // was, and the segment
  double *ts, *ends, *sizes;          // (capacity,)
  T* xs;                              // (capacity, D): states at the starts of the steps
  const double *grid, *grid_size;     // (grids, width): ends of given steps; (grids,): their size, or null
  const int64_t* which;               // (batch,): grid of each sample
  T* work;
  T* a;                               // (batch, D): cotangent of x(t1), then of x(t0)
  const T* seeds;                     // (outputs, batch, D): cotangents of the states at the times
  uint8_t* inner;                     // (capacity,): becomes 1 for steps with such a time inside
  T* const* gradients;                // of the inputs that are wanted
};

static inline T* next(T*& p, long n) { T* here = p; p += (n + 15) / 16 * 16; return here; }

// Samples in the order in which lanes take them, by several threads at a time.
struct Queue {
  const int64_t* order;
  long count;
  std::atomic<long> taken{0};
  std::atomic<bool> closed{false};
  Queue(const int64_t* order, long count) : order(order), count(count) {}
  long take() {
    if (closed.load(std::memory_order_relaxed)) return -1;
    const long n = taken.fetch_add(1, std::memory_order_relaxed);
    return n < count ? order[n] : -1;
  }
};

// Places in the record of accepted steps.
struct Log {
  Samples* c;
  std::atomic<long> taken{0}, used, padded{0};
  std::atomic<bool> failed{false};
  explicit Log(Samples* c) : c(c), used(c->capacity) {}
  long take(long count) {  // -1 if there is no room
    const long first = taken.fetch_add(count, std::memory_order_relaxed);
    if (first + count <= c->capacity) return first;
    long least = used.load();
    while (first < least && !used.compare_exchange_weak(least, first)) {}
    return -1;
  }
  long count() const { return std::min(taken.load(), used.load()); }
};

template <class Body> static void on_threads(long threads, Body body) {
  if (threads <= 1) return body(0);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (long i = 0; i < threads; i++) body(i);
}
