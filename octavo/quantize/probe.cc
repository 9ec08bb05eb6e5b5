#include "octavo/quantize/probe.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <unordered_map>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/thread_pool.h"
#include "octavo/emit/onnx.h"
#include "octavo/import/data.h"
#include "octavo/numerics/error_stats.h"
#include "octavo/runtime/session.h"

namespace octavo {
namespace {

constexpr std::size_t kMostSamples = 4;
constexpr int kFewestGroups = 5;
constexpr int kNone = -1, kAll = -2;               // beside the numbers of groups
constexpr const char* kContrib = "com.microsoft";  // its Q/DQ take 16 bits at every opset

Type ScalarType(DType dtype) {
  Type type;
  type.dtype = dtype;
  type.shape.emplace();
  return type;
}

// Where an input of the probe model belongs: the site, and whether it is its zero point (else its scale).
using Switches = std::unordered_map<std::string, std::pair<std::size_t, bool>>;

// The model with a switchable pair behind every site; the inputs that switch them go to `switches`.
Model ProbeModel(const Model& model, std::span<const ProbeSite> sites, Switches& switches) {
  Model probe = Clone(model);
  Graph& graph = *probe.graph;
  std::unordered_map<const Node*, Node*> twin;  // Clone keeps the order of nodes
  {
    Node* theirs = graph.first();
    for (const Node* ours = model.graph->first(); ours != nullptr && theirs != nullptr;
         ours = ours->next(), theirs = theirs->next()) {
      twin[ours] = theirs;
    }
  }
  for (std::size_t i = 0; i < sites.size(); ++i) {
    Value* value = graph.FindValue(sites[i].value->name());
    Value* scale = graph.AddInput("probe_scale_" + std::to_string(i), ScalarType(DType::kF32));
    Value* zero = graph.AddInput("probe_zero_" + std::to_string(i), ScalarType(DType::kU16));
    switches[scale->name()] = {i, false};
    switches[zero->name()] = {i, true};
    std::vector<Use> uses;
    for (const Use& use : value->uses()) {
      if (use.node->graph() != &graph) continue;
      bool wanted = sites[i].users.empty();
      for (const Node* user : sites[i].users) wanted = wanted || twin.at(user) == use.node;
      if (wanted) uses.push_back(use);
    }
    Node* before = value->producer() != nullptr ? value->producer()->next() : graph.first();
    Type codes = value->type;
    codes.dtype = DType::kU16;
    Node* q = graph.AddNode("QuantizeLinear", kContrib, {value, scale, zero}, {{value->name() + "_pq", codes}}, before);
    Node* dq = graph.AddNode("DequantizeLinear", kContrib, {q->output(), scale, zero},
                             {{value->name() + "_pdq", value->type}}, before);
    for (const Use& use : uses) use.node->SetInput(use.index, dq->output());
    // A rounded graph output: the outside sees the rounded values.
    if (value->is_graph_output() && sites[i].users.empty()) graph.ReplaceOutputUses(value, dq->output());
  }
  // A Softmax at the end hides noise wherever it is sure of itself, which is nearly everywhere: the few samples of a
  // probe would decide by chance. Its logarithm shows the noise of every sample.
  for (Value* output : graph.outputs()) {
    Node* node = output->producer();
    if (node != nullptr && node->Is("Softmax") && output->uses().empty()) node->SetOp("LogSoftmax");
  }
  if (probe.OpsetVersion(kContrib) == 0) probe.SetOpsetVersion(kContrib, 1);
  return probe;
}

}  // namespace

ProbeResult ProbeSites(const Model& model, std::span<const ProbeSite> sites, std::span<const KeptSample> data,
                       int max_runs, int threads) {
  const std::size_t count = data.size();
  ProbeResult result;
  result.noise.assign(sites.size(), 0.0);
  result.group.assign(sites.size(), 0);
  if (sites.empty() || count == 0) return result;

  const int n = static_cast<int>(sites.size());
  std::size_t samples = kMostSamples;
  while (samples > 1 && static_cast<std::size_t>(max_runs) < samples * sites.size() + 4 * samples) samples /= 2;
  samples = std::min(samples, count);
  // Where there are runs to spare, twice as many samples are looked at as are kept.
  const bool choose = count > samples && max_runs >= 16;
  const std::size_t candidates = choose ? std::min(count, 2 * samples) : samples;
  const int first_runs = static_cast<int>(candidates) * (choose ? 2 : 1);
  const int groups = std::min(n, (max_runs - first_runs) / static_cast<int>(samples));
  if (groups < std::min(n, kFewestGroups)) return result;

  Switches switches;
  const Model probe = ProbeModel(model, sites, switches);
  OnnxSkeleton skeleton = SerializeSkeleton(probe);
  std::vector<std::pair<std::string, TensorRef>> initializers;
  for (OnnxSkeleton::External& e : skeleton.externals)
    initializers.emplace_back(std::move(e.name), std::move(e.tensor));
  SessionOptions options;
  options.optimization = GraphOptimization::kNone;  // nothing may be fused across the pairs
  options.intra_op_threads = 1;
  std::uint64_t weight_bytes = 0;
  for (const auto& [name, tensor] : initializers) weight_bytes += tensor.bytes.size();
  options.disable_prepacking = weight_bytes > kMostPrepackedBytes;
  const Session session(skeleton.bytes, std::move(initializers), options);

  const std::vector<InputSpec> specs = InputSpecs(*model.graph);
  for (const KeptSample& sample : data) {
    if (sample.tensors.size() != specs.size()) {
      ThrowBadInput("a sample of the statistics has " + std::to_string(sample.tensors.size()) +
                        " tensors, the model takes " + std::to_string(specs.size()),
                    "sample " + sample.sha256.substr(0, 12), "calibrate this model");
    }
  }
  std::unordered_map<std::string, std::size_t> data_input;
  for (std::size_t i = 0; i < specs.size(); ++i) data_input[specs[i].name] = i;
  const std::vector<std::string> tensor_outputs = session.TensorOutputs();
  const auto run = [&](const KeptSample& sample, int coarse_group) {
    std::vector<TensorRef> inputs;
    for (const IoSpec& spec : session.inputs()) {
      if (const auto it = switches.find(spec.name); it != switches.end()) {
        const auto [site, is_zero] = it->second;
        const bool coarse = coarse_group == kAll || result.group[site] == coarse_group;
        const AffineParams p = sites[site].params;
        if (is_zero) {
          const std::int64_t zero = coarse ? p.zero_point : p.zero_point * 257;
          inputs.push_back(TensorRef::FromInts(DType::kU16, {}, {&zero, 1}));
        } else {
          inputs.push_back(TensorRef::Scalar(coarse ? p.scale : p.scale / 257.0f));
        }
      } else {
        inputs.push_back(sample.tensors.at(data_input.at(spec.name)));
      }
    }
    return session.Run(inputs, tensor_outputs);
  };
  // Float outputs only: an integer output is a shape or an index.
  const auto float_outputs = [](const std::vector<TensorRef>& all) {
    std::vector<std::vector<float>> out;
    for (const TensorRef& t : all) {
      if (t.dtype == DType::kF32 || t.dtype == DType::kF16) out.push_back(t.ToFloats());
    }
    return out;
  };

  for (std::size_t i = 0; i < sites.size(); ++i) {
    result.group[i] = static_cast<int>(i * static_cast<std::size_t>(groups) / sites.size());
  }
  std::vector<const KeptSample*> kept(candidates);
  std::vector<std::vector<std::vector<float>>> reference(candidates);
  std::vector<double> noise(candidates);  // with every site rounded: the samples that decide a pooled SQNR
  ParallelFor(candidates, threads, [&](std::size_t i) {
    CheckInterrupt();
    kept[i] = &data[i * count / candidates];
    reference[i] = float_outputs(run(*kept[i], kNone));
    if (!choose) return;
    const std::vector<std::vector<float>> rounded = float_outputs(run(*kept[i], kAll));
    for (std::size_t o = 0; o < rounded.size(); ++o) {
      ErrorStats error;
      if (rounded[o].size() == reference[i][o].size()) error.Add(reference[i][o], rounded[o]);
      noise[i] += error.noise;
    }
  });
  std::vector<std::size_t> order(candidates);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return noise[a] > noise[b]; });
  order.resize(samples);

  const std::size_t outputs = reference[order[0]].size();
  if (outputs == 0) return result;
  std::vector<std::vector<ErrorStats>> stats(static_cast<std::size_t>(groups) * samples);
  ParallelFor(stats.size(), threads, [&](std::size_t i) {
    CheckInterrupt();
    const std::size_t s = order[i % samples];
    const std::vector<std::vector<float>> got = float_outputs(run(*kept[s], static_cast<int>(i / samples)));
    stats[i].resize(outputs);
    for (std::size_t o = 0; o < outputs; ++o) {
      if (got[o].size() == reference[s][o].size()) stats[i][o].Add(reference[s][o], got[o]);
    }
  });
  std::vector<double> group_noise(static_cast<std::size_t>(groups));
  for (int g = 0; g < groups; ++g) {
    for (std::size_t o = 0; o < outputs; ++o) {
      ErrorStats sum;
      for (std::size_t s = 0; s < samples; ++s) sum.Merge(stats[static_cast<std::size_t>(g) * samples + s][o]);
      if (sum.signal > 0)
        group_noise[static_cast<std::size_t>(g)] += sum.noise / sum.signal / static_cast<double>(outputs);
    }
  }
  for (std::size_t i = 0; i < sites.size(); ++i) {
    result.noise[i] = group_noise[static_cast<std::size_t>(result.group[i])];
  }
  result.groups = groups;
  result.runs = first_runs + static_cast<int>(stats.size());
  return result;
}

}  // namespace octavo
