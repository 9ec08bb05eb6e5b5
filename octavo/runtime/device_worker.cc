#include "octavo/runtime/device_worker.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/base/resources.h"

extern char** environ;

namespace octavo {
namespace {

namespace fs = std::filesystem;

// A message is a list of byte strings: their number, then the length and the bytes of each, little-endian u64. Both
// ends are this program; the bounds keep a torn stream from becoming an allocation.
using Message = std::vector<std::string>;
constexpr std::uint64_t kMostFields = 1 << 20;
constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 36;

// Of a pipe: false at its end, or when `wait` says to give up.
template <class Wait>
bool ReadAll(int fd, void* data, std::size_t size, const Wait& wait) {
  auto* at = static_cast<char*>(data);
  while (size > 0) {
    if (!wait(fd)) return false;
    const ssize_t n = ::read(fd, at, std::min<std::size_t>(size, std::size_t{1} << 30));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    size -= static_cast<std::size_t>(n);
  }
  return true;
}

bool WriteAll(int fd, const void* data, std::size_t size) {
  const auto* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t n = ::write(fd, at, std::min<std::size_t>(size, std::size_t{1} << 30));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    at += n;
    size -= static_cast<std::size_t>(n);
  }
  return true;
}

bool Send(int fd, const Message& message) {
  const std::uint64_t count = message.size();
  if (!WriteAll(fd, &count, sizeof count)) return false;
  for (const std::string& field : message) {
    const std::uint64_t size = field.size();
    if (!WriteAll(fd, &size, sizeof size) || !WriteAll(fd, field.data(), field.size())) return false;
  }
  return true;
}

template <class Wait>
std::optional<Message> Receive(int fd, const Wait& wait) {
  std::uint64_t count = 0, total = 0;
  if (!ReadAll(fd, &count, sizeof count, wait) || count > kMostFields) return std::nullopt;
  Message message;
  for (std::uint64_t i = 0; i < count; ++i) {
    std::uint64_t size = 0;
    if (!ReadAll(fd, &size, sizeof size, wait)) return std::nullopt;
    total += size;
    if (size > kMostBytes || total > kMostBytes) return std::nullopt;
    std::string field(size, '\0');
    if (!ReadAll(fd, field.data(), field.size(), wait)) return std::nullopt;
    message.push_back(std::move(field));
  }
  return message;
}

std::string Number(std::int64_t n) { return std::to_string(n); }
std::int64_t Number(const std::string& text) {
  std::int64_t n = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), n);
  if (error != std::errc() || end != text.data() + text.size()) ThrowInternal("a torn message of a device worker");
  return n;
}
std::string Seconds(double s) { return Number(static_cast<std::int64_t>(s * 1e9)); }
double Seconds(const std::string& text) { return static_cast<double>(Number(text)) * 1e-9; }

// Takes fields off the front of a message.
class Reader {
 public:
  explicit Reader(Message message) : message_(std::move(message)) {}
  std::string Next() {
    if (at_ >= message_.size()) ThrowInternal("a torn message of a device worker");
    return std::move(message_[at_++]);
  }
  std::int64_t Int() { return Number(Next()); }
  bool done() const { return at_ == message_.size(); }

 private:
  Message message_;
  std::size_t at_ = 0;
};

void AddTensor(Message& message, const TensorRef& tensor) {
  message.push_back(Number(static_cast<int>(tensor.dtype)));
  std::string dims;
  for (const std::int64_t d : tensor.dims) dims += Number(d) + ",";
  message.push_back(std::move(dims));
  message.emplace_back(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
}

TensorRef TakeTensor(Reader& in) {
  const std::int64_t dtype = in.Int();
  if (dtype <= 0 || dtype >= kDTypeCount) ThrowInternal("a torn message of a device worker");
  Dims dims;
  const std::string text = in.Next();
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t comma = std::min(text.find(',', at), text.size());
    dims.push_back(Number(text.substr(at, comma - at)));
    at = comma + 1;
  }
  const std::string bytes = in.Next();
  std::vector<std::byte> data(bytes.size());
  if (!bytes.empty()) std::memcpy(data.data(), bytes.data(), bytes.size());
  return TensorRef::FromBytes(static_cast<DType>(dtype), std::move(dims), std::move(data));
}

void AddEp(Message& message, const EpSpec& ep) {
  message.push_back(ep.name);
  message.push_back(ep.library.string());
  message.push_back(Number(ep.cpu_fallback ? 1 : 0));
  message.push_back(Number(static_cast<std::int64_t>(ep.options.size())));
  for (const auto& [key, value] : ep.options) {
    message.push_back(key);
    message.push_back(value);
  }
}

EpSpec TakeEp(Reader& in) {
  EpSpec ep;
  ep.name = in.Next();
  ep.library = in.Next();
  ep.cpu_fallback = in.Int() != 0;
  for (std::int64_t n = in.Int(); n > 0; --n) {
    std::string key = in.Next();
    ep.options.emplace_back(std::move(key), in.Next());
  }
  return ep;
}

void AddSpecs(Message& message, const std::vector<IoSpec>& specs) {
  message.push_back(Number(static_cast<std::int64_t>(specs.size())));
  for (const IoSpec& spec : specs) {
    message.push_back(spec.name);
    message.push_back(Number(static_cast<int>(spec.type.dtype)));
    message.push_back(Number(spec.type.shape ? static_cast<std::int64_t>(spec.type.shape->size()) : -1));
    if (!spec.type.shape) continue;
    for (const Dim& dim : *spec.type.shape) {
      message.push_back(Number(dim.value));
      message.push_back(dim.symbol);
    }
  }
}

std::vector<IoSpec> TakeSpecs(Reader& in) {
  std::vector<IoSpec> specs;
  for (std::int64_t n = in.Int(); n > 0; --n) {
    IoSpec spec;
    spec.name = in.Next();
    spec.type.dtype = static_cast<DType>(in.Int());
    const std::int64_t rank = in.Int();
    if (rank >= 0) {
      spec.type.shape.emplace();
      for (std::int64_t d = 0; d < rank; ++d) {
        Dim dim;
        dim.value = in.Int();
        dim.symbol = in.Next();
        spec.type.shape->push_back(std::move(dim));
      }
    }
    specs.push_back(std::move(spec));
  }
  return specs;
}

// ---------------------------------------------------------------------------------------------------- the child's side

struct Served {
  std::optional<Session> session;
};

Message Answer(Reader in, Served& served) {
  const std::string what = in.Next();
  Message out = {"ok"};
  if (what == "devices") {
    const std::string ep = in.Next();
    for (const EpDevice& d : EpDevices(ep, in.Next())) {
      for (const std::string& field : {d.ep, d.vendor, d.version, d.hardware, d.hardware_vendor}) out.push_back(field);
    }
  } else if (what == "compile") {
    const fs::path model = in.Next(), target = in.Next();
    const bool embed = in.Int() != 0;
    const EpSpec ep = TakeEp(in);
    EpLog log;
    const Stopwatch time;
    CompileForEp(model, target, ep, embed);
    out.push_back(Seconds(time.Seconds()));
    for (EpMessage& message : log.Take()) {
      out.push_back(Number(message.error ? 1 : 0));
      out.push_back(std::move(message.text));
    }
  } else if (what == "open") {
    const fs::path model = in.Next();
    SessionOptions options;
    options.optimization = static_cast<GraphOptimization>(in.Int());
    options.intra_op_threads = static_cast<int>(in.Int());
    if (in.Int() != 0) options.ep = TakeEp(in);
    const Stopwatch time;
    served.session.emplace(model, options);
    out.push_back(Seconds(time.Seconds()));
    AddSpecs(out, served.session->inputs());
    AddSpecs(out, served.session->outputs());
  } else if (what == "run") {
    if (!served.session) ThrowInternal("a device worker was asked to run before it was given a model");
    std::vector<TensorRef> inputs;
    while (!in.done()) inputs.push_back(TakeTensor(in));
    const Stopwatch time;
    const std::vector<TensorRef> outputs = served.session->Run(inputs);
    out.push_back(Seconds(time.Seconds()));
    out.push_back(Number(static_cast<std::int64_t>(PeakRssBytes())));
    for (const TensorRef& tensor : outputs) AddTensor(out, tensor);
  } else {
    ThrowInternal("a device worker was asked for '" + what + "'");
  }
  return out;
}

// -------------------------------------------------------------------------------------------------- the parent's side

constexpr std::string_view kWorkerFlag = "--device-worker";
bool this_program_serves = false;  // set before any thread starts

// What starts a child: this program where it can be one, else the octavo beside it (tests, users of the library).
fs::path WorkerProgram() {
  if (const char* env = std::getenv("OCTAVO_WORKER"); env != nullptr && *env != '\0') return env;
  if (this_program_serves) return "/proc/self/exe";
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  for (const fs::path& place : {self.parent_path() / "octavo", self.parent_path().parent_path() / "bin" / "octavo"}) {
    if (::access(place.c_str(), X_OK) == 0) return place;
  }
  ThrowUnsupported("the octavo program, which runs device compilers, was not found", self.parent_path().string(),
                   "set OCTAVO_WORKER to it");
}

std::string OneLine(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  }
  return text;
}

// The child's main: serves requests of the parent until it hangs up.
[[noreturn]] void Serve(int in, int out) {
  // A parent that is gone hangs up, whatever a provider is busy with. (PR_SET_PDEATHSIG would speak of the parent's
  // thread.)
  std::thread([in] {
    struct pollfd p = {in, 0, 0};
    while (::poll(&p, 1, -1) <= 0 || (p.revents & (POLLHUP | POLLERR | POLLNVAL)) == 0) {
    }
    ::_exit(0);
  }).detach();
  SetLogLevel(LogLevel::kQuiet);
  Served served;
  const auto forever = [](int) { return true; };
  while (std::optional<Message> request = Receive(in, forever)) {
    Message answer;
    try {
      answer = Answer(Reader(std::move(*request)), served);
    } catch (const Error& e) {
      answer = {"error", Number(static_cast<int>(e.code())), e.reason(), e.where(), e.how()};
    } catch (const std::exception& e) {
      answer = {"error", Number(static_cast<int>(ExitCode::kUnsupported)), e.what(), "", ""};
    }
    if (!Send(out, answer)) break;
  }
  // Providers are torn down by nobody: their destructors crash at times, and the process is over.
  ::_exit(0);
}

}  // namespace

double DeviceSeconds() {
  const char* env = std::getenv("OCTAVO_DEVICE_SECONDS");
  const double seconds = env == nullptr ? 0 : std::atof(env);
  return seconds > 0 ? seconds : 1800;
}

void ServeIfWorker(int argc, char** argv) {
  if (argc == 2 && argv[1] == kWorkerFlag) Serve(3, 4);
  this_program_serves = true;
}

struct DeviceWorker::Impl {
  pid_t pid = -1;
  int to = -1, from = -1, log = -1;
  std::vector<IoSpec> inputs, outputs;
  double load_seconds = 0;

  ~Impl() {
    if (to >= 0) ::close(to);
    if (from >= 0) ::close(from);
    if (log >= 0) ::close(log);
    if (pid > 0) {
      ::kill(pid, SIGKILL);
      while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
      }
    }
  }

  // The last line of what the child wrote to stdout and stderr: the last words of a library that aborted.
  std::string LastWords() const {
    char text[4096];
    const off_t size = ::lseek(log, 0, SEEK_END);
    const off_t start = std::max<off_t>(0, size - static_cast<off_t>(sizeof text));
    const ssize_t n = size > 0 ? ::pread(log, text, sizeof text, start) : 0;
    std::string tail(text, n > 0 ? static_cast<std::size_t>(n) : 0);
    while (!tail.empty() && (tail.back() == '\n' || tail.back() == ' ')) tail.pop_back();
    const std::size_t line = tail.rfind('\n');
    return OneLine(line == std::string::npos ? tail : tail.substr(line + 1));
  }

  [[noreturn]] void Died(const std::string& what) {
    int status = 0;
    std::string how = "it ended";
    while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    pid = -1;
    if (WIFSIGNALED(status)) how = std::string("it was ended by signal ") + ::strsignal(WTERMSIG(status));
    if (WIFEXITED(status)) how = "it exited with code " + std::to_string(WEXITSTATUS(status));
    const std::string words = LastWords();
    ThrowUnsupported(
        "the device library failed (" + how + ")", what,
        words.empty() ? "is the library whole? fetch it again (octavo devices says where it lies)" : words);
  }

  Reader Ask(const Message& request, const std::string& what) {
    const Stopwatch time;
    const double limit = DeviceSeconds();
    if (!Send(to, request)) Died(what);
    bool late = false;
    const std::optional<Message> answer = Receive(from, [&](int fd) {
      for (;;) {
        CheckInterrupt();
        if (time.Seconds() > limit) {
          late = true;
          return false;
        }
        struct pollfd p = {fd, POLLIN, 0};
        const int ready = ::poll(&p, 1, 200);
        if (ready > 0) return true;
        if (ready < 0 && errno != EINTR) return false;
      }
    });
    if (late) {
      ::kill(pid, SIGKILL);
      ThrowUnsupported("the device library gave no answer within " + std::to_string(static_cast<long>(limit)) + " s",
                       what, "OCTAVO_DEVICE_SECONDS sets the limit");
    }
    if (!answer || answer->empty()) Died(what);
    Reader reader(*answer);
    if (reader.Next() == "ok") return reader;
    const auto code = static_cast<ExitCode>(reader.Int());
    std::string reason = reader.Next(), where = reader.Next();
    throw Error(code, std::move(reason), std::move(where), reader.Next());
  }
};

DeviceWorker::DeviceWorker() : impl_(std::make_unique<Impl>()) {
  ::signal(SIGPIPE, SIG_IGN);  // a child that died is an error of write
  const fs::path program = WorkerProgram();
  const std::string runtime = "OCTAVO_ORT_LIBRARY=" + OrtLibraryPath();
  std::vector<char*> environment;
  for (char** e = environ; *e != nullptr; ++e) {
    if (std::strncmp(*e, "OCTAVO_ORT_LIBRARY=", 19) != 0) environment.push_back(*e);
  }
  environment.push_back(const_cast<char*>(runtime.c_str()));
  environment.push_back(nullptr);
  const std::string path = program.string();
  char* const arguments[] = {const_cast<char*>("octavo"), const_cast<char*>(kWorkerFlag.data()), nullptr};

  int to_child[2], from_child[2];
  if (::pipe2(to_child, O_CLOEXEC) != 0) ThrowUnsupported("no pipe for a device worker", std::strerror(errno));
  if (::pipe2(from_child, O_CLOEXEC) != 0) {
    const std::string why = std::strerror(errno);
    ::close(to_child[0]);
    ::close(to_child[1]);
    ThrowUnsupported("no pipe for a device worker", why);
  }
  impl_->to = to_child[1];
  impl_->from = from_child[0];
  impl_->log = ::memfd_create("octavo-device-log", MFD_CLOEXEC);
  const pid_t pid = ::fork();
  if (pid == 0) {     // async-signal-safe calls only: the parent has threads
    ::setpgid(0, 0);  // Ctrl-C is the parent's to handle
    const int a = ::fcntl(to_child[0], F_DUPFD, 10), b = ::fcntl(from_child[1], F_DUPFD, 10);
    const int log = impl_->log >= 0 ? ::fcntl(impl_->log, F_DUPFD, 10) : ::open("/dev/null", O_WRONLY);
    ::dup2(log, 1);
    ::dup2(log, 2);
    ::dup2(a, 3);
    ::dup2(b, 4);
    ::close(a);
    ::close(b);
    ::close(log);
    ::execve(path.c_str(), arguments, environment.data());
    ::_exit(127);
  }
  ::close(to_child[0]);
  ::close(from_child[1]);
  if (pid < 0) ThrowUnsupported("no process for a device worker", std::strerror(errno));
  impl_->pid = pid;
}

DeviceWorker::~DeviceWorker() = default;
DeviceWorker::DeviceWorker(DeviceWorker&&) noexcept = default;

std::vector<EpDevice> DeviceWorker::Devices(const std::string& ep, const fs::path& library) {
  Reader in = impl_->Ask({"devices", ep, library.string()}, library.string());
  std::vector<EpDevice> out;
  while (!in.done()) {
    EpDevice d;
    for (std::string* field : {&d.ep, &d.vendor, &d.version, &d.hardware, &d.hardware_vendor}) *field = in.Next();
    out.push_back(std::move(d));
  }
  return out;
}

EpCompileResult DeviceWorker::Compile(const fs::path& model, const fs::path& out, const EpSpec& ep, bool embed) {
  Message request = {"compile", fs::absolute(model).string(), fs::absolute(out).string(), Number(embed ? 1 : 0)};
  AddEp(request, ep);
  Reader in = impl_->Ask(request, "compiling " + model.filename().string() + " with " + ep.name);
  EpCompileResult result;
  result.seconds = Seconds(in.Next());
  while (!in.done()) {
    const bool error = in.Int() != 0;
    result.log.push_back({error, in.Next()});
  }
  return result;
}

void DeviceWorker::Open(const fs::path& model, const EpSpec* ep, GraphOptimization optimization, int threads) {
  Message request = {"open", fs::absolute(model).string(), Number(static_cast<int>(optimization)), Number(threads),
                     Number(ep != nullptr ? 1 : 0)};
  if (ep != nullptr) AddEp(request, *ep);
  Reader in = impl_->Ask(request, "loading " + model.filename().string());
  impl_->load_seconds = Seconds(in.Next());
  impl_->inputs = TakeSpecs(in);
  impl_->outputs = TakeSpecs(in);
}

const std::vector<IoSpec>& DeviceWorker::inputs() const { return impl_->inputs; }
const std::vector<IoSpec>& DeviceWorker::outputs() const { return impl_->outputs; }
double DeviceWorker::load_seconds() const { return impl_->load_seconds; }

DeviceWorker::RunResult DeviceWorker::Run(std::span<const TensorRef> inputs) {
  Message request = {"run"};
  for (const TensorRef& tensor : inputs) {
    if (tensor.strings) ThrowUnsupported("a device takes no text", "input of a run");
    AddTensor(request, tensor);
  }
  Reader in = impl_->Ask(request, "running the model");
  RunResult result;
  result.seconds = Seconds(in.Next());
  result.peak_rss_bytes = static_cast<std::uint64_t>(in.Int());
  while (!in.done()) result.outputs.push_back(TakeTensor(in));
  return result;
}

}  // namespace octavo
