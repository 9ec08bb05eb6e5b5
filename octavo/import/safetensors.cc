#include "octavo/import/safetensors.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/mapped_file.h"

namespace octavo {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint64_t kMaxHeader = 100'000'000;  // the format's own bound
constexpr std::size_t kMaxRank = 64;
constexpr int kMaxDepth = 4;

constexpr std::array<std::pair<std::string_view, DType>, 16> kTypes = {{{"F64", DType::kF64},
                                                                        {"F32", DType::kF32},
                                                                        {"F16", DType::kF16},
                                                                        {"BF16", DType::kBF16},
                                                                        {"I64", DType::kS64},
                                                                        {"I32", DType::kS32},
                                                                        {"I16", DType::kS16},
                                                                        {"I8", DType::kS8},
                                                                        {"U64", DType::kU64},
                                                                        {"U32", DType::kU32},
                                                                        {"U16", DType::kU16},
                                                                        {"U8", DType::kU8},
                                                                        {"BOOL", DType::kBool},
                                                                        {"F8_E4M3", DType::kF8E4M3FN},
                                                                        {"F8_E5M2", DType::kF8E5M2},
                                                                        {"F8_E8M0", DType::kF8E8M0}}};

std::uint64_t HeaderBytes(std::span<const std::byte> bytes) {
  std::uint64_t n = 0;
  if (bytes.size() >= sizeof n) std::memcpy(&n, bytes.data(), sizeof n);
  return n;
}

Json ParseHeader(std::string_view text, const std::string& where) {
  std::vector<std::set<std::string>> keys;
  try {
    return Json::parse(text, [&](int depth, Json::parse_event_t event, Json& parsed) {
      if (depth > kMaxDepth) throw std::runtime_error("nested too deep");
      if (event == Json::parse_event_t::object_start) keys.emplace_back();
      if (event == Json::parse_event_t::object_end) keys.pop_back();
      if (event == Json::parse_event_t::key && !keys.back().insert(parsed.get<std::string>()).second) {
        throw std::runtime_error("'" + parsed.get<std::string>() + "' appears twice");
      }
      return true;
    });
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    ThrowBadInput(std::string("the safetensors header is damaged (") + error.what() + ")", where);
  }
}

std::uint64_t Natural(const Json& v, const char* what, const std::string& where) {
  if (!v.is_number_unsigned()) ThrowBadInput(std::string(what) + " is not a natural number", where);
  return v.get<std::uint64_t>();
}

}  // namespace

bool LooksLikeSafetensors(std::span<const std::byte> bytes) {
  const std::uint64_t n = HeaderBytes(bytes);
  return bytes.size() > 8 && n >= 2 && n <= kMaxHeader && n <= bytes.size() - 8 && bytes[8] == std::byte{'{'};
}

std::vector<SafeTensor> ParseSafetensors(std::span<const std::byte> bytes, const std::shared_ptr<const void>& owner,
                                         const std::string& where) {
  if (!LooksLikeSafetensors(bytes)) ThrowBadInput("not a safetensors file, or cut off", where);
  const std::uint64_t n = HeaderBytes(bytes);
  const Json header =
      ParseHeader({reinterpret_cast<const char*>(bytes.data()) + 8, static_cast<std::size_t>(n)}, where);
  const std::span<const std::byte> data = bytes.subspan(8 + static_cast<std::size_t>(n));
  std::vector<SafeTensor> out;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  for (const auto& [name, item] : header.items()) {
    if (name == "__metadata__") continue;
    const std::string place = where + ", tensor " + name;
    if (!item.is_object() || !item.contains("dtype") || !item.contains("shape") || !item.contains("data_offsets") ||
        !item["dtype"].is_string() || !item["shape"].is_array() || !item["data_offsets"].is_array() ||
        item["data_offsets"].size() != 2) {
      ThrowBadInput("not described by dtype, shape and data_offsets", place);
    }
    const std::string type = item["dtype"].get<std::string>();
    const auto* const known =
        std::find_if(kTypes.begin(), kTypes.end(), [&](const auto& t) { return t.first == type; });
    if (known == kTypes.end()) ThrowUnsupported("element type '" + type + "' is not known", place);
    SafeTensor tensor;
    tensor.name = name;
    tensor.data.dtype = known->second;
    if (item["shape"].size() > kMaxRank) ThrowBadInput("has too many dimensions", place);
    for (const Json& d : item["shape"]) {
      const std::uint64_t size = Natural(d, "a dimension", place);
      if (size > INT64_MAX) ThrowBadInput("a dimension is too large", place);
      tensor.data.dims.push_back(static_cast<std::int64_t>(size));
    }
    const std::uint64_t begin = Natural(item["data_offsets"][0], "an offset", place);
    const std::uint64_t end = Natural(item["data_offsets"][1], "an offset", place);
    if (begin > end || end > data.size()) {
      ThrowBadInput("its data go beyond the end of the file", place, "the file is cut off: get it again");
    }
    const std::optional<std::uint64_t> need = ByteSize(tensor.data.dtype, ElementCount(tensor.data.dims, place));
    if (!need || *need != end - begin) {
      ThrowBadInput("its data have " + std::to_string(end - begin) + " bytes, its shape needs " +
                        (need ? std::to_string(*need) : "more than there can be"),
                    place);
    }
    tensor.data.bytes = data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
    tensor.data.owner = owner;
    if (begin < end) ranges.emplace_back(begin, end);
    out.push_back(std::move(tensor));
  }
  std::sort(ranges.begin(), ranges.end());
  for (std::size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].first < ranges[i - 1].second) {
      ThrowBadInput("the data of two tensors overlap at byte " + std::to_string(ranges[i].first), where);
    }
  }
  return out;
}

std::vector<SafeTensor> ReadSafetensors(const std::filesystem::path& path) {
  const std::shared_ptr<const MappedFile> file = MappedFile::Open(path);
  std::vector<SafeTensor> out = ParseSafetensors(file->bytes(), file, path.string());
  for (SafeTensor& tensor : out) tensor.data.file = file;
  return out;
}

}  // namespace octavo
