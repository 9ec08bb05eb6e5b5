// A compiled artifact against the source model: the artifact runs on its device, or in the emulator that its provider
// has here, in processes of their own.
#pragma once

#include <filesystem>

#include "octavo/runtime/plugin.h"
#include "octavo/validate/compare.h"

namespace octavo {

// As CompareModels, the candidate run with `ep`. An emulator takes up to a minute for a sample: no further sample is
// begun once `seconds` have passed and `least` samples are through; CompareResult::samples says how many it became.
// Errors: as CompareModels and DeviceWorker.
CompareResult CompareOnDevice(const std::filesystem::path& reference, const std::filesystem::path& candidate,
                              const EpSpec& ep, const DataSource& data, const CompareOptions& options, double seconds,
                              std::size_t least);

}  // namespace octavo
