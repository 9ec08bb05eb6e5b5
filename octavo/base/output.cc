#include "octavo/base/output.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <optional>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"

namespace octavo {
namespace fs = std::filesystem;
namespace {

std::mutex g_mutex;
std::set<fs::path> g_temporaries;  // uncommitted ones of this process

void Register(const fs::path& path) {
  const std::lock_guard lock(g_mutex);
  g_temporaries.insert(path);
}

bool Registered(const fs::path& path) {
  const std::lock_guard lock(g_mutex);
  return g_temporaries.contains(path);
}

void Unregister(const fs::path& path) {
  const std::lock_guard lock(g_mutex);
  g_temporaries.erase(path);
}

void RemoveQuietly(const fs::path& path) {
  std::error_code ignored;
  fs::remove_all(path, ignored);
}

[[noreturn]] void Fail(const std::string& what, const fs::path& where, int error) {
  const char* how = "";
  if (error == EACCES || error == EPERM || error == EROFS) how = "choose a place where you may write";
  if (error == ENOENT || error == ENOTDIR) how = "choose another place";
  if (error == ENOSPC || error == EDQUOT) how = "free some space";
  ThrowBadInput(what + " (" + std::strerror(error) + ")", where.string(), how);
}

struct Place {
  fs::path target;  // links resolved (a link stays a link to the new content), without a trailing slash
  fs::path beside;  // temporaries stand beside this: the target, or the uppermost directory above it that is missing
};

Place Resolve(const fs::path& target) {
  std::error_code error;
  fs::path out = fs::weakly_canonical(fs::absolute(target), error);
  if (error) out = fs::absolute(target).lexically_normal();
  if (!out.has_filename()) out = out.parent_path();
  if (out.filename().empty() || out == out.root_path()) {
    ThrowUsage("cannot write to this path", target.string(), "name a file or directory to create");
  }
  fs::path beside = out;
  while (!fs::is_directory(beside.parent_path(), error)) {
    beside = beside.parent_path();
    if (fs::exists(fs::symlink_status(beside, error)) || beside == beside.root_path()) {
      ThrowBadInput("cannot write: this is not a directory", beside.string(), "choose another output");
    }
  }
  return {std::move(out), std::move(beside)};
}

// The directories above a target, made as they are needed; those that stay empty go again.
class Parents {
 public:
  explicit Parents(const fs::path& target) {
    std::vector<fs::path> missing;
    std::error_code error;
    for (fs::path p = target.parent_path(); !fs::is_directory(p, error) && p.has_relative_path(); p = p.parent_path()) {
      missing.push_back(p);
    }
    for (; !missing.empty(); missing.pop_back()) {
      if (::mkdir(missing.back().c_str(), 0777) == 0) {
        made_.push_back(missing.back());
      } else if (errno != EEXIST) {
        const int reason = errno;
        Remove();
        Fail("cannot create directory", missing.back(), reason);
      }
    }
  }
  ~Parents() { Remove(); }
  Parents(const Parents&) = delete;
  Parents& operator=(const Parents&) = delete;

 private:
  void Remove() {  // rmdir leaves what is not empty: after a success, all of them
    for (; !made_.empty(); made_.pop_back()) ::rmdir(made_.back().c_str());
  }
  std::vector<fs::path> made_;
};

// What the names of all temporaries of a target start with; a pid follows.
std::string TempPrefix(const fs::path& target) {
  std::string out(1, '.');
  out += target.filename().string();
  out += ".octavo-";
  return out;
}

fs::path TempName(const fs::path& target, int n) {
  std::string name = TempPrefix(target) + std::to_string(::getpid());
  if (n > 0) name.append(".").append(std::to_string(n));
  return target.parent_path() / name;
}

std::string OldSuffix() { return ".old"; }

// The pid in a temporary's name if `name` is one of this target's, in any of its forms.
std::optional<pid_t> PidOf(const std::string& name, const fs::path& target) {
  const std::string prefix = TempPrefix(target);
  if (!name.starts_with(prefix)) return std::nullopt;
  std::size_t i = prefix.size();
  long pid = 0;
  for (; i < name.size() && name[i] >= '0' && name[i] <= '9' && pid < (1L << 30); ++i) pid = pid * 10 + (name[i] - '0');
  if (i == prefix.size() || pid <= 0 || pid >= (1L << 30)) return std::nullopt;
  std::string_view rest = std::string_view(name).substr(i);
  if (rest != OldSuffix() && !rest.empty()) {
    if (rest[0] != '.' || rest.size() < 2) return std::nullopt;
    for (const char c : rest.substr(1)) {
      if (c < '0' || c > '9') return std::nullopt;
    }
  }
  return static_cast<pid_t>(pid);
}

// A live run holds a lock on its temporary: its pid may look dead from here (another container, another machine).
bool Locked(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return false;
  const bool locked = ::flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  ::close(fd);
  return locked;
}

void RemoveLeftovers(const fs::path& target) {
  std::error_code error;
  std::vector<fs::path> dead;
  for (fs::directory_iterator it(target.parent_path(), error), end; !error && it != end; it.increment(error)) {
    const std::optional<pid_t> pid = PidOf(it->path().filename().string(), target);
    if (!pid) continue;
    // Our own pid on something that we did not make: an earlier process had it (pids start over in a container).
    const bool gone = *pid == ::getpid() ? !Registered(it->path()) : ::kill(*pid, 0) != 0 && errno == ESRCH;
    if (gone && !Locked(it->path())) dead.push_back(it->path());
  }
  for (const fs::path& path : dead) {
    // Killed between the two renames of a swap: what was there before is put back.
    if (path.filename().string().ends_with(OldSuffix()) && !fs::exists(target, error)) {
      fs::rename(path, target, error);
      if (!error) continue;
    }
    RemoveQuietly(path);
  }
}

void SyncParent(const fs::path& path) {
  const int fd = ::open(path.parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);  // best effort: the data are safe already, this only makes the new name durable
  ::close(fd);
}

}  // namespace

struct OutputFile::Impl {
  fs::path target, temp;
  int fd = -1;
  bool direct = false;  // a device or pipe (/dev/stdout): nothing to rename
  bool committed = false;
  std::vector<std::byte> buffer;
  std::uint64_t written = 0;

  struct {
    std::uint64_t sent = 0, started = 0;  // bytes given to the kernel; bytes whose writing to the disk was begun
  } on_disk;

  static constexpr std::size_t kBuffer = std::size_t{1} << 18;
  static constexpr std::uint64_t kWriteback = std::uint64_t{8} << 20;

  void WriteOut(std::span<const std::byte> data) {
    CheckInterrupt();
    while (!data.empty()) {
      const ssize_t n = ::write(fd, data.data(), std::min(data.size(), std::size_t{1} << 30));
      if (n < 0) {
        if (errno == EINTR) continue;
        Fail("cannot write file", target, errno);
      }
      data = data.subspan(static_cast<std::size_t>(n));
      on_disk.sent += static_cast<std::uint64_t>(n);
    }
    // The disk starts on what there is while the rest is still computed: the fsync at the end waits for little.
    if (!direct && on_disk.sent - on_disk.started >= kWriteback) {
      ::sync_file_range(fd, static_cast<off64_t>(on_disk.started), static_cast<off64_t>(on_disk.sent - on_disk.started),
                        SYNC_FILE_RANGE_WRITE);
      on_disk.started = on_disk.sent;
    }
  }
  void Flush() {
    WriteOut(buffer);
    buffer.clear();
  }
};

OutputFile::OutputFile(fs::path target) : impl_(std::make_unique<Impl>()) {
  if (target.empty()) ThrowUsage("the name of the output file is empty");
  std::error_code error;
  const fs::file_status status = fs::status(target, error);
  if (fs::is_directory(status)) {
    ThrowBadInput("cannot write file: a directory of this name exists", target.string(), "name a file");
  }
  if (fs::exists(status) && !fs::is_regular_file(status)) {
    impl_->target = impl_->temp = std::move(target);
    impl_->direct = true;
    impl_->fd = ::open(impl_->target.c_str(), O_WRONLY | O_CLOEXEC);
    if (impl_->fd < 0) Fail("cannot open for writing", impl_->target, errno);
    return;
  }
  const Place place = Resolve(target);
  impl_->target = place.target;
  RemoveLeftovers(place.beside);
  for (int n = 0; impl_->fd < 0; ++n) {
    impl_->temp = TempName(place.beside, n);
    impl_->fd = ::open(impl_->temp.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (impl_->fd < 0 && (errno != EEXIST || n > 1000)) Fail("cannot create file", impl_->target, errno);
  }
  ::flock(impl_->fd, LOCK_EX | LOCK_NB);
  Register(impl_->temp);
}

OutputFile::~OutputFile() {
  if (impl_->fd >= 0) ::close(impl_->fd);
  if (impl_->committed || impl_->direct || impl_->temp.empty()) return;
  RemoveQuietly(impl_->temp);
  Unregister(impl_->temp);
}

void OutputFile::Write(std::span<const std::byte> data) {
  if (impl_->committed) ThrowInternal("write after commit", impl_->target.string());
  impl_->written += data.size();
  if (impl_->buffer.size() + data.size() > Impl::kBuffer) impl_->Flush();
  if (data.size() >= Impl::kBuffer) {
    impl_->WriteOut(data);
  } else {
    impl_->buffer.insert(impl_->buffer.end(), data.begin(), data.end());
  }
}

void OutputFile::Write(std::string_view text) { Write(std::as_bytes(std::span(text.data(), text.size()))); }

std::uint64_t OutputFile::offset() const { return impl_->written; }
const fs::path& OutputFile::temp_path() const { return impl_->temp; }

void OutputFile::Commit(bool durable) {
  if (impl_->committed) ThrowInternal("committed twice", impl_->target.string());
  impl_->Flush();  // whoever interrupts a run wants no result of it: not from here on
  if (!impl_->direct) {
    if (durable && ::fsync(impl_->fd) != 0 && errno != EINVAL && errno != ENOTSUP)
      Fail("cannot write file", impl_->target, errno);
    const Parents parents(impl_->target);
    if (::rename(impl_->temp.c_str(), impl_->target.c_str()) != 0) {
      Fail("cannot put the finished file in place", impl_->target, errno);
    }
    Unregister(impl_->temp);
  }
  impl_->committed = true;
  // Network file systems report a full disk as late as here.
  if (::close(std::exchange(impl_->fd, -1)) != 0 && errno != EINTR) Fail("cannot write file", impl_->target, errno);
  if (!impl_->direct && durable) SyncParent(impl_->target);
}

void SyncFile(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) Fail("cannot open file", path, errno);
  const int result = ::fsync(fd), reason = errno;
  ::close(fd);
  if (result != 0 && reason != EINVAL && reason != ENOTSUP) Fail("cannot write file", path, reason);
}

struct OutputDirectory::Impl {
  fs::path target, temp;
  int fd = -1;  // holds the lock
  bool committed = false;
};

OutputDirectory::OutputDirectory(const fs::path& target) : impl_(std::make_unique<Impl>()) {
  if (target.empty()) ThrowUsage("the name of the output directory is empty");
  const Place place = Resolve(target);
  impl_->target = place.target;
  RemoveLeftovers(place.beside);
  for (int n = 0;; ++n) {
    impl_->temp = TempName(place.beside, n);
    if (::mkdir(impl_->temp.c_str(), 0777) == 0) break;
    if (errno != EEXIST || n > 1000) Fail("cannot create the output", impl_->target, errno);
  }
  Register(impl_->temp);
  impl_->fd = ::open(impl_->temp.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (impl_->fd >= 0) ::flock(impl_->fd, LOCK_EX | LOCK_NB);
}

OutputDirectory::~OutputDirectory() {
  if (impl_->fd >= 0) ::close(impl_->fd);
  if (impl_->committed || impl_->temp.empty()) return;
  RemoveQuietly(impl_->temp);
  Unregister(impl_->temp);
}

const fs::path& OutputDirectory::path() const { return impl_->committed ? impl_->target : impl_->temp; }

void OutputDirectory::Commit(bool replace) {
  if (impl_->committed) ThrowInternal("committed twice", impl_->target.string());
  const char* temp = impl_->temp.c_str();
  const char* target = impl_->target.c_str();
  const auto done = [&] {
    impl_->committed = true;
    Unregister(impl_->temp);
    SyncParent(impl_->target);
  };

  std::error_code error;
  const fs::file_status status = fs::symlink_status(impl_->target, error);
  const Parents parents(impl_->target);
  if (!fs::exists(status)) {
    // NOREPLACE: somebody else's directory that appears just now must not vanish under ours.
    if (::renameat2(AT_FDCWD, temp, AT_FDCWD, target, RENAME_NOREPLACE) == 0) return done();
    if ((errno == EINVAL || errno == ENOSYS) && ::rename(temp, target) == 0) return done();
    if (errno != EEXIST && errno != ENOTEMPTY) Fail("cannot put the finished directory in place", impl_->target, errno);
    if (!replace) ThrowUsage("output directory exists", impl_->target.string(), "pass --force to replace it");
  } else if (!replace) {
    ThrowUsage("output directory exists", impl_->target.string(), "pass --force to replace it");
  } else if (!fs::is_directory(status)) {
    ThrowUsage("cannot replace this by a directory: it is a file", impl_->target.string(), "choose another output");
  }

  if (::renameat2(AT_FDCWD, temp, AT_FDCWD, target, RENAME_EXCHANGE) == 0) {
    RemoveQuietly(impl_->temp);  // now holds what was there before
    return done();
  }
  if (errno != EINVAL && errno != ENOSYS) Fail("cannot replace directory", impl_->target, errno);
  // The file system cannot exchange: two renames, the old one put back if the second fails.
  const fs::path old = TempName(impl_->target, 0).string() + OldSuffix();
  if (::rename(target, old.c_str()) != 0) Fail("cannot replace directory", impl_->target, errno);
  if (::rename(temp, target) != 0) {
    const int reason = errno;
    if (::rename(old.c_str(), target) != 0) {
      Fail("cannot replace directory; its earlier content is in " + old.string(), impl_->target, reason);
    }
    Fail("cannot replace directory", impl_->target, reason);
  }
  RemoveQuietly(old);
  done();
}

void OutputDirectory::MoveOut(const std::string& name) {
  if (impl_->committed) ThrowInternal("moved out of a committed directory", impl_->target.string());
  const fs::path from = impl_->temp / name, to = impl_->target.parent_path() / name;
  const Parents parents(to);
  if (::rename(from.c_str(), to.c_str()) != 0) Fail("cannot put the finished file in place", to, errno);
  SyncParent(to);
}

const fs::path& OutputDirectory::target() const { return impl_->target; }

void RemoveAllTemporaries() {
  std::set<fs::path> all;
  {
    const std::lock_guard lock(g_mutex);
    all.swap(g_temporaries);
  }
  for (const fs::path& path : all) RemoveQuietly(path);
}

std::string ReadTextFile(const fs::path& path, std::size_t max_bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) ThrowCannotOpen(path.string(), errno);
  std::string out;
  char piece[1 << 16];
  for (;;) {
    const ssize_t n = ::read(fd, piece, sizeof piece);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      const int reason = errno;
      ::close(fd);
      Fail("cannot read file", path, reason);
    }
    if (n == 0) break;
    if (static_cast<std::size_t>(n) > max_bytes - out.size()) {
      ::close(fd);
      ThrowBadInput("file is larger than the " + std::to_string(max_bytes) + " bytes allowed here", path.string());
    }
    out.append(piece, static_cast<std::size_t>(n));
  }
  ::close(fd);
  return out;
}

}  // namespace octavo
