#include "octavo/emit/irpa.h"

#include <cstdint>
#include <string_view>
#include <unordered_set>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/output.h"

namespace octavo {
namespace {

constexpr std::uint64_t kHeader = 88, kEntry = 76, kEntryAlign = 16, kStorageAlign = 64, kFileAlign = 4096;
constexpr std::uint32_t kDataEntry = 2;

std::uint64_t RoundUp(std::uint64_t n, std::uint64_t alignment) { return (n + alignment - 1) / alignment * alignment; }

template <typename T>
void Put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void PadTo(OutputFile& file, std::uint64_t offset) {
  file.Write(std::string(static_cast<std::size_t>(offset - file.offset()), '\0'));
}

}  // namespace

void WriteIrpa(const std::filesystem::path& path, std::span<const IrpaEntry> entries) {
  std::unordered_set<std::string_view> seen;
  std::string names;
  std::vector<std::uint64_t> offsets;
  std::uint64_t storage = 0;
  for (const IrpaEntry& entry : entries) {
    if (!seen.insert(entry.name).second) ThrowBadInput("a parameter's name appears twice", "parameter " + entry.name);
    names += entry.name;
    offsets.push_back(storage);
    storage = RoundUp(storage + entry.bytes.size(), kStorageAlign);
  }
  if (!entries.empty()) storage = offsets.back() + entries.back().bytes.size();
  const std::uint64_t table = RoundUp(kHeader, kEntryAlign);
  const std::uint64_t stride = RoundUp(kEntry, kEntryAlign);
  const std::uint64_t table_bytes = entries.empty() ? 0 : (entries.size() - 1) * stride + kEntry;
  const std::uint64_t names_at = table + table_bytes;
  const std::uint64_t storage_at = RoundUp(names_at + names.size(), kStorageAlign);

  std::string header = "IRPA";
  Put<std::uint16_t>(header, 0);  // major, minor
  Put<std::uint16_t>(header, 0);
  Put(header, kHeader);
  Put<std::uint64_t>(header, 0);  // next header
  Put<std::uint64_t>(header, 0);  // flags
  Put<std::uint64_t>(header, entries.size());
  Put(header, table);
  Put(header, table_bytes);
  Put(header, names_at);
  Put<std::uint64_t>(header, names.size());
  Put(header, storage_at);
  Put(header, storage);
  header.resize(static_cast<std::size_t>(table), '\0');
  std::uint64_t name_at = 0;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    header.resize(static_cast<std::size_t>(table + i * stride), '\0');
    Put(header, kEntry);
    Put(header, kDataEntry);
    Put<std::uint64_t>(header, 0);  // flags
    Put(header, name_at);
    Put<std::uint64_t>(header, entries[i].name.size());
    Put<std::uint64_t>(header, 0);  // no metadata of its own
    Put<std::uint64_t>(header, 0);
    Put(header, kStorageAlign);
    Put(header, offsets[i]);
    Put<std::uint64_t>(header, entries[i].bytes.size());
    name_at += entries[i].name.size();
  }

  OutputFile file(path);
  file.Write(header);
  file.Write(names);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    CheckInterrupt();
    PadTo(file, storage_at + offsets[i]);
    file.Write(entries[i].bytes);
  }
  PadTo(file, RoundUp(file.offset(), kFileAlign));
  file.Commit();
}

}  // namespace octavo
