#include "octavo/emit/gguf.h"

#include <unordered_set>

#include "octavo/base/error.h"

namespace octavo {
namespace {

std::uint64_t RoundUp(std::uint64_t n, std::uint64_t alignment) { return (n + alignment - 1) / alignment * alignment; }

template <typename T>
void Put(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void PutString(std::string& out, const std::string& text) {
  Put(out, static_cast<std::uint64_t>(text.size()));
  out += text;
}

std::string Header(std::span<const GgufField> fields, std::span<const GgufTensorSpec> tensors,
                   const std::vector<std::uint64_t>& offsets) {
  std::string out = "GGUF";
  Put(out, kGgufVersion);
  Put(out, static_cast<std::uint64_t>(tensors.size()));
  Put(out, static_cast<std::uint64_t>(fields.size()));
  for (const GgufField& field : fields) {
    PutString(out, field.key);
    Put(out, static_cast<std::uint32_t>(field.type));
    out.append(reinterpret_cast<const char*>(field.bytes.data()), field.bytes.size());
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    PutString(out, tensors[i].name);
    Put(out, static_cast<std::uint32_t>(tensors[i].ne.size()));
    for (const std::uint64_t n : tensors[i].ne) Put(out, n);
    Put(out, tensors[i].type->id);
    Put(out, offsets[i]);
  }
  return out;
}

}  // namespace

GgufLayout PlanGguf(std::span<const GgufField> fields, std::span<const GgufTensorSpec> tensors,
                    std::uint64_t alignment) {
  constexpr std::uint64_t kMax = std::uint64_t{1} << 62;
  GgufLayout out;
  std::unordered_set<std::string_view> seen;
  for (const GgufField& field : fields) {
    if (!seen.insert(field.key).second) ThrowBadInput("a GGUF key appears twice", "field " + field.key);
  }
  seen.clear();
  std::uint64_t at = 0;
  std::uint64_t header = 4 + 4 + 8 + 8;
  for (const GgufField& field : fields) header += 8 + field.key.size() + 4 + field.bytes.size();
  for (const GgufTensorSpec& tensor : tensors) {
    const std::string where = "tensor " + tensor.name;
    if (!seen.insert(tensor.name).second) ThrowBadInput("a tensor's name appears twice", where);
    if (tensor.ne.size() > kGgufMaxDims) {
      ThrowBadInput("has " + std::to_string(tensor.ne.size()) + " dimensions, GGUF allows 4", where);
    }
    const std::optional<std::uint64_t> bytes = GgufByteSize(*tensor.type, tensor.ne);
    if (!bytes) {
      ThrowBadInput("shape " + GgufShapeText(tensor.ne) + " cannot be stored as " + std::string(tensor.type->name),
                    where);
    }
    if (*bytes > kMax - at) ThrowBadInput("the file would be too large", where);
    out.offsets.push_back(at);
    out.bytes.push_back(*bytes);
    at = RoundUp(at + *bytes, alignment);
    header += 8 + tensor.name.size() + 4 + 8 * tensor.ne.size() + 4 + 8;
  }
  out.data_start = RoundUp(header, alignment);
  out.file_bytes = out.data_start + at;
  return out;
}

GgufWriter::GgufWriter(const std::filesystem::path& path, std::span<const GgufField> fields,
                       std::span<const GgufTensorSpec> tensors, std::uint64_t alignment)
    : layout_(PlanGguf(fields, tensors, alignment)), alignment_(alignment), file_(path) {
  file_.Write(Header(fields, tensors, layout_.offsets));
  if (file_.offset() > layout_.data_start) ThrowInternal("the GGUF header is longer than planned", path.string());
  Pad();
}

void GgufWriter::Pad() {
  const std::string zeros(static_cast<std::size_t>(RoundUp(file_.offset(), alignment_) - file_.offset()), '\0');
  file_.Write(zeros);
  written_ = 0;
}

void GgufWriter::Write(std::span<const std::byte> data) {
  while (tensor_ < layout_.bytes.size() && layout_.bytes[tensor_] == 0) ++tensor_;
  if (data.empty()) return;
  if (tensor_ >= layout_.bytes.size() || data.size() > layout_.bytes[tensor_] - written_) {
    ThrowInternal("more data than the GGUF tensor takes", file_.temp_path().string());
  }
  file_.Write(data);
  written_ += data.size();
  if (written_ == layout_.bytes[tensor_]) {
    Pad();
    ++tensor_;
  }
}

void GgufWriter::Commit() {
  Write({});  // steps over empty tensors at the end
  if (tensor_ != layout_.bytes.size() || file_.offset() != layout_.file_bytes) {
    ThrowInternal("the GGUF file is not complete", file_.temp_path().string());
  }
  file_.Commit();
}

}  // namespace octavo
