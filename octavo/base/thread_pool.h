// Deterministic data parallelism: work is split by index, never by thread.
#pragma once

#include <cstddef>
#include <functional>

namespace octavo {

// Number of usable cores (affinity and cgroup quota respected), at least 1.
int HardwareThreads();

// Calls fn(i) for every i in [0, n) on up to `threads` threads; returns when all are done. The first exception (of the
// lowest index that threw) is rethrown; indices not yet started are then skipped. threads <= 1 runs inline.
void ParallelFor(std::size_t n, int threads, const std::function<void(std::size_t)>& fn);

}  // namespace octavo
