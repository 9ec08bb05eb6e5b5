#include "octavo/base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <fstream>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace octavo {
namespace {

// cgroup v2 "cpu.max" is "<quota|max> <period>"; 0 when there is no limit.
int QuotaV2(const std::string& file) {
  std::ifstream in(file);
  std::string quota;
  double period = 0;
  if (!(in >> quota >> period) || quota == "max" || period <= 0) return 0;
  const double value = std::strtod(quota.c_str(), nullptr);
  return value > 0 ? std::max(1, static_cast<int>(std::ceil(value / period))) : 0;
}

int CgroupQuota() {
  int best = 0;
  const auto limit = [&](int quota) {
    if (quota > 0) best = best == 0 ? quota : std::min(best, quota);
  };
  limit(QuotaV2("/sys/fs/cgroup/cpu.max"));
  std::ifstream self("/proc/self/cgroup");
  for (std::string line; std::getline(self, line);) {
    if (line.rfind("0::/", 0) != 0) continue;
    // Every ancestor may hold the limit.
    for (std::string path = line.substr(3); path.size() > 1; path.resize(path.rfind('/'))) {
      limit(QuotaV2("/sys/fs/cgroup" + path + "/cpu.max"));
    }
  }
  double quota = 0, period = 0;  // cgroup v1
  std::ifstream quota_file("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), period_file("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  if (quota_file >> quota && period_file >> period && quota > 0 && period > 0) {
    limit(std::max(1, static_cast<int>(std::ceil(quota / period))));
  }
  return best;
}

int CountHardwareThreads() {
  int threads = static_cast<int>(std::thread::hardware_concurrency());
  // The fixed-size set fails with EINVAL beyond 1024 cores; hardware_concurrency is then good enough.
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) == 0) threads = CPU_COUNT(&set);
  if (const int quota = CgroupQuota(); quota > 0) threads = std::min(threads, quota);
  return std::max(1, threads);
}

}  // namespace

int HardwareThreads() {
  static const int threads = CountHardwareThreads();
  return threads;
}

void ParallelFor(std::size_t n, int threads, const std::function<void(std::size_t)>& fn) {
  const std::size_t workers = std::min<std::size_t>(n, threads > 1 ? static_cast<std::size_t>(threads) : 1);
  if (workers <= 1) {
    for (std::size_t i = 0; i < n; ++i) fn(i);
    return;
  }
  std::atomic<std::size_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::size_t failed_index = n;
  std::exception_ptr failure;
  const auto work = [&] {
    // `stop` is read before an index is taken: every index below a failing one was taken earlier and still runs, so
    // the exception that is rethrown does not depend on timing.
    while (!stop.load(std::memory_order_relaxed)) {
      const std::size_t i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= n) return;
      try {
        fn(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (i < failed_index) {
          failed_index = i;
          failure = std::current_exception();
        }
        stop.store(true, std::memory_order_relaxed);
      }
    }
  };
  std::vector<std::thread> pool;
  pool.reserve(workers - 1);
  for (std::size_t t = 1; t < workers; ++t) {
    try {
      pool.emplace_back(work);
    } catch (const std::system_error&) {
      break;  // the system grants no more threads: those that run do all the work
    }
  }
  work();
  for (std::thread& thread : pool) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace octavo
