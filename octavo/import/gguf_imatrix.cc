#include "octavo/import/gguf_imatrix.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/mapped_file.h"
#include "octavo/import/gguf.h"

namespace octavo {
namespace {

constexpr std::string_view kSums = ".in_sum2", kCounts = ".counts";

std::vector<float> Floats(const Gguf& file, const GgufTensor& tensor) {
  std::vector<float> out(static_cast<std::size_t>(tensor.bytes / sizeof(float)));
  if (!out.empty()) std::memcpy(out.data(), file.Data(tensor).data(), out.size() * sizeof(float));
  return out;
}

void CheckValues(const std::vector<float>& values, const std::string& where) {
  if (values.empty()) ThrowBadInput("the importance is empty", where);
  for (const float v : values) {
    if (!std::isfinite(v) || v < 0) ThrowBadInput("an importance is negative or not finite", where);
  }
}

Imatrix ReadGguf(const std::filesystem::path& path) {
  const Gguf file = Gguf::Open(path);
  Imatrix out;
  for (const GgufTensor& sums : file.tensors) {
    if (!sums.name.ends_with(kSums)) continue;
    const std::string name = sums.name.substr(0, sums.name.size() - kSums.size());
    const std::string where = path.string() + ", " + name;
    const GgufTensor* counts = file.FindTensor(name + std::string(kCounts));
    if (counts == nullptr) ThrowBadInput("the importance has no counts", where);
    if (sums.type->name != "f32" || counts->type->name != "f32") ThrowBadInput("the importance is not f32", where);
    std::vector<float> values = Floats(file, sums);
    const std::vector<float> n = Floats(file, *counts);
    const std::size_t row = static_cast<std::size_t>(GgufRowElements(sums.ne));
    if (row == 0 || n.size() != values.size() / row) {
      ThrowBadInput("the importance has " + std::to_string(n.size()) + " counts for " +
                        std::to_string(row == 0 ? 0 : values.size() / row) + " rows",
                    where);
    }
    for (std::size_t i = 0; i < values.size(); ++i) {
      const float count = n[i / row];
      values[i] = count > 0 ? values[i] / count : 1.0f;
    }
    CheckValues(values, where);
    out.emplace(name, std::move(values));
  }
  return out;
}

// i32 entries; each: i32 length, name, i32 calls, i32 values, the values (sums over the calls). What follows (the
// number of chunks, the name of the data) is not needed.
Imatrix ReadDat(const MappedFile& file) {
  const std::string path = file.path().string();
  std::span<const std::byte> rest = file.bytes();
  const auto take = [&](std::size_t n) {
    if (n > rest.size()) ThrowBadInput("not an importance matrix, or cut off", path);
    const auto out = rest.first(n);
    rest = rest.subspan(n);
    return out;
  };
  const auto number = [&] {
    std::int32_t value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    if (value < 0) ThrowBadInput("not an importance matrix, or damaged", path);
    return static_cast<std::size_t>(value);
  };
  Imatrix out;
  const std::size_t entries = number();
  for (std::size_t i = 0; i < entries; ++i) {
    const auto text = take(number());
    const std::string name(reinterpret_cast<const char*>(text.data()), text.size());
    const std::size_t calls = number();
    const std::size_t count = number();
    const auto bytes = take(count * sizeof(float));
    std::vector<float> values(count);
    if (count > 0) std::memcpy(values.data(), bytes.data(), bytes.size());
    if (calls > 0) {
      for (float& v : values) v /= static_cast<float>(calls);
    }
    const std::string where = path + ", " + name;
    CheckValues(values, where);
    if (!out.emplace(name, std::move(values)).second) ThrowBadInput("the entry appears twice", where);
  }
  return out;
}

}  // namespace

Imatrix ReadImatrix(const std::filesystem::path& path) {
  Imatrix out = IsGguf(path) ? ReadGguf(path) : ReadDat(*MappedFile::Open(path));
  if (out.empty()) ThrowBadInput("holds no importance of any tensor", path.string());
  return out;
}

}  // namespace octavo
