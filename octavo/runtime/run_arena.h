// Memory for a session's runs. The runtime's own arena is one for all runs: how much it grows depends on how runs in
// parallel happen to overlap, and the more runs there are, the worse the worst overlap. Here each run has an arena to
// itself: after the first run of a shape it never grows again.
//
// Internal to this room: include it only from its .cc files.
#pragma once

#include <atomic>
#include <cstddef>
#include <map>
#include <mutex>

namespace octavo::internal {

struct OrtLibrary;

// One stretch of address space, resident as far as it was used, with best-fit allocation. Blocks may outlive their
// owner's interest in the arena and may be freed by any thread.
class RunArena {
 public:
  static RunArena* Make();  // the caller holds one reference
  void Release();           // gives a reference up: the last one, of the owner or of a block, ends the arena
  RunArena(const RunArena&) = delete;
  RunArena& operator=(const RunArena&) = delete;

  void* Allocate(
      std::size_t bytes);  // aligned to kAlignment; null when it does not fit. Holds a reference until freed.
  void Free(void* block, std::size_t bytes);
  bool Empty() const { return references_.load() == 1; }  // nobody but the owner holds a reference
  void Trim();                                            // free memory goes back to the system

  static constexpr std::size_t kAlignment = 64;

 private:
  RunArena();
  ~RunArena();

  std::mutex mutex_;
  std::atomic<std::size_t> references_{1};
  std::byte* mapped_ = nullptr;  // kReserve bytes; base_ is the first large page's in them
  std::byte* base_ = nullptr;
  std::size_t reserved_ = 0, top_ = 0, highest_ = 0;  // in use below top_, ever used below highest_
  std::map<std::size_t, std::size_t> free_;           // size by offset, below top_; no two touch
};

// While it lives, what the runtime allocates on this thread through SharedAllocator comes from `arena`; null: from the
// heap.
class ArenaScope {
 public:
  explicit ArenaScope(RunArena* arena);
  ~ArenaScope();
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  RunArena* previous_;
};

// Makes the environment offer the allocator that ArenaScope directs to sessions that ask for one of the environment's
// ("session.use_env_allocators"). False where the runtime refuses it.
bool OfferRunArenas(const OrtLibrary& library);

}  // namespace octavo::internal
