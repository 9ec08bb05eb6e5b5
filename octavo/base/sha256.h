// SHA-256 (FIPS 180-4): content hashes for the manifest, the cache and "up to date".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace octavo {

class Sha256 {
 public:
  Sha256();
  void Update(std::span<const std::byte> data);
  void Update(std::string_view text);
  std::string HexDigest();  // 64 lower-case hex digits; ends the computation

  static std::string OfBytes(std::span<const std::byte> data);
  static std::string OfText(std::string_view text);
  // Throws Error(kBadInput) if the file cannot be read.
  static std::string OfFile(const std::filesystem::path& path);

 private:
  void Block(const std::uint8_t* p, std::size_t blocks);
  std::array<std::uint32_t, 8> state_;
  std::array<std::uint8_t, 64> buffer_;
  std::size_t buffered_ = 0;
  std::uint64_t total_ = 0;
};

}  // namespace octavo
