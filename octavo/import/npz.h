// NumPy's .npz: a zip archive of .npy members, stored or deflated (PKWARE APPNOTE 6.3.10: sections 4.3 and 4.5.3 for
// zip64; RFC 1951).
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/import/npy.h"

namespace octavo {

// Opening reads the archive's directory; members are read when asked for. Thread safe once constructed.
//
// Nothing is allocated on the word of the archive alone: a member's size is bounded by what its compressed bytes can
// expand to and must agree with its array's header.
class NpzArchive {
 public:
  // Errors: kBadInput on a truncated or inconsistent archive, kUnsupported on encryption, other compression methods
  // and archives in several parts.
  explicit NpzArchive(ByteSource source);
  ~NpzArchive();
  NpzArchive(const NpzArchive&) = delete;
  NpzArchive& operator=(const NpzArchive&) = delete;

  const std::string& name() const { return source_.name; }
  std::size_t size() const { return members_.size(); }
  // The array's key: the member's name without ".npy".
  const std::string& key(std::size_t member) const { return members_[member].key; }
  // Index of a key, or -1.
  std::ptrdiff_t Find(std::string_view key) const;

  NpyHeader ReadHeader(std::size_t member) const;
  // The whole array; a stored plain one is a view. The checksum is verified.
  TensorRef Read(std::size_t member) const;

  // `size` bytes of the array's data from `offset` on, as they lie in the file, copied. The first call for a member
  // verifies its checksum. Reading forward costs one pass in all: up to kCursors decompression states are kept (40 KB
  // each), one for each thread that reads.
  std::vector<std::byte> ReadData(std::size_t member, std::uint64_t offset, std::size_t size) const;

 private:
  struct Member {
    std::string key;
    std::span<const std::byte> packed;  // as it lies in the archive
    std::uint64_t unpacked_bytes = 0;
    std::uint32_t crc = 0;
    bool deflated = false;
  };
  class Cursor;
  struct Shared;
  static constexpr std::size_t kCursors = 16;

  std::string Where(const Member& member) const;
  NpyHeader HeaderOf(const Member& member) const;
  void VerifyChecksum(const Member& member) const;

  ByteSource source_;
  std::vector<Member> members_;
  std::unique_ptr<Shared> shared_;
};

}  // namespace octavo
