// Work items over threads that somebody else owns: the caller passes its pool in.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace foveate {

// `run(workers, body)` calls body(0) .. body(workers - 1), on `threads` threads where it can.
struct Pool {
  int threads = 1;
  std::function<void(int workers, const std::function<void(int)>& body)> run;
};

// Calls work(item, worker) for every item in [0, items), handing them out in order; worker is in [0, pool.threads).
template <class Work>
void run_queue(const Pool& pool, int64_t items, const Work& work) {
  const int workers = int(items < pool.threads ? items : pool.threads);
  if (workers <= 1) {
    for (int64_t item = 0; item < items; ++item) work(item, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  pool.run(workers, [&](int worker) {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) work(item, worker);
  });
}

}  // namespace foveate
