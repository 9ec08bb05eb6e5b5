// Large results that need not be anonymous memory: buffers in an unlinked file, which the kernel may write out and
// drop.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

namespace octavo {

// Buffers of at least this many bytes spill.
inline constexpr std::size_t kSpillBytes = std::size_t{16} << 20;

// `bytes` zeroed bytes, page-aligned when large. A large buffer lies in an unlinked temporary file of the cache
// directory
// ($XDG_CACHE_HOME/octavo or ~/.cache/octavo), so that a model's worth of new weights does not have to fit in memory; a
// killed process leaves nothing behind. Where no such file can be made or it cannot hold the bytes, the buffer is
// ordinary memory: only its cost differs.
class SpillBuffer {
 public:
  explicit SpillBuffer(std::size_t bytes = 0);
  ~SpillBuffer();
  SpillBuffer(SpillBuffer&& other) noexcept;
  SpillBuffer& operator=(SpillBuffer&& other) noexcept;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::span<std::byte> bytes() { return {data_, size_}; }
  std::span<const std::byte> bytes() const { return {data_, size_}; }
  // Pages of a spilled buffer are written out and leave the resident set; they come back when they are read.
  void Release() const;

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  bool mapped_ = false;
  bool file_ = false;
};

}  // namespace octavo
