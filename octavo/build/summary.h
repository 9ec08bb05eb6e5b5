// What people read of a finished build or quantization: before and after.
#pragma once

#include <filesystem>
#include <string>

#include "octavo/build/pipeline.h"

namespace octavo {

std::string Summary(const BuildResult& result, const std::filesystem::path& out);
std::string Summary(const QuantizeFileResult& result);
// Of a build that came from the cache, whose manifest is only there as text.
std::string ReusedSummary(const BuildResult& result, const std::filesystem::path& out);

std::string BytesText(double bytes);  // "1.5 kB", "2.0 MB", "3.10 GB"

}  // namespace octavo
