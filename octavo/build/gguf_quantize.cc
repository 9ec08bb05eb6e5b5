#include "octavo/build/gguf_quantize.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/base/names.h"
#include "octavo/base/resources.h"
#include "octavo/base/thread_pool.h"
#include "octavo/emit/gguf.h"
#include "octavo/import/gguf_imatrix.h"
#include "octavo/numerics/ggml.h"
#include "octavo/validate/json_writer.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t kDefaultMemory = std::uint64_t{1} << 30;
constexpr std::uint64_t kMargin = std::uint64_t{24} << 20;  // thread stacks, the writer's buffer, the allocator's slack
constexpr std::uint64_t kChunk = std::uint64_t{4} << 20;    // of a tensor, read and encoded at once
constexpr std::uint64_t kLeastChunk = std::uint64_t{64} << 10;
constexpr std::uint64_t kPiece = std::uint64_t{256} << 10;  // f32 that a quantized source is decoded to at a time
constexpr std::uint32_t kQuantizationVersion = 2;           // of the block layouts that ggml has today

// What stores a tensor whose rows are no whole number of blocks.
constexpr std::array<std::pair<std::string_view, std::string_view>, 9> kFallbacks = {{{"q2_k", "iq4_nl"},
                                                                                      {"q3_k", "iq4_nl"},
                                                                                      {"iq4_xs", "iq4_nl"},
                                                                                      {"q4_k", "q5_0"},
                                                                                      {"q5_k", "q5_1"},
                                                                                      {"q6_k", "q8_0"},
                                                                                      {"tq1_0", "q4_0"},
                                                                                      {"tq2_0", "q4_0"},
                                                                                      {"nvfp4", "q4_0"}}};

const GgufType& TypeOfId(std::uint32_t id) {
  const GgufType* type = FindGgufType(id);
  if (type == nullptr) ThrowInternal("a GGML format that GGUF does not have");
  return *type;
}
const GgufType& TypeNamed(std::string_view name) {
  const GgufType* type = FindGgufType(name);
  if (type == nullptr) ThrowInternal("a GGUF type without a row: " + std::string(name));
  return *type;
}

std::vector<std::string> FormatNames() {
  std::vector<std::string> names;
  for (const GgmlFormat& format : GgmlFormats()) names.emplace_back(format.name);
  return names;
}

const GgufType& ParseType(const std::string& text, const std::string& option) {
  for (const GgmlFormat& format : GgmlFormats()) {
    if (format.name == text) return TypeOfId(format.type_id);
  }
  if (text == "fp16") return TypeNamed("f16");
  if (text == "fp32") return TypeNamed("f32");
  std::string how = DidYouMean(text, FormatNames());
  if (how.empty()) {
    for (const std::string& name : FormatNames()) how += (how.empty() ? "formats are " : ", ") + name;
  }
  ThrowUsage("a GGUF cannot hold '" + text + "'", option, how);
}

// A setting that says nothing about a file of weights is a mistake, not something to pass over.
void CheckSettings(const QuantizationConfig& c) {
  const QuantizationConfig d;
  const auto check = [](bool same, const char* name) {
    if (!same) ThrowUsage(std::string("'") + name + "' does not apply to a GGUF", "configuration", "leave it out");
  };
  check(c.weight_type == d.weight_type, "weight_type");
  check(c.activation_type == d.activation_type && c.activation_mx == d.activation_mx, "activation_type");
  check(c.per_channel == d.per_channel, "per_channel");
  check(c.symmetric == d.symmetric, "symmetric");
  check(c.calibration == d.calibration, "calibration");
  check(c.percentile == d.percentile, "percentile");
  check(c.samples == d.samples, "samples");
  check(c.seed == d.seed, "seed");
  check(c.distribution == d.distribution, "distribution");
  check(c.block == d.block, "block");
  check(c.op_types == d.op_types, "op_types");
  check(c.load_path == d.load_path, "load_path");
  check(c.save_path == d.save_path, "save_path");
  check(c.keep_float_auto == d.keep_float_auto, "keep_float");
}

void CheckMatches(const std::vector<std::string>& names, const std::string& pattern, const char* option) {
  for (const std::string& name : names) {
    if (GlobMatch(pattern, name)) return;
  }
  ThrowUsage("'" + pattern + "' matches no tensor", option, DidYouMean(pattern, names));
}

std::size_t Rank(std::span<const std::uint64_t> ne) {  // dimensions of length 1 at the end do not count
  std::size_t rank = ne.size();
  while (rank > 0 && ne[rank - 1] == 1) --rank;
  return rank;
}

std::string Number(std::uint64_t n) { return std::to_string(n); }

// The nearest type that stores rows of `row` elements; what it had to give up goes to the note.
const GgufType& Fitting(const GgufType& asked, const GgufType& from, std::uint64_t row, GgufTypeChoice& choice) {
  const GgufType* type = &asked;
  while (row % type->block != 0) {
    const GgufType* next = nullptr;
    for (const auto& [bad, instead] : kFallbacks) {
      if (type->name == bad) next = &TypeNamed(instead);
    }
    if (next == nullptr) next = from.is_float() && from.bytes == 2 ? &from : &TypeNamed("f16");
    type = next;
  }
  if (type != &asked) {
    choice.fallback = true;
    choice.note = "a row of " + Number(row) + " is no whole number of " + std::string(asked.name) + " blocks of " +
                  Number(asked.block) + ": " + std::string(type->name);
  }
  return *type;
}

// --- the pipeline ---------------------------------------------------------------------------------------------------

struct Job {
  std::size_t plan = 0;  // of GgufQuantizePlan::tensors
  std::uint64_t row = 0, rows = 0;
};

struct Slot {
  std::vector<std::byte> in, out;
  std::size_t in_bytes = 0, out_bytes = 0;
  std::size_t job = 0;
};

// One reader, `threads` encoders, the caller as writer; a fixed number of slots goes round between them. Whoever fails
// first stops all.
class Pipeline {
 public:
  Pipeline(const Gguf& source, const GgufQuantizePlan& plan, const Imatrix& imatrix, std::vector<Job> jobs,
           std::size_t slots, std::size_t in_bytes, std::size_t out_bytes)
      : source_(source), plan_(plan), imatrix_(imatrix), jobs_(std::move(jobs)), slots_(slots) {
    for (Slot& slot : slots_) {
      slot.in.resize(in_bytes);
      slot.out.resize(out_bytes);
      free_.push_back(&slot);
    }
    for (const auto& file : source.files) {
      const int fd = ::open(file->path().c_str(), O_RDONLY | O_CLOEXEC);
      if (fd < 0) ThrowBadInput(std::string("cannot open file (") + std::strerror(errno) + ")", file->path().string());
      ::posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
      fds_.push_back(fd);
    }
  }
  ~Pipeline() {
    Stop(nullptr);
    for (std::thread& thread : threads_) thread.join();
    for (const int fd : fds_) ::close(fd);
  }
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  void Run(int threads, GgufWriter& writer) {
    threads_.emplace_back([this] { Guard([this] { Read(); }); });
    for (int i = 0; i < threads; ++i) {
      try {
        threads_.emplace_back([this] { Guard([this] { Encode(); }); });
      } catch (const std::system_error&) {
        if (i == 0) throw;
        break;  // the system grants no more threads: those that run do all the work
      }
    }
    Progress progress("quantizing", jobs_.size());
    for (std::size_t next = 0; next < jobs_.size(); ++next) {
      Slot* slot = nullptr;
      {
        std::unique_lock lock(mutex_);
        const auto ready = [&] { return failure_ || done_.contains(next); };
        while (!done_changed_.wait_for(lock, std::chrono::milliseconds(200), ready)) CheckInterrupt();
        if (failure_) std::rethrow_exception(failure_);
        slot = done_.extract(next).mapped();
      }
      writer.Write({slot->out.data(), slot->out_bytes});
      progress.Advance();
      CheckInterrupt();
      {
        const std::lock_guard lock(mutex_);
        free_.push_back(slot);
      }
      free_changed_.notify_one();
    }
  }

 private:
  template <typename F>
  void Guard(F work) {
    try {
      work();
    } catch (...) {
      Stop(std::current_exception());
    }
  }

  void Stop(std::exception_ptr failure) {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
      if (!failure_) failure_ = std::move(failure);
    }
    free_changed_.notify_all();
    read_changed_.notify_all();
    done_changed_.notify_all();
  }

  const GgufTensor& Tensor(const Job& job) const { return source_.tensors[plan_.tensors[job.plan].tensor]; }

  void Read() {
    for (std::size_t i = 0; i < jobs_.size(); ++i) {
      Slot* slot = nullptr;
      {
        std::unique_lock lock(mutex_);
        free_changed_.wait(lock, [&] { return stop_ || !free_.empty(); });
        if (stop_) return;
        slot = free_.back();
        free_.pop_back();
      }
      const Job& job = jobs_[i];
      const GgufTensor& tensor = Tensor(job);
      const std::uint64_t row = GgufRowElements(tensor.ne) / tensor.type->block * tensor.type->bytes;
      slot->job = i;
      slot->in_bytes = static_cast<std::size_t>(job.rows * row);
      std::size_t got = 0;
      while (got < slot->in_bytes) {
        const auto at = static_cast<off_t>(tensor.offset + job.row * row + got);
        const ssize_t n = ::pread(fds_[tensor.part], slot->in.data() + got, slot->in_bytes - got, at);
        if (n < 0 && errno == EINTR) continue;
        const std::string& path = source_.files[tensor.part]->path().string();
        if (n < 0) ThrowBadInput(std::string("cannot read file (") + std::strerror(errno) + ")", path);
        if (n == 0) ThrowBadInput("the file became shorter while it was read", path);
        got += static_cast<std::size_t>(n);
      }
      {
        const std::lock_guard lock(mutex_);
        read_.push_back(slot);
      }
      read_changed_.notify_one();
    }
    {
      const std::lock_guard lock(mutex_);
      all_read_ = true;
    }
    read_changed_.notify_all();
  }

  void Encode() {
    std::vector<float> scratch;
    for (;;) {
      Slot* slot = nullptr;
      {
        std::unique_lock lock(mutex_);
        read_changed_.wait(lock, [&] { return stop_ || all_read_ || !read_.empty(); });
        if (stop_ || read_.empty()) return;
        slot = read_.front();
        read_.erase(read_.begin());
      }
      EncodeJob(*slot, scratch);
      {
        const std::lock_guard lock(mutex_);
        done_.emplace(slot->job, slot);
      }
      done_changed_.notify_one();
    }
  }

  void EncodeJob(Slot& slot, std::vector<float>& scratch) {
    const Job& job = jobs_[slot.job];
    const GgufTensor& tensor = Tensor(job);
    const GgufType& from = *tensor.type;
    const GgufType& to = *plan_.tensors[job.plan].to;
    if (&from == &to) {
      slot.out.swap(slot.in);
      slot.out_bytes = slot.in_bytes;
      return;
    }
    const std::uint64_t row = GgufRowElements(tensor.ne);
    const GgmlFormat& source = *FindGgmlFormat(from.id);
    const GgmlFormat& target = *FindGgmlFormat(to.id);
    const std::uint64_t row_in = row / from.block * from.bytes, row_out = row / to.block * to.bytes;
    slot.out_bytes = static_cast<std::size_t>(job.rows * row_out);
    const auto found = target.takes_importance ? imatrix_.find(tensor.name) : imatrix_.end();
    const std::uint64_t matrix_rows = tensor.ne.size() > 1 ? tensor.ne[1] : 1;
    const std::uint64_t matrices = tensor.ne.size() > 2 ? tensor.ne[2] : 1;
    const std::uint64_t piece = std::max<std::uint64_t>(1, kPiece / (row * sizeof(float)));
    for (std::uint64_t r = 0; r < job.rows;) {
      std::uint64_t n = std::min(piece, job.rows - r);
      std::span<const float> importance;
      if (found != imatrix_.end()) {  // one row of it for each matrix of a stack
        const std::uint64_t at = job.row + r;
        n = std::min(n, matrix_rows - at % matrix_rows);
        importance = std::span(found->second).subspan((at / matrix_rows) % matrices * row, row);
      }
      const std::string where = "tensor " + tensor.name + ", rows from " + Number(job.row + r);
      const std::byte* in = slot.in.data() + r * row_in;
      std::span<const float> x;
      if (from.name == "f32") {
        x = {reinterpret_cast<const float*>(in), static_cast<std::size_t>(n * row)};
      } else {
        scratch.resize(std::max(scratch.size(), static_cast<std::size_t>(n * row)));
        const std::span<float> out(scratch.data(), static_cast<std::size_t>(n * row));
        DecodeGgml(source, {in, static_cast<std::size_t>(n * row_in)}, out, 1, where);
        x = out;
      }
      const std::span<std::byte> out(slot.out.data() + r * row_out, static_cast<std::size_t>(n * row_out));
      if (to.name == "f32") {
        std::memcpy(out.data(), x.data(), out.size());
      } else {
        EncodeGgmlFinite(target, x, row, importance, out, 1, where);
      }
      r += n;
    }
  }

  const Gguf& source_;
  const GgufQuantizePlan& plan_;
  const Imatrix& imatrix_;
  const std::vector<Job> jobs_;
  std::vector<Slot> slots_;
  std::vector<int> fds_;
  std::vector<std::thread> threads_;

  std::mutex mutex_;
  std::condition_variable free_changed_, read_changed_, done_changed_;
  std::vector<Slot*> free_, read_;
  std::map<std::size_t, Slot*> done_;
  bool all_read_ = false, stop_ = false;
  std::exception_ptr failure_;
};

struct Sizes {
  std::uint64_t in = 0, out = 0, scratch = 0;
};

// Rows of a chunk of about `chunk` bytes on its larger side.
std::uint64_t ChunkRows(std::uint64_t row_in, std::uint64_t row_out, std::uint64_t chunk) {
  return std::max<std::uint64_t>(1, chunk / std::max<std::uint64_t>(1, std::max(row_in, row_out)));
}

struct Shape {
  std::uint64_t rows = 0, row_in = 0, row_out = 0;
};

Shape ShapeOf(const GgufTensor& tensor, const GgufTensorPlan& plan) {
  const std::uint64_t row = GgufRowElements(tensor.ne);
  Shape s;
  s.row_in = row / tensor.type->block * tensor.type->bytes;
  s.row_out = row / plan.to->block * plan.to->bytes;
  s.rows = s.row_in == 0 ? 0 : tensor.bytes / s.row_in;
  return s;
}

Sizes SlotSizes(const Gguf& source, const GgufQuantizePlan& plan, std::uint64_t chunk) {
  Sizes out;
  for (const GgufTensorPlan& p : plan.tensors) {
    const GgufTensor& tensor = source.tensors[p.tensor];
    const Shape s = ShapeOf(tensor, p);
    const std::uint64_t rows = std::min(s.rows, ChunkRows(s.row_in, s.row_out, chunk));
    out.in = std::max(out.in, rows * s.row_in);
    out.out = std::max(out.out, rows * s.row_out);
    if (tensor.type != p.to && tensor.type->name != "f32") {
      out.scratch = std::max({out.scratch, kPiece, GgufRowElements(tensor.ne) * std::uint64_t{4}});
    }
  }
  out.in = out.out = std::max(out.in, out.out);  // a copied chunk changes its buffer's side
  return out;
}

std::string Size(std::uint64_t bytes) {
  char text[48];
  if (bytes < 1000000) {
    std::snprintf(text, sizeof text, "%.1f kB", static_cast<double>(bytes) / 1e3);
  } else if (bytes < 1000000000) {
    std::snprintf(text, sizeof text, "%.1f MB", static_cast<double>(bytes) / 1e6);
  } else {
    std::snprintf(text, sizeof text, "%.2f GB", static_cast<double>(bytes) / 1e9);
  }
  return text;
}

// Names come from untrusted files: no control character reaches the terminal.
std::string Clean(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return text;
}

std::vector<GgufField> NewFields(const Gguf& source, const GgufQuantizePlan& plan, const GgufQuantizeOptions& options,
                                 std::size_t entries) {
  std::vector<GgufField> fields = source.fields;
  const auto set = [&fields](GgufField field) {
    for (GgufField& old : fields) {
      if (old.key == field.key) {
        old = std::move(field);
        return;
      }
    }
    fields.push_back(std::move(field));
  };
  const bool quantized =
      std::any_of(plan.tensors.begin(), plan.tensors.end(), [](const GgufTensorPlan& p) { return p.to->quantized(); });
  for (GgufField& field : GgufTypeFields(ParseType(options.config.precision, "--precision"), quantized)) {
    set(std::move(field));
  }
  if (entries > 0) {
    set(GgufField::String("quantize.imatrix.file", options.imatrix.filename().string()));
    set(GgufField::U32("quantize.imatrix.entries_count", static_cast<std::uint32_t>(entries)));
  }
  return fields;
}

std::vector<GgufTensorSpec> Specs(const Gguf& source, const GgufQuantizePlan& plan) {
  std::vector<GgufTensorSpec> specs;
  for (const GgufTensorPlan& p : plan.tensors) {
    specs.push_back({source.tensors[p.tensor].name, p.to, source.tensors[p.tensor].ne});
  }
  return specs;
}

}  // namespace

std::vector<GgufField> GgufTypeFields(const GgufType& precision, bool any_quantized) {
  std::vector<GgufField> out;
  if (precision.file_type >= 0) {
    out.push_back(GgufField::U32("general.file_type", static_cast<std::uint32_t>(precision.file_type)));
  }
  if (any_quantized) out.push_back(GgufField::U32("general.quantization_version", kQuantizationVersion));
  return out;
}

GgufTypeChooser::GgufTypeChooser(const QuantizationConfig& config, const std::vector<std::string>& names)
    : config_(config), precision_(&ParseType(config.precision, "--precision")) {
  CheckSettings(config);
  for (const std::string& pattern : config.exclude) CheckMatches(names, pattern, "--exclude");
  for (const auto& [pattern, type] : config.overrides) {
    CheckMatches(names, pattern, "--override");
    overrides_.push_back(&ParseType(type, "--override " + pattern));
  }
}

GgufTypeChoice GgufTypeChooser::Choose(const std::string& name, const GgufType& from, std::span<const std::uint64_t> ne,
                                       const std::string& keep) const {
  GgufTypeChoice out;
  out.to = &from;
  const GgufType* asked = nullptr;  // by an override, the last that matches
  for (std::size_t o = 0; o < overrides_.size(); ++o) {
    if (GlobMatch(config_.overrides[o].first, name)) asked = overrides_[o];
  }
  const bool excluded = std::any_of(config_.exclude.begin(), config_.exclude.end(),
                                    [&](const std::string& e) { return GlobMatch(e, name); });
  if (excluded) {
    out.note = "excluded";
  } else if (!from.is_float() && !from.quantized()) {
    out.note = "not a weight that can be quantized";
    if (asked != nullptr && asked != &from) {
      ThrowUsage("a tensor of type " + std::string(from.name) + " cannot become " + std::string(asked->name),
                 "tensor " + name, "take it out of --override");
    }
  } else if (asked == nullptr && Rank(ne) < 2) {
    out.note = "one dimension";
  } else if (asked == nullptr && !keep.empty()) {
    out.note = keep;
  } else {
    out.to = &Fitting(asked != nullptr ? *asked : *precision_, from, GgufRowElements(ne), out);
  }
  return out;
}

namespace {

// Refuses a matrix of another model. Returns how many tensors are encoded that it does not have.
std::size_t CheckImportance(const Gguf& source, const GgufQuantizePlan& plan, const Imatrix& imatrix,
                            const fs::path& path) {
  std::size_t without = 0, known = 0;
  for (const GgufTensorPlan& p : plan.tensors) {
    const GgufTensor& tensor = source.tensors[p.tensor];
    const auto found = imatrix.find(tensor.name);
    if (found == imatrix.end()) {
      without += p.to->quantized() && p.to != tensor.type ? 1 : 0;
      continue;
    }
    ++known;
    const std::uint64_t expected =
        GgufRowElements(tensor.ne) * (tensor.ne.size() > 2 ? tensor.ne[2] : std::uint64_t{1});
    if (found->second.size() != expected) {
      ThrowBadInput(
          "the importance has " + Number(found->second.size()) + " numbers, the tensor needs " + Number(expected),
          path.string() + ", " + tensor.name, "it was made with another model");
    }
  }
  if (known == 0) {
    ThrowBadInput("no tensor of the importance matrix is in the model", path.string(),
                  "it was made with another model");
  }
  return without;
}

}  // namespace

GgufQuantizePlan PlanGgufQuantize(const Gguf& source, const GgufQuantizeOptions& options) {
  std::vector<std::string> names;
  for (const GgufTensor& tensor : source.tensors) names.push_back(tensor.name);
  const GgufTypeChooser chooser(options.config, names);
  GgufQuantizePlan plan;
  for (std::size_t i = 0; i < source.tensors.size(); ++i) {
    const GgufTensor& tensor = source.tensors[i];
    const GgufType& from = *tensor.type;
    GgufTypeChoice choice = chooser.Choose(tensor.name, from, tensor.ne);
    GgufTensorPlan p;
    p.tensor = i;
    p.to = choice.to;
    p.note = std::move(choice.note);
    p.fallback = choice.fallback;
    if (from.quantized() && p.to != &from) {
      if (FindGgmlFormat(from.id) == nullptr) {
        ThrowUnsupported("a tensor of type " + std::string(from.name) + " cannot be decoded", "tensor " + tensor.name,
                         "exclude it, or start from a float model");
      }
      if (!options.config.requantize && p.to->name != "f32") {
        ThrowUnsupported(
            "the tensor is quantized already (" + std::string(from.name) + "): quantizing it again loses accuracy",
            "tensor " + tensor.name, "start from a float model, or pass --requantize to do it all the same");
      }
    }
    plan.tensors.push_back(std::move(p));
  }
  const GgufLayout layout = [&] {
    std::size_t entries = 0;
    if (!options.imatrix.empty()) {
      const Imatrix imatrix = ReadImatrix(options.imatrix);
      entries = imatrix.size();
      plan.without_importance = CheckImportance(source, plan, imatrix, options.imatrix);
    }
    return PlanGguf(NewFields(source, plan, options, entries), Specs(source, plan), source.alignment);
  }();
  for (std::size_t i = 0; i < plan.tensors.size(); ++i) plan.tensors[i].bytes = layout.bytes[i];
  plan.file_bytes = layout.file_bytes;
  return plan;
}

GgufQuantizeResult QuantizeGguf(const Gguf& source, const GgufQuantizeOptions& options, const fs::path& out) {
  const Stopwatch time;
  ResetPeakRss();
  GgufQuantizeResult result;
  result.plan = PlanGgufQuantize(source, options);
  result.bytes_before = source.file_bytes();
  std::error_code error;
  for (const auto& file : source.files) {
    if (fs::equivalent(file->path(), out, error)) {
      ThrowUsage("the output is the input", out.string(), "write to another file");
    }
  }
  Imatrix imatrix;
  if (!options.imatrix.empty()) imatrix = ReadImatrix(options.imatrix);

  // Memory: what is there already, and slots (one being read, one being written, one an encoder).
  const std::uint64_t limit = options.max_memory != 0 ? options.max_memory : kDefaultMemory;
  const std::uint64_t fixed = CurrentRssBytes() + kMargin;
  int threads = options.threads > 0 ? options.threads : HardwareThreads();
  std::uint64_t chunk = kChunk;
  const auto need = [&](const Sizes& s) {
    const auto t = static_cast<std::uint64_t>(threads);
    return fixed + (t + 2) * (s.in + s.out) + t * s.scratch;
  };
  Sizes sizes = SlotSizes(source, result.plan, chunk);
  while (need(sizes) > limit && (chunk > kLeastChunk || threads > 1)) {
    if (chunk > kLeastChunk) {
      chunk /= 2;
    } else {
      --threads;
    }
    sizes = SlotSizes(source, result.plan, chunk);
  }
  if (need(sizes) > limit) {
    ThrowUsage("the longest row does not fit into " + Number(limit >> 20) + " MiB", "--max-memory",
               "give at least " + Number((need(sizes) >> 20) + 1) + "M");
  }
  std::vector<Job> jobs;
  for (std::size_t i = 0; i < result.plan.tensors.size(); ++i) {
    const GgufTensorPlan& p = result.plan.tensors[i];
    const Shape s = ShapeOf(source.tensors[p.tensor], p);
    const std::uint64_t rows = ChunkRows(s.row_in, s.row_out, chunk);
    for (std::uint64_t row = 0; row < s.rows; row += rows) jobs.push_back({i, row, std::min(rows, s.rows - row)});
  }
  const std::vector<GgufTensorSpec> specs = Specs(source, result.plan);
  GgufWriter writer(out, NewFields(source, result.plan, options, imatrix.size()), specs, source.alignment);
  {
    const auto slots =
        std::min<std::size_t>(static_cast<std::size_t>(threads) + 2, std::max<std::size_t>(jobs.size(), 1));
    Pipeline pipeline(source, result.plan, imatrix, std::move(jobs), slots, static_cast<std::size_t>(sizes.in),
                      static_cast<std::size_t>(sizes.out));
    pipeline.Run(threads, writer);
  }
  writer.Commit();
  result.bytes_after = writer.layout().file_bytes;
  result.seconds = time.Seconds();
  result.peak_rss_bytes = PeakRssBytes();
  return result;
}

std::string PlanText(const Gguf& source, const GgufQuantizePlan& plan, const fs::path& out) {
  std::string text;
  std::size_t width = 8;
  for (const GgufTensor& tensor : source.tensors)
    width = std::max(width, std::min<std::size_t>(tensor.name.size(), 60));
  for (const GgufTensorPlan& p : plan.tensors) {
    const GgufTensor& tensor = source.tensors[p.tensor];
    std::string name = Clean(tensor.name);
    name.resize(std::max(name.size(), width), ' ');
    const std::string types =
        std::string(tensor.type->name) + (p.to == tensor.type ? "" : " -> " + std::string(p.to->name));
    char line[160];
    std::snprintf(line, sizeof line, "  %-24s %-18s %14llu", GgufShapeText(tensor.ne).c_str(), types.c_str(),
                  static_cast<unsigned long long>(p.bytes));
    text += "  " + name + line + (p.note.empty() ? "" : "  (" + p.note + ")") + "\n";
  }
  char line[160];
  std::snprintf(line, sizeof line, "%zu tensors, %llu bytes -> %llu bytes: ", plan.tensors.size(),
                static_cast<unsigned long long>(source.file_bytes()), static_cast<unsigned long long>(plan.file_bytes));
  return text + line + out.string() + "\n";
}

std::string PlanJson(const Gguf& source, const GgufQuantizePlan& plan, const fs::path& out) {
  JsonWriter json;
  json.BeginObject().Field("source", source.files.front()->path().string()).Field("output", out.string());
  json.Field("source_bytes", source.file_bytes()).Field("bytes", plan.file_bytes).Key("tensors").BeginArray();
  for (const GgufTensorPlan& p : plan.tensors) {
    const GgufTensor& tensor = source.tensors[p.tensor];
    json.BeginObject().Field("name", tensor.name).Key("shape").BeginArray();
    for (const std::uint64_t n : tensor.ne) json.Uint(n);
    json.EndArray().Field("from", tensor.type->name).Field("type", p.to->name).Field("bytes", p.bytes);
    json.Field("fallback", p.fallback).Field("note", p.note).EndObject();
  }
  return json.EndArray().EndObject().Take();
}

std::string Summary(const Gguf& source, const GgufQuantizeResult& result, const fs::path& out) {
  std::map<std::string, std::pair<std::size_t, std::uint64_t>> types;
  std::map<std::string, std::size_t> kept;
  std::string text;
  for (const GgufTensorPlan& p : result.plan.tensors) {
    auto& [count, bytes] = types[std::string(p.to->name)];
    ++count;
    bytes += p.bytes;
    if (p.fallback) text += "  fallback: " + Clean(source.tensors[p.tensor].name) + ": " + p.note + "\n";
    if (!p.fallback && !p.note.empty()) ++kept[p.note];
  }
  for (const auto& [why, count] : kept) text += "  kept as they are: " + Number(count) + " (" + why + ")\n";
  for (const auto& [type, stored] : types) {
    char line[96];
    std::snprintf(line, sizeof line, "  %-8s %6zu tensors  %12s\n", type.c_str(), stored.first,
                  Size(stored.second).c_str());
    text += line;
  }
  if (result.plan.without_importance > 0) {
    text += "  quantized without importance: " + Number(result.plan.without_importance) +
            " tensors that the matrix does not have\n";
  }
  char line[200];
  std::snprintf(line, sizeof line,
                "%s -> %s in %.1f s (%.2f GB/s read), peak memory %s: ", Size(result.bytes_before).c_str(),
                Size(result.bytes_after).c_str(), result.seconds,
                static_cast<double>(result.bytes_before) / 1e9 / std::max(result.seconds, 1e-9),
                Size(result.peak_rss_bytes).c_str());
  return text + line + out.string() + "\n";
}

std::uint64_t ParseBytes(const std::string& text, const std::string& option) {
  const std::size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  const std::string unit = text.substr(digits);
  int shift = -1;
  if (unit.empty() || unit == "B") shift = 0;
  if (unit == "K" || unit == "k" || unit == "KiB") shift = 10;
  if (unit == "M" || unit == "MiB") shift = 20;
  if (unit == "G" || unit == "GiB") shift = 30;
  if (digits == 0 || digits > 12 || shift < 0) {
    ThrowUsage("'" + text + "' is not a size", option, "write for example " + option + " 512M");
  }
  const std::uint64_t n = std::stoull(text.substr(0, digits)) << shift;
  if (n == 0) ThrowUsage("a size of 0", option, "write for example " + option + " 512M");
  return n;
}

}  // namespace octavo
