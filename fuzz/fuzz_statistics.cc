// Arbitrary text as calibration statistics: refused as bad input, or statistics whose JSON form is a fixed point.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/calibrate/statistics.h"

namespace {

void Require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "fuzz_statistics: %s\n", what);
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  octavo::SetLogLevel(octavo::LogLevel::kQuiet);
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  octavo::Statistics statistics;
  try {
    statistics = octavo::StatisticsFromJson(text, "fuzz");
  } catch (const octavo::Error& e) {
    Require(e.code() == octavo::ExitCode::kBadInput || e.code() == octavo::ExitCode::kUnsupported,
            "refused with another code than bad input or not supported");
    return 0;
  }
  const std::string first = octavo::ToJson(statistics);
  const octavo::Statistics again = octavo::StatisticsFromJson(first, "again");
  Require(again == statistics, "the JSON form reads back as something else");
  Require(octavo::ToJson(again) == first, "the JSON form is no fixed point");
  octavo::Statistics twice = statistics;
  try {
    twice.Merge(again);
    octavo::StatisticsFromJson(octavo::ToJson(twice), "merged");
  } catch (const octavo::Error& e) {  // counts that overflow when added
    Require(e.code() == octavo::ExitCode::kBadInput, "merging gave another code than bad input");
  }
  return 0;
}
