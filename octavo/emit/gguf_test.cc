#include "octavo/emit/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "octavo/base/error.h"
#include "octavo/base/folder_test_util.h"
#include "octavo/emit/irpa.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

class Files : public FolderTest {
 protected:
  static std::string Read(const fs::path& path) { return Slurp(path); }
  template <typename T>
  static T At(const std::string& bytes, std::size_t offset) {
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof value);
    return value;
  }
};

using GgufWriterTest = Files;
using WriteIrpaTest = Files;

std::vector<std::byte> Fill(std::size_t n, int value) { return {n, static_cast<std::byte>(value)}; }

// The layout of the specification, byte for byte.
TEST_F(GgufWriterTest, LayoutIsTheSpecifications) {
  const std::vector<GgufField> fields = {GgufField::String("k", "v"), GgufField::U32("n", 7)};
  const std::vector<GgufTensorSpec> tensors = {{"a", FindGgufType("f32"), {3}}, {"q", FindGgufType("q8_0"), {32, 1}}};
  const fs::path path = folder_ / "t.gguf";
  GgufWriter writer(path, fields, tensors);
  writer.Write(Fill(8, 1));  // in pieces
  writer.Write(Fill(4, 2));
  writer.Write(Fill(34, 3));
  EXPECT_FALSE(fs::exists(path));
  writer.Commit();
  const std::string b = Read(path);
  ASSERT_EQ(b.size(), writer.layout().file_bytes);
  EXPECT_EQ(b.substr(0, 4), "GGUF");
  EXPECT_EQ(At<std::uint32_t>(b, 4), 3u);
  EXPECT_EQ(At<std::uint64_t>(b, 8), 2u);
  EXPECT_EQ(At<std::uint64_t>(b, 16), 2u);
  EXPECT_EQ(At<std::uint64_t>(b, 24), 1u);
  EXPECT_EQ(b.substr(32, 1), "k");
  EXPECT_EQ(At<std::uint32_t>(b, 33), 8u);
  EXPECT_EQ(At<std::uint64_t>(b, 37), 1u);
  EXPECT_EQ(b[45], 'v');
  const std::uint64_t data = writer.layout().data_start;
  EXPECT_EQ(data % 32, 0u);
  EXPECT_EQ(b.substr(data, 12), std::string(8, '\1') + std::string(4, '\2'));
  EXPECT_EQ(b.substr(data + 12, 20), std::string(20, '\0'));
  EXPECT_EQ(b.substr(data + 32, 34), std::string(34, '\3'));
  EXPECT_EQ(b.size(), data + 96);
}

TEST_F(GgufWriterTest, NothingIsLeftOfAnUnfinishedFile) {
  const fs::path path = folder_ / "t.gguf";
  {
    const std::vector<GgufTensorSpec> tensors = {{"a", FindGgufType("f32"), {3}}};
    GgufWriter writer(path, {}, tensors);
    writer.Write(Fill(8, 1));
    EXPECT_THROW(writer.Write(Fill(8, 1)), Error);  // more than the tensor takes
    EXPECT_THROW(writer.Commit(), Error);           // less than it needs
  }
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(GgufWriterTest, EmptyTensorsAndFilesWithout) {
  const std::vector<GgufTensorSpec> tensors = {{"a", FindGgufType("f32"), {0}}, {"b", FindGgufType("f32"), {0, 4}}};
  GgufWriter writer(folder_ / "t.gguf", {}, tensors);
  writer.Commit();
  EXPECT_EQ(Read(folder_ / "t.gguf").size(), writer.layout().data_start);
  GgufWriter none(folder_ / "u.gguf", {}, {});
  none.Commit();
  EXPECT_EQ(Read(folder_ / "u.gguf").size(), 32u);
}

TEST(PlanGguf, RefusesWhatCannotBeWritten) {
  const GgufType* q8 = FindGgufType("q8_0");
  const auto plan = [](std::vector<GgufTensorSpec> tensors, std::vector<GgufField> fields = {}) {
    return PlanGguf(fields, tensors, 32);
  };
  EXPECT_THROW(plan({{"a", q8, {33}}}), Error);
  EXPECT_THROW(plan({{"a", q8, {32, 1, 1, 1, 1}}}), Error);
  EXPECT_THROW(plan({{"a", q8, {32}}, {"a", q8, {32}}}), Error);
  EXPECT_THROW(plan({{"a", q8, {1ull << 62, 1ull << 62}}}), Error);
  EXPECT_THROW(plan({}, {GgufField::U32("k", 1), GgufField::U32("k", 2)}), Error);
  EXPECT_EQ(plan({{"a", q8, {32, 2}}, {"b", q8, {32}}}).offsets, (std::vector<std::uint64_t>{0, 96}));
}

TEST_F(WriteIrpaTest, LayoutIsTheArchives) {
  const std::vector<std::byte> a = Fill(100, 1), c = Fill(3, 2);
  const std::vector<IrpaEntry> entries = {{"first", a}, {"c", c}};
  WriteIrpa(folder_ / "t.irpa", entries);
  const std::string b = Read(folder_ / "t.irpa");
  EXPECT_EQ(b.size() % 4096, 0u);
  EXPECT_EQ(b.substr(0, 4), "IRPA");
  EXPECT_EQ(At<std::uint64_t>(b, 8), 88u);
  EXPECT_EQ(At<std::uint64_t>(b, 32), 2u);
  const auto table = At<std::uint64_t>(b, 40), names = At<std::uint64_t>(b, 56), storage = At<std::uint64_t>(b, 72);
  EXPECT_EQ(b.substr(names, 6), "firstc");
  EXPECT_EQ(storage % 64, 0u);
  for (std::size_t i = 0; i < 2; ++i) {
    const std::size_t at = table + i * 80;
    EXPECT_EQ(At<std::uint64_t>(b, at), 76u);
    EXPECT_EQ(At<std::uint32_t>(b, at + 8), 2u);
    EXPECT_EQ(At<std::uint64_t>(b, at + 20), i == 0 ? 0u : 5u);
    EXPECT_EQ(At<std::uint64_t>(b, at + 28), entries[i].name.size());
    EXPECT_EQ(At<std::uint64_t>(b, at + 52), 64u);
    const auto offset = At<std::uint64_t>(b, at + 60), length = At<std::uint64_t>(b, at + 68);
    EXPECT_EQ(offset % 64, 0u);
    EXPECT_EQ(length, entries[i].bytes.size());
    EXPECT_EQ(b.substr(storage + offset, length), std::string(length, i == 0 ? '\1' : '\2'));
  }
  const std::vector<IrpaEntry> twice = {{"a", a}, {"a", c}};
  EXPECT_THROW(WriteIrpa(folder_ / "u.irpa", twice), Error);
  EXPECT_FALSE(fs::exists(folder_ / "u.irpa"));
}

}  // namespace
}  // namespace octavo
