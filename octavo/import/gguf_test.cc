// The reader against files made byte by byte: what it takes, and every way in which a file can lie.
#include "octavo/import/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>

#include "octavo/base/error.h"
#include "octavo/base/folder_test_util.h"
#include "octavo/import/gguf_imatrix.h"
#include "octavo/numerics/ggml.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// A GGUF as a list of pieces, every field of which a test can get wrong.
struct File {
  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::vector<std::string> fields, tensors;
  std::optional<std::uint64_t> field_count, tensor_count;
  std::uint64_t alignment = 32;
  std::string data;

  std::string Bytes() const;
};

template <typename T>
std::string Le(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
std::string Str(const std::string& text) { return Le<std::uint64_t>(text.size()) + text; }
std::string Field(const std::string& key, GgufValueType type, const std::string& value) {
  return Str(key) + Le(static_cast<std::uint32_t>(type)) + value;
}
std::string Array(GgufValueType element, std::uint64_t count, const std::string& items) {
  return Le(static_cast<std::uint32_t>(element)) + Le(count) + items;
}
std::string Tensor(const std::string& name, const std::vector<std::uint64_t>& ne, std::uint32_t type,
                   std::uint64_t offset) {
  std::string out = Str(name) + Le(static_cast<std::uint32_t>(ne.size()));
  for (const std::uint64_t n : ne) out += Le(n);
  return out + Le(type) + Le(offset);
}

std::string File::Bytes() const {
  std::string out = magic + Le(version) + Le<std::uint64_t>(tensor_count.value_or(tensors.size())) +
                    Le<std::uint64_t>(field_count.value_or(fields.size()));
  for (const std::string& f : fields) out += f;
  for (const std::string& t : tensors) out += t;
  if (alignment != 0) out.resize((out.size() + alignment - 1) / alignment * alignment);
  return out + data;
}

GgufHeader Parse(const std::string& bytes) {
  auto owner = std::make_shared<const std::string>(bytes);
  return ParseGguf(std::as_bytes(std::span(*owner)), owner, "t.gguf");
}

void Refused(const std::string& bytes, const std::string& sentence, ExitCode code = ExitCode::kBadInput) {
  try {
    Parse(bytes);
    ADD_FAILURE() << "taken, expected: " << sentence;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    EXPECT_THAT(error.what(), HasSubstr(sentence));
    EXPECT_THAT(error.what(), HasSubstr("t.gguf"));
  }
}

File TwoTensors() {
  File f;
  f.tensors = {Tensor("a", {4, 2}, 0, 0), Tensor("b", {32}, 8, 32)};
  f.data = std::string(32 + 34, 'x');
  return f;
}

TEST(ParseGguf, TakesTensorsOfBothVersions) {
  for (const std::uint32_t version : {2u, 3u}) {
    File f = TwoTensors();
    f.version = version;
    const GgufHeader h = Parse(f.Bytes());
    EXPECT_EQ(h.version, version);
    ASSERT_EQ(h.tensors.size(), 2u);
    EXPECT_EQ(h.tensors[0].dims(), (Dims{2, 4}));
    EXPECT_EQ(h.tensors[0].bytes, 32u);
    EXPECT_EQ(h.tensors[1].type->name, "q8_0");
    EXPECT_EQ(h.tensors[1].bytes, 34u);
    EXPECT_EQ(h.tensors[1].offset, h.tensors[0].offset + 32);
  }
}

TEST(ParseGguf, EveryFieldTypeIsKept) {
  File f;
  f.fields = {
      Field("u8", GgufValueType::kU8, Le<std::uint8_t>(200)),
      Field("i8", GgufValueType::kI8, Le<std::int8_t>(-3)),
      Field("i64", GgufValueType::kI64, Le<std::int64_t>(-5)),
      Field("u64", GgufValueType::kU64, Le<std::uint64_t>(~std::uint64_t{0})),
      Field("f64", GgufValueType::kF64, Le<double>(0.5)),
      Field("yes", GgufValueType::kBool, Le<std::uint8_t>(1)),
      Field("s", GgufValueType::kString, Str("text")),
      Field("list", GgufValueType::kArray, Array(GgufValueType::kString, 2, Str("x") + Str("yy"))),
      Field("nested", GgufValueType::kArray,
            Array(GgufValueType::kArray, 2,
                  Array(GgufValueType::kI32, 2, Le<std::int32_t>(1) + Le<std::int32_t>(2)) +
                      Array(GgufValueType::kArray, 1, Array(GgufValueType::kString, 0, "")))),
  };
  const GgufHeader h = Parse(f.Bytes());
  ASSERT_EQ(h.fields.size(), f.fields.size());
  EXPECT_EQ(h.FindField("u8")->AsUint(), 200u);
  EXPECT_EQ(h.FindField("i8")->AsUint(), std::nullopt);
  EXPECT_EQ(h.FindField("u64")->AsUint(), ~std::uint64_t{0});
  EXPECT_EQ(h.FindField("s")->AsString(), "text");
  EXPECT_EQ(h.FindField("s")->AsUint(), std::nullopt);
  EXPECT_EQ(h.FindField("list")->AsStrings(), (std::vector<std::string>{"x", "yy"}));
  EXPECT_EQ(h.FindField("nested")->AsStrings(), std::nullopt);
  EXPECT_EQ(h.FindField("absent"), nullptr);
}

TEST(ParseGguf, RefusesWhatIsNoGguf) {
  File f = TwoTensors();
  f.magic = "GGUX";
  Refused(f.Bytes(), "does not start with GGUF");
  Refused("GG", "does not start with GGUF");
  f = TwoTensors();
  f.version = 1;
  Refused(f.Bytes(), "version 1 is not read", ExitCode::kUnsupported);
  f.version = 3u << 24;
  Refused(f.Bytes(), "big-endian", ExitCode::kUnsupported);
  f.version = 4;
  Refused(f.Bytes(), "newer than this version reads", ExitCode::kUnsupported);
  f.version = 0;
  Refused(f.Bytes(), "does not exist");
}

TEST(ParseGguf, RefusesCountsThatTheFileCannotHold) {
  File f = TwoTensors();
  f.tensor_count = ~std::uint64_t{0};
  Refused(f.Bytes(), "tensors, more than it can hold");
  f.tensor_count.reset();
  f.field_count = std::uint64_t{1} << 60;
  Refused(f.Bytes(), "metadata fields, more than it can hold");
  f = File();
  f.fields = {Field("k", GgufValueType::kArray, Array(GgufValueType::kU64, std::uint64_t{1} << 61, ""))};
  Refused(f.Bytes(), "an array goes beyond the end");
  f.fields = {Field("k", GgufValueType::kArray, Array(GgufValueType::kString, std::uint64_t{1} << 61, ""))};
  Refused(f.Bytes(), "beyond the end");
  f.fields = {Field("k", GgufValueType::kArray, Array(GgufValueType::kBool, std::uint64_t{1} << 61, ""))};
  Refused(f.Bytes(), "beyond the end");
  f.fields = {Field("k", GgufValueType::kString, Le(~std::uint64_t{0}))};
  Refused(f.Bytes(), "beyond the end");
  f.fields = {Le<std::uint64_t>(1 << 20) + std::string(100, 'k')};
  Refused(f.Bytes(), "too long");
}

TEST(ParseGguf, RefusesBadFields) {
  File f;
  f.fields = {Field("k", GgufValueType::kU8, "1"), Field("k", GgufValueType::kU8, "1")};
  Refused(f.Bytes(), "the key appears twice");
  f.fields = {Field("k", GgufValueType::kBool, Le<std::uint8_t>(2))};
  Refused(f.Bytes(), "neither 0 nor 1");
  f.fields = {Field("k", GgufValueType::kArray, Array(GgufValueType::kBool, 2, std::string("\1\2", 2)))};
  Refused(f.Bytes(), "neither 0 nor 1");
  f.fields = {Field("k", static_cast<GgufValueType>(13), "1234")};
  Refused(f.Bytes(), "metadata type 13 does not exist");
  f.fields = {Field("k", GgufValueType::kArray, Array(static_cast<GgufValueType>(77), 0, ""))};
  Refused(f.Bytes(), "metadata type 77 does not exist");
  std::string deep = Array(GgufValueType::kU8, 0, "");
  for (int i = 0; i < 8; ++i) deep = Array(GgufValueType::kArray, 1, deep);
  f.fields = {Field("k", GgufValueType::kArray, deep)};
  Refused(f.Bytes(), "nested more than 8 deep");
}

TEST(ParseGguf, Alignment) {
  const auto with = [](std::uint32_t alignment) {
    File f;
    f.fields = {Field("general.alignment", GgufValueType::kU32, Le(alignment))};
    f.alignment = 64;
    f.tensors = {Tensor("a", {1}, 0, 0)};
    f.data = "1234";
    return f.Bytes();
  };
  EXPECT_EQ(Parse(with(64)).alignment, 64u);
  for (const std::uint32_t bad : {0u, 3u, 48u, 1u << 30}) Refused(with(bad), "not a power of two");
  File f;
  f.fields = {Field("general.alignment", GgufValueType::kU64, Le<std::uint64_t>(32))};
  Refused(f.Bytes(), "not a u32");
}

TEST(ParseGguf, RefusesBadTensors) {
  const auto with = [](const std::string& tensor) {
    File f = TwoTensors();
    f.tensors = {tensor};
    return f.Bytes();
  };
  Refused(with(Tensor("a", {4, 1, 1, 1, 1}, 0, 0)), "5 dimensions");
  Refused(with(Tensor("a", {33}, 8, 0)), "33 elements is not a whole number of q8_0 blocks of 32");
  Refused(with(Tensor("a", {4}, 4, 0)), "element type 4 is not known", ExitCode::kUnsupported);
  Refused(with(Tensor("a", {1ull << 32, 1ull << 32}, 0, 0)), "overflow");
  Refused(with(Tensor("a", {0, 1ull << 63}, 0, 0)), "overflow");
  Refused(with(Tensor("a", {1ull << 62}, 28, 0)), "blocks");
  Refused(with(Tensor("a", {4}, 0, 16)), "not aligned");
  Refused(with(Tensor("a", {4}, 0, ~std::uint64_t{0} - 31)), "beyond the end");
  Refused(with(Tensor("a", {4, 100}, 0, 0)), "beyond the end");
  Refused(with(Tensor("a", {4}, 0, 1 << 20)), "beyond the end");
  File f = TwoTensors();
  f.tensors[1] = Tensor("a", {32}, 8, 32);
  Refused(f.Bytes(), "name appears twice");
  f.tensors[1] = Tensor("b", {32}, 8, 0);
  Refused(f.Bytes(), "overlap");
}

TEST(ParseGguf, EveryTruncationIsRefused) {
  File f = TwoTensors();
  f.fields = {Field("list", GgufValueType::kArray, Array(GgufValueType::kString, 2, Str("x") + Str("yy")))};
  const std::string whole = f.Bytes();
  ASSERT_NO_THROW(Parse(whole));
  for (std::size_t n = 0; n < whole.size(); ++n) EXPECT_THROW(Parse(whole.substr(0, n)), Error) << n;
}

TEST(ParseGguf, EmptyTensorsTakeNoRoom) {
  File f;
  f.tensors = {Tensor("a", {0, 4}, 0, 0), Tensor("s", {}, 0, 0)};
  f.data = "1234";
  const GgufHeader h = Parse(f.Bytes());
  EXPECT_EQ(h.tensors[0].bytes, 0u);
  EXPECT_EQ(h.tensors[1].bytes, 4u);
  EXPECT_TRUE(h.tensors[1].dims().empty());
}

// One table of sizes a format is enough: where GGUF's overlaps that of the codecs, they say the same.
TEST(GgufTypes, AgreeWithTheCodecs) {
  for (const GgmlFormat& format : GgmlFormats()) {
    const GgufType* type = FindGgufType(format.type_id);
    ASSERT_NE(type, nullptr) << format.name;
    EXPECT_EQ(type, FindGgufType(format.name));
    EXPECT_EQ(type->block, format.block) << format.name;
    EXPECT_EQ(type->bytes, format.block_bytes) << format.name;
  }
  for (const GgufType& type : GgufTypes()) EXPECT_EQ(FindGgufType(type.id), &type);
}

class GgufFiles : public FolderTest {
 protected:
  fs::path Write(const std::string& name, const std::string& bytes) const {
    Put(folder_ / name, bytes);
    return folder_ / name;
  }
  static std::string Part(std::uint16_t no, std::uint16_t count, std::int32_t all, const std::string& tensor) {
    File f;
    f.fields = {Field("split.no", GgufValueType::kU16, Le(no)), Field("split.count", GgufValueType::kU16, Le(count)),
                Field("split.tensors.count", GgufValueType::kI32, Le(all))};
    if (no == 0) f.fields.push_back(Field("general.name", GgufValueType::kString, Str("m")));
    f.tensors = {Tensor(tensor, {4}, 0, 0)};
    f.data = std::string(16, static_cast<char>('a' + no));
    return f.Bytes();
  }
  static void Refused(const fs::path& path, const std::string& sentence) {
    try {
      Gguf::Open(path);
      ADD_FAILURE() << "taken, expected: " << sentence;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadInput);
      EXPECT_THAT(error.what(), HasSubstr(sentence));
    }
  }
};

TEST_F(GgufFiles, AllPartsOfASplitAreOneModel) {
  Write("m-00001-of-00002.gguf", Part(0, 2, 2, "a"));
  const fs::path second = Write("m-00002-of-00002.gguf", Part(1, 2, 2, "b"));
  const Gguf file = Gguf::Open(second);  // any part names the model
  ASSERT_EQ(file.tensors.size(), 2u);
  EXPECT_EQ(file.tensors[1].part, 1u);
  EXPECT_EQ(file.Data(*file.FindTensor("b"))[0], std::byte{'b'});
  EXPECT_EQ(file.FindTensor("c"), nullptr);
  ASSERT_EQ(file.fields.size(), 1u);  // the bookkeeping of the split is gone
  EXPECT_EQ(file.fields[0].key, "general.name");
}

TEST_F(GgufFiles, SplitsThatDoNotBelongTogetherAreRefused) {
  const fs::path first = Write("m-00001-of-00002.gguf", Part(0, 2, 2, "a"));
  Refused(first, "part 2 of 2 is missing");
  Write("m-00002-of-00002.gguf", Part(0, 2, 2, "a"));  // the first part again: a cycle
  Refused(first, "another part than its name says");
  Write("m-00002-of-00002.gguf", Part(1, 2, 2, "a"));
  Refused(first, "name appears in two parts");
  Write("m-00002-of-00002.gguf", Part(1, 3, 2, "b"));
  Refused(first, "another part than its name says");
  Write("m-00001-of-00002.gguf", Part(0, 2, 3, "a"));
  Write("m-00002-of-00002.gguf", Part(1, 2, 3, "b"));
  Refused(first, "hold 2 tensors, the metadata say 3");
  Refused(Write("m.gguf", Part(0, 2, 2, "a")), "its name does not say which");
  Refused(Write("m-00001-of-00003.gguf", Part(0, 2, 2, "a")), "its name says 3 parts");
}

TEST_F(GgufFiles, ImportanceInBothForms) {
  File f;
  f.tensors = {Tensor("w.in_sum2", {2, 2}, 0, 0), Tensor("w.counts", {1, 2}, 0, 32)};
  f.data = Le(2.0f) + Le(4.0f) + Le(6.0f) + Le(8.0f) + std::string(16, '\0') + Le(2.0f) + Le(0.0f);
  const Imatrix modern = ReadImatrix(Write("i.gguf", f.Bytes()));
  EXPECT_EQ(modern.at("w"), (std::vector<float>{1, 2, 1, 1}));  // a matrix that never ran: all the same
  const std::string dat =
      Le<std::int32_t>(1) + Le<std::int32_t>(1) + "w" + Le<std::int32_t>(4) + Le<std::int32_t>(2) + Le(4.0f) + Le(2.0f);
  EXPECT_EQ(ReadImatrix(Write("i.dat", dat)).at("w"), (std::vector<float>{1, 0.5}));
  for (std::size_t n = 0; n < dat.size(); ++n) {
    EXPECT_THROW(ReadImatrix(Write("cut.dat", dat.substr(0, n))), Error) << n;
  }
  std::string negative = dat;
  negative.back() = static_cast<char>(0xc0);
  EXPECT_THROW(ReadImatrix(Write("negative.dat", negative)), Error);
}

}  // namespace
}  // namespace octavo
