#include "octavo/base/resources.h"

#include <sys/resource.h>

#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

namespace octavo {
namespace {

// A "Name:   123 kB" line of /proc/self/status, in bytes; 0 when there is none.
std::uint64_t StatusBytes(std::string_view field) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.compare(0, field.size(), field) != 0) continue;
    std::istringstream rest(line.substr(field.size()));
    std::uint64_t kib = 0;
    if (rest >> kib) return kib * 1024;
  }
  return 0;
}

}  // namespace

std::uint64_t PeakRssBytes() {
  if (const std::uint64_t peak = StatusBytes("VmHWM:"); peak > 0) return peak;
  struct rusage usage {};
  if (::getrusage(RUSAGE_SELF, &usage) != 0) return 0;
  return static_cast<std::uint64_t>(usage.ru_maxrss) * 1024;
}

void ResetPeakRss() {
  std::ofstream out("/proc/self/clear_refs");
  out << "5" << std::flush;  // proc(5): 5 resets VmHWM to the current VmRSS
}

std::uint64_t CurrentRssBytes() { return StatusBytes("VmRSS:"); }

}  // namespace octavo
