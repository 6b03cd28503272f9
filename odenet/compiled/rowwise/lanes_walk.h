// The walk of samples with their own steps: threads take samples from one queue, the longest way first.

// Samples that have landed go on to the next segment of their way, or leave their lane to another.
static void land_all(Lanes& lanes, Queue& queue) {
  Samples* const c = lanes.c;
  alignas(64) T more[R] = {}, anew[R] = {};
  bool renewed = false;
  for (long r = 0; r < R; r++) {
    if (lanes.done[r] == 0) continue;
    const long next = ++lanes.segment[r], n = lanes.sample[r];
    if (next < c->until[n]) {
      lanes.enter(r);
      more[r] = 1, anew[r] = T(c->anew[n * c->segments + next]);
      renewed = renewed || !FSAL || anew[r] != 0;
      continue;
    }
    lanes.evict(r);
    const long other = queue.take();
    if (other >= 0) lanes.fill(r, other);
  }
  if (renewed) lanes.go_on(more, anew);
}

// Take samples from the queue until it is empty, or closed because a sample broke down or the record is full.
static void run(Lanes& lanes, Queue& queue) {
  for (long r = 0; r < R; r++) {
    const long n = queue.take();
    if (n >= 0) lanes.fill(r, n);
    else if (lanes.active) lanes.blank(r, 0);
    else return;
  }
  while (lanes.active) {
    const Outcome outcome = lanes.step();
    if (outcome == FAILED) lanes.log.failed.store(true);
    if (outcome != STEPPED) {
      queue.closed.store(true);
      break;
    }
    if (lanes.finished) land_all(lanes, queue);
    if (queue.closed.load(std::memory_order_relaxed)) break;
  }
  for (long r = 0; r < R; r++)
    if (lanes.sample[r] >= 0) lanes.evict(r);
}

extern "C" int64_t samples_size(int64_t threads) { return SHARED_SIZE + threads * OWN + 256; }

extern "C" void samples_walk(Samples* c) {
  T* p = c->work;
  T* s = next(p, SHARED_SIZE);
  Log log(c);
  prepare(c->given, s);
  if (c->fresh == BEGINS)
    for (long j = 0; j < c->outputs; j++)  // what is wanted at t0 is there already
      for (long n = 0; n < c->batch; n++)
        if (c->times[j * c->batch + n] == c->begin[n]) c->at[UPCOMING * c->batch + n] = j + 1;
  if (c->fresh == GOES_ON) {
    auto goes_on = [&](int64_t n) { return c->at[SEGMENT * c->batch + n] < c->until[n]; };
    c->moving = std::stable_partition(c->order, c->order + c->moving, goes_on) - c->order;
  }
#ifdef ADAPTIVE
  if (c->fresh != GOES_ON) {
    std::atomic<long> taken{0};
    on_threads(c->threads, [&](long thread) {
      Lanes lanes(c, log, s, p + thread * OWN);
      for (long first; (first = taken.fetch_add(R)) < c->moving;) {
        if (c->fresh == RENEWED) lanes.renew(c->order + first, c->moving - first);
        else if (!lanes.begin(c->order + first, c->moving - first)) log.failed.store(true);
      }
    });
  }
  if (c->fresh == BEGINS) {
    auto fraction = [&](int64_t n) { return c->at[SIZE * c->batch + n] / std::fabs(c->end[n] - c->begin[n]); };
    std::stable_sort(c->order, c->order + c->moving, [&](int64_t a, int64_t b) { return fraction(a) < fraction(b); });
  }
#endif
  Queue queue(c->order, c->moving);
  if (!log.failed.load())
    on_threads(c->threads, [&](long thread) {
      Lanes lanes(c, log, s, p + thread * OWN);
      run(lanes, queue);
    });
  c->used = log.count(), c->failed = log.failed.load(), c->padded = log.padded.load();
}
