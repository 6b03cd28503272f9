// The way back over recorded steps, a block of samples at a time.
constexpr long KEPT = KEPT_SIZE * R;
constexpr long OWN = (S * (3 * BLOCK + KEPT) + 3 * BLOCK + BACK_SIZE + SUMS_SIZE + Moments::SIZE + 256 + 15) / 16 * 16;
extern "C" int64_t work_size(int64_t batch, int64_t threads) {
  return SHARED_SIZE + LATE_SIZE + Inputs::size((batch + R - 1) / R) + threads * OWN + 128;
}

// a <- dL/dx0 from dL/dx1, c->x1 in and out; gradients of the inputs
extern "C" void walk_back(Walk* c) {
  T* p = c->work;
  T *s = next(p, SHARED_SIZE), *l = next(p, LATE_SIZE);
  const Inputs inputs(c, p);
  prepare(c->inputs, s);
  const long blocks = blocks_of(c), threads = c->threads;
  auto run = [&](long thread, long first, long last) {
    T* q = p + thread * OWN;
    T *g = next(q, SUMS_SIZE), *ys = next(q, S * BLOCK), *k = next(q, S * BLOCK), *back = next(q, S * BLOCK);
    T *a = next(q, BLOCK), *seed = next(q, BLOCK), *b = next(q, BACK_SIZE), *w = next(q, S * KEPT), *cot = next(q, BLOCK);
    Moments moments{next(q, Moments::SIZE)};
    moments.forget();
    std::memset(g, 0, SUMS_SIZE * sizeof(T));
    for (long block = first; block < last; block++) {
      const T* const* given = inputs.of(block);
      load(c->x1, D, c, block, a, false);
      for (long n = c->count - 1; n >= c->first; n--) {
        const double t = c->ts[n], t_next = c->ts[n + 1], h = c->hs[n];
        const T* x = c->xs + (n * blocks + block) * BLOCK;
        std::vector<long> inside;
        for (long j = 0; j < c->outputs; j++) {
          const double time = c->times[j];
          if (time == t_next) {
            load(c->at_times + j * c->batch * D, D, c, block, seed, false);
            for (long i = 0; i < BLOCK; i++) a[i] += seed[i];
          } else if ((time - t) * h > 0 && (time - t_next) * h < 0) {
            inside.push_back(j);
          }
        }
        const long used = inside.empty() ? USED : S;
        std::memcpy(ys, x, BLOCK * sizeof(T));
        field(given, s, moments, 0, shown(c, t), ys, w, k);
        for (long i = 1; i < used; i++) {
          combine(x, T(h), A[i], i, k, ys + i * BLOCK);
          field(given, s, moments, i, time_of(c, i, t, t_next, h), ys + i * BLOCK, w + i * KEPT, k + i * BLOCK);
        }
        // k now takes the cotangents of the stages
        for (long i = 0; i < used; i++)
          for (long v = 0; v < D * NV; v++) at(k + i * BLOCK, v) = T(h * (i < USED ? B[i] : 0)) * at(a, v);
        for (long j : inside) {
          double weights[L];
          dense((c->times[j] - t) / h, weights);
          load(c->at_times + j * c->batch * D, D, c, block, seed, false);
          for (long i = 0; i < used; i++)
            for (long v = 0; v < D * NV; v++) at(k + i * BLOCK, v) += T(h * weights[i]) * at(seed, v);
          for (long i = 0; i < BLOCK; i++) a[i] += seed[i];
        }
        for (long i = used - 1; i >= 0; i--) {
          alignas(64) T time[R];
          for (long r = 0; r < R; r++) time[r] = T(time_of(c, i, t, t_next, h));
          std::memcpy(cot, k + i * BLOCK, BLOCK * sizeof(T));
          for (long j = i + 1; j < used; j++)
            if (A[j][i] != 0)
              for (long v = 0; v < D * NV; v++) at(cot, v) += T(h * A[j][i]) * at(back + j * BLOCK, v);
          backward(given, s, moments.of(i, given, s, time), time, ys + i * BLOCK, w + i * KEPT, cot, b, back + i * BLOCK, g);
        }
        for (long i = 0; i < used; i++)
          for (long v = 0; v < D * NV; v++) at(a, v) += at(back + i * BLOCK, v);
      }
      store(a, D, c, block, c->x1);
      for (long i = 0; i < ROW_GRADIENTS; i++) {
        T* row = g + ROWS_AT + ROW_START[i] * R;
        store(row, ROW_COUNT[i], c, block, c->gradients[ROW_PLACE[i]]);
        std::memset(row, 0, ROW_COUNT[i] * R * sizeof(T));
      }
    }
  };
  if (threads <= 1) {
    run(0, 0, blocks);
  } else {
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (long i = 0; i < threads; i++) run(i, blocks * i / threads, blocks * (i + 1) / threads);
  }
  for (long i = 1; i < threads; i++)
    for (long e = 0; e < SUMS_SIZE; e++) p[e] += p[i * OWN + e];
  finish(c->inputs, s, p, l, c->gradients);
}
