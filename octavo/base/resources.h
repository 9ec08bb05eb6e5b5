// What a stage cost: wall time and memory, measured by the run that prints them.
#pragma once

#include <chrono>
#include <cstdint>

namespace octavo {

// Peak resident set of this process since the last ResetPeakRss, in bytes (VmHWM). ResetPeakRss is best effort
// (/proc/self/clear_refs); where the kernel refuses, the peak is that of the whole process.
std::uint64_t PeakRssBytes();
void ResetPeakRss();
std::uint64_t CurrentRssBytes();

class Stopwatch {
 public:
  Stopwatch() : start_(std::chrono::steady_clock::now()) {}
  double Seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_;
};

}  // namespace octavo
