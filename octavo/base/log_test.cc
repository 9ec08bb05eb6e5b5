#include "octavo/base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "octavo/base/resources.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class Log : public testing::Test {
 protected:
  void SetUp() override { TakeWarnings(); }
  void TearDown() override { SetLogLevel(LogLevel::kInfo); }
};

TEST_F(Log, WarningsOnceEachAndKept) {
  testing::internal::CaptureStderr();
  LogWarning("ranges are\nsynthetic");
  LogWarning("ranges are\nsynthetic");
  LogWarning("other \x1b[31m");
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "octavo: warning: ranges are synthetic\noctavo: warning: other  [31m\n");
  EXPECT_THAT(TakeWarnings(), ElementsAre("ranges are synthetic", "other  [31m"));
  EXPECT_THAT(TakeWarnings(), IsEmpty());
}

TEST_F(Log, LevelsFilterButWarningsAreKept) {
  testing::internal::CaptureStderr();
  SetLogLevel(LogLevel::kWarn);
  LogInfo("info");
  SetLogLevel(LogLevel::kQuiet);
  LogWarning("kept");
  SetLogLevel(LogLevel::kInfo);
  LogDebug("debug");
  LogInfo("shown");
  SetLogLevel(LogLevel::kDebug);
  LogDebug("shown too");
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "shown\nshown too\n");
  EXPECT_THAT(TakeWarnings(), ElementsAre("kept"));
}

TEST_F(Log, NoBarWithoutATerminal) {
  testing::internal::CaptureStderr();
  {
    Progress progress("samples", 3);
    for (int i = 0; i < 5; ++i) progress.Advance();
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(Resources, PeakFollowsAllocation) {
  ResetPeakRss();
  const std::uint64_t before = CurrentRssBytes();
  ASSERT_GT(before, 0u);
  constexpr std::size_t kBytes = std::size_t{64} << 20;
  {
    std::vector<char> block(kBytes, 1);
    asm volatile("" : : "r"(block.data()) : "memory");  // the pages are really touched
  }
  EXPECT_GE(PeakRssBytes(), before + kBytes / 2);
  EXPECT_GE(Stopwatch().Seconds(), 0.0);
}

}  // namespace
}  // namespace octavo
