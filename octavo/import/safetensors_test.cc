#include "octavo/import/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>

#include "octavo/base/error.h"

namespace octavo {
namespace {

using testing::HasSubstr;

std::string File(const std::string& header, const std::string& data) {
  const std::uint64_t n = header.size();
  return std::string(reinterpret_cast<const char*>(&n), sizeof n) + header + data;
}

std::vector<SafeTensor> Parse(const std::string& bytes) {
  auto owner = std::make_shared<const std::string>(bytes);
  return ParseSafetensors(std::as_bytes(std::span(*owner)), owner, "t.safetensors");
}

void Refused(const std::string& bytes, const std::string& sentence, ExitCode code = ExitCode::kBadInput) {
  try {
    Parse(bytes);
    ADD_FAILURE() << "taken, expected: " << sentence;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(sentence));
  }
}

TEST(ParseSafetensors, TakesTensors) {
  const auto t = Parse(File(R"({"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                            R"("s":{"dtype":"U8","shape":[],"data_offsets":[8,9]}})",
                            std::string(9, '\0')));
  ASSERT_EQ(t.size(), 2u);
  EXPECT_EQ(t[0].name, "x");
  EXPECT_EQ(t[0].data.ToFloats(), (std::vector<float>{0, 0}));
  EXPECT_EQ(t[1].data.dtype, DType::kU8);
  EXPECT_TRUE(t[1].data.dims.empty());
}

TEST(ParseSafetensors, RefusesLies) {
  const std::string data(16, '\0');
  Refused("", "not a safetensors file");
  Refused(File("[]", ""), "not a safetensors file");
  Refused(File("{\"x\":", ""), "header is damaged");
  const auto with = [&](const std::string& tensor) { return File("{\"x\":" + tensor + "}", data); };
  Refused(with("1"), "not described by");
  Refused(with(R"({"dtype":"F32","shape":[2],"data_offsets":[0,4]})"), "its shape needs 8");
  Refused(with(R"({"dtype":"F32","shape":[2],"data_offsets":[12,20]})"), "beyond the end");
  Refused(with(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"), "beyond the end");
  Refused(with(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})"), "not a natural number");
  Refused(with(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]})"), "");
  Refused(with(R"({"dtype":"F99","shape":[2],"data_offsets":[0,8]})"), "F99", ExitCode::kUnsupported);
  Refused(with("[[[[[[1]]]]]]"), "nested too deep");
  const std::string x = R"("x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  Refused(File("{" + x + "," + x + "}", data), "appears twice");
  Refused(File("{" + x + R"(,"y":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", data), "overlap");
}

}  // namespace
}  // namespace octavo
