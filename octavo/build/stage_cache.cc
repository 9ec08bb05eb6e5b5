#include "octavo/build/stage_cache.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <system_error>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/base/output.h"
#include "octavo/base/sha256.h"
#include "octavo/build/manifest.h"
#include "octavo/calibrate/statistics.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kIndex = "entry.json";
constexpr std::size_t kMostIndexBytes = std::size_t{256} << 20;
constexpr const char* kStages[] = {"builds", "compile"};

void Damaged(const std::string& what) { LogWarning("a damaged file of the cache is made again: " + what); }

std::uint64_t BytesIn(const fs::path& folder) {
  std::uint64_t bytes = 0;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    std::error_code gone;
    const std::uint64_t size = fs::file_size(it->path(), gone);
    if (!gone) bytes += size;
  }
  return bytes;
}

// Removes entries, the least recently used first, until `more` bytes fit; and what killed runs left.
void MakeRoom(std::uint64_t more) {
  struct Entry {
    fs::file_time_type used;
    fs::path path;
    std::uint64_t bytes;
  };
  std::vector<Entry> entries;
  std::uint64_t total = more;
  for (const char* stage : kStages) {
    std::error_code error;
    for (fs::directory_iterator it(CacheDirectory() / stage, error), end; !error && it != end; it.increment(error)) {
      std::error_code gone;
      const fs::file_time_type used = fs::last_write_time(it->path(), gone);
      if (gone) continue;
      if (it->path().filename().string().starts_with('.')) {  // a temporary; of a run that goes on, if it is new
        if (used + std::chrono::hours(24) < fs::file_time_type::clock::now()) fs::remove_all(it->path(), gone);
        continue;
      }
      entries.push_back({used, it->path(), BytesIn(it->path())});
      total += entries.back().bytes;
    }
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.used < b.used; });
  for (const Entry& entry : entries) {
    if (total <= kMostCacheBytes) return;
    std::error_code error;
    fs::remove_all(entry.path, error);
    total -= entry.bytes;
  }
}

// A name that stays in its folder.
bool IsPlainName(const std::string& name) {
  return !name.empty() && name != kIndex && name[0] != '.' && name.find('/') == std::string::npos;
}

}  // namespace

fs::path CacheDirectory() {
  if (const char* xdg = std::getenv("XDG_CACHE_HOME"); xdg != nullptr && *xdg == '/') return fs::path(xdg) / "octavo";
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/')
    return fs::path(home) / ".cache" / "octavo";
  return {};
}

StatisticsCache OpenStatisticsCache(const std::string& key) {
  StatisticsCache cache;
  if (CacheDirectory().empty()) return cache;
  const fs::path path = CacheDirectory() / "calibration" / (key + ".json");
  cache.keep = [path](const Statistics& statistics) {
    try {
      fs::create_directories(path.parent_path());
      SaveStatistics(statistics, path);
    } catch (const Error& error) {
      if (error.code() != ExitCode::kBadInput) throw;
      LogWarning(std::string("the calibration statistics are not kept for later builds: ") + error.what());
    } catch (const fs::filesystem_error& error) {
      LogWarning(std::string("the calibration statistics are not kept for later builds: ") + error.what());
    }
  };
  std::error_code error;
  if (!fs::exists(path, error)) return cache;
  try {
    cache.found = LoadStatistics(path);
  } catch (const Error& e) {
    if (e.code() == ExitCode::kInterrupted) throw;
    Damaged(e.what());
    fs::remove(path, error);
  }
  return cache;
}

StageCache::StageCache(const std::string& stage, const std::string& key) {
  if (!CacheDirectory().empty()) entry_ = CacheDirectory() / stage / key;
}

std::optional<std::string> StageCache::Take(const fs::path& folder) const {
  std::error_code error;
  if (entry_.empty() || !fs::exists(entry_, error)) return std::nullopt;
  std::vector<std::string> names;
  std::vector<fs::path> copied;
  std::string why;
  try {
    const Json index = Json::parse(ReadTextFile(entry_ / kIndex, kMostIndexBytes));
    std::string text = index.at("text").get<std::string>();
    if (Sha256::OfText(text) != index.at("text_sha256").get<std::string>()) {
      ThrowBadInput("its text is not what was written", (entry_ / kIndex).string());
    }
    for (const Json& file : index.at("files")) {
      const std::string name = file.at("path").get<std::string>();
      if (!IsPlainName(name)) ThrowBadInput("'" + name + "' is no file of it", (entry_ / kIndex).string());
      const FileRecord found = RecordFile(entry_ / name, name);
      if (found.bytes != file.at("bytes").get<std::uint64_t>() ||
          found.sha256 != file.at("sha256").get<std::string>()) {
        ThrowBadInput("the file is not what was written", (entry_ / name).string());
      }
      names.push_back(name);
    }
    for (const std::string& name : names) {
      copied.push_back(folder / name);
      fs::copy_file(entry_ / name, copied.back());
    }
    fs::last_write_time(entry_, fs::file_time_type::clock::now(), error);
    return text;
  } catch (const Error& e) {
    if (e.code() == ExitCode::kInterrupted) throw;
    why = e.what();
  } catch (const fs::filesystem_error&) {
    // It cannot be written there (the disk is full): whoever makes it anew will say so.
    for (const fs::path& file : copied) fs::remove(file, error);
    return std::nullopt;
  } catch (const Json::exception& e) {
    why = (entry_ / kIndex).string() + ": " + e.what();
  }
  Damaged(why);
  fs::remove_all(entry_, error);
  return std::nullopt;
}

void StageCache::Keep(const fs::path& folder, const std::vector<std::string>& names, const std::string& text) const {
  std::error_code error;
  if (entry_.empty() || fs::exists(entry_, error)) return;
  const std::string what = "the " + entry_.parent_path().filename().string() + " result is not kept for later builds: ";
  try {
    std::uint64_t bytes = text.size();
    for (const std::string& name : names) bytes += fs::file_size(folder / name);
    if (bytes > kMostCacheBytes / 4) return;
    MakeRoom(bytes);
    fs::create_directories(entry_.parent_path());
    OutputDirectory out(entry_);
    Json index;
    index["text"] = text;
    index["text_sha256"] = Sha256::OfText(text);
    index["files"] = Json::array();
    for (const std::string& name : names) {
      fs::copy_file(folder / name, out.path() / name);
      const FileRecord record = RecordFile(out.path() / name, name);
      index["files"].push_back({{"path", name}, {"sha256", record.sha256}, {"bytes", record.bytes}});
    }
    OutputFile file(out.path() / kIndex);
    file.Write(index.dump(1, ' ', false, Json::error_handler_t::replace));
    file.Commit(false);  // what a crash loses, the hashes show
    out.Commit(false);
  } catch (const Error& e) {
    // kUsage: another build of the same inputs was faster.
    if (e.code() == ExitCode::kUsage) return;
    if (e.code() != ExitCode::kBadInput) throw;
    LogWarning(what + e.what());
  } catch (const fs::filesystem_error& e) {
    LogWarning(what + e.what());
  }
}

}  // namespace octavo
