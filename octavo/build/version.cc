#include "octavo/build/version.h"

#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

#include "octavo/base/error.h"
#include "octavo/base/sha256.h"

namespace octavo {
namespace {

struct Search {
  std::uintptr_t address = 0;  // within the object whose note is wanted
  std::string id;
};

// One loaded object: 1 when it holds the address, which ends the search.
int LookForNote(dl_phdr_info* info, std::size_t, void* data) {
  auto& search = *static_cast<Search*>(data);
  const auto headers = std::span(info->dlpi_phdr, info->dlpi_phnum);
  const bool ours = std::any_of(headers.begin(), headers.end(), [&](const ElfW(Phdr) & p) {
    const std::uintptr_t begin = info->dlpi_addr + p.p_vaddr;
    return p.p_type == PT_LOAD && search.address >= begin && search.address - begin < p.p_memsz;
  });
  if (!ours) return 0;
  for (const ElfW(Phdr) & p : headers) {
    if (p.p_type != PT_NOTE) continue;
    const auto* note = reinterpret_cast<const char*>(info->dlpi_addr + p.p_vaddr);
    const std::size_t align = p.p_align > 4 ? p.p_align : 4;
    const auto up = [align](std::size_t n) { return (n + align - 1) / align * align; };
    for (std::size_t at = 0; at + sizeof(ElfW(Nhdr)) <= p.p_memsz;) {
      ElfW(Nhdr) header;
      std::memcpy(&header, note + at, sizeof header);
      const std::size_t name = at + sizeof header, content = up(name + header.n_namesz);
      if (content > p.p_memsz || header.n_descsz > p.p_memsz - content) break;
      if (header.n_type == NT_GNU_BUILD_ID && header.n_namesz == 4 && std::memcmp(note + name, "GNU", 4) == 0) {
        for (std::size_t i = 0; i < header.n_descsz; ++i) {
          constexpr char kHex[] = "0123456789abcdef";
          const auto byte = static_cast<unsigned char>(note[content + i]);
          search.id.push_back(kHex[byte >> 4]);
          search.id.push_back(kHex[byte & 15]);
        }
        return 1;
      }
      at = up(content + header.n_descsz);
    }
  }
  return 1;
}

std::string FindBuildId() {
  Search search;
  search.address = reinterpret_cast<std::uintptr_t>(&Version);
  ::dl_iterate_phdr(LookForNote, &search);
  if (!search.id.empty()) return search.id;
  try {
    return Sha256::OfFile("/proc/self/exe");
  } catch (const Error&) {
    return {};
  }
}

}  // namespace

const char* Version() { return OCTAVO_VERSION; }

const std::string& BuildId() {
  static const std::string id = FindBuildId();
  return id;
}

}  // namespace octavo
