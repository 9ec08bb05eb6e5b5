#include "octavo/import/npz.h"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>
#include <utility>

#include "octavo/base/error.h"

namespace octavo {
namespace {

constexpr std::uint64_t kMaxExpansion = 1032;  // of deflate: 258 bytes from 2 bits
constexpr std::size_t kPiece = std::size_t{1} << 18;

// Little-endian fields at a bounded position.
class Fields {
 public:
  Fields(std::span<const std::byte> bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  std::uint64_t Get(std::uint64_t at, std::size_t size) const {
    const auto field = Span(at, size);
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < size; ++i) value |= std::to_integer<std::uint64_t>(field[i]) << (8 * i);
    return value;
  }
  std::span<const std::byte> Span(std::uint64_t at, std::uint64_t size) const {
    if (at > bytes_.size() || size > bytes_.size() - at) Bad("zip record reaches past the end of the file");
    return bytes_.subspan(static_cast<std::size_t>(at), static_cast<std::size_t>(size));
  }
  [[noreturn]] void Bad(const char* what) const {
    ThrowBadInput(what, name_, "the file is damaged or is no .npz; write it again with numpy.savez");
  }

 private:
  std::span<const std::byte> bytes_;
  const std::string& name_;
};

struct Directory {
  std::uint64_t entries, bytes, offset;
};

// The end-of-central-directory record (4.3.16), with its zip64 form (4.3.14) where a field overflows.
Directory FindDirectory(std::span<const std::byte> bytes, const Fields& fields) {
  constexpr std::size_t kRecord = 22;
  if (bytes.size() < kRecord) fields.Bad("not a zip archive");
  const std::size_t lowest = bytes.size() - std::min<std::size_t>(bytes.size(), kRecord + 0xffff);
  for (std::size_t at = bytes.size() - kRecord;; --at) {
    if (fields.Get(at, 4) == 0x06054b50 && at + kRecord + fields.Get(at + 20, 2) == bytes.size()) {
      if (fields.Get(at + 4, 2) != 0 && fields.Get(at + 4, 2) != 0xffff) fields.Bad("zip archive in several parts");
      Directory out{fields.Get(at + 10, 2), fields.Get(at + 12, 4), fields.Get(at + 16, 4)};
      if (out.entries != 0xffff && out.bytes != 0xffffffff && out.offset != 0xffffffff) return out;
      if (at < 20 || fields.Get(at - 20, 4) != 0x07064b50) return out;
      const std::uint64_t record = fields.Get(at - 12, 8);
      if (fields.Get(record, 4) != 0x06064b50) fields.Bad("zip64 record is missing");
      return {fields.Get(record + 32, 8), fields.Get(record + 40, 8), fields.Get(record + 48, 8)};
    }
    if (at == lowest) fields.Bad("not a zip archive");
  }
}

}  // namespace

// Decompresses a member forward.
class NpzArchive::Cursor {
 public:
  Cursor(const Member& member, std::string where) : member_(&member), where_(std::move(where)) {
    if (!member.deflated) return;
    if (::inflateInit2(&stream_, -MAX_WBITS) != Z_OK) ThrowInternal("zlib did not start", where_);
    live_ = true;
  }
  ~Cursor() {
    if (live_) ::inflateEnd(&stream_);
  }
  Cursor(const Cursor&) = delete;
  Cursor& operator=(const Cursor&) = delete;

  const Member* member() const { return member_; }
  std::uint64_t position() const { return position_; }

  // Exactly out.size() bytes.
  void Read(std::span<std::byte> out) {
    if (Some(out) != out.size()) Bad("zip member ends too early");
  }
  // Up to out.size() bytes; fewer only at the end of the member.
  std::size_t Some(std::span<std::byte> out) {
    std::size_t done = 0;
    if (!member_->deflated) {
      const auto rest = member_->packed.subspan(static_cast<std::size_t>(position_));
      done = std::min(out.size(), rest.size());
      if (done > 0) std::memcpy(out.data(), rest.data(), done);
    }
    while (member_->deflated && done < out.size() && !ended_) {
      if (stream_.avail_in == 0 && packed_ < member_->packed.size()) {
        const auto piece = member_->packed.subspan(packed_).first(std::min(kPiece, member_->packed.size() - packed_));
        stream_.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(piece.data()));
        stream_.avail_in = static_cast<uInt>(piece.size());
        packed_ += piece.size();
      }
      const std::size_t want = std::min(out.size() - done, std::size_t{1} << 30);
      stream_.next_out = reinterpret_cast<Bytef*>(out.data() + done);
      stream_.avail_out = static_cast<uInt>(want);
      const int status = ::inflate(&stream_, Z_NO_FLUSH);
      done += want - stream_.avail_out;
      ended_ = status == Z_STREAM_END;
      if (status != Z_OK && status != Z_STREAM_END) Bad("damaged compressed data");
    }
    position_ += done;
    return done;
  }
  void Skip(std::uint64_t bytes) {
    if (!member_->deflated) {
      if (bytes > member_->packed.size() - position_) Bad("zip member ends too early");
      position_ += bytes;
      return;
    }
    std::vector<std::byte> scratch(static_cast<std::size_t>(std::min<std::uint64_t>(bytes, kPiece)));
    while (bytes > 0) {
      const auto piece = std::span(scratch).first(static_cast<std::size_t>(std::min<std::uint64_t>(bytes, kPiece)));
      Read(piece);
      bytes -= piece.size();
    }
  }

 private:
  [[noreturn]] void Bad(const char* what) const {
    ThrowBadInput(what, where_, "the file is damaged; write it again with numpy.savez");
  }

  const Member* member_;
  std::string where_;
  z_stream stream_{};
  bool live_ = false, ended_ = false;
  std::size_t packed_ = 0;
  std::uint64_t position_ = 0;
};

struct NpzArchive::Shared {
  std::mutex mutex;
  std::vector<std::unique_ptr<Cursor>> idle;  // oldest first
  std::set<const Member*> verified;
  std::mutex verifying;
};

NpzArchive::NpzArchive(ByteSource source) : source_(std::move(source)), shared_(std::make_unique<Shared>()) {
  const Fields fields(source_.bytes, source_.name);
  const Directory directory = FindDirectory(source_.bytes, fields);
  constexpr std::size_t kEntry = 46;
  const auto central = fields.Span(directory.offset, directory.bytes);
  if (directory.entries > central.size() / kEntry) fields.Bad("zip directory with too many entries");
  const Fields entries(central, source_.name);
  std::set<std::string> keys;
  std::uint64_t at = 0;
  for (std::uint64_t i = 0; i < directory.entries; ++i) {
    if (entries.Get(at, 4) != 0x02014b50) fields.Bad("damaged zip directory");
    const std::uint64_t flags = entries.Get(at + 8, 2), method = entries.Get(at + 10, 2);
    const auto crc = static_cast<std::uint32_t>(entries.Get(at + 16, 4));
    const std::uint64_t name_bytes = entries.Get(at + 28, 2), extra_bytes = entries.Get(at + 30, 2);
    std::uint64_t packed = entries.Get(at + 20, 4), unpacked = entries.Get(at + 24, 4),
                  offset = entries.Get(at + 42, 4);
    const auto name = entries.Span(at + kEntry, name_bytes);
    const auto extra = entries.Span(at + kEntry + name_bytes, extra_bytes);
    // Zip64 extended information (4.5.3): the fields that overflow, in this order.
    const Fields extras(extra, source_.name);
    for (std::uint64_t e = 0; e + 4 <= extra.size();) {
      const std::uint64_t id = extras.Get(e, 2), size = extras.Get(e + 2, 2);
      const auto body = extras.Span(e + 4, size);
      if (id == 1) {
        const Fields wide(body, source_.name);
        std::uint64_t w = 0;
        for (std::uint64_t* field : {&unpacked, &packed, &offset}) {
          if (*field != 0xffffffff) continue;
          *field = wide.Get(w, 8);
          w += 8;
        }
      }
      e += 4 + size;
    }
    at += kEntry + name_bytes + extra_bytes + entries.Get(at + 32, 2);

    Member member;
    member.key.assign(reinterpret_cast<const char*>(name.data()), name.size());
    if (member.key.ends_with('/')) continue;  // a folder
    const std::string where = source_.name + ", member '" + member.key + "'";
    if (flags & 1) ThrowUnsupported("encrypted zip member", where, "write it with numpy.savez");
    if (method != 0 && method != 8) {
      ThrowUnsupported("zip compression method " + std::to_string(method), where,
                       "write it with numpy.savez_compressed");
    }
    if (!member.key.ends_with(".npy"))
      ThrowBadInput("zip member that is no .npy array", where, "write it with numpy.savez");
    member.key.resize(member.key.size() - 4);
    if (!keys.insert(member.key).second) ThrowBadInput("zip member twice", where, "write it again with numpy.savez");
    if (fields.Get(offset, 4) != 0x04034b50) ThrowBadInput("damaged zip member", where);
    // The local header was read above, so the offset lies in the file and this sum cannot overflow.
    const std::uint64_t data = offset + 30 + fields.Get(offset + 26, 2) + fields.Get(offset + 28, 2);
    member.packed = fields.Span(data, packed);
    member.unpacked_bytes = unpacked;
    member.crc = crc;
    member.deflated = method == 8;
    if (member.deflated ? unpacked / kMaxExpansion > packed + 1 : unpacked != packed) {
      ThrowBadInput("zip member says " + std::to_string(unpacked) + " bytes, which its " + std::to_string(packed) +
                        " packed bytes cannot hold",
                    where);
    }
    members_.push_back(std::move(member));
  }
}

NpzArchive::~NpzArchive() = default;

std::string NpzArchive::Where(const Member& member) const { return source_.name + ", array '" + member.key + "'"; }

std::ptrdiff_t NpzArchive::Find(std::string_view key) const {
  const auto it = std::find_if(members_.begin(), members_.end(), [&](const Member& m) { return m.key == key; });
  return it == members_.end() ? -1 : it - members_.begin();
}

NpyHeader NpzArchive::HeaderOf(const Member& member) const {
  // A header is 128 bytes as a rule: the rest is read only when its length field asks for it.
  std::vector<std::byte> begin(128);
  Cursor cursor(member, Where(member));
  begin.resize(cursor.Some(begin));
  if (begin.size() == 128) {
    const auto at = [&](std::size_t i) { return std::to_integer<std::size_t>(begin[i]); };
    std::size_t total =
        at(6) == 1 ? 10 + (at(8) | at(9) << 8) : 12 + (at(8) | at(9) << 8 | at(10) << 16 | at(11) << 24);
    total = std::min(total, kMaxNpyHeader);
    if (total > 128) {
      begin.resize(total);
      begin.resize(128 + cursor.Some(std::span(begin).subspan(128)));
    }
  }
  NpyHeader header = ParseNpyHeader(begin, Where(member));
  if (member.unpacked_bytes < header.header_bytes || member.unpacked_bytes - header.header_bytes != header.data_bytes) {
    ThrowBadInput("array of " + std::to_string(header.data_bytes) + " bytes in a zip member of " +
                      std::to_string(member.unpacked_bytes),
                  Where(member), "the file is damaged; write it again with numpy.savez");
  }
  return header;
}

NpyHeader NpzArchive::ReadHeader(std::size_t member) const { return HeaderOf(members_.at(member)); }

TensorRef NpzArchive::Read(std::size_t index) const {
  const Member& member = members_.at(index);
  const NpyHeader header = HeaderOf(member);
  const auto check = [&](std::span<const std::byte> whole) {
    if (::crc32_z(0, reinterpret_cast<const Bytef*>(whole.data()), whole.size()) != member.crc) {
      ThrowBadInput("wrong checksum", Where(member), "the file is damaged; write it again with numpy.savez");
    }
  };
  if (!member.deflated) {
    check(member.packed);
    return ReadNpy({member.packed, source_.owner, source_.file, Where(member)});
  }
  // The header's bytes count for the checksum too, but only the data are kept: no second copy of a big array.
  Cursor cursor(member, Where(member));
  std::vector<std::byte> head(header.header_bytes);
  cursor.Read(head);
  std::vector<std::byte> data(static_cast<std::size_t>(header.data_bytes));
  cursor.Read(data);
  std::byte more;
  if (cursor.Some({&more, 1}) != 0) ThrowBadInput("zip member is longer than it says", Where(member));
  uLong crc = ::crc32_z(0, reinterpret_cast<const Bytef*>(head.data()), head.size());
  crc = ::crc32_z(crc, reinterpret_cast<const Bytef*>(data.data()), data.size());
  if (crc != member.crc) {
    ThrowBadInput("wrong checksum", Where(member), "the file is damaged; write it again with numpy.savez");
  }
  return NpyTensor(header, std::move(data), Where(member));
}

void NpzArchive::VerifyChecksum(const Member& member) const {
  const std::lock_guard lock(shared_->verifying);
  if (shared_->verified.contains(&member)) return;
  Cursor cursor(member, Where(member));
  std::vector<std::byte> piece(kPiece);
  uLong crc = 0;
  std::uint64_t left = member.unpacked_bytes;
  while (const std::size_t n = cursor.Some(piece)) {
    if (n > left) ThrowBadInput("zip member is longer than it says", Where(member));
    left -= n;
    crc = ::crc32_z(crc, reinterpret_cast<const Bytef*>(piece.data()), n);
    if (!member.deflated && source_.file) {
      source_.file->DropPages(member.packed.subspan(static_cast<std::size_t>(cursor.position()) - n, n));
    }
  }
  if (left != 0 || crc != member.crc) {
    ThrowBadInput("wrong checksum", Where(member), "the file is damaged; write it again with numpy.savez");
  }
  shared_->verified.insert(&member);
}

std::vector<std::byte> NpzArchive::ReadData(std::size_t index, std::uint64_t offset, std::size_t size) const {
  const Member& member = members_.at(index);
  VerifyChecksum(member);
  const NpyHeader header = HeaderOf(member);
  if (offset > header.data_bytes || size > header.data_bytes - offset)
    ThrowInternal("read past an array", Where(member));
  const std::uint64_t begin = header.header_bytes + offset;
  std::unique_ptr<Cursor> cursor;
  {
    // The cursor that stands nearest before the wanted data.
    const std::lock_guard lock(shared_->mutex);
    auto best = shared_->idle.end();
    for (auto it = shared_->idle.begin(); it != shared_->idle.end(); ++it) {
      if ((*it)->member() != &member || (*it)->position() > begin) continue;
      if (best == shared_->idle.end() || (*it)->position() > (*best)->position()) best = it;
    }
    if (best != shared_->idle.end()) {
      cursor = std::move(*best);
      shared_->idle.erase(best);
    }
  }
  if (!cursor) cursor = std::make_unique<Cursor>(member, Where(member));
  cursor->Skip(begin - cursor->position());
  std::vector<std::byte> out(size);
  cursor->Read(out);
  if (!member.deflated && source_.file) {
    source_.file->DropPages(member.packed.subspan(static_cast<std::size_t>(begin), size));
  }
  const std::lock_guard lock(shared_->mutex);
  if (member.deflated) shared_->idle.push_back(std::move(cursor));
  if (shared_->idle.size() > kCursors) shared_->idle.erase(shared_->idle.begin());
  return out;
}

}  // namespace octavo
