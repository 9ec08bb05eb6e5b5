// Read-only memory-mapped files: how model weights get in without being copied.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>

namespace octavo {

class MappedFile {
 public:
  // Maps the whole file read-only. Throws Error(kBadInput) if it is missing, unreadable or not a regular file.
  // An empty file maps to an empty span.
  static std::shared_ptr<const MappedFile> Open(const std::filesystem::path& path);

  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

  // Tells the kernel that pages of this range are not needed soon (keeps resident memory low on big models).
  void DropPages(std::span<const std::byte> range) const;

 private:
  MappedFile(std::filesystem::path path, const std::byte* data, std::size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}
  std::filesystem::path path_;
  const std::byte* data_;
  std::size_t size_;
};

}  // namespace octavo
