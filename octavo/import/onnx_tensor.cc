#include "octavo/import/onnx_tensor.h"

#include <charconv>
#include <cstring>
#include <utility>

namespace octavo {
namespace {

namespace fs = std::filesystem;

struct ExternalEntry {
  std::string location;
  std::uint64_t offset = 0;
  std::optional<std::uint64_t> length;
};

class TensorReader {
 public:
  TensorReader(const TensorSource& source, const std::string& where) : source_(source), where_(where) {}

  OnnxTensor Read(std::span<const std::byte> bytes);

 private:
  std::string Where() const { return source_.context.name + ", " + where_ + " '" + out_.name + "'"; }
  [[noreturn]] void Bad(std::string what, std::string how = {}) const {
    ThrowBadInput(std::move(what), Where(), std::move(how));
  }
  void Append(std::uint64_t value, int bytes) {
    for (int i = 0; i < bytes; ++i) typed_.push_back(static_cast<std::byte>(value >> (8 * i)));
  }
  void AppendInt32(std::uint64_t value);
  void ReadTypedField(const WireReader& reader, const WireField& field);
  void ReadExternalEntry(std::span<const std::byte> bytes);
  void View(std::span<const std::byte> bytes);
  void ViewExternal(std::uint64_t size);
  std::uint64_t ParseNumber(std::string_view text, const char* what) const;

  const TensorSource& source_;
  const std::string& where_;
  OnnxTensor out_;
  std::span<const std::byte> raw_;
  bool has_raw_ = false;
  std::vector<std::byte> typed_;
  std::uint32_t typed_field_ = 0;
  std::vector<std::string> strings_;
  ExternalEntry external_;
  bool is_external_ = false;
};

// One entry of int32_data: element types of up to 32 bits, or one packed byte of a sub-byte type.
void TensorReader::AppendInt32(std::uint64_t value) {
  const auto v = static_cast<std::int64_t>(static_cast<std::int32_t>(static_cast<std::uint32_t>(value)));
  switch (BitWidth(out_.data.dtype)) {
    case 32:
      Append(value, 4);
      break;
    case 16:
      if (v < -32768 || v > 65535) Bad("int32_data value " + std::to_string(v) + " does not fit its type");
      Append(value, 2);
      break;
    default:
      if (v < -128 || v > 255) Bad("int32_data value " + std::to_string(v) + " does not fit its type");
      Append(value, 1);
  }
}

void TensorReader::ReadTypedField(const WireReader& reader, const WireField& field) {
  const DType dtype = out_.data.dtype;
  const auto check = [&](bool fits) {
    if (!fits) Bad("data in field " + std::to_string(field.number) + ", which is not for its type");
    if (typed_field_ != 0 && typed_field_ != field.number) Bad("data in two fields");
    typed_field_ = field.number;
  };
  switch (field.number) {
    case 4:  // float_data
      if (field.type == WireType::kBytes && field.bytes.empty()) return;
      check(dtype == DType::kF32 || dtype == DType::kC64);
      reader.ForEach(field, WireType::kFixed32, [&](std::uint64_t v) { Append(v, 4); });
      break;
    case 5:  // int32_data
      if (field.type == WireType::kBytes && field.bytes.empty()) return;
      check(dtype == DType::kBool || dtype == DType::kS32 || (BitWidth(dtype) > 0 && BitWidth(dtype) <= 16));
      reader.ForEach(field, WireType::kVarint, [&](std::uint64_t v) { AppendInt32(v); });
      break;
    case 6:  // string_data
      check(dtype == DType::kString);
      reader.Expect(field, WireType::kBytes);
      strings_.emplace_back(field.Text());
      break;
    case 7:  // int64_data
      if (field.type == WireType::kBytes && field.bytes.empty()) return;
      check(dtype == DType::kS64);
      reader.ForEach(field, WireType::kVarint, [&](std::uint64_t v) { Append(v, 8); });
      break;
    case 10:  // double_data
      if (field.type == WireType::kBytes && field.bytes.empty()) return;
      check(dtype == DType::kF64 || dtype == DType::kC128);
      reader.ForEach(field, WireType::kFixed64, [&](std::uint64_t v) { Append(v, 8); });
      break;
    default:  // uint64_data
      if (field.type == WireType::kBytes && field.bytes.empty()) return;
      check(dtype == DType::kU32 || dtype == DType::kU64);
      reader.ForEach(field, WireType::kVarint, [&](std::uint64_t v) {
        if (dtype == DType::kU32 && v > 0xffffffffu) Bad("uint64_data value does not fit u32");
        Append(v, dtype == DType::kU32 ? 4 : 8);
      });
  }
}

std::uint64_t TensorReader::ParseNumber(std::string_view text, const char* what) const {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    Bad(std::string("external data with a bad ") + what + " '" + std::string(text.substr(0, 40)) + "'");
  }
  return value;
}

void TensorReader::ReadExternalEntry(std::span<const std::byte> bytes) {
  std::string_view key, value;
  WireReader reader(bytes, source_.context);
  for (WireField field; reader.Next(field);) {
    if (field.number == 1 || field.number == 2) reader.Expect(field, WireType::kBytes);
    if (field.number == 1) key = field.Text();
    if (field.number == 2) value = field.Text();
  }
  if (key == "location") external_.location = std::string(value);
  if (key == "offset") external_.offset = ParseNumber(value, "offset");
  if (key == "length") external_.length = ParseNumber(value, "length");
}

void TensorReader::View(std::span<const std::byte> bytes) {
  out_.data.bytes = bytes;
  out_.data.owner = source_.owner;
  out_.data.file = source_.file;
}

void TensorReader::ViewExternal(std::uint64_t size) {
  if (!source_.folder) Bad("external data in a model that is not a file");
  const fs::path location(external_.location);
  bool inside = !location.empty() && location.is_relative() && external_.location.find('\0') == std::string::npos;
  for (const fs::path& part : location) inside &= part != "..";
  std::error_code error;
  const fs::path folder = fs::canonical(*source_.folder, error);
  fs::path real;
  if (inside) {
    real = fs::canonical(folder / location, error);
    if (error) {
      Bad("missing external data file '" + external_.location + "'", "put it beside the model");
    }
    // Links are resolved by now: the real file must still lie below the model's folder.
    const fs::path relative = real.lexically_relative(folder);
    inside = !relative.empty() && *relative.begin() != "..";
  }
  if (!inside) {
    Bad("external data path '" + external_.location + "' leaves the model's folder",
        "external data must lie in the folder of the model");
  }
  std::shared_ptr<const MappedFile>& file = source_.external[real];
  if (!file) file = MappedFile::Open(real);
  const std::uint64_t available = file->bytes().size();
  if (external_.length && *external_.length != size) {
    Bad("external data of " + std::to_string(*external_.length) + " bytes, where its dimensions take " +
        std::to_string(size));
  }
  if (external_.offset > available || available - external_.offset < size) {
    Bad("external data end after the end of '" + external_.location + "'", "the file is truncated");
  }
  out_.data.bytes = file->bytes().subspan(external_.offset, size);
  out_.data.owner = file;
  out_.data.file = file;
}

OnnxTensor TensorReader::Read(std::span<const std::byte> bytes) {
  // Two passes: the data fields can only be read once name and type are known, and fields come in any order.
  {
    WireReader reader(bytes, source_.context);
    for (WireField field; reader.Next(field);) {
      switch (field.number) {
        case 1:
          reader.ForEach(field, WireType::kVarint, [&](std::uint64_t v) {
            if (out_.data.dims.size() == kMaxTensorRank) Bad("tensor of more than 64 dimensions");
            out_.data.dims.push_back(static_cast<std::int64_t>(v));
          });
          break;
        case 2:
          reader.Expect(field, WireType::kVarint);
          if (field.scalar >= kDTypeCount) {
            ThrowUnsupported("tensor element type " + std::to_string(field.scalar), Where(),
                             "this build knows TensorProto types 1 to " + std::to_string(kDTypeCount - 1));
          }
          out_.data.dtype = static_cast<DType>(field.scalar);
          break;
        case 3:
          ThrowUnsupported("tensor stored in segments", Where());
        case 8:
          reader.Expect(field, WireType::kBytes);
          out_.name = std::string(field.Text());
          break;
        case 9:
          reader.Expect(field, WireType::kBytes);
          raw_ = field.bytes;
          has_raw_ = true;
          break;
        case 13:
          reader.Expect(field, WireType::kBytes);
          ReadExternalEntry(field.bytes);
          break;
        case 14:
          reader.Expect(field, WireType::kVarint);
          is_external_ = field.scalar == 1;
          break;
        case 4:
        case 5:
        case 6:
        case 7:
        case 10:
        case 11:
          break;
        default:
          out_.extras += field.Whole();
      }
    }
  }
  if (out_.data.dtype == DType::kUndefined) Bad("tensor without an element type");
  const std::uint64_t elements = ElementCount(out_.data.dims, Where());
  const bool is_string = out_.data.dtype == DType::kString;
  const std::optional<std::uint64_t> size = is_string ? 0 : ByteSize(out_.data.dtype, elements);
  if (!size) Bad("tensor too large");
  if (is_external_) {
    if (is_string) Bad("external data of strings");
    ViewExternal(*size);
    return std::move(out_);
  }
  if (has_raw_ && !is_string && (!raw_.empty() || *size == 0)) {
    if (raw_.size() != *size) {
      Bad("raw data of " + std::to_string(raw_.size()) + " bytes, where its dimensions take " + std::to_string(*size));
    }
    View(raw_);
    return std::move(out_);
  }
  WireReader reader(bytes, source_.context);
  for (WireField field; reader.Next(field);) {
    switch (field.number) {
      case 4:
      case 5:
      case 6:
      case 7:
      case 10:
      case 11:
        ReadTypedField(reader, field);
        break;
      default:
        break;
    }
  }
  if (is_string) {
    if (strings_.size() != elements) {
      Bad(std::to_string(strings_.size()) + " strings, where its dimensions take " + std::to_string(elements));
    }
    out_.data.strings = std::make_shared<const std::vector<std::string>>(std::move(strings_));
    return std::move(out_);
  }
  if (typed_.size() != *size) {
    Bad("data of " + std::to_string(typed_.size()) + " bytes, where its dimensions take " + std::to_string(*size));
  }
  OnnxTensor result = std::move(out_);
  result.data = TensorRef::FromBytes(result.data.dtype, std::move(result.data.dims), std::move(typed_));
  return result;
}

}  // namespace

OnnxTensor ReadOnnxTensor(std::span<const std::byte> bytes, const TensorSource& source, const std::string& where) {
  return TensorReader(source, where).Read(bytes);
}

}  // namespace octavo
