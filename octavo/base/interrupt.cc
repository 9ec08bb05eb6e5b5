#include "octavo/base/interrupt.h"

#include <atomic>
#include <csignal>

#include "octavo/base/error.h"

namespace octavo {
namespace {

std::atomic<int> g_signal{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may only touch lock-free atomics");

void OnSignal(int number) {
  int none = 0;
  if (g_signal.compare_exchange_strong(none, number)) return;
  std::signal(number, SIG_DFL);
  std::raise(number);  // delivered when this handler returns
}

}  // namespace

void InstallInterruptHandler() {
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction old {};
    // A signal that the parent made us ignore (nohup, background jobs) stays ignored.
    if (::sigaction(number, nullptr, &old) == 0 && old.sa_handler == SIG_IGN) continue;
    struct sigaction action {};
    action.sa_handler = OnSignal;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    ::sigaction(number, &action, nullptr);
  }
}

void CheckInterrupt() {
  if (g_signal.load(std::memory_order_relaxed) != 0) throw Error(ExitCode::kInterrupted, "interrupted");
}

}  // namespace octavo
