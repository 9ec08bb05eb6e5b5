// Writes .npy and .npz files, right and wrong ones, for tests.
#pragma once

#include <zlib.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace octavo::npz_test {

inline std::string Little(std::uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out.push_back(i < 8 ? static_cast<char>(value >> (8 * i)) : '\0');
  return out;
}

inline std::string NpyWithHeader(const std::string& header, const std::string& data, int version = 1) {
  return std::string("\x93NUMPY") + Little(static_cast<std::uint64_t>(version), 2) +
         Little(header.size(), version == 1 ? 2 : 4) + header + data;
}

inline std::string Npy(const std::string& descr, const std::string& shape, const std::string& data,
                       bool fortran = false, int version = 1) {
  return NpyWithHeader("{'descr': '" + descr + "', 'fortran_order': " + (fortran ? "True" : "False") +
                           ", 'shape': " + shape + ", }   \n",
                       data, version);
}

template <typename T>
std::string Raw(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

inline std::string Floats(const std::vector<float>& values) { return Raw(values); }

struct ZipMember {
  std::string name, content;
  bool deflate = false;
  std::uint32_t crc_flip = 0;  // xor'ed into the stored checksum
  std::int64_t size_add = 0;   // added to the stored unpacked size
  bool zip64 = false;
  int method = -1;  // overrides
  int flags = 0;
};

inline std::string Deflate(const std::string& text) {
  z_stream stream{};
  ::deflateInit2(&stream, 6, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string out(::deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  ::deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  ::deflateEnd(&stream);
  return out;
}

inline std::string Zip(const std::vector<ZipMember>& members) {
  std::string out, central;
  for (const ZipMember& m : members) {
    const std::string packed = m.deflate ? Deflate(m.content) : m.content;
    const auto crc = static_cast<std::uint32_t>(::crc32(0, reinterpret_cast<const Bytef*>(m.content.data()),
                                                        static_cast<uInt>(m.content.size()))) ^
                     m.crc_flip;
    const std::uint64_t unpacked = m.content.size() + static_cast<std::uint64_t>(m.size_add), offset = out.size();
    const int method = m.method >= 0 ? m.method : m.deflate ? 8 : 0;
    const std::string common = Little(45, 2) + Little(static_cast<std::uint64_t>(m.flags), 2) +
                               Little(static_cast<std::uint64_t>(method), 2) + Little(0, 4) + Little(crc, 4);
    const std::string sizes =
        m.zip64 ? Little(0xffffffff, 4) + Little(0xffffffff, 4) : Little(packed.size(), 4) + Little(unpacked, 4);
    const std::string local_extra =
        m.zip64 ? Little(1, 2) + Little(16, 2) + Little(unpacked, 8) + Little(packed.size(), 8) : "";
    const std::string extra =
        m.zip64 ? Little(1, 2) + Little(24, 2) + Little(unpacked, 8) + Little(packed.size(), 8) + Little(offset, 8)
                : "";
    out += "PK\x03\x04" + common + sizes + Little(m.name.size(), 2) + Little(local_extra.size(), 2) + m.name +
           local_extra + packed;
    central += "PK\x01\x02" + Little(45, 2) + common + sizes + Little(m.name.size(), 2) + Little(extra.size(), 2) +
               Little(0, 2) + Little(0, 2) + Little(0, 2) + Little(0, 4) + Little(m.zip64 ? 0xffffffff : offset, 4) +
               m.name + extra;
  }
  const std::uint64_t at = out.size();
  out += central;
  out += "PK\x05\x06" + Little(0, 4) + Little(members.size(), 2) + Little(members.size(), 2) +
         Little(central.size(), 4) + Little(at, 4) + Little(0, 2);
  return out;
}

}  // namespace octavo::npz_test
