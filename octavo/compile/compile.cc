#include "octavo/compile/compile.h"

#include <algorithm>
#include <set>
#include <system_error>
#include <unordered_map>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/base/names.h"
#include "octavo/base/resources.h"
#include "octavo/base/sha256.h"
#include "octavo/compile/parts.h"
#include "octavo/compile/plugin_library.h"
#include "octavo/emit/onnx.h"
#include "octavo/import/data.h"
#include "octavo/import/onnx.h"
#include "octavo/runtime/device_worker.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

// A node's name for messages: its own, or that of its first output.
std::string NameOf(const Node& node) {
  if (!node.name.empty()) return node.name;
  for (const Value* v : node.outputs()) {
    if (v != nullptr) return v->name();
  }
  return node.op();
}

bool IsBoundary(const Node& node) {
  if (node.Is("QuantizeLinear")) {
    return node.input(0) != nullptr && node.input(0)->kind() == ValueKind::kInput;
  }
  return node.Is("DequantizeLinear") && node.output() != nullptr && node.output()->is_graph_output();
}

// Why a node of the compiled model was left to the CPU.
class Reasons {
 public:
  Reasons(const DeviceDescriptor& device, const std::vector<EpMessage>& log,
          const std::unordered_map<std::string, std::string>& known)
      : device_(device), log_(log), known_(known) {}

  std::string Of(const Node& node) const {
    if (const auto it = known_.find(NameOf(node)); it != known_.end()) return it->second;
    if (std::string said = SaidOf(NameOf(node), log_); !said.empty()) return "the provider says: " + said;
    if (node.Is("QuantizeLinear") || node.Is("DequantizeLinear")) return "it stands beside a node that runs on the CPU";
    const OpSupport* row = device_.Row(node.op(), node.domain());
    if (row == nullptr || row->support == QuantSupport::kFloatOnly) {
      return std::string(device_.Reason(node.op(), node.domain()));
    }
    if (device_.whole_graph) {
      for (const Value* v : node.inputs()) {
        if (v == nullptr || v->type.dtype != DType::kF32 || v->is_constant()) continue;
        if (v->producer() == nullptr || !v->producer()->Is("DequantizeLinear")) {
          return "its input '" + v->name() + "' has no quantization parameters";
        }
      }
    }
    return "the provider did not take it: " + std::string(row->reason);
  }

 private:
  const DeviceDescriptor& device_;
  const std::vector<EpMessage>& log_;
  const std::unordered_map<std::string, std::string>& known_;  // by name, where the model was compiled in parts
};

// What would bring a node onto the device. `own`: Octavo chose its types.
std::string RemedyFor(const Node& node, const DeviceDescriptor& device, bool own) {
  if (node.Is("QuantizeLinear") || node.Is("DequantizeLinear")) {
    return "it follows the node that it converts for";
  }
  if (!node.subgraphs().empty()) return "write what it holds without the subgraph: fixed counts, Where for If";
  const OpSupport* row = device.Row(node.op(), node.domain());
  const bool lacks = row == nullptr || row->support == QuantSupport::kFloatOnly;
  if (!own) {
    return "build from the float model (octavo build --device " + std::string(device.name) +
           "), of which nodes are folded and get the types that the device takes" +
           (lacks ? std::string() : ": " + std::string(row->reason));
  }
  if (lacks) return "write it with operators that the device takes";
  return "give it other types (--override TENSOR=u8|u16) or none (--exclude NODE); the device takes it with " +
         std::string(row->reason);
}

// Messages of the provider name files of the build, which are gone when it ends.
void ForgetFolder(const fs::path& folder, std::string& text) {
  const std::string name = folder.string() + "/";
  for (std::size_t at; (at = text.find(name)) != std::string::npos;) text.erase(at, name.size());
}

// A compiler that cannot write says so in words of its own.
void RefuseFullDisk(const fs::path& folder, const Error& failure) {
  constexpr std::uintmax_t kLeast = 1 << 20;
  std::error_code error;
  const fs::space_info space = fs::space(folder, error);
  if (error || space.available >= kLeast) return;
  ThrowBadInput("the compiler failed, and " + std::to_string(space.available / 1024) + " kB are free on the disk (" +
                    failure.reason() + ")",
                folder.parent_path().string(), "free some space");
}

// What the provider logged as an error first; empty: nothing.
std::string FirstError(const std::vector<EpMessage>& log) {
  const auto first = std::find_if(log.begin(), log.end(), [](const EpMessage& m) { return m.error; });
  if (first == log.end()) return {};
  std::string line = first->text.substr(0, 400);
  std::replace(line.begin(), line.end(), '\n', ' ');
  return "the provider says: " + line;
}

void CountNodes(const fs::path& model, const DeviceDescriptor& device, const std::vector<EpMessage>& log, bool own,
                const std::unordered_map<std::string, std::string>& known, CompileReport& report) {
  const Model compiled = ReadOnnx(model);
  const Reasons reasons(device, log, known);
  for (const Node* node : compiled.graph->nodes()) {
    if (node->op() == "EPContext") {
      ++report.ep_context_nodes;
    } else if (IsBoundary(*node)) {
      ++report.boundary_nodes;
    } else {
      CpuNode left{NameOf(*node), node->op(), reasons.Of(*node), RemedyFor(*node, device, own)};
      ForgetFolder(fs::absolute(model).parent_path(), left.reason);
      const std::string why = WhyNoSteps(compiled, *node);
      if (left.reason.find(why) == std::string::npos) left.reason += why;
      report.cpu_nodes.push_back(std::move(left));
    }
  }
}

std::set<fs::path> FilesIn(const fs::path& folder) {
  std::set<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) files.insert(entry.path());
  return files;
}

// The model as the compiler gets it: every node with a name of its own, in a file in `folder` where that takes one.
class Named {
 public:
  Named(const fs::path& model, const DeviceDescriptor& device, const fs::path& folder) : path_(model) {
    if (!device.whole_graph) return;
    Model read = ReadOnnx(model);
    if (NameNodes(read) == 0) return;
    files_ = WriteOnnx(read, folder / "named.onnx");
    path_ = files_.model;
  }
  ~Named() {
    std::error_code error;
    if (!files_.model.empty()) fs::remove(files_.model, error);
    for (const fs::path& file : files_.data) fs::remove(file, error);
  }
  Named(const Named&) = delete;
  Named& operator=(const Named&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
  OnnxFiles files_;
};

TensorRef Zeros(const IoSpec& spec) {
  const Dims dims = StaticShape(spec.type).value_or(Dims{});
  const std::optional<std::uint64_t> bytes = ByteSize(spec.type.dtype, ElementCount(dims));
  if (!bytes) ThrowUnsupported("an input has a type that devices do not take", spec.name);
  return TensorRef::FromBytes(spec.type.dtype, dims, std::vector<std::byte>(*bytes));
}

// What the whole model became; why that is no artifact, or empty.
std::string Count(const fs::path& out, const DeviceDescriptor& device, const std::vector<EpMessage>& log, bool own,
                  const EpSpec& ep, CompileReport& report) {
  std::error_code error;
  if (!fs::is_regular_file(out, error)) return ep.name + " compiled the model and wrote nothing";
  CountNodes(out, device, log, own, {}, report);
  if (report.ep_context_nodes == 0) {
    std::string why = FirstError(log);
    if (why.empty() && !report.cpu_nodes.empty()) why = report.cpu_nodes.front().reason;
    return ep.name + " took no node of the model" + (why.empty() ? "" : ": " + why);
  }
  // What it left out, or cut into several contexts, it does not always take back.
  if (report.ep_context_nodes > 1 || !report.cpu_nodes.empty()) {
    try {
      DeviceWorker worker;
      worker.Open(out, &ep, GraphOptimization::kAll, 1);
      std::vector<TensorRef> zeros;
      for (const IoSpec& input : worker.inputs()) zeros.push_back(Zeros(input));
      worker.Run(zeros);
    } catch (const Error& failure) {
      if (failure.code() == ExitCode::kInterrupted) throw;
      return ep.name + " does not run what it compiled (" + std::to_string(report.ep_context_nodes) + " contexts, " +
             std::to_string(report.cpu_nodes.size()) + " nodes on the CPU): " + failure.what();
    }
  }
  return {};
}

struct PluginFiles {
  fs::path library, backend;
};

PluginFiles FindPlugin(const DeviceDescriptor& device) {
  const std::string how(device.plugin->how);
  const FoundLibrary found = FindPluginLibrary(*device.plugin);
  if (found.path.empty()) {
    ThrowUnsupported("the plugin of device '" + std::string(device.name) + "' was not found", found.reason, how);
  }
  int minor = 0;
  if (std::sscanf(OrtVersion().c_str(), "1.%d", &minor) == 1 && minor < device.plugin->least_minor) {
    ThrowUnsupported(
        "ONNX Runtime " + OrtVersion() + " is too old for the plugin of device '" + std::string(device.name) + "'",
        found.path.string(), "use 1." + std::to_string(device.plugin->least_minor) + " or newer");
  }
  PluginFiles files{found.path, {}};
  if (device.plugin->backend.empty()) return files;
  files.backend = found.path.parent_path() / device.plugin->backend;
  std::error_code error;
  if (!fs::is_regular_file(files.backend, error)) {
    ThrowUnsupported("the backend of device '" + std::string(device.name) + "' was not found", files.backend.string(),
                     how);
  }
  return files;
}

// The plugin's provider with the options in force, and the backend beside its library.
EpSpec ProviderOf(const CompileContext& context) {
  const DeviceDescriptor& device = *context.device;
  const PluginFiles files = FindPlugin(device);
  EpSpec ep;
  ep.name = std::string(device.ep);
  ep.options = EffectiveOptions(context);
  ep.library = files.library;
  const std::string key(device.plugin->backend_option);
  if (!files.backend.empty() &&
      std::none_of(ep.options.begin(), ep.options.end(), [&](const auto& o) { return o.first == key; })) {
    ep.options.emplace_back(key, files.backend.string());
  }
  return ep;
}

void Deliver(const fs::path& model, const fs::path& out) {
  std::error_code error;
  if (fs::equivalent(model, out, error)) return;
  fs::create_hard_link(model, out, error);
  if (!error) return;
  fs::copy_file(model, out, error);
  if (error) ThrowBadInput("cannot write file (" + error.message() + ")", out.string());
}

}  // namespace

std::vector<std::pair<std::string, std::string>> EffectiveOptions(const CompileContext& context) {
  const DeviceDescriptor& device = *context.device;
  if (device.options.empty() && !context.options.empty()) {
    ThrowUnsupported("device '" + std::string(device.name) + "' takes no options of its provider",
                     "--epoption " + context.options[0].first, "leave it out");
  }
  std::vector<std::pair<std::string, std::string>> out;
  for (const EpOption& option : device.options) {
    if (!option.value.empty()) out.emplace_back(option.name, option.value);
  }
  for (const auto& [name, value] : context.options) {
    const auto known = std::find_if(device.options.begin(), device.options.end(),
                                    [&, key = std::string_view(name)](const EpOption& o) { return o.name == key; });
    // The provider reads what is no number as 0, without a word.
    if (known != device.options.end() && known->choices == "#" &&
        (value.empty() || value.size() > 9 || value.find_first_not_of("0123456789") != std::string::npos)) {
      ThrowUsage("'" + value + "' is no number, as '" + name + "' must be (" + std::string(known->meaning) + ")",
                 "--epoption " + name);
    }
    if (known != device.options.end() && !known->choices.empty() && known->choices != "#") {
      const std::string choices = "|" + std::string(known->choices) + "|";
      if (value.empty() || value.find('|') != std::string::npos ||
          choices.find("|" + value + "|") == std::string::npos) {
        ThrowUsage("'" + value + "' is no value of '" + name + "' (" + std::string(known->meaning) + ")",
                   "--epoption " + name, "values are " + std::string(known->choices));
      }
    }
    if (known == device.options.end()) {
      std::vector<std::string> names;
      for (const EpOption& o : device.options) names.emplace_back(o.name);
      ThrowUsage("unknown option '" + name + "' of " + std::string(device.ep), "--epoption",
                 DidYouMean(name, names) + " (octavo devices lists all)");
    }
    const auto old = std::find_if(out.begin(), out.end(),
                                  [&, key = std::string_view(name)](const auto& o) { return o.first == key; });
    if (old != out.end()) {
      old->second = value;
    } else {
      out.emplace_back(name, value);
    }
  }
  return out;
}

void RequirePlugin(const DeviceDescriptor& device) {
  if (device.plugin != nullptr) FindPlugin(device);
}

void RequireStaticInputs(const Graph& graph, const DeviceDescriptor& device) {
  if (!device.static_shapes) return;
  for (const InputSpec& input : InputSpecs(graph)) {
    if (input.any_rank) {
      ThrowUnsupported("input '" + input.name + "' has no known rank, and device '" + std::string(device.name) +
                           "' takes static shapes only",
                       "input '" + input.name + "'", "export the model with a fixed shape");
    }
    for (std::size_t i = 0; i < input.dims.size(); ++i) {
      const Dim& dim = input.dims[i];
      if (dim.known()) continue;
      const std::string axis = input.name + ":" + std::to_string(i);
      const std::string said = dim.symbol.empty() ? axis : dim.symbol;
      ThrowUnsupported("dimension " + std::to_string(i) + (dim.symbol.empty() ? "" : " ('" + dim.symbol + "')") +
                           " is not fixed, and device '" + std::string(device.name) + "' takes static shapes only",
                       "input '" + input.name + "'", "give --dim " + said + "=N");
    }
  }
}

DeviceState LookForDevice(const DeviceDescriptor& device) {
  DeviceState state;
  if (!device.system.empty()) {
    state.reason = std::string(device.ep) + " exists on " + std::string(device.system) + " only";
    return state;
  }
  if (device.plugin == nullptr) {
    state.hardware = "cpu";
    return state;
  }
  const FoundLibrary found = FindPluginLibrary(*device.plugin);
  if (found.path.empty()) {
    state.missing = true;
    state.reason = "its plugin was not found (" + found.reason + "): " + std::string(device.plugin->how);
    return state;
  }
  state.library = found.path.string();
  try {
    DeviceWorker worker;
    const std::vector<EpDevice> devices = worker.Devices(std::string(device.ep), found.path);
    if (devices.empty()) {
      state.reason = "its plugin finds no device on this machine";
      return state;
    }
    state.ep_version = devices.front().version;
    for (const EpDevice& d : devices) {
      if (state.hardware.find(d.hardware) == std::string::npos) {
        state.hardware += (state.hardware.empty() ? "" : ", ") + d.hardware;
      }
    }
  } catch (const Error& error) {
    if (error.code() == ExitCode::kInterrupted) throw;
    state.missing = true;
    state.reason = error.what();
  }
  return state;
}

std::string ProviderIdentity(const DeviceDescriptor& device) {
  if (device.plugin == nullptr) return {};
  const FoundLibrary found = FindPluginLibrary(*device.plugin);
  if (found.path.empty()) return "no plugin";
  std::string text = Sha256::OfFile(found.path);
  // The libraries beside it (the backend, its compiler) are hundreds of megabytes: their sizes and the times they were
  // written stand for them. Of a folder of many other libraries too many are seen, never too few.
  std::vector<std::string> beside;
  std::error_code error;
  for (fs::directory_iterator it(found.path.parent_path(), error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code unreadable;
    if (name.find(".so") == std::string::npos || !it->is_regular_file(unreadable)) continue;
    beside.push_back(name + " " + std::to_string(fs::file_size(it->path(), unreadable)) + " " +
                     std::to_string(fs::last_write_time(it->path(), unreadable).time_since_epoch().count()));
  }
  std::sort(beside.begin(), beside.end());
  for (const std::string& file : beside) text += "\n" + file;
  return text;
}

CompileReport CompileModelFor(const fs::path& model, const fs::path& out, const CompileContext& context) {
  const DeviceDescriptor& device = *context.device;
  CompileReport report;
  EpSpec ep;
  if (!device.system.empty()) {
    report.not_compiled_here = std::string(device.ep) + " exists on " + std::string(device.system) + " only";
  } else if (!device.compiles) {
    report.not_compiled_here = "device '" + std::string(device.name) + "' has no compiler: the artifact is the model";
  }
  if (!report.not_compiled_here.empty()) {
    Deliver(model, out);
    report.files = {out};
    return report;
  }
  ep = ProviderOf(context);
  std::optional<DeviceWorker> worker(std::in_place);
  const std::vector<EpDevice> devices = worker->Devices(ep.name, ep.library);
  if (devices.empty()) {
    report.not_compiled_here = "the plugin of " + ep.name + " finds no device on this machine";
    Deliver(model, out);
    report.files = {out};
    return report;
  }
  report.ep_version = devices.front().version;
  const fs::path folder = fs::absolute(out).parent_path();
  const Named named(model, device, folder);
  const std::set<fs::path> before = FilesIn(folder);
  const Stopwatch time;
  const CompileOne compile = [&](const fs::path& from, const fs::path& to) {
    try {
      return worker->Compile(from, to, ep, context.embed);
    } catch (const Error& error) {
      if (error.code() != ExitCode::kInterrupted) RefuseFullDisk(folder, error);
      worker.emplace();  // what it was left in, nobody knows
      throw;
    }
  };
  const bool own = context.quantization.has_value();
  std::string refusal;
  std::vector<EpMessage> log;
  try {
    EpCompileResult compiled = compile(named.path(), out);
    report.seconds = compiled.seconds;
    log = std::move(compiled.log);
    refusal = Count(out, device, log, own, ep, report);
  } catch (const Error& error) {
    // A compiler that hangs is not asked again.
    if (error.code() != ExitCode::kUnsupported || !device.whole_graph || time.Seconds() >= DeviceSeconds()) throw;
    refusal = error.what();
  }
  if (!refusal.empty() && !device.whole_graph) ThrowUnsupported(refusal, model.filename().string());
  if (!refusal.empty()) {
    LogDebug("the model is compiled in parts: " + refusal);
    for (const fs::path& file : FilesIn(folder)) {
      std::error_code error;
      if (before.count(file) == 0) fs::remove(file, error);
    }
    const double seconds = report.seconds;
    report = {};
    report.in_parts = refusal;
    ForgetFolder(folder, report.in_parts);
    report.ep_version = devices.front().version;
    InParts parts = CompileInParts(ReadOnnx(named.path()), out, device, compile, refusal);
    report.seconds = seconds + parts.seconds;
    log = std::move(parts.log);
    CountNodes(out, device, log, own, parts.reasons, report);
  }
  report.files = {out};
  for (const fs::path& file : FilesIn(folder)) {
    if (before.count(file) == 0 && file.filename() != out.filename()) report.files.push_back(file);
  }
  report.compiled = true;
  report.ep = std::move(ep);
  for (const EpMessage& message : log) LogDebug("provider: " + message.text);
  return report;
}

std::optional<EpSpec> ProviderFor(const fs::path& model, const DeviceDescriptor& device, CompileContext context) {
  const Model read = ReadOnnx(model);
  const DeviceDescriptor* runs = &device;
  for (const Node* node : read.graph->nodes()) {
    if (node->op() != "EPContext") continue;
    const std::string source = node->StringAttribute("source", "");
    runs = nullptr;
    for (const DeviceDescriptor& d : Devices()) {
      std::string short_name(d.ep);
      short_name.resize(short_name.size() - std::string_view("ExecutionProvider").size());
      if (source == d.ep || source == short_name) runs = &d;
    }
    if (runs == nullptr) {
      ThrowUnsupported("the model is compiled for '" + source + "', which Octavo does not know", model.string());
    }
    break;
  }
  if (runs->plugin == nullptr) {
    if (!runs->system.empty()) {
      ThrowUnsupported(std::string(runs->ep) + " exists on " + std::string(runs->system) + " only", model.string(),
                       "measure with --device cpu");
    }
    return std::nullopt;
  }
  if (runs != &device) context.options.clear();  // those given are of another device
  context.device = runs;
  return ProviderOf(context);
}

}  // namespace octavo
