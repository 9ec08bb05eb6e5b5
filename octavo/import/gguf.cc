#include "octavo/import/gguf.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <optional>
#include <unordered_set>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/numerics/gguf_cursor.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxName = 65535;  // of a key or a tensor; the specification's bound for keys
constexpr std::string_view kSplitNo = "split.no", kSplitCount = "split.count", kSplitTensors = "split.tensors.count";

std::string TakeName(GgufCursor& cursor, const char* what) {
  const auto n = cursor.Take<std::uint64_t>();
  if (n > kMaxName) {
    ThrowBadInput(std::string(what) + " of " + std::to_string(n) + " bytes is too long", cursor.Place());
  }
  const auto text = cursor.Bytes(n);
  return {reinterpret_cast<const char*>(text.data()), text.size()};
}

const GgufField* Find(const std::vector<GgufField>& fields, std::string_view key) {
  for (const GgufField& field : fields) {
    if (field.key == key) return &field;
  }
  return nullptr;
}

std::uint64_t ReadAlignment(const GgufHeader& header, const std::string& where) {
  const GgufField* field = Find(header.fields, "general.alignment");
  if (field == nullptr) return kGgufDefaultAlignment;
  if (field->type != GgufValueType::kU32) ThrowBadInput("general.alignment is not a u32", where);
  const std::uint64_t alignment = field->AsUint().value_or(0);
  if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment > kGgufMaxAlignment) {
    ThrowBadInput("general.alignment is " + std::to_string(alignment) + ": not a power of two up to 1048576", where);
  }
  return alignment;
}

void ReadFields(GgufCursor& cursor, std::uint64_t count, const std::shared_ptr<const void>& owner, GgufHeader& header,
                const std::string& where) {
  std::unordered_set<std::string> keys;
  for (std::uint64_t i = 0; i < count; ++i) {
    GgufField field;
    field.key = TakeName(cursor, "a key");
    field.type = static_cast<GgufValueType>(cursor.Take<std::uint32_t>());
    const std::string place = where + ", field " + field.key;
    const std::size_t size = CheckGgufValue(cursor.rest(), field.type, place);
    field.bytes = cursor.Bytes(size);
    field.owner = owner;
    if (!keys.insert(field.key).second) ThrowBadInput("the key appears twice", place);
    header.fields.push_back(std::move(field));
  }
}

void ReadTensors(GgufCursor& cursor, std::uint64_t count, GgufHeader& header, const std::string& where) {
  std::unordered_set<std::string> names;
  for (std::uint64_t i = 0; i < count; ++i) {
    GgufTensor tensor;
    tensor.name = TakeName(cursor, "a tensor's name");
    const std::string place = where + ", tensor " + tensor.name;
    const auto rank = cursor.Take<std::uint32_t>();
    if (rank > kGgufMaxDims) ThrowBadInput("has " + std::to_string(rank) + " dimensions, GGUF allows 4", place);
    for (std::uint32_t d = 0; d < rank; ++d) tensor.ne.push_back(cursor.Take<std::uint64_t>());
    const auto id = cursor.Take<std::uint32_t>();
    tensor.offset = cursor.Take<std::uint64_t>();
    tensor.type = FindGgufType(id);
    if (tensor.type == nullptr) {
      ThrowUnsupported("element type " + std::to_string(id) + " is not known", place,
                       "it was removed from GGUF or is newer than this version");
    }
    if (!GgufElements(tensor.ne)) ThrowBadInput("the dimensions overflow", place);
    const std::optional<std::uint64_t> bytes = GgufByteSize(*tensor.type, tensor.ne);
    if (!bytes) {
      ThrowBadInput("a row of " + std::to_string(GgufRowElements(tensor.ne)) + " elements is not a whole number of " +
                        std::string(tensor.type->name) + " blocks of " + std::to_string(tensor.type->block),
                    place);
    }
    tensor.bytes = *bytes;
    if (!names.insert(tensor.name).second) ThrowBadInput("the tensor's name appears twice", place);
    header.tensors.push_back(std::move(tensor));
  }
}

// Offsets become offsets in the file; data lie aligned, inside the file and apart from each other.
void PlaceTensors(GgufHeader& header, std::uint64_t file_bytes, const std::string& where) {
  std::vector<const GgufTensor*> order;
  for (GgufTensor& tensor : header.tensors) {
    const std::string place = where + ", tensor " + tensor.name;
    if (tensor.offset % header.alignment != 0) {
      ThrowBadInput(
          "its offset " + std::to_string(tensor.offset) + " is not aligned to " + std::to_string(header.alignment),
          place);
    }
    // An empty tensor may stand at the end of a file that ends without padding.
    if (tensor.bytes == 0) {
      tensor.offset = std::min(header.data_start, file_bytes);
      continue;
    }
    if (header.data_start > file_bytes || tensor.offset > file_bytes - header.data_start ||
        tensor.bytes > file_bytes - header.data_start - tensor.offset) {
      ThrowBadInput("its data go beyond the end of the file", place, "the file is cut off: get it again");
    }
    tensor.offset += header.data_start;
    order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->offset < b->offset; });
  for (std::size_t i = 1; i < order.size(); ++i) {
    if (order[i]->offset < order[i - 1]->offset + order[i - 1]->bytes) {
      ThrowBadInput("its data overlap those of " + order[i - 1]->name, where + ", tensor " + order[i]->name);
    }
  }
}

struct SplitName {
  std::string prefix;  // up to and with the '-' before the number
  std::uint64_t count = 0;
};

bool Digits(std::string_view text) {
  return text.size() == 5 && text.find_first_not_of("0123456789") == std::string_view::npos;
}

// "name-00001-of-00003.gguf"
std::optional<SplitName> ParseSplitName(const std::string& name) {
  constexpr std::string_view kEnd = ".gguf", kOf = "-of-";
  constexpr std::size_t kTail = 5 + kOf.size() + 5 + kEnd.size();
  if (name.size() <= kTail || !name.ends_with(kEnd)) return std::nullopt;
  const std::string_view tail = std::string_view(name).substr(name.size() - kTail);
  if (!Digits(tail.substr(0, 5)) || tail.substr(5, kOf.size()) != kOf || !Digits(tail.substr(5 + kOf.size(), 5)) ||
      name[name.size() - kTail - 1] != '-') {
    return std::nullopt;
  }
  return SplitName{name.substr(0, name.size() - kTail), std::stoull(std::string(tail.substr(5 + kOf.size(), 5)))};
}

fs::path PartPath(const fs::path& folder, const SplitName& split, std::uint64_t part) {
  char text[32];
  std::snprintf(text, sizeof text, "%05u-of-%05u.gguf", static_cast<unsigned>(part + 1),
                static_cast<unsigned>(split.count));
  return folder / (split.prefix + text);
}

std::uint64_t UintField(const GgufHeader& header, std::string_view key, std::uint64_t fallback,
                        const std::string& where) {
  const GgufField* field = header.FindField(key);
  if (field == nullptr) return fallback;
  const std::optional<std::uint64_t> value = field->AsUint();
  if (!value) ThrowBadInput(std::string(key) + " is not a number", where);
  return *value;
}

}  // namespace

Dims GgufTensor::dims() const {
  Dims out;
  for (auto it = ne.rbegin(); it != ne.rend(); ++it) out.push_back(static_cast<std::int64_t>(*it));
  return out;
}

const GgufField* GgufHeader::FindField(std::string_view key) const { return Find(fields, key); }
const GgufField* Gguf::FindField(std::string_view key) const { return Find(fields, key); }

GgufHeader ParseGguf(std::span<const std::byte> bytes, const std::shared_ptr<const void>& owner,
                     const std::string& where) {
  GgufCursor cursor(bytes, where, "the GGUF header");
  if (bytes.size() < 4 || std::memcmp(bytes.data(), "GGUF", 4) != 0) {
    ThrowBadInput("not a GGUF file: it does not start with GGUF", where);
  }
  cursor.Bytes(4);
  GgufHeader header;
  header.version = cursor.Take<std::uint32_t>();
  if (header.version == 1) {
    ThrowUnsupported("GGUF version 1 is not read", where, "convert the file to version 3");
  }
  if (header.version != 2 && header.version != 3) {
    if ((header.version & 0xffff) == 0 && header.version != 0) {
      ThrowUnsupported("a big-endian GGUF file", where, "convert it to little-endian");
    }
    if (header.version > 3 && header.version < 1000) {
      ThrowUnsupported("GGUF version " + std::to_string(header.version) + " is newer than this version reads (3)",
                       where);
    }
    ThrowBadInput("GGUF version " + std::to_string(header.version) + " does not exist", where);
  }
  const auto tensors = cursor.Take<std::uint64_t>();
  const auto fields = cursor.Take<std::uint64_t>();
  // A field takes at least 13 bytes (key length, type, value), a tensor at least 24.
  if (fields > cursor.rest().size() / 13) {
    ThrowBadInput("says that it has " + std::to_string(fields) + " metadata fields, more than it can hold", where);
  }
  if (tensors > cursor.rest().size() / 24) {
    ThrowBadInput("says that it has " + std::to_string(tensors) + " tensors, more than it can hold", where);
  }
  ReadFields(cursor, fields, owner, header, where);
  header.alignment = ReadAlignment(header, where);
  ReadTensors(cursor, tensors, header, where);
  header.data_start = (cursor.at() + header.alignment - 1) / header.alignment * header.alignment;
  PlaceTensors(header, bytes.size(), where);
  return header;
}

Gguf Gguf::Open(const fs::path& path) {
  Gguf out;
  const auto read = [&out](const fs::path& file) {
    out.files.push_back(MappedFile::Open(file));
    return ParseGguf(out.files.back()->bytes(), out.files.back(), file.string());
  };
  GgufHeader first = read(path);
  const std::uint64_t count = UintField(first, kSplitCount, 1, path.string());
  if (count > 1) {
    const std::optional<SplitName> split = ParseSplitName(path.filename().string());
    if (!split) {
      ThrowBadInput("one of " + std::to_string(count) + " parts of a model, but its name does not say which",
                    path.string(), "parts are named NAME-00001-of-0000N.gguf");
    }
    if (split->count != count) {
      ThrowBadInput("its name says " + std::to_string(split->count) + " parts, its metadata " + std::to_string(count),
                    path.string());
    }
    out.files.clear();
    std::uint64_t expected = 0;
    for (std::uint64_t part = 0; part < count; ++part) {
      const fs::path file = PartPath(path.parent_path(), *split, part);
      std::error_code error;
      if (!fs::exists(file, error)) {
        ThrowBadInput("part " + std::to_string(part + 1) + " of " + std::to_string(count) + " is missing",
                      file.string(), "put all parts into one folder");
      }
      GgufHeader header = read(file);
      const std::uint64_t no = UintField(header, kSplitNo, count, file.string());
      if (no != part || UintField(header, kSplitCount, 0, file.string()) != count) {
        ThrowBadInput("its metadata say that it is another part than its name says", file.string());
      }
      const std::uint64_t all = UintField(header, kSplitTensors, 0, file.string());
      if (part == 0) {
        expected = all;
        out.version = header.version;
        out.alignment = header.alignment;
        out.fields = std::move(header.fields);
      }
      for (GgufTensor& tensor : header.tensors) {
        tensor.part = static_cast<std::size_t>(part);
        out.tensors.push_back(std::move(tensor));
      }
    }
    if (expected != 0 && expected != out.tensors.size()) {
      ThrowBadInput("the parts hold " + std::to_string(out.tensors.size()) + " tensors, the metadata say " +
                        std::to_string(expected),
                    path.string());
    }
    std::erase_if(out.fields, [](const GgufField& f) { return f.key.starts_with("split."); });
  } else {
    out.version = first.version;
    out.alignment = first.alignment;
    out.fields = std::move(first.fields);
    out.tensors = std::move(first.tensors);
  }
  for (std::size_t i = 0; i < out.tensors.size(); ++i) {
    if (!out.index_.emplace(out.tensors[i].name, i).second) {
      ThrowBadInput("the tensor's name appears in two parts", path.string() + ", tensor " + out.tensors[i].name);
    }
  }
  return out;
}

std::uint64_t Gguf::file_bytes() const {
  std::uint64_t n = 0;
  for (const auto& file : files) n += file->bytes().size();
  return n;
}

const GgufTensor* Gguf::FindTensor(std::string_view name) const {
  const auto it = index_.find(std::string(name));
  return it == index_.end() ? nullptr : &tensors[it->second];
}

std::span<const std::byte> Gguf::Data(const GgufTensor& tensor) const {
  return files[tensor.part]->bytes().subspan(static_cast<std::size_t>(tensor.offset),
                                             static_cast<std::size_t>(tensor.bytes));
}

bool IsGguf(const fs::path& path) {
  const auto file = MappedFile::Open(path);
  const auto bytes = file->bytes();
  return bytes.size() >= 4 && std::memcmp(bytes.data(), "GGUF", 4) == 0;
}

}  // namespace octavo
