#include "octavo/runtime/run_arena.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <utility>

#include "octavo/base/log.h"
#include "octavo/runtime/ort.h"

namespace octavo::internal {
namespace {

constexpr std::size_t kReserve = std::size_t{1} << 36;  // of address space, not of memory
constexpr std::size_t kLargePage = std::size_t{2} << 20;
constexpr std::size_t kSmall = 4096;  // smaller blocks come from the heap

thread_local RunArena* t_arena = nullptr;

// Lies before each block that the runtime gets.
struct alignas(RunArena::kAlignment) Header {
  RunArena* arena = nullptr;  // null: of the heap
  std::size_t bytes = 0;      // with the header
};
static_assert(sizeof(Header) == RunArena::kAlignment);

void* ORT_API_CALL Allocate(OrtAllocator*, std::size_t size) {
  if (size == 0 || size > SIZE_MAX / 2) return nullptr;
  const std::size_t bytes =
      (size + sizeof(Header) + RunArena::kAlignment - 1) / RunArena::kAlignment * RunArena::kAlignment;
  RunArena* arena = bytes < kSmall ? nullptr : t_arena;
  void* block = arena == nullptr ? nullptr : arena->Allocate(bytes);
  if (block == nullptr) {
    arena = nullptr;
    block = std::aligned_alloc(RunArena::kAlignment, bytes);
    if (block == nullptr) return nullptr;
  }
  return new (block) Header{arena, bytes} + 1;
}

void ORT_API_CALL Deallocate(OrtAllocator*, void* p) {
  if (p == nullptr) return;
  Header* header = static_cast<Header*>(p) - 1;
  if (header->arena == nullptr) return std::free(header);
  header->arena->Free(header, header->bytes);
}

struct Shared : OrtAllocator {
  Shared() : OrtAllocator{} {}
  OrtMemoryInfo* info = nullptr;
};

}  // namespace

RunArena* RunArena::Make() { return new RunArena; }

RunArena::RunArena() {
  // Where address space is limited, reserving takes from what others need.
  rlimit limit{};
  if (::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY) return;
  void* base = ::mmap(nullptr, kReserve, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return;  // every block then comes from the heap
  // The blocks lie close together and the space is used from its beginning: large pages cost no memory to speak of, and
  // take a fault, and an entry of the TLB, where small ones take 512. A system without them says so, and that is all.
  const auto first = (reinterpret_cast<std::uintptr_t>(base) + kLargePage - 1) / kLargePage * kLargePage;
  mapped_ = static_cast<std::byte*>(base);
  base_ = mapped_ + (first - reinterpret_cast<std::uintptr_t>(base));
  reserved_ = kReserve - kLargePage;
  ::madvise(base_, reserved_, MADV_HUGEPAGE);
}

RunArena::~RunArena() {
  if (mapped_ != nullptr) ::munmap(mapped_, kReserve);
}

void RunArena::Release() {
  if (references_.fetch_sub(1) == 1) delete this;
}

void* RunArena::Allocate(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  auto best = free_.end();
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    if (it->second >= bytes && (best == free_.end() || it->second < best->second)) best = it;
  }
  std::size_t at = top_;
  if (best != free_.end()) {
    at = best->first;
    const std::size_t left = best->second - bytes;
    free_.erase(best);
    if (left > 0) free_.emplace(at + bytes, left);
  } else {
    if (bytes > reserved_ - top_) return nullptr;
    top_ += bytes;
    highest_ = std::max(highest_, top_);
  }
  references_.fetch_add(1);
  return base_ + at;
}

void RunArena::Free(void* block, std::size_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    auto at = static_cast<std::size_t>(static_cast<std::byte*>(block) - base_);
    const auto next = free_.lower_bound(at);
    if (next != free_.begin()) {
      if (const auto before = std::prev(next); before->first + before->second == at) {
        at = before->first;
        bytes += before->second;
        free_.erase(before);
      }
    }
    if (next != free_.end() && at + bytes == next->first) {
      bytes += next->second;
      free_.erase(next);
    }
    if (at + bytes == top_) {
      top_ = at;
    } else {
      free_.emplace(at, bytes);
    }
  }
  Release();
}

void RunArena::Trim() {
  const std::lock_guard lock(mutex_);
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  const auto give_back = [&](std::size_t begin, std::size_t end) {
    begin = (begin + page - 1) / page * page;
    end = end / page * page;
    if (begin < end) ::madvise(base_ + begin, end - begin, MADV_DONTNEED);
  };
  for (const auto& [offset, size] : free_) give_back(offset, offset + size);
  give_back(top_, (highest_ + page - 1) / page * page);
  highest_ = top_;
}

ArenaScope::ArenaScope(RunArena* arena) : previous_(std::exchange(t_arena, arena)) {}
ArenaScope::~ArenaScope() { t_arena = previous_; }

bool OfferRunArenas(const OrtLibrary& library) {
  static const bool offered = [&library] {
    static Shared allocator;  // nothing ends it: the environment is never released
    allocator.version = kOrtApi;
    allocator.Alloc = Allocate;
    allocator.Reserve = Allocate;
    allocator.Free = Deallocate;
    allocator.Info = [](const OrtAllocator* self) -> const OrtMemoryInfo* {
      return static_cast<const Shared*>(self)->info;
    };
    OrtStatus* status = library.api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &allocator.info);
    if (status == nullptr) status = library.api->RegisterAllocator(library.env, &allocator);
    const std::string message = TakeMessage(*library.api, status);
    if (!message.empty()) LogDebug("runs have no arenas of their own: " + message);
    return message.empty();
  }();
  return offered;
}

}  // namespace octavo::internal
