// The walk of samples with their own steps: threads take samples from one queue, the longest way first.
extern "C" int64_t samples_size(int64_t threads) { return SHARED_SIZE + threads * OWN + 256; }

extern "C" void samples_walk(Samples* c) {
  T* p = c->work;
  T* s = next(p, SHARED_SIZE);
  Log log(c);
  prepare(c->given, s);
  if (c->fresh) {
    for (long j = 0; j < c->outputs; j++)  // what is wanted at t0 is there already
      for (long n = 0; n < c->batch; n++)
        if (c->times[j * c->batch + n] == c->begin[n]) c->at[UPCOMING * c->batch + n] = j + 1;
#ifdef ADAPTIVE
    std::atomic<long> taken{0};
    on_threads(c->threads, [&](long thread) {
      Lanes lanes(c, log, s, p + thread * OWN);
      for (long first; (first = taken.fetch_add(R)) < c->moving;)
        if (!lanes.begin(c->order + first, c->moving - first)) log.failed.store(true);
    });
    auto fraction = [&](int64_t n) { return c->at[SIZE * c->batch + n] / std::fabs(c->end[n] - c->begin[n]); };
    std::stable_sort(c->order, c->order + c->moving, [&](int64_t a, int64_t b) { return fraction(a) < fraction(b); });
#endif
  } else {
    auto goes_on = [&](int64_t n) { return c->at[TIME * c->batch + n] != c->end[n]; };
    c->moving = std::stable_partition(c->order, c->order + c->moving, goes_on) - c->order;
  }
  Queue queue(c->order, c->moving);
  if (!log.failed.load())
    on_threads(c->threads, [&](long thread) { Lanes(c, log, s, p + thread * OWN).run(queue); });
  c->used = log.count(), c->failed = log.failed.load(), c->padded = log.padded.load();
}
