// Hostile files of weights: a GGUF or safetensors file ends in tensors that lie inside it, or in one of Octavo's
// errors.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/import/gguf.h"
#include "octavo/import/safetensors.h"

namespace {

class Reader : public octavo::GgufVisitor {
 public:
  std::uint64_t sum = 0;
  void Int(std::int64_t value) override { sum += static_cast<std::uint64_t>(value); }
  void Uint(std::uint64_t value) override { sum += value; }
  void Float(double value) override { sum += value > 0 ? 1 : 0; }
  void Bool(bool value) override { sum += value ? 1 : 0; }
  void String(std::string_view value) override {
    for (const char c : value) sum += static_cast<unsigned char>(c);
  }
  bool BeginArray(octavo::GgufValueType, std::uint64_t count) override { return count % 2 == 0; }
  void EndArray() override {}
};

void Touch(std::span<const std::byte> bytes, std::uint64_t& sum) {
  for (const std::byte b : bytes) sum += static_cast<std::uint64_t>(b);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto owner = std::make_shared<std::vector<std::uint8_t>>(data, data + size);
  const std::span<const std::byte> bytes = std::as_bytes(std::span(*owner));
  Reader reader;
  const auto check = [](const octavo::Error& error) {
    if (error.code() != octavo::ExitCode::kBadInput && error.code() != octavo::ExitCode::kUnsupported) std::abort();
  };
  try {
    const octavo::GgufHeader header = octavo::ParseGguf(bytes, owner, "fuzz.gguf");
    for (const octavo::GgufField& field : header.fields) octavo::VisitGgufValue(field, reader);
    for (const octavo::GgufTensor& tensor : header.tensors) {
      if (tensor.offset > size || tensor.bytes > size - tensor.offset) std::abort();
      Touch(bytes.subspan(tensor.offset, tensor.bytes), reader.sum);
    }
  } catch (const octavo::Error& error) {
    check(error);
  }
  try {
    for (const octavo::SafeTensor& tensor : octavo::ParseSafetensors(bytes, owner, "fuzz.safetensors")) {
      Touch(tensor.data.bytes, reader.sum);
    }
  } catch (const octavo::Error& error) {
    check(error);
  }
  volatile std::uint64_t sink = reader.sum;
  static_cast<void>(sink);
  return 0;
}
