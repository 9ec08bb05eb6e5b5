// Parameter archives of IREE (.irpa, version 0.0): named byte ranges that a compiled module reads by name.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace octavo {

struct IrpaEntry {
  std::string name;
  std::span<const std::byte> bytes;  // a view: a mapped weight is written without a copy
};

// Writes the archive whole or not at all; data lie 64-aligned, in the order of the entries. Errors: kBadInput for a
// name that appears twice, and those of OutputFile.
void WriteIrpa(const std::filesystem::path& path, std::span<const IrpaEntry> entries);

}  // namespace octavo
