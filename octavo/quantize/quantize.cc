#include "octavo/quantize/quantize.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/base/thread_pool.h"
#include "octavo/calibrate/ranges.h"
#include "octavo/emit/onnx.h"
#include "octavo/import/onnx.h"
#include "octavo/ops/op_table.h"
#include "octavo/quantize/apply.h"
#include "octavo/quantize/dead_zone.h"
#include "octavo/quantize/early_weights.h"
#include "octavo/quantize/importance.h"
#include "octavo/quantize/placement.h"
#include "octavo/quantize/precision.h"
#include "octavo/quantize/probe.h"
#include "octavo/quantize/quantize_half.h"
#include "octavo/quantize/quantize_static.h"
#include "octavo/quantize/select.h"
#include "octavo/quantize/weight_mx.h"
#include "octavo/quantize/weight_only.h"
#include "octavo/quantize/weights.h"
#include "octavo/quantize/whole_graph.h"
#include "octavo/rewrite/passes.h"

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;

double Seconds(Clock::time_point since) { return std::chrono::duration<double>(Clock::now() - since).count(); }

// --requantize: what was quantized becomes float again, constants dequantized. Q/DQ that are no types stay an error.
void DropQuantization(Model& model) {
  FoldQdq(model);
  VisitNodes(*model.graph, [&](Node& node) {
    if (node.Is(kStorageCast, kIrDomain)) {
      ThrowUnsupported("the codes of a quantized value are used as integers: it cannot be made float again",
                       NodeName(node), "quantize the float model it was made from");
    }
  });
  std::vector<Graph*> graphs{model.graph.get()};
  VisitNodes(*model.graph, [&](Node& node) {
    for (Graph* sub : node.subgraphs()) graphs.push_back(sub);
  });
  for (Graph* graph : graphs) {
    for (Value* constant : graph->constants()) {
      if (!constant->type.quant) continue;
      if (constant->type.quant->kind != QuantType::Kind::kAffine || constant->type.quant->affine.block != 0) {
        ThrowUnsupported("block formats cannot be quantized anew", "constant '" + constant->name() + "'");
      }
      const Affine& affine = constant->type.quant->affine;
      const std::vector<std::int64_t> codes = constant->data->ToInts();
      const std::vector<float> scales = affine.scale.ToFloats();
      std::vector<std::int64_t> zeros(scales.size(), 0);
      if (affine.zero_point) zeros = affine.zero_point->ToInts();
      std::uint64_t inner = 1;
      for (std::size_t i = affine.axis ? static_cast<std::size_t>(*affine.axis) + 1 : 0;
           i < constant->data->dims.size(); ++i) {
        inner *= static_cast<std::uint64_t>(constant->data->dims[i]);
      }
      std::vector<float> values(codes.size());
      for (std::size_t i = 0; i < codes.size(); ++i) {
        const std::size_t c = scales.size() == 1 ? 0 : i / std::max<std::uint64_t>(inner, 1) % scales.size();
        values[i] = static_cast<float>(codes[i] - zeros[c]) * scales[c];
      }
      constant->data = TensorRef::FromFloats(constant->data->dims, values);
      constant->type.quant.reset();
      constant->type.dtype = DType::kF32;
    }
    for (Node* node : graph->nodes()) {
      for (Value* v : node->outputs()) {
        if (v != nullptr) v->type.quant.reset();
      }
      node->form = QuantForm::kNone;
      if (node->Is(kQuantize, kIrDomain) || node->Is(kDequantize, kIrDomain) || node->Is(kRequantize, kIrDomain)) {
        Value* out = node->output();
        if (out->is_graph_output()) {
          node->SetOp("Identity");
        } else {
          graph->ReplaceAllUses(out, node->input(0));
          graph->Erase(node);
        }
      }
    }
  }
  if (IsQuantized(model)) {
    ThrowUnsupported("the model holds quantized operators that cannot be made float again", model.source,
                     "quantize the float model it was made from");
  }
}

}  // namespace

std::string MethodName(CalibrationMethod method) {
  switch (method) {
    case CalibrationMethod::kMinMax:
      return "minmax";
    case CalibrationMethod::kPercentile:
      return "percentile";
    case CalibrationMethod::kEntropy:
      return "entropy";
    case CalibrationMethod::kMse:
      return "mse";
  }
  return "minmax";
}

namespace {

// Weights that are graph inputs with a default (exports of old tools list every initializer as an input): quantizing
// changes them, so they cannot be overridden any more and become constants.
void FreezeDefaults(Model& model) {
  Graph& graph = *model.graph;
  std::size_t frozen = 0;
  const std::vector<Value*> inputs(graph.inputs().begin(), graph.inputs().end());
  for (Value* input : inputs) {
    if (!input->data || input->is_graph_output()) continue;
    const std::string name = input->name();
    Value* constant = graph.AddConstant(name, *input->data, input->type);
    graph.ReplaceAllUses(input, constant);
    graph.EraseInput(input);
    graph.Rename(constant, name);
    ++frozen;
  }
  if (frozen > 0) {
    LogWarning(
        std::to_string(frozen) +
        " graph inputs have default values (weights listed as inputs): they become constants and cannot be overridden");
  }
}

// What ONNX Runtime saves at its highest level has weights in the order that one kind of CPU computes them.
void RefuseBlockedLayout(const Model& model) {
  VisitNodes(std::as_const(*model.graph), [&](const Node& node) {
    if (node.domain() != "com.microsoft.nchwc") return;
    ThrowUnsupported("the model was optimized for one kind of CPU: " + Describe(node) + " is of com.microsoft.nchwc",
                     model.source, "give the model it was made from, or save it at ORT_ENABLE_EXTENDED");
  });
}

}  // namespace

void PrepareFloat(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
                  std::vector<std::pair<std::string, std::int64_t>>* applied) {
  if (HasEpContext(model)) {
    ThrowUnsupported("the model is compiled for a device already (EPContext)", model.source,
                     "quantize the model it was compiled from");
  }
  if (device.whole_graph) RefuseBlockedLayout(model);
  const ResolvedPrecision precision = ResolvePrecision(config, device);
  FreezeDefaults(model);
  for (const PassCount& pass : SimplifyFloat(model)) {
    if (applied != nullptr && pass.applied > 0) applied->emplace_back(pass.rule, pass.applied);
  }
  if (device.whole_graph) {
    for (const PassCount& pass : UnrollAndSimplify(model)) {
      if (applied != nullptr && pass.applied > 0) applied->emplace_back(pass.rule, pass.applied);
    }
  }
  if (const std::int64_t gone = device.whole_graph ? SelectBranches(model) : DropImpossibleBranches(model);
      gone > 0 && applied != nullptr) {
    applied->emplace_back("select-branch", gone);
  }
  if (device.static_shapes) {
    // The shape of an output may follow from that of another one.
    for (std::int64_t shapes = 0; (shapes = FoldOutputShapes(model)) > 0;) {
      if (applied != nullptr) applied->emplace_back("fold-output-shapes", shapes);
      for (const PassCount& pass : SimplifyFloat(model)) {
        if (applied != nullptr && pass.applied > 0) applied->emplace_back(pass.rule, pass.applied);
      }
    }
  }
  if (device.whole_graph) {
    for (const PassCount& pass : FusePatterns(model, precision.kind == ResolvedPrecision::Kind::kStatic)) {
      if (applied != nullptr && pass.applied > 0) applied->emplace_back(pass.rule, pass.applied);
    }
  }
  // Per-channel weights have a scale for every channel: there is nothing to equalize.
  if (precision.kind == ResolvedPrecision::Kind::kStatic && !precision.per_channel && BitWidth(precision.weight) == 8) {
    const std::int64_t pairs = EqualizeLayers(model);
    if (applied != nullptr && pairs > 0) applied->emplace_back("equalize-layers", pairs);
  }
}

std::vector<ObserveSpec> CalibrationSpecs(const Model& prepared, const QuantizationConfig& config,
                                          const DeviceDescriptor& device) {
  const ResolvedPrecision precision = ResolvePrecision(config, device);
  if (precision.kind == ResolvedPrecision::Kind::kWeightOnly) return ImportanceSpecs(prepared, config);
  if (device.whole_graph) return WholeGraphSpecs(prepared, config, precision, device);
  const Placement placement = PlaceNodes(prepared, config, precision, device);
  // Of the nodes' 8-bit form too, where that selects them: its codes move through more operators.
  const ResolvedPrecision eight = SelectionPrecision(config, device, precision);
  // Placing looks at the bits of activations only.
  const bool same = BitWidth(eight.activation) == BitWidth(precision.activation);
  const Placement selected = same ? placement : PlaceNodes(prepared, config, eight, device);
  std::map<std::string, ObserveSpec> specs;  // by name: the order is the same for every build of the library
  const bool histogram = NeedsHistogram(config.calibration);
  // A value that nodes read along different axes has no moments: those of one axis would be wrong for the other.
  std::map<std::string, int> axes;
  std::set<std::string> conflicts;
  const auto add = [&](const Value& value, bool range, std::optional<int> channel_axis) {
    ObserveSpec& spec = specs[value.name()];
    spec.value = value.name();
    spec.histogram = spec.histogram || (range && histogram);
    if (!channel_axis) return;
    const auto [wanted, fresh] = axes.emplace(value.name(), *channel_axis);
    if (!fresh && wanted->second != *channel_axis) conflicts.insert(value.name());
    spec.channel_axis = channel_axis;
  };
  const auto observe = [&](const PlacedNode& p) {
    const int axis = FindOp(*p.node).category == OpCategory::kWeighted ? 1 : -1;
    add(*p.x, p.x == p.x_root, axis);
    if (p.x_root != p.x) add(*p.x_root, true, std::nullopt);
    // Moments of the output too: its noise is weighed by its power.
    if (p.y != nullptr) {
      add(*p.y, true, std::nullopt);
      if (!specs[p.y->name()].channel_axis) specs[p.y->name()].channel_axis = 1;
    }
  };
  std::for_each(placement.nodes.begin(), placement.nodes.end(), observe);
  std::for_each(selected.nodes.begin(), selected.nodes.end(), observe);
  for (const std::string& name : conflicts) specs[name].channel_axis.reset();
  // What the sensitivity probe rounds: the tensors that get codes; where no integer node writes one, float users go on
  // reading floats.
  if (config.keep_float_auto) {
    for (const PlacedNode& p : selected.nodes) {
      specs[p.x_root->name()].rounds = true;
      specs[p.x_root->name()].round_users.push_back(p.node);
    }
    for (const PlacedNode& p : selected.nodes) {
      if (p.y == nullptr) continue;
      specs[p.y->name()].rounds = true;
      specs[p.y->name()].round_users.clear();
    }
  }
  std::vector<ObserveSpec> list;
  for (auto& [name, spec] : specs) list.push_back(std::move(spec));
  return list;
}

QuantizeResult Quantize(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
                        const DataSource* data, int threads, StatisticsCache* cache) {
  Validate(config);
  const ResolvedPrecision precision = ResolvePrecision(config, device);
  QuantizeResult result;
  result.calibration_source = "none";
  result.effective_weights = precision.weight_text;
  result.effective_activations = precision.activation_text;
  if (HasEpContext(model)) {
    ThrowUnsupported("the model is compiled for a device already (EPContext)", model.source,
                     "quantize the model it was compiled from");
  }
  if (IsQuantized(model)) {
    if (!config.requantize) {
      result.skipped = true;
      result.effective_weights = result.effective_activations = "as in the input";
      VisitNodes(*static_cast<const Graph*>(model.graph.get()), [&](const Node&) { ++result.nodes_total; });
      return result;
    }
    DropQuantization(model);
  }
  std::optional<EarlyWeights> early;
  if (precision.kind == ResolvedPrecision::Kind::kStatic && !device.whole_graph && config.load_path.empty() &&
      (threads > 0 ? threads : HardwareThreads()) > 1) {
    early.emplace(model, config, config.keep_float_auto ? SelectionPrecision(config, device, precision) : precision);
  }
  PrepareFloat(model, config, device, &result.rewrites);
  switch (precision.kind) {
    case ResolvedPrecision::Kind::kFloat:
      VisitNodes(*static_cast<const Graph*>(model.graph.get()), [&](const Node&) { ++result.nodes_total; });
      return result;
    case ResolvedPrecision::Kind::kHalf:
      QuantizeHalf(model, config, precision.half, device, data, threads, result);
      return result;
    case ResolvedPrecision::Kind::kWeightOnly: {
      const WeightImportance importance = FindImportance(model, config, data, threads, cache, result);
      const Clock::time_point start = Clock::now();
      QuantizeWeightsOnly(model, config, *FindWeightOnlyFormat(config), threads > 0 ? threads : HardwareThreads(),
                          result, importance);
      if (!config.activation_mx.empty()) QuantizeActivationsMx(model, config, result);
      result.insertion_seconds = Seconds(start);
      model.graph->EraseDead();
      RaiseOpsetForQuantization(model);
      return result;
    }
    case ResolvedPrecision::Kind::kStatic:
      break;
  }
  if (data != nullptr && config.load_path.empty()) result.data_sha256 = data->ContentHash();
  QuantizeStatic(model, config, device, precision, data, threads, cache, early ? &*early : nullptr, result);
  return result;
}

}  // namespace octavo
