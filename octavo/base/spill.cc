#include "octavo/base/spill.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <new>
#include <string>
#include <utility>

namespace octavo {
namespace {

std::string Directory() {
  std::filesystem::path folder;
  if (const char* xdg = std::getenv("XDG_CACHE_HOME"); xdg != nullptr && *xdg == '/') {
    folder = xdg;
  } else if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/') {
    folder = std::filesystem::path(home) / ".cache";
  } else {
    return {};
  }
  folder /= "octavo";
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  return error ? std::string() : folder.string();
}

// A mapping of an unlinked file, or null. posix_fallocate: a full disk is noticed here, not by a signal at a write.
std::byte* MapUnlinked(std::size_t bytes) {
  const std::string folder = Directory();
  if (folder.empty()) return nullptr;
  const int fd = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (fd < 0) return nullptr;
  void* map = MAP_FAILED;
  if (::posix_fallocate(fd, 0, static_cast<off_t>(bytes)) == 0) {
    map = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  ::close(fd);
  return map == MAP_FAILED ? nullptr : static_cast<std::byte*>(map);
}

// From here on a buffer is mapped: it comes and goes without leaving a hole in the heap of one thread or another.
constexpr std::size_t kMappedBytes = std::size_t{256} << 10;

}  // namespace

SpillBuffer::SpillBuffer(std::size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  if (bytes >= kMappedBytes) {
    if (bytes >= kSpillBytes) data_ = MapUnlinked(bytes);
    file_ = data_ != nullptr;
    if (data_ == nullptr) {
      void* map = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (map == MAP_FAILED) throw std::bad_alloc();
      data_ = static_cast<std::byte*>(map);
    }
    mapped_ = true;
    return;
  }
  data_ = static_cast<std::byte*>(std::calloc(bytes, 1));
  if (data_ == nullptr) throw std::bad_alloc();
}

SpillBuffer::~SpillBuffer() {
  if (mapped_) {
    ::munmap(data_, size_);
  } else {
    std::free(data_);
  }
}

SpillBuffer::SpillBuffer(SpillBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      mapped_(std::exchange(other.mapped_, false)),
      file_(std::exchange(other.file_, false)) {}

SpillBuffer& SpillBuffer::operator=(SpillBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapped_, other.mapped_);
  std::swap(file_, other.file_);
  return *this;
}

void SpillBuffer::Release() const {
  if (!file_) return;
  ::msync(data_, size_, MS_ASYNC);
  ::madvise(data_, size_, MADV_DONTNEED);  // a shared file mapping: the pages stay in the file
}

}  // namespace octavo
