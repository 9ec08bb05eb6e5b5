#include "octavo/runtime/run_arena.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

namespace octavo::internal {
namespace {

struct Releaser {
  void operator()(RunArena* arena) const { arena->Release(); }
};
using Owned = std::unique_ptr<RunArena, Releaser>;

Owned MakeArena() { return Owned(RunArena::Make()); }

// The addresses of what one run of a model allocates, and frees again.
std::vector<void*> OneRun(RunArena& arena, std::size_t scale) {
  std::vector<void*> at;
  std::vector<std::pair<void*, std::size_t>> live;
  for (std::size_t i = 0; i < 40; ++i) {
    const std::size_t bytes = (i * 7 % 11 + 1) * 4096 * scale;
    void* block = arena.Allocate(bytes);
    if (block == nullptr) return {};
    std::memset(block, static_cast<int>(i), bytes);
    at.push_back(block);
    live.emplace_back(block, bytes);
    if (i % 3 != 0) {  // not in the order in which they came
      const std::size_t k = i * 5 % live.size();
      arena.Free(live[k].first, live[k].second);
      live.erase(live.begin() + static_cast<std::ptrdiff_t>(k));
    }
  }
  for (const auto& [block, bytes] : live) arena.Free(block, bytes);
  return at;
}

TEST(RunArena, EveryRunOfAShapeFindsTheSamePlaces) {
  const Owned arena = MakeArena();
  const std::vector<void*> first = OneRun(*arena, 1);
  ASSERT_EQ(first.size(), 40u) << "no address space to reserve";
  EXPECT_TRUE(arena->Empty());
  for (int i = 0; i < 3; ++i) EXPECT_EQ(OneRun(*arena, 1), first);
  OneRun(*arena, 3);  // a larger sample in between
  EXPECT_EQ(OneRun(*arena, 1), first);
}

TEST(RunArena, NeighboursThatAreFreeBecomeOne) {
  const Owned arena = MakeArena();
  void* a = arena->Allocate(8192);
  void* b = arena->Allocate(8192);
  void* c = arena->Allocate(8192);
  void* last = arena->Allocate(64);
  EXPECT_FALSE(arena->Empty());
  arena->Free(a, 8192);
  arena->Free(c, 8192);
  void* small = arena->Allocate(4096);  // the best fit: what is left of it stays free
  EXPECT_EQ(small, a);
  arena->Free(small, 4096);
  arena->Free(b, 8192);
  EXPECT_EQ(arena->Allocate(3 * 8192), a);
  arena->Free(a, 3 * 8192);
  arena->Free(last, 64);
  EXPECT_TRUE(arena->Empty());
}

TEST(RunArena, TrimmedMemoryComesBackAsZeros) {
  const Owned arena = MakeArena();
  constexpr std::size_t kBytes = std::size_t{1} << 20;
  auto* kept = static_cast<char*>(arena->Allocate(4096));
  auto* freed = static_cast<char*>(arena->Allocate(kBytes));
  std::memset(kept, 7, 4096);
  std::memset(freed, 7, kBytes);
  arena->Free(freed, kBytes);
  arena->Trim();
  EXPECT_EQ(kept[0], 7);
  EXPECT_EQ(kept[4095], 7);
  auto* again = static_cast<char*>(arena->Allocate(kBytes));
  EXPECT_EQ(again, freed);
  EXPECT_EQ(again[kBytes / 2], 0);
  arena->Free(again, kBytes);
  arena->Free(kept, 4096);
}

TEST(RunArena, ABlockOutlivesItsOwnerAndMayBeFreedElsewhere) {
  RunArena* arena = RunArena::Make();
  auto* block = static_cast<char*>(arena->Allocate(1 << 16));
  ASSERT_NE(block, nullptr);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block) % RunArena::kAlignment, 0u);
  arena->Release();
  std::memset(block, 1, 1 << 16);
  std::thread([&] { arena->Free(block, 1 << 16); }).join();
}

TEST(RunArena, WhatDoesNotFitIsRefused) {
  const Owned arena = MakeArena();
  EXPECT_EQ(arena->Allocate(std::size_t{1} << 40), nullptr);
  EXPECT_TRUE(arena->Empty());
}

}  // namespace
}  // namespace octavo::internal
