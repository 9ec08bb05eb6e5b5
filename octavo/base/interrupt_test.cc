#include "octavo/base/interrupt.h"

#include <gtest/gtest.h>

#include <csignal>
#include <cstdlib>

#include "octavo/base/error.h"

namespace octavo {
namespace {

// Each in a process of its own: an arrived signal is never forgotten.
TEST(InterruptDeathTest, SignalBecomesAnError) {
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    EXPECT_EXIT(
        {
          InstallInterruptHandler();
          CheckInterrupt();
          std::raise(number);
          try {
            CheckInterrupt();
          } catch (const Error& e) {
            std::_Exit(static_cast<int>(e.code()));
          }
        },
        testing::ExitedWithCode(130), "");
  }
}

TEST(InterruptDeathTest, SecondSignalKills) {
  EXPECT_EXIT(
      {
        InstallInterruptHandler();
        std::raise(SIGINT);
        std::raise(SIGTERM);
      },
      testing::KilledBySignal(SIGTERM), "");
}

TEST(InterruptDeathTest, IgnoredStaysIgnored) {
  EXPECT_EXIT(
      {
        std::signal(SIGHUP, SIG_IGN);
        InstallInterruptHandler();
        std::raise(SIGHUP);
        CheckInterrupt();
        std::_Exit(7);
      },
      testing::ExitedWithCode(7), "");
}

}  // namespace
}  // namespace octavo
