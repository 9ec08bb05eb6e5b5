// Progress and diagnostics: always stderr, never stdout. Results are the command's business.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {

// Verbosity is process-wide; --quiet sets kWarn.
enum class LogLevel { kQuiet, kWarn, kInfo, kDebug };
void SetLogLevel(LogLevel level);
LogLevel GetLogLevel();

void LogInfo(std::string_view text);
void LogDebug(std::string_view text);
// Printed as `octavo: warning: <text>`, once for each text, and kept for the manifest.
void LogWarning(std::string_view text);
std::vector<std::string> TakeWarnings();

// A bar on stderr when stderr is a terminal and the level is kInfo, nothing otherwise.
// Advance is thread safe.
class Progress {
 public:
  Progress(std::string_view label, std::uint64_t total);
  ~Progress();
  void Advance(std::uint64_t by = 1);

 private:
  void Draw(std::uint64_t done);
  std::string label_;
  std::uint64_t total_;
  std::uint64_t done_ = 0;
  std::int64_t drawn_ms_ = 0;  // when the bar was last drawn: it is not redrawn for every step
  bool active_;
};

}  // namespace octavo
