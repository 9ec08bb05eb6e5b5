// Finished work in $XDG_CACHE_HOME/octavo, by the hash of everything that decided it. Nothing about a cache ends a
// build: what is damaged is made again, and what cannot be written is done without; both with a warning.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "octavo/quantize/quantize.h"

namespace octavo {

// $XDG_CACHE_HOME/octavo, ~/.cache/octavo, or empty when neither variable is set: then nothing is kept.
std::filesystem::path CacheDirectory();

// The calibration statistics that were kept under this key, and a way to keep new ones.
StatisticsCache OpenStatisticsCache(const std::string& key);

// The files and the text that a stage ended with: <cache>/<stage>/<key>/. All entries together take at most
// kMostCacheBytes: those that were not used for the longest time go; one of more than a quarter is not kept.
inline constexpr std::uint64_t kMostCacheBytes = std::uint64_t{4} << 30;

class StageCache {
 public:
  StageCache(const std::string& stage, const std::string& key);

  // Checks the files against the hashes of the entry, copies them into `folder`, and returns the entry's text. nullopt:
  // there is none, it is damaged (then it is removed), or it cannot be copied; of its files none is left in `folder`.
  std::optional<std::string> Take(const std::filesystem::path& folder) const;

  // Keeps files of `folder`; an entry that is there already stays.
  void Keep(const std::filesystem::path& folder, const std::vector<std::string>& names, const std::string& text) const;

 private:
  std::filesystem::path entry_;  // empty: no cache
};

}  // namespace octavo
