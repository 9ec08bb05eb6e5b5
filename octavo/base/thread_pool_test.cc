#include "octavo/base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace octavo {
namespace {

TEST(ThreadPool, HardwareThreadsIsPositive) { EXPECT_GE(HardwareThreads(), 1); }

TEST(ThreadPool, EveryIndexOnce) {
  for (const int threads : {-1, 0, 1, 3, 16}) {
    for (const std::size_t n : {0, 1, 2, 1000}) {
      std::vector<std::atomic<int>> seen(n);
      ParallelFor(n, threads, [&](std::size_t i) { ++seen[i]; });
      for (std::size_t i = 0; i < n; ++i) EXPECT_EQ(seen[i], 1);
    }
  }
}

TEST(ThreadPool, RethrowsTheLowestFailingIndex) {
  for (int repeat = 0; repeat < 20; ++repeat) {
    for (const int threads : {1, 4}) {
      std::atomic<int> started{0};
      try {
        ParallelFor(10000, threads, [&](std::size_t i) {
          ++started;
          // The lower one fails later: it must win all the same.
          if (i == 7) std::this_thread::sleep_for(std::chrono::milliseconds(1));
          if (i >= 7) throw std::runtime_error(std::to_string(i));
        });
        ADD_FAILURE() << "no exception";
      } catch (const std::runtime_error& e) {
        EXPECT_STREQ(e.what(), "7");
      }
      EXPECT_LT(started, 10000);
    }
  }
}

TEST(ThreadPool, Nests) {
  std::atomic<int> sum{0};
  ParallelFor(4, 4, [&](std::size_t) { ParallelFor(8, 2, [&](std::size_t) { ++sum; }); });
  EXPECT_EQ(sum, 32);
}

}  // namespace
}  // namespace octavo
