#include "octavo/base/log.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <mutex>
#include <utility>

namespace octavo {
namespace {

std::atomic<LogLevel> g_level{LogLevel::kInfo};

std::mutex g_mutex;  // guards all below, and stderr
std::vector<std::string> g_warnings;
bool g_bar_on_screen = false;

// Untrusted names are printed: control characters must not drive the terminal or forge lines.
std::string Clean(std::string_view text, bool keep_newlines) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    const bool keep = (u >= 0x20 && u != 0x7f) || (keep_newlines && (c == '\n' || c == '\t'));
    out.push_back(keep ? c : ' ');
  }
  return out;
}

void PrintLocked(std::string line) {
  if (std::exchange(g_bar_on_screen, false)) line.insert(0, "\r\033[K");
  line.push_back('\n');
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
}

void Print(std::string line) {
  const std::lock_guard lock(g_mutex);
  PrintLocked(std::move(line));
}

std::int64_t NowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

void SetLogLevel(LogLevel level) { g_level = level; }
LogLevel GetLogLevel() { return g_level; }

void LogInfo(std::string_view text) {
  if (g_level.load() >= LogLevel::kInfo) Print(Clean(text, true));
}

void LogDebug(std::string_view text) {
  if (g_level.load() >= LogLevel::kDebug) Print(Clean(text, true));
}

void LogWarning(std::string_view text) {
  std::string line = Clean(text, false);
  const std::lock_guard lock(g_mutex);
  if (std::find(g_warnings.begin(), g_warnings.end(), line) != g_warnings.end()) return;
  if (g_level.load() >= LogLevel::kWarn) PrintLocked("octavo: warning: " + line);
  g_warnings.push_back(std::move(line));
}

std::vector<std::string> TakeWarnings() {
  const std::lock_guard lock(g_mutex);
  return std::exchange(g_warnings, {});
}

Progress::Progress(std::string_view label, std::uint64_t total)
    : label_(Clean(label, false)),
      total_(total),
      active_(GetLogLevel() == LogLevel::kInfo && total > 0 && ::isatty(STDERR_FILENO) == 1) {
  if (!active_) return;
  const std::lock_guard lock(g_mutex);
  Draw(0);
}

Progress::~Progress() {
  if (!active_) return;
  const std::lock_guard lock(g_mutex);
  if (std::exchange(g_bar_on_screen, false)) {
    std::fputs("\r\033[K", stderr);
    std::fflush(stderr);
  }
}

void Progress::Advance(std::uint64_t by) {
  if (!active_) return;
  const std::lock_guard lock(g_mutex);
  done_ = by < total_ - done_ ? done_ + by : total_;
  const std::int64_t now = NowMs();
  if (done_ < total_ && now - drawn_ms_ < 100) return;
  drawn_ms_ = now;
  Draw(done_);
}

void Progress::Draw(std::uint64_t done) {
  constexpr int kWidth = 30;
  const double part = static_cast<double>(done) / static_cast<double>(total_);
  const int filled = static_cast<int>(part * kWidth);
  std::string line = "\r\033[K" + label_ + " [" + std::string(filled, '#') + std::string(kWidth - filled, ' ') + "] " +
                     std::to_string(done) + "/" + std::to_string(total_);
  std::fwrite(line.data(), 1, line.size(), stderr);
  std::fflush(stderr);
  g_bar_on_screen = true;
}

}  // namespace octavo
