#include "octavo/base/output.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/folder_test_util.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

class Output : public FolderTest {
 protected:
  std::vector<std::string> Names() const {
    std::vector<std::string> out;
    for (const auto& entry : fs::directory_iterator(folder_)) out.push_back(entry.path().filename().string());
    return out;
  }
  static std::string Read(const fs::path& path) { return ReadTextFile(path, 1 << 20); }
};

ExitCode CodeOf(const std::function<void()>& fn, std::string* message = nullptr) {
  try {
    fn();
  } catch (const Error& e) {
    if (message != nullptr) *message = e.what();
    return e.code();
  }
  return ExitCode::kOk;
}

pid_t DeadPid() {
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(0);
  ::waitpid(pid, nullptr, 0);
  return pid;
}

TEST_F(Output, FileAppearsOnCommit) {
  {
    OutputFile file(folder_ / "a.json");
    file.Write("hello ");
    file.Write(std::string(1 << 20, 'x'));  // past the buffer
    file.Write("end");
    EXPECT_EQ(file.offset(), 9u + (1 << 20));
    EXPECT_FALSE(fs::exists(folder_ / "a.json"));
    EXPECT_TRUE(fs::exists(file.temp_path()));
    file.Commit();
  }
  EXPECT_THAT(Names(), ElementsAre("a.json"));
  const std::string text = ReadTextFile(folder_ / "a.json", 2 << 20);
  EXPECT_EQ(text.size(), 9u + (1 << 20));
  EXPECT_EQ(text.substr(0, 7), "hello x");
  EXPECT_EQ(text.substr(text.size() - 4), "xend");
}

TEST_F(Output, AbandonedFileLeavesTheOldOne) {
  Put(folder_ / "a", "old");
  {
    OutputFile file(folder_ / "a");
    file.Write("new");
  }
  EXPECT_THAT(Names(), ElementsAre("a"));
  EXPECT_EQ(Read(folder_ / "a"), "old");
  {
    OutputFile file(folder_ / "a");
    file.Write("new");
    file.Commit();
  }
  EXPECT_EQ(Read(folder_ / "a"), "new");
}

TEST_F(Output, LinkStaysALink) {
  Put(folder_ / "real", "old");
  fs::create_symlink("real", folder_ / "link");
  OutputFile file(folder_ / "link");
  file.Write("new");
  file.Commit();
  EXPECT_TRUE(fs::is_symlink(folder_ / "link"));
  EXPECT_EQ(Read(folder_ / "real"), "new");
}

TEST_F(Output, LeftoversOfDeadRunsOnly) {
  const std::string dead = std::to_string(DeadPid()), alive = std::to_string(::getppid());
  Put(folder_ / (".a.octavo-" + dead), "");
  Put(folder_ / (".a.octavo-" + dead + ".3"), "");
  Put(folder_ / (".a.octavo-" + std::to_string(::getpid())), "");  // an earlier process of the same pid
  Put(folder_ / (".a.octavo-" + alive), "");
  Put(folder_ / (".b.octavo-" + dead), "");           // another target
  Put(folder_ / (".a.octavo-" + dead + "x"), "");     // not ours
  Put(folder_ / (".a.octavo-" + dead + ".txt"), "");  // not ours
  { OutputFile file(folder_ / "a"); }
  EXPECT_THAT(Names(), UnorderedElementsAre(".a.octavo-" + alive, ".b.octavo-" + dead, ".a.octavo-" + dead + "x",
                                            ".a.octavo-" + dead + ".txt"));
}

TEST_F(Output, TwoWritersOfOneTarget) {
  OutputFile one(folder_ / "a"), two(folder_ / "a");
  one.Write("1");
  two.Write("2");
  EXPECT_NE(one.temp_path(), two.temp_path());
  one.Commit();
  two.Commit();
  EXPECT_EQ(Read(folder_ / "a"), "2");
  EXPECT_THAT(Names(), ElementsAre("a"));
}

TEST_F(Output, FileErrors) {
  std::string message;
  Put(folder_ / "f", "precious");
  EXPECT_EQ(CodeOf([&] { OutputFile file(folder_ / "f" / "b" / "a"); }, &message), ExitCode::kBadInput);
  EXPECT_THAT(message, HasSubstr((folder_ / "f").string() + ":"));
  EXPECT_EQ(Read(folder_ / "f"), "precious");
  EXPECT_EQ(CodeOf([&] { OutputFile file(folder_); }), ExitCode::kBadInput);
  EXPECT_EQ(CodeOf([] { OutputFile file(""); }), ExitCode::kUsage);
  OutputFile file(folder_ / "a");
  file.Commit();
  EXPECT_EQ(CodeOf([&] { file.Write("x"); }), ExitCode::kInternal);
  EXPECT_EQ(CodeOf([&] { file.Commit(); }), ExitCode::kInternal);
}

TEST_F(Output, FullDiskIsAnError) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "this system has no /dev/full";
  std::string message;
  EXPECT_EQ(CodeOf(
                [] {
                  OutputFile file("/dev/full");
                  file.Write("x");
                  file.Commit();
                },
                &message),
            ExitCode::kBadInput);
  EXPECT_THAT(message, HasSubstr("No space left"));
  EXPECT_THAT(message, HasSubstr("/dev/full"));
  // A big write fails at once, not only at the end.
  OutputFile file("/dev/full");
  EXPECT_EQ(CodeOf([&] { file.Write(std::string(1 << 20, 'x')); }), ExitCode::kBadInput);
}

TEST_F(Output, DeviceIsWrittenDirectly) {
  OutputFile file("/dev/null");
  file.Write("x");
  file.Commit();
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST_F(Output, DirectoryAppearsOnCommit) {
  {
    OutputDirectory out(folder_ / "OUT/");
    EXPECT_EQ(out.path(), folder_ / (".OUT.octavo-" + std::to_string(::getpid())));
    Put(out.path() / "model.onnx", "m");
    EXPECT_FALSE(fs::exists(folder_ / "OUT"));
    out.Commit(false);
    EXPECT_EQ(out.path(), folder_ / "OUT");
  }
  EXPECT_THAT(Names(), ElementsAre("OUT"));
  EXPECT_EQ(Read(folder_ / "OUT" / "model.onnx"), "m");
}

TEST_F(Output, AbandonedDirectoryIsRemoved) {
  {
    OutputDirectory out(folder_ / "OUT");
    fs::create_directories(out.path() / "sub");
    Put(out.path() / "sub" / "f", "x");
  }
  EXPECT_THAT(Names(), IsEmpty());
}

TEST_F(Output, DirectoryIsReplacedOnlyWhenAsked) {
  fs::create_directory(folder_ / "OUT");
  Put(folder_ / "OUT" / "old", "x");
  {
    OutputDirectory out(folder_ / "OUT");
    Put(out.path() / "new", "x");
    std::string message;
    EXPECT_EQ(CodeOf([&] { out.Commit(false); }, &message), ExitCode::kUsage);
    EXPECT_THAT(message, HasSubstr("--force"));
    EXPECT_TRUE(fs::exists(folder_ / "OUT" / "old"));
    out.Commit(true);
  }
  EXPECT_THAT(Names(), ElementsAre("OUT"));
  EXPECT_TRUE(fs::exists(folder_ / "OUT" / "new"));
  EXPECT_FALSE(fs::exists(folder_ / "OUT" / "old"));
}

TEST_F(Output, FileIsNotReplacedByADirectory) {
  Put(folder_ / "OUT", "precious");
  OutputDirectory out(folder_ / "OUT");
  EXPECT_EQ(CodeOf([&] { out.Commit(true); }), ExitCode::kUsage);
  EXPECT_EQ(Read(folder_ / "OUT"), "precious");
}

TEST_F(Output, DirectoryLeftoversAndInterruptedSwap) {
  const std::string dead = std::to_string(DeadPid());
  fs::create_directory(folder_ / (".OUT.octavo-" + dead));
  Put(folder_ / (".OUT.octavo-" + dead) / "f", "half");
  fs::create_directory(folder_ / (".OUT.octavo-" + dead + ".old"));
  Put(folder_ / (".OUT.octavo-" + dead + ".old") / "f", "whole");
  { OutputDirectory out(folder_ / "OUT"); }
  EXPECT_THAT(Names(), ElementsAre("OUT"));  // killed between the two renames: the old one is back
  EXPECT_EQ(Read(folder_ / "OUT" / "f"), "whole");
}

TEST_F(Output, LiveRunIsLeftAlone) {
  int ready[2], finish[2];
  ASSERT_EQ(::pipe(ready), 0);
  ASSERT_EQ(::pipe(finish), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    OutputDirectory out(folder_ / "OUT");
    char c = 'x';
    if (::write(ready[1], &c, 1) != 1 || ::read(finish[0], &c, 1) != 1) ::_exit(1);
    out.Commit(false);
    ::_exit(0);
  }
  char c = 0;
  ASSERT_EQ(::read(ready[0], &c, 1), 1);
  { OutputDirectory out(folder_ / "OUT"); }
  EXPECT_THAT(Names(), ElementsAre(".OUT.octavo-" + std::to_string(child)));
  ASSERT_EQ(::write(finish[1], &c, 1), 1);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_THAT(Names(), ElementsAre("OUT"));
}

TEST_F(Output, MissingParentsAreMadeAtTheEnd) {
  {
    OutputFile file(folder_ / "a" / "b" / "f");
    file.Write("x");
    EXPECT_THAT(Names(), ElementsAre(".a.octavo-" + std::to_string(::getpid())));
  }
  EXPECT_THAT(Names(), IsEmpty());
  OutputFile file(folder_ / "a" / "b" / "f");
  OutputFile data(folder_ / "a" / "b" / "f.data");
  data.Commit();
  file.Write("x");
  file.Commit();
  EXPECT_EQ(Read(folder_ / "a" / "b" / "f"), "x");
  { OutputDirectory out(folder_ / "c" / "OUT"); }
  EXPECT_THAT(Names(), ElementsAre("a"));
  OutputDirectory out(folder_ / "c" / "OUT");
  Put(out.path() / "m", "m");
  out.Commit(false);
  EXPECT_EQ(Read(folder_ / "c" / "OUT" / "m"), "m");
  EXPECT_THAT(Names(), UnorderedElementsAre("a", "c"));
}

TEST_F(Output, ParentsOfAFailureGoAgain) {
  OutputDirectory out(folder_ / "a" / "b" / "OUT");
  fs::remove_all(out.path());  // the rename must fail
  EXPECT_EQ(CodeOf([&] { out.Commit(false); }), ExitCode::kBadInput);
  EXPECT_THAT(Names(), IsEmpty());
  OutputDirectory blocked(folder_ / "a" / "b" / "OUT");
  Put(folder_ / "a", "a file, meanwhile");
  EXPECT_EQ(CodeOf([&] { blocked.Commit(false); }), ExitCode::kBadInput);
  EXPECT_EQ(Read(folder_ / "a"), "a file, meanwhile");
}

TEST_F(Output, LeftoversOfMissingParentsAreRemoved) {
  const fs::path litter = folder_ / (".a.octavo-" + std::to_string(DeadPid()));
  fs::create_directory(litter);
  { OutputDirectory out(folder_ / "a" / "b"); }
  EXPECT_THAT(Names(), IsEmpty());
}

TEST_F(Output, FilesCanBeSyncedLater) {
  {
    OutputFile file(folder_ / "f");
    file.Write("content");
    file.Commit(false);
  }
  EXPECT_EQ(Read(folder_ / "f"), "content");
  SyncFile(folder_ / "f");
  EXPECT_EQ(CodeOf([&] { SyncFile(folder_ / "missing"); }), ExitCode::kBadInput);
  EXPECT_THAT(Names(), ElementsAre("f"));
}

TEST_F(Output, FilesMoveOutTogether) {
  Put(folder_ / "f", "old");
  {
    OutputDirectory staged(folder_ / "f");
    Put(staged.path() / "f", "new");
    Put(staged.path() / "f.data", "data");
    EXPECT_EQ(Read(folder_ / "f"), "old");
    staged.MoveOut("f.data");
    staged.MoveOut("f");
  }
  EXPECT_EQ(Read(folder_ / "f"), "new");
  EXPECT_THAT(Names(), UnorderedElementsAre("f", "f.data"));
}

TEST_F(Output, RemoveAllTemporaries) {
  OutputFile file(folder_ / "a");
  OutputDirectory out(folder_ / "OUT");
  Put(out.path() / "f", "x");
  RemoveAllTemporaries();
  EXPECT_THAT(Names(), IsEmpty());
}

TEST_F(Output, ReadTextFileIsBounded) {
  Put(folder_ / "t", "12345");
  EXPECT_EQ(ReadTextFile(folder_ / "t", 5), "12345");
  EXPECT_EQ(CodeOf([&] { ReadTextFile(folder_ / "t", 4); }), ExitCode::kBadInput);
  EXPECT_EQ(CodeOf([&] { ReadTextFile(folder_ / "none", 4); }), ExitCode::kBadInput);
  EXPECT_EQ(CodeOf([&] { ReadTextFile(folder_, 4); }), ExitCode::kBadInput);
}

}  // namespace
}  // namespace octavo
