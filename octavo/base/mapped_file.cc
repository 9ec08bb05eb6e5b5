#include "octavo/base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "octavo/base/error.h"

namespace octavo {

std::shared_ptr<const MappedFile> MappedFile::Open(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer before it is refused below.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) ThrowCannotOpen(path.string(), errno);
  struct stat info {};
  if (::fstat(fd, &info) != 0) {
    const int error = errno;
    ::close(fd);
    ThrowBadInput(std::string("cannot read file (") + std::strerror(error) + ")", path.string());
  }
  if (!S_ISREG(info.st_mode)) {
    ::close(fd);
    ThrowBadInput(S_ISDIR(info.st_mode) ? "a directory was given where a file is needed" : "not a regular file",
                  path.string(), "name a file");
  }
  const auto size = static_cast<std::size_t>(info.st_size);
  const std::byte* data = nullptr;
  if (size > 0) {
    void* mapped = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED) {
      const int error = errno;
      ::close(fd);
      ThrowBadInput(std::string("cannot map file (") + std::strerror(error) + ")", path.string());
    }
    data = static_cast<const std::byte*>(mapped);
  }
  ::close(fd);
  return std::shared_ptr<const MappedFile>(new MappedFile(path, data, size));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::DropPages(std::span<const std::byte> range) const {
  if (range.empty() || data_ == nullptr) return;
  // Only pages that lie wholly inside the range: a neighbour's page may be in use.
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto base = reinterpret_cast<std::uintptr_t>(data_);
  auto begin = reinterpret_cast<std::uintptr_t>(range.data());
  auto end = begin + range.size();
  if (begin < base || end > base + size_) return;
  const bool to_the_end = end == base + size_;
  begin = (begin + page - 1) / page * page;
  end = to_the_end ? (end + page - 1) / page * page : end / page * page;
  // The mapping is private and never written, so the pages are simply read again when touched.
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace octavo
