#include "octavo/calibrate/calibrate.h"

#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/base/names.h"
#include "octavo/base/thread_pool.h"
#include "octavo/emit/onnx.h"
#include "octavo/numerics/half.h"
#include "octavo/runtime/session.h"

namespace octavo {
namespace {

bool Observable(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 || dtype == DType::kF64;
}

// ------------------------------------------------------------------------------------------------ the observed model

std::unordered_map<std::string, std::vector<Value*>> ValuesByName(Graph& graph) {
  std::unordered_map<std::string, std::vector<Value*>> values;
  const auto add_graph = [&](Graph& g) {
    for (Value* input : g.inputs()) values[input->name()].push_back(input);
    for (Value* constant : g.constants()) values[constant->name()].push_back(constant);
  };
  add_graph(graph);
  VisitNodes(graph, [&](Node& node) {
    for (Value* output : node.outputs()) {
      if (output != nullptr) values[output->name()].push_back(output);
    }
    for (Attribute& attribute : node.attributes()) {
      if (const auto* body = std::get_if<std::unique_ptr<Graph>>(&attribute.value)) add_graph(**body);
    }
  });
  return values;
}

Value* FindOne(const std::unordered_map<std::string, std::vector<Value*>>& values, const Graph& top,
               const std::string& name) {
  const auto it = values.find(name);
  if (it == values.end()) {
    std::vector<std::string> names;
    for (const auto& entry : values) names.push_back(entry.first);
    std::sort(names.begin(), names.end());
    ThrowUsage("no value of the model has this name", name, DidYouMean(name, names));
  }
  if (it->second.size() == 1) return it->second.front();
  for (Value* value : it->second) {
    if (value->graph() == &top) return value;
  }
  ThrowUsage("more than one subgraph has a value of this name", name);
}

// Before:  producer -> v -> consumers
// After:   producer -> v -> Observe(id) -> o -> consumers
// A graph output keeps its name: v is renamed, o takes the name. A graph input keeps its own name and, where it is an
// output too, its use as one.
Value* InsertObserver(Value* v, std::int64_t id) {
  Graph* graph = v->graph();
  const bool result = v->kind() == ValueKind::kResult;
  const bool rename = result && v->is_graph_output();
  const std::string name = v->name();
  if (rename) graph->Rename(v, graph->UniqueName(name + "_unobserved"));
  Node* before = result ? v->producer()->next() : graph->first();
  Node* node = graph->AddNode(kObserveOp, kObserveDomain, {v}, {{rename ? name : name + "_observed", v->type}}, before);
  node->SetAttribute("id", id);
  graph->ReplaceAllUses(v, node->output());
  node->SetInput(0, v);
  if (!result) graph->ReplaceOutputUses(node->output(), v);
  return node->output();
}

// Before:  o -> users, others
// After:   o -> Round(id) -> users;  o -> others
void InsertRounder(Value* o, const std::vector<const Node*>& users, std::int64_t id) {
  Graph* graph = o->graph();
  std::vector<Use> uses;
  for (const Use& use : o->uses()) {
    if (use.node->graph() != graph) continue;
    if (users.empty() || std::find(users.begin(), users.end(), use.node) != users.end()) uses.push_back(use);
  }
  Node* before = o->kind() == ValueKind::kResult ? o->producer()->next() : graph->first();
  Node* node = graph->AddNode(kRoundOp, kObserveDomain, {o}, {{o->name() + "_rounded", o->type}}, before);
  node->SetAttribute("id", id);
  for (const Use& use : uses) use.node->SetInput(use.index, node->output());
  // A rounded graph output: the outside sees the rounded values.
  if (o->is_graph_output() && users.empty()) {
    graph->ReplaceOutputUses(o, node->output());
    graph->SwapNames(o, node->output());
  }
}

void RoundRun(std::span<const float> x, const Rounding& rounding, float* y) {
  constexpr std::size_t kPiece = 4096;
  std::byte codes[kPiece * 4];
  for (std::size_t at = 0; at < x.size(); at += kPiece) {
    const std::span<const float> piece = x.subspan(at, std::min(kPiece, x.size() - at));
    QuantizeRun(piece, rounding.params, rounding.storage, codes);
    DequantizeRun(codes, piece.size(), rounding.params, rounding.storage, y + at);
  }
}

// A table of which a sample reads some rows (embeddings).
bool ReadByRows(const Value& constant) {
  return !constant.uses().empty() && std::all_of(constant.uses().begin(), constant.uses().end(), [](const Use& use) {
    return use.node->Is("Gather") && use.index == 0;
  });
}

// Softmax at the end becomes LogSoftmax; the names of those outputs.
std::unordered_set<std::string> ShowLogits(Graph& graph, const std::vector<ObserveSpec>& observe) {
  std::unordered_set<std::string> changed;
  for (Value* output : graph.outputs()) {
    Node* node = output->producer();
    if (node == nullptr || !node->Is("Softmax") || !output->uses().empty()) continue;
    const auto is_it = [&](const ObserveSpec& spec) { return spec.value == output->name(); };
    if (std::any_of(observe.begin(), observe.end(), is_it)) continue;
    node->SetOp("LogSoftmax");
    changed.insert(output->name());
  }
  return changed;
}

// ------------------------------------------------------------------------------------------------------ the observers

// Adding needs a lock only: the order in which samples come leaves no trace in the statistics. One accumulator a
// tensor, not one a thread: histograms are large.
struct Accumulator {
  std::string name;
  std::optional<int> channel_axis;
  std::mutex mutex;
  TensorStatistics statistics;
};

struct SampleContext {
  const std::string& sample;
  std::vector<float> converted;  // scratch for values that are not f32
  bool gather = true;            // false: the run is for its outputs
  std::span<const std::optional<Rounding>> rounding;
};

std::span<const float> AsFloats(DType dtype, const void* data, std::size_t n, std::vector<float>& scratch) {
  if (dtype == DType::kF32) return {static_cast<const float*>(data), n};
  scratch.resize(n);
  if (dtype == DType::kF16) {
    HalfToFloat({static_cast<const std::uint16_t*>(data), n}, scratch.data());
  } else if (dtype == DType::kBF16) {
    const auto* bits = static_cast<const std::uint16_t*>(data);
    for (std::size_t i = 0; i < n; ++i) scratch[i] = Bf16ToFloat(bits[i]);
  } else {
    const auto* doubles = static_cast<const double*>(data);
    for (std::size_t i = 0; i < n; ++i) scratch[i] = static_cast<float>(doubles[i]);
  }
  return scratch;
}

void AddSums(ChannelSums& channels, const Accumulator& accumulator, std::span<const float> x,
             std::span<const std::int64_t> dims, bool finite) {
  const auto rank = static_cast<int>(dims.size());
  const int axis = *accumulator.channel_axis < 0 ? *accumulator.channel_axis + rank : *accumulator.channel_axis;
  if (axis < 0 || axis >= rank) {
    ThrowBadInput(
        "the value has rank " + std::to_string(rank) + ", no channel axis " + std::to_string(*accumulator.channel_axis),
        accumulator.name);
  }
  // Samples whose channels do not match have no sums in common; which axis stays must not depend on their order.
  if (channels.axis >= 0 && channels.axis != axis) finite = false;
  channels.axis = channels.axis < 0 ? axis : std::min<std::int64_t>(channels.axis, axis);
  const auto size = static_cast<std::size_t>(dims[static_cast<std::size_t>(axis)]);
  if (!channels.sums.empty() && channels.sums.size() != size) finite = false;
  if (!finite) channels.finite = false;
  if (!channels.finite) {
    channels.sums.clear();
    channels.squares.clear();
    return;
  }
  if (channels.sums.empty()) {
    channels.sums.resize(size);
    channels.squares.resize(size);
  }
  std::int64_t outer = 1, inner = 1;
  for (int i = 0; i < rank; ++i) (i < axis ? outer : inner) *= i == axis ? 1 : dims[static_cast<std::size_t>(i)];
  AddChannelSums(x, outer, dims[static_cast<std::size_t>(axis)], inner, channels.sums, channels.squares);
}

void Observe(Accumulator& accumulator, DType dtype, std::span<const std::int64_t> dims, const void* data,
             SampleContext& context) {
  if (!context.gather) return;
  if (!Observable(dtype)) {
    ThrowUsage("a value of type " + std::string(Name(dtype)) + " cannot be observed: it is not a float",
               accumulator.name);
  }
  const std::span<const float> x = AsFloats(dtype, data, ElementCount(dims, accumulator.name), context.converted);
  TensorStatistics& statistics = accumulator.statistics;
  MinMax seen;
  if (!statistics.histogram) seen.Add(x);  // outside the lock
  const std::lock_guard lock(accumulator.mutex);
  if (statistics.histogram) {
    const MinMax before = statistics.range;
    statistics.histogram->Add(x);
    statistics.range = statistics.histogram->range;
    seen.nans = statistics.range.nans - before.nans;
    seen.infs = statistics.range.infs - before.infs;
  } else {
    statistics.range.Merge(seen);
  }
  if (seen.nans > 0) {
    ThrowBadInput(
        "the model computes NaN (value '" + accumulator.name + "', " + std::to_string(seen.nans) + " elements)",
        "sample " + context.sample);
  }
  if (statistics.channels && !x.empty()) AddSums(*statistics.channels, accumulator, x, dims, seen.infs == 0);
}

// ----------------------------------------------------------------------------------------------------------- the
// samples

void CheckInputs(const Sample& sample, const std::vector<IoSpec>& inputs) {
  for (std::size_t i = 0; i < sample.tensors.size() && i < inputs.size(); ++i) {
    const TensorRef& tensor = sample.tensors[i];
    if (!Observable(tensor.dtype)) continue;
    MinMax range;
    const auto address = reinterpret_cast<std::uintptr_t>(tensor.bytes.data());
    if (tensor.dtype == DType::kF32 && address % alignof(float) == 0) {
      range.Add({reinterpret_cast<const float*>(tensor.bytes.data()), tensor.bytes.size() / sizeof(float)});
    } else {
      range.Add(tensor.ToFloats());
    }
    if (!range.AllFinite()) {
      ThrowBadInput(
          "the data hold " + std::string(range.nans > 0 ? "NaN" : "Inf") + " (input '" + inputs[i].name + "')",
          "sample " + sample.name);
    }
  }
}

}  // namespace

struct Calibration::Impl {
  const Model& float_model;
  const std::vector<ObserveSpec> observe;
  const CalibrateOptions options;
  std::vector<std::unique_ptr<Accumulator>> accumulators;
  mutable std::once_flag loaded;
  mutable std::optional<Session> session;
  mutable std::vector<std::string> wanted;
  mutable std::unordered_set<std::string> logits;  // outputs that are the logarithm of the model's
  mutable std::vector<TensorRef> tables;           // read by rows, where they are mapped
  std::mutex remembered_mutex;
  std::map<std::string, std::vector<std::vector<float>>> remembered;  // outputs of the kept samples, by digest

  Impl(const Model& model, std::vector<ObserveSpec> specs, const CalibrateOptions& opts)
      : float_model(model), observe(std::move(specs)), options(opts) {}

  const Session& Loaded() const {
    std::call_once(loaded, [this] { Load(); });
    return *session;
  }
  void Load() const;
  std::vector<std::vector<float>> FloatOutputs(const std::vector<TensorRef>& results) const;
};

// Float outputs only: an integer output is a shape or an index.
std::vector<std::vector<float>> Calibration::Impl::FloatOutputs(const std::vector<TensorRef>& results) const {
  std::vector<std::vector<float>> outputs;
  for (std::size_t i = 0; i < results.size(); ++i) {
    if (results[i].dtype != DType::kF32 && results[i].dtype != DType::kF16) continue;
    outputs.push_back(results[i].ToFloats());
    if (logits.count(wanted[i]) == 0) continue;
    std::vector<float> softmax = outputs.back();
    for (float& v : softmax) v = std::exp(v);
    outputs.push_back(std::move(softmax));
  }
  return outputs;
}

void Calibration::Impl::Load() const {
  OnnxSkeleton skeleton;
  SessionOptions session_options;
  std::unordered_set<std::string> row_tables;
  {
    Model model = Clone(float_model);
    Graph& graph = *model.graph;
    std::unordered_map<const Node*, const Node*> twin;  // Clone keeps the order of nodes
    const Node* theirs = graph.first();
    for (const Node* ours = float_model.graph->first(); ours != nullptr && theirs != nullptr;
         ours = ours->next(), theirs = theirs->next()) {
      twin[ours] = theirs;
    }
    const auto values = ValuesByName(graph);
    for (std::size_t i = 0; i < observe.size(); ++i) {
      const ObserveSpec& spec = observe[i];
      Value* value = FindOne(values, graph, spec.value);
      if (value->is_constant()) ThrowUsage("a constant cannot be observed", spec.value);
      if (value->type.dtype != DType::kUndefined && !Observable(value->type.dtype)) {
        ThrowUsage("a value of type " + std::string(Name(value->type.dtype)) + " cannot be observed: it is not a float",
                   spec.value);
      }
      Value* observed = InsertObserver(value, static_cast<std::int64_t>(i));
      if (!spec.rounds) continue;
      std::vector<const Node*> users;
      for (const Node* user : spec.round_users) users.push_back(twin.at(user));
      InsertRounder(observed, users, static_cast<std::int64_t>(i));
    }
    logits = ShowLogits(graph, observe);
    if (!observe.empty()) model.SetOpsetVersion(kObserveDomain, 1);
    skeleton = SerializeSkeleton(model);
    for (const Value* constant : graph.constants()) {
      if (ReadByRows(*constant)) row_tables.insert(constant->name());
    }
  }
  std::uint64_t weight_bytes = 0;
  for (const auto& [name, tensor] : skeleton.externals) {
    if (row_tables.count(name) > 0 && tensor.file != nullptr) {
      session_options.in_place.push_back(name);
      tables.push_back(tensor);
    }
    weight_bytes += tensor.bytes.size();
  }
  session_options.intra_op_threads = 1;
  session_options.memory_pattern = false;
  session_options.run_arenas = true;
  // On a CPU the fused operator takes four times as long as the two that it stands for (ONNX Runtime 1.31).
  session_options.config.emplace_back("optimization.disable_specified_optimizers", "SkipLayerNormFusion");
  session_options.disable_prepacking = weight_bytes > kMostPrepackedBytes;
  session_options.observer = [this](std::int64_t id, DType dtype, std::span<const std::int64_t> dims, const void* value,
                                    void* context) {
    Observe(*accumulators.at(static_cast<std::size_t>(id)), dtype, dims, value, *static_cast<SampleContext*>(context));
  };
  session_options.rounder = [](std::int64_t id, std::span<const float> x, float* y, void* context) {
    const auto& rounding = static_cast<SampleContext*>(context)->rounding;
    if (static_cast<std::size_t>(id) >= rounding.size() || !rounding[static_cast<std::size_t>(id)]) return false;
    RoundRun(x, *rounding[static_cast<std::size_t>(id)], y);
    return true;
  };
  LogDebug("calibrate: observers stand");
  session.emplace(skeleton.bytes, std::move(skeleton.externals), session_options);
  wanted = session->TensorOutputs();
  ::malloc_trim(0);  // what loading has freed: the activations will not fit in the gaps
}

Calibration::Calibration(const Model& float_model, std::vector<ObserveSpec> observe, const CalibrateOptions& options)
    : impl_(std::make_unique<Impl>(float_model, std::move(observe), options)) {
  for (const ObserveSpec& spec : impl_->observe) {
    auto accumulator = std::make_unique<Accumulator>();
    accumulator->name = spec.value;
    accumulator->channel_axis = spec.channel_axis;
    if (spec.histogram) accumulator->statistics.histogram.emplace();
    if (spec.channel_axis) accumulator->statistics.channels.emplace();
    impl_->accumulators.push_back(std::move(accumulator));
  }
}

Calibration::~Calibration() = default;
Calibration::Calibration(Calibration&&) noexcept = default;

Statistics Calibration::Gather(const DataSource& data, std::size_t first, std::size_t count) {
  if (first > data.size() || count > data.size() - first) {
    ThrowInternal("calibration asks for samples that are not there", data.Describe());
  }
  Statistics statistics;
  statistics.model_sha256 = ModelFingerprint(impl_->float_model);
  statistics.method = impl_->options.method;
  for (const ObserveSpec& spec : impl_->observe) {
    if (!statistics.tensors.emplace(spec.value, TensorStatistics()).second) {
      ThrowInternal("a value is to be observed twice", spec.value);
    }
  }
  const Session& session = impl_->Loaded();
  statistics.samples.resize(count);
  {
    std::mutex kept;
    Progress progress("calibrating", count);
    const int threads = impl_->options.threads > 0 ? impl_->options.threads : HardwareThreads();
    const auto remember = [&](const std::string& digest, const std::vector<TensorRef>& results) {
      const std::lock_guard lock(kept);
      const auto is_kept = [&](const std::string& it) {
        return std::any_of(statistics.kept.begin(), statistics.kept.end(),
                           [&](const KeptSample& sample) { return sample.sha256 == it; });
      };
      if (is_kept(digest)) impl_->remembered.emplace(digest, impl_->FloatOutputs(results));
      std::erase_if(impl_->remembered, [&](const auto& entry) { return !is_kept(entry.first); });
    };
    ParallelFor(count, threads, [&](std::size_t i) {
      CheckInterrupt();
      const Sample sample = data.Read(first + i);
      CheckInputs(sample, session.inputs());
      statistics.samples[i] = SampleDigest(sample.tensors);
      {
        const std::lock_guard lock(kept);
        statistics.Keep(statistics.samples[i], sample.tensors);
      }
      SampleContext context{sample.name, {}, true, {}};
      try {
        const std::vector<TensorRef> results = session.Run(sample.tensors, impl_->wanted, &context);
        std::size_t bytes = 0;
        for (const TensorRef& result : results) bytes += result.bytes.size();
        if (bytes <= kMostRememberedBytes) remember(statistics.samples[i], results);
        // Else the more samples, the more of the rows are resident.
        for (const TensorRef& table : impl_->tables) table.file->DropPages(table.bytes);
      } catch (const Error& e) {
        if (e.code() != ExitCode::kBadInput || e.where() == "sample " + sample.name) throw;
        throw Error(e.code(), e.reason(), "sample " + sample.name + ": " + e.where(), e.how());
      }
      progress.Advance();
    });
  }
  std::sort(statistics.samples.begin(), statistics.samples.end());
  for (const std::unique_ptr<Accumulator>& accumulator : impl_->accumulators) {
    statistics.tensors[accumulator->name] = std::move(accumulator->statistics);
  }
  return statistics;
}

std::vector<std::vector<float>> Calibration::RunRounded(const KeptSample& sample,
                                                        std::span<const std::optional<Rounding>> rounding) const {
  const Session& session = impl_->Loaded();
  const std::string name = sample.sha256.substr(0, 12);
  if (sample.tensors.size() != session.inputs().size()) {
    ThrowBadInput("a sample of the statistics has " + std::to_string(sample.tensors.size()) +
                      " tensors, the model takes " + std::to_string(session.inputs().size()),
                  "sample " + name, "calibrate this model");
  }
  SampleContext context{name, {}, false, rounding};
  return impl_->FloatOutputs(session.Run(sample.tensors, impl_->wanted, &context));
}

std::vector<std::vector<float>> Calibration::Reference(const KeptSample& sample) {
  {
    const std::lock_guard lock(impl_->remembered_mutex);
    if (const auto it = impl_->remembered.find(sample.sha256); it != impl_->remembered.end()) {
      return std::move(impl_->remembered.extract(it).mapped());
    }
  }
  return RunRounded(sample, {});
}

void Calibration::Load() const { impl_->Loaded(); }

Statistics Calibrate(const Model& float_model, const DataSource& data, std::size_t first, std::size_t count,
                     std::span<const ObserveSpec> observe, const CalibrateOptions& options) {
  return Calibration(float_model, {observe.begin(), observe.end()}, options).Gather(data, first, count);
}

}  // namespace octavo
