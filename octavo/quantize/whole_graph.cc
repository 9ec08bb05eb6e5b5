#include "octavo/quantize/whole_graph.h"

#include <algorithm>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/base/names.h"
#include "octavo/base/thread_pool.h"
#include "octavo/ops/op_table.h"
#include "octavo/quantize/apply.h"
#include "octavo/quantize/placement.h"
#include "octavo/quantize/weights.h"
#include "octavo/quantize/whole_graph_logs.h"
#include "octavo/quantize/whole_graph_plan.h"
#include "octavo/quantize/whole_graph_search.h"
#include "octavo/quantize/whole_graph_types.h"

namespace octavo {
namespace {

class WholeGraph {
 public:
  WholeGraph(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
             const ResolvedPrecision& precision, const Statistics& statistics, std::optional<Calibration>& calibration,
             const std::unordered_map<std::string, std::size_t>& spec_of, KeptNodes kept, int threads,
             QuantizeResult& result)
      : graph_(*model.graph),
        config_(config),
        device_(device),
        precision_(precision),
        statistics_(statistics),
        calibration_(calibration),
        spec_of_(spec_of),
        threads_(threads),
        result_(result),
        plan_(model, config, precision, device, std::move(kept)),
        types_(plan_, config, device, precision, statistics) {}

  void Run() {
    result_.nodes_total = plan_.nodes_total;
    result_.nodes_skipped = plan_.skipped;
    if (plan_.taken.empty()) {
      LogWarning("no node of this model can be quantized for " + std::string(device_.name));
      return;
    }
    DecideWidths();
    QuantizeWeights();
    Apply();
    result_.nodes_quantized = static_cast<std::int64_t>(plan_.taken.size());
  }

 private:
  // --- widths: of nodes, and from those of tensors

  void DecideWidths() {
    for (const Node* node : plan_.taken) {
      DType type = precision_.activation;
      for (const Value* v : node->outputs()) {
        if (v == nullptr) continue;
        const DType wanted = OverrideOf(config_, v->name());
        if (wanted != DType::kUndefined && wanted != DType::kF32) {
          type = wanted;
          fixed_.insert(node);
        }
      }
      types_.type_of_node[node] = type;
    }
    const bool narrow = BitWidth(precision_.activation) == 8 || BitWidth(precision_.weight) == 8;
    if (config_.keep_float_auto && narrow) {
      SearchWidths(plan_, types_,
                   {config_, device_, precision_, statistics_, *calibration_, spec_of_, fixed_, threads_}, result_);
    }
    calibration_.reset();
    // What only moves is as wide as what it moves; what nobody here made, as its widest user.
    for (const Node* node : plan_.taken) {
      if (plan_.Moves(*node)) continue;
      for (std::size_t i = 0; i < node->outputs().size(); ++i) {
        const auto it = plan_.tensor_of.find(node->output(i));
        if (it == plan_.tensor_of.end() || plan_.absorbed.count(node) > 0) continue;
        types_.TensorType(it->second) = types_.type_of_node[node];
      }
    }
    for (const Node* node : plan_.taken) {
      for (std::size_t i = 0; i < node->inputs().size(); ++i) {
        const Value* v = node->input(i);
        if (RoleOf(*node, i) != Role::kData || v->is_constant() || plan_.Produced(*v)) continue;
        DType& type = types_.TensorType(plan_.tensor_of.at(v));
        const DType wanted = types_.type_of_node[node];
        if (type == DType::kUndefined || BitWidth(type) < BitWidth(wanted)) type = wanted;
      }
    }
    // A table that is looked up has the width of a weight; one no bigger than what is looked up in it, whose bytes are
    // nothing beside those of its result, that of its result.
    std::unordered_map<std::size_t, DType> tables;
    for (const auto& [node, type] : types_.type_of_node) {
      if (!plan_.Moves(*node)) continue;
      const auto it = plan_.tensor_of.find(node->output());
      if (it == plan_.tensor_of.end()) continue;
      const Value* table = plan_.tensors[it->second].constant;
      if (table == nullptr) continue;
      const std::optional<Dims> result = StaticShape(node->output()->type);
      const bool small = result && table->data->elements() <= ElementCount(*result);
      DType& chosen = tables.try_emplace(it->second, DType::kU8).first->second;
      if (BitWidth(precision_.weight) == 16 || (small && BitWidth(type) == 16)) chosen = Wide(precision_.activation);
    }
    for (const auto& [tensor, type] : tables) types_.TensorType(tensor) = type;
  }

  // --- weights

  struct WeightJob {
    Node* node;
    std::size_t weight_index = 0, bias_index = 0;  // bias_index is read where the operator has one
    bool has_bias = false;                         // the operator can have a bias
    float least_scale = 0;                         // of the weight, as the device's rescaling needs it
    QuantizedWeight weight;
    std::vector<double> bias;
    std::string failure;
  };

  void QuantizeWeights() {
    for (Node* node : plan_.taken) {
      for (std::size_t i = 0; i < node->inputs().size(); ++i) {
        if (RoleOf(*node, i) != Role::kWeight) continue;
        WeightJob job;
        job.node = node;
        job.weight_index = i;
        const OpInfo& info = FindOp(*node);
        if (NormalizesWithScale(*node)) {
          job.bias_index = 2;
          job.has_bias = true;
        } else if (info.bias_input >= 0) {
          job.bias_index = static_cast<std::size_t>(info.bias_input);
          job.has_bias = true;
        }
        x_params_[node] = types_.InputParams(*node, 0);
        const std::size_t y = plan_.tensor_of.at(node->output());
        job.least_scale = device_.least_rescale * types_.ParamsOf(y, types_.TensorType(y)).params.scale /
                          x_params_[node].params.scale;
        jobs_.push_back(std::move(job));
      }
    }
    ParallelFor(jobs_.size(), threads_, [&](std::size_t i) {
      CheckInterrupt();
      QuantizeOne(jobs_[i]);
    });
    const auto signed_ones = std::count_if(jobs_.begin(), jobs_.end(), [&](const WeightJob& job) {
      return job.weight.storage == DType::kS8 && types_.by_channel.count(job.node) == 0;
    });
    if (precision_.weight == DType::kU8 && signed_ones > 0) {
      result_.effective_weights += ", s8 symmetric at " + std::to_string(signed_ones) + " operators with 16-bit inputs";
    }
  }

  void QuantizeOne(WeightJob& job) const {
    const Node& node = *job.node;
    const Value& weight = *node.input(job.weight_index);
    const OpSupport& row = *device_.Row(node.op(), node.domain());
    WeightOptions options = types_.OptionsOf(node, row);
    const DType override_type = OverrideOf(config_, weight.name());
    if (override_type != DType::kUndefined) {
      options.storage = override_type;
      options.symmetric = IsSignedInteger(override_type);
    }
    const std::size_t rank = weight.data->dims.size();
    const std::int64_t axis =
        NormalizesWithScale(node) ? 0 : ResolveAxis(FindOp(node).channel_axis, node, rank).value_or(0);
    const PlannedTensor& x = x_params_.at(&node);
    const ChannelMoments moments = AnalyzesWeight(node, *weight.data) ? types_.MomentsOf(node) : ChannelMoments{};
    const bool corrected = job.has_bias && !moments.mean.empty();
    // A channel of tiny weights takes a scale too big for it rather than one that the device cannot rescale by.
    const std::size_t channels = options.per_channel ? static_cast<std::size_t>(weight.data->dims[axis]) : 1;
    std::vector<float> floor(NormalizesWithScale(node) ? 0 : channels, job.least_scale);
    // The correction grows with the scales that it makes grow: the last attempt goes without.
    constexpr int kAttempts = 4;
    for (int attempt = 0; attempt < kAttempts; ++attempt) {
      job.weight = QuantizeWeight(*weight.data, axis, options, floor);
      if (!job.has_bias) return;
      const Value* bias = node.input(job.bias_index);
      std::vector<double> shift;
      if (corrected && attempt + 1 < kAttempts) {
        shift = AnalyzeWeight(node, *weight.data, job.weight, moments, true).bias_shift;
      }
      job.bias.clear();
      if (bias == nullptr && shift.empty()) return;
      if (bias != nullptr) {
        for (const float f : bias->data->ToFloats()) job.bias.push_back(f);
      } else {
        job.bias.assign(shift.size(), 0.0);
      }
      if (shift.size() == job.bias.size()) {
        for (std::size_t c = 0; c < shift.size(); ++c) job.bias[c] -= shift[c];
      }
      if (BiasFits(job.bias, x.params.scale, job.weight)) return;
      floor = BiasScaleFloor(job.bias, x.params.scale);
      // Dead channels: the product of the scales must be a normal number too.
      const float least = std::numeric_limits<float>::min() / std::min(x.params.scale, 1.0f);
      for (float& f : floor) f = 1.01f * std::max({f, least, job.least_scale});
    }
    job.failure = "its bias does not fit in int32 at the scale of its products";
  }

  // --- the graph

  // A constant with quantized codes; equal ones are shared.
  Value* QuantizedConstant(Value* source, DType storage) {
    const auto key = std::make_pair(static_cast<const Value*>(source), storage);
    if (const auto it = constants_.find(key); it != constants_.end()) return it->second;
    const QuantRange range = types_.RangeOfConstant(*source);
    PlannedTensor t;
    t.storage = storage;
    t.params = ChooseParams(range.min, range.max, storage, precision_.activation_symmetric);
    Value* made = ConstantWith(source, t);
    constants_[key] = made;
    return made;
  }

  Value* ConstantWith(Value* source, const PlannedTensor& t) {
    std::vector<float> storage;
    const std::span<const float> values = FloatView(*source->data, storage);
    SpillBuffer codes(values.size() * CodeBytes(t.storage));
    QuantizeRun(values, t.params, t.storage, reinterpret_cast<std::byte*>(codes.data()));
    return graph_.AddConstant(source->name() + "_codes",
                              TensorRef::FromBuffer(t.storage, source->data->dims, std::move(codes)),
                              TypeOfCodes(*source, TypeOf(t)));
  }

  void Replace(Node& node, std::size_t index, Value* fresh) {
    Value* old = node.input(index);
    node.SetInput(index, fresh);
    if (old != nullptr && old->is_constant() && old->graph() == &graph_ && old->dead()) {
      const std::string name = old->name();
      graph_.Erase(old);
      graph_.Rename(fresh, name);
    }
  }

  void ApplyWeights(WeightJob& job) {
    Node& node = *job.node;
    Value* old = node.input(job.weight_index);
    Type type = TypeOfCodes(*old, TypeOf(job.weight));
    TensorRef codes = BitWidth(job.weight.storage) == 4
                          ? TensorRef::FromBytes(job.weight.storage, old->data->dims,
                                                 PackNibbles({job.weight.codes.data(), job.weight.codes.size()}))
                          : TensorRef::FromBuffer(job.weight.storage, old->data->dims, std::move(job.weight.codes));
    Value* fresh = graph_.AddConstant(old->name(), std::move(codes), std::move(type));
    Replace(node, job.weight_index, fresh);
    if (job.bias.empty()) return;
    const auto channels = static_cast<std::int64_t>(job.bias.size());
    const QuantizedBias q = QuantizeBias(job.bias, x_params_.at(&node).params.scale, job.weight);
    const Value* old_bias = node.input(job.bias_index);
    const std::string name = old_bias != nullptr ? old_bias->name() : node.output()->name() + "_bias";
    Type bias_type;
    bias_type.dtype = DType::kF32;
    bias_type.shape.emplace();
    bias_type.shape->push_back({channels, {}});
    bias_type.quant.emplace();
    bias_type.quant->affine.storage = DType::kS32;
    if (job.weight.axis) {
      bias_type.quant->affine.axis = 0;
      bias_type.quant->affine.scale = TensorRef::FromFloats({channels}, q.scales);
    } else {
      bias_type.quant->affine.scale = TensorRef::Scalar(q.scales[0]);
    }
    // A Gemm's C may be [1, N].
    Replace(node, job.bias_index,
            graph_.AddConstant(name, TensorRef::FromInts(DType::kS32, {channels}, q.codes), std::move(bias_type)));
  }

  // `v` as codes of `wanted`: itself, or behind a Quantize (it is float) or a Requantize (of another width).
  Value* AsCodes(Value* v, const PlannedTensor& wanted, bool produced) {
    if (produced && types_.TensorType(plan_.tensor_of.at(v)) == wanted.storage) return v;
    Value*& made = made_[{v, wanted.storage}];
    if (made != nullptr) return made;
    Type t = v->type;
    t.dtype = DType::kF32;
    t.quant = TypeOf(wanted);
    Node* before = v->producer() != nullptr ? v->producer()->next() : graph_.first();
    Node* node = graph_.AddNode(std::string(produced ? kRequantize : kQuantize), std::string(kIrDomain), {v},
                                {{v->name() + (produced ? "_rq" : "_q"), t}}, before);
    node->name = node->output()->name();
    made = node->output();
    return made;
  }

  void Apply() {
    for (WeightJob& job : jobs_) {
      if (!job.failure.empty()) {
        ThrowUnsupported(job.failure, NodeName(*job.node), "exclude the node, or give --per-channel");
      }
      ApplyWeights(job);
    }
    struct Edge {
      Node* node;
      std::size_t index;
      Value* value;
    };
    // Decided before anything is retyped.
    std::vector<Edge> edges;
    std::vector<std::pair<Value*, QuantType>> retyped;
    for (Node* node : plan_.taken) {
      if (plan_.absorbed.count(node) > 0) continue;
      for (std::size_t i = 0; i < node->inputs().size(); ++i) {
        if (RoleOf(*node, i) != Role::kData) continue;
        Value* v = node->input(i);
        if (v->is_constant()) {
          Value* made = nullptr;
          // Of a Concat too: a device rescales what has other parameters, and zeros may have any.
          if (plan_.Moves(*node) || node->Is("Concat")) {
            const std::size_t tensor = plan_.tensor_of.at(node->output());
            made = ConstantWith(v, types_.ParamsOf(tensor, types_.TensorType(tensor)));
          } else {
            made = QuantizedConstant(v, types_.type_of_node.at(node));
          }
          edges.push_back({node, i, made});
        } else {
          edges.push_back({node, i, AsCodes(v, types_.InputParams(*node, i), plan_.Produced(*v))});
        }
      }
      for (std::size_t i = 0; i < node->outputs().size(); ++i) {
        if (!CarriesData(*node, i)) continue;
        const std::size_t tensor = plan_.tensor_of.at(node->output(i));
        const PlannedTensor params = types_.ParamsOf(tensor, types_.TensorType(tensor));
        retyped.emplace_back(node->output(i), TypeOf(params));
      }
    }
    for (const Edge& edge : edges) edge.node->SetInput(edge.index, edge.value);
    for (auto& [value, type] : retyped) value->type.quant = std::move(type);
    for (const auto& [node, relu] : plan_.absorbs) Absorb(const_cast<Node&>(*node), *relu);
    graph_.EraseDead();
    for (Node* node : graph_.nodes()) {
      bool any = false;
      for (const Value* v : node->inputs()) any = any || (v != nullptr && v->type.quant);
      for (const Value* v : node->outputs()) any = any || (v != nullptr && v->type.quant);
      if (any && node->form == QuantForm::kNone) node->form = QuantForm::kQdq;
    }
  }

  // Before:  %c = Conv ...; %y = Relu %c        After:  %y : # u8 = Conv ...
  void Absorb(Node& node, Node& relu) {
    Value* direct = node.output();
    Value* y = relu.output();
    graph_.SwapNames(direct, y);
    std::swap(direct->extras, y->extras);
    graph_.ReplaceAllUses(y, direct, &relu);
    graph_.Erase(&relu);
  }

  Graph& graph_;
  const QuantizationConfig& config_;
  const DeviceDescriptor& device_;
  const ResolvedPrecision& precision_;
  const Statistics& statistics_;
  std::optional<Calibration>& calibration_;
  const std::unordered_map<std::string, std::size_t>& spec_of_;  // of the calibration, by value
  int threads_;
  QuantizeResult& result_;
  WholeGraphPlan plan_;
  WholeGraphTypes types_;
  std::unordered_set<const Node*> fixed_;  // their type is the user's
  std::unordered_map<const Node*, PlannedTensor> x_params_;
  std::vector<WeightJob> jobs_;
  std::map<std::pair<const Value*, DType>, Value*> constants_;
  std::map<std::pair<Value*, DType>, Value*> made_;
};

}  // namespace

std::vector<ObserveSpec> WholeGraphSpecs(const Model& prepared, const QuantizationConfig& config,
                                         const ResolvedPrecision& precision, const DeviceDescriptor& device) {
  const WholeGraphPlan plan(prepared, config, precision, device);
  const bool histogram = NeedsHistogram(config.calibration);
  std::map<std::string, ObserveSpec> specs;
  const auto add = [&](const Value& value) -> ObserveSpec& {
    ObserveSpec& spec = specs[value.name()];
    spec.value = value.name();
    spec.histogram = histogram;
    return spec;
  };
  for (const WholeGraphTensor& t : plan.tensors) {
    if (t.observed != nullptr) add(*t.observed);
  }
  for (const auto& [sum, score] : plan.mask_sums) add(*score);
  // These may stay in float, and are read in codes then, those that only move too.
  for (const Node* node : LogInputs(prepared, plan)) {
    for (std::size_t i = 0; i < node->outputs().size(); ++i) {
      if (CarriesData(*node, i)) add(*node->output(i));
    }
  }
  // Moments for the bias correction, of what is observed anyway or of what is moved from it.
  std::map<std::string, int> axes;
  std::set<std::string> conflicts;
  for (const Node* node : plan.taken) {
    const OpInfo& info = FindOp(*node);
    if (info.weight_input < 0 || info.bias_input < 0) continue;
    const Value* x = node->input(0);
    if (x->is_constant()) continue;
    const int axis = node->Is("Gemm") ? -1 : 1;
    add(*x).channel_axis = axis;
    const auto [it, fresh] = axes.emplace(x->name(), axis);
    if (!fresh && it->second != axis) conflicts.insert(x->name());
  }
  for (const std::string& name : conflicts) specs[name].channel_axis.reset();
  // The power of every tensor; and its rounding, whose cost at the outputs is measured.
  for (const WholeGraphTensor& t : plan.tensors) {
    if (t.observed == nullptr) continue;
    ObserveSpec& spec = add(*t.observed);
    spec.rounds = config.keep_float_auto;
    if (!t.observed->type.shape || t.observed->type.shape->empty()) continue;
    if (!spec.channel_axis && conflicts.count(t.observed->name()) == 0) spec.channel_axis = -1;
  }
  std::vector<ObserveSpec> list;
  for (auto& [name, spec] : specs) list.push_back(std::move(spec));
  return list;
}

void WholeGraphQuantize(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
                        const ResolvedPrecision& precision, const Statistics& statistics,
                        std::optional<Calibration>& calibration,
                        const std::unordered_map<std::string, std::size_t>& spec_of, int threads,
                        QuantizeResult& result) {
  KeptNodes kept;
  if (config.keep_float_auto) {
    const WholeGraphPlan plan(model, config, precision, device);
    WholeGraphTypes types(plan, config, device, precision, statistics);
    const std::unordered_set<const Node*> none_fixed;
    kept = KeptForLogs(model, plan, types,
                       {config, device, precision, statistics, *calibration, spec_of, none_fixed, threads});
  }
  WholeGraph(model, config, device, precision, statistics, calibration, spec_of, std::move(kept), threads, result)
      .Run();
}

}  // namespace octavo
