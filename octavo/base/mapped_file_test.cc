#include "octavo/base/mapped_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <string>

#include "octavo/base/error.h"

namespace octavo {
namespace {

std::filesystem::path Write(const std::string& name, const std::string& content) {
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / name;
  std::ofstream(path, std::ios::binary) << content;
  return path;
}

std::string Text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(MappedFile, ShowsContentAndKeepsItAfterUnlink) {
  const auto path = Write("mapped_file.bin", "octavo");
  const auto file = MappedFile::Open(path);
  std::filesystem::remove(path);
  EXPECT_EQ(Text(file->bytes()), "octavo");
  EXPECT_EQ(file->path(), path);
}

TEST(MappedFile, EmptyFileIsAnEmptySpan) {
  EXPECT_TRUE(MappedFile::Open(Write("mapped_empty.bin", ""))->bytes().empty());
}

TEST(MappedFile, DroppedPagesAreReadAgain) {
  const std::string content(3 * 4096 + 17, 'x');
  const auto file = MappedFile::Open(Write("mapped_drop.bin", content));
  EXPECT_EQ(Text(file->bytes()), content);
  file->DropPages(file->bytes());
  EXPECT_EQ(Text(file->bytes()), content);
  file->DropPages(file->bytes().subspan(100, 5000));
  file->DropPages(std::as_bytes(std::span(content.data(), content.size())));  // not of this file: ignored
  EXPECT_EQ(Text(file->bytes()), content);
}

TEST(MappedFile, RefusesWhatIsNoRegularFile) {
  const std::filesystem::path dir = testing::TempDir();
  const auto fifo = dir / "mapped_fifo";
  std::filesystem::remove(fifo);
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  for (const auto& path : {dir, dir / "mapped_missing.bin", fifo, std::filesystem::path("/dev/null")}) {
    try {
      MappedFile::Open(path);
      ADD_FAILURE() << path << " was opened";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::kBadInput);
      EXPECT_EQ(e.where(), path.string());
    }
  }
  std::filesystem::remove(fifo);
}

}  // namespace
}  // namespace octavo
