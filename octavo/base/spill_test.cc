#include "octavo/base/spill.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>

namespace octavo {
namespace {

class SpillTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* old = std::getenv("XDG_CACHE_HOME");
    if (old != nullptr) old_ = old;
    ::setenv("XDG_CACHE_HOME", ::testing::TempDir().c_str(), 1);
  }
  void TearDown() override {
    if (old_.empty()) {
      ::unsetenv("XDG_CACHE_HOME");
    } else {
      ::setenv("XDG_CACHE_HOME", old_.c_str(), 1);
    }
  }
  std::string old_;
};

TEST_F(SpillTest, HoldsWhatWasWrittenAlsoAfterRelease) {
  for (const std::size_t size : {std::size_t{0}, std::size_t{100}, kSpillBytes, kSpillBytes + 4097}) {
    SpillBuffer buffer(size);
    ASSERT_EQ(buffer.size(), size);
    for (std::size_t i = 0; i < size; i += 97) {
      EXPECT_EQ(buffer.data()[i], std::byte{0});
      buffer.data()[i] = static_cast<std::byte>(i * 31);
    }
    buffer.Release();
    SpillBuffer moved(std::move(buffer));
    EXPECT_EQ(buffer.size(), 0u);  // NOLINT(bugprone-use-after-move): that is what is tested
    for (std::size_t i = 0; i < size; i += 97) ASSERT_EQ(moved.data()[i], static_cast<std::byte>(i * 31));
  }
}

TEST_F(SpillTest, LeavesNoFileAndWorksWithoutACacheDirectory) {
  const SpillBuffer kept(kSpillBytes);
  for (const auto& entry : std::filesystem::directory_iterator(::testing::TempDir() + "/octavo")) {
    EXPECT_FALSE(entry.is_regular_file()) << entry.path();
  }
  ::setenv("XDG_CACHE_HOME", "/proc/no/such/place", 1);
  SpillBuffer memory(kSpillBytes);
  memory.data()[kSpillBytes - 1] = std::byte{7};
  EXPECT_EQ(memory.data()[kSpillBytes - 1], std::byte{7});
}

}  // namespace
}  // namespace octavo
