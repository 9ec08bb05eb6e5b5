// Outputs that appear whole or not at all, and clean up after killed runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace octavo {

// Directories above a target that are missing are made by Commit(), not before: the temporary then stands beside the
// uppermost of them.

// A file written under a temporary sibling name and renamed by Commit(). Destroyed without Commit: removed.
// Leftovers of a killed earlier run for the same target (its pid is dead) are removed by the constructor.
// Errors: Error(kBadInput) naming the path when it cannot be created or written (disk full included); kInterrupted by
// Write and Commit of a run that was interrupted (interrupt.h).
class OutputFile {
 public:
  explicit OutputFile(std::filesystem::path target);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void Write(std::span<const std::byte> data);
  void Write(std::string_view text);
  std::uint64_t offset() const;  // bytes written so far
  const std::filesystem::path& temp_path() const;
  // Flush, fsync, rename over target. Not `durable`: without the fsync, for files whose directory is not in place yet;
  // SyncFile follows.
  void Commit(bool durable = true);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A directory built as `.<name>.octavo-<pid>` beside its target and renamed by Commit(). When `replace` is set an
// existing target is swapped out atomically (renameat2 RENAME_EXCHANGE, or rename twice) and then removed.
// Leftovers of killed runs for the same target are removed by the constructor.
class OutputDirectory {
 public:
  explicit OutputDirectory(const std::filesystem::path& target);
  ~OutputDirectory();
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;

  const std::filesystem::path& path() const;  // where to write now
  void Commit(bool replace);

  // Instead of Commit: for a target that is a file, made in this directory together with others that belong to it
  // (external data). Moves path()/name over the file of that name beside the target.
  void MoveOut(const std::string& name);
  const std::filesystem::path& target() const;  // links resolved

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Waits until a finished file is on the disk. kBadInput when the disk refuses.
void SyncFile(const std::filesystem::path& path);

// Removes every uncommitted temporary of this process; async-signal-unsafe, called on the normal exit path of an
// interrupted run.
void RemoveAllTemporaries();

std::string ReadTextFile(const std::filesystem::path& path, std::size_t max_bytes);

}  // namespace octavo
