#include "octavo/quantize/whole_graph.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
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
#include "octavo/calibrate/ranges.h"
#include "octavo/ops/op_table.h"
#include "octavo/quantize/apply.h"
#include "octavo/quantize/dead_zone.h"
#include "octavo/quantize/placement.h"
#include "octavo/quantize/weights.h"

namespace octavo {
namespace {

// How far below the lowest score a masked position is kept: exp(-12) = 6e-6 of the weight of that lowest one.
constexpr float kMaskDepth = 12.0f;
// A mask of -FLT_MAX is as good as one of this size, and a device's rescaling takes no step of 1e36.
constexpr float kMaskBound = 1000.0f;

// A tensor that 8 bits hold worse than this is one of outliers: a bell in 8 bits has 40 dB.
constexpr double kLeastLocalDb = 28.0;
// So is a weight; of these there are more, and 16 bits double its size.
constexpr double kLeastWeightDb = 20.0;

bool IsF32(const Value* value) { return value != nullptr && value->type.dtype == DType::kF32 && !value->type.quant; }

bool IsConstantData(const Value* value) { return value != nullptr && value->is_constant() && value->data.has_value(); }

// What an input of an operator is to placement.
enum class Role { kNone, kData, kWeight, kBias };

// Scale and shift of a normalization are its weight and bias.
bool NormalizesWithScale(const Node& node) { return node.Is("LayerNormalization") || node.Is("InstanceNormalization"); }

Role RoleOf(const Node& node, std::size_t index) {
  const OpInfo& info = FindOp(node);
  const Value* value = node.input(index);
  if (value == nullptr || !IsF32(value)) return Role::kNone;
  if (NormalizesWithScale(node)) {
    if (index == 0) return Role::kData;
    return index == 1 ? Role::kWeight : index == 2 ? Role::kBias : Role::kNone;
  }
  if (info.weight_input >= 0 && index == static_cast<std::size_t>(info.weight_input)) {
    return value->is_constant() ? Role::kWeight : Role::kData;
  }
  if (info.bias_input >= 0 && index == static_cast<std::size_t>(info.bias_input)) return Role::kBias;
  if (node.Is("PRelu") && index == 1) return Role::kData;
  return IsDataInput(info, index) ? Role::kData : Role::kNone;
}

// Outputs that carry data: the indices of a TopK or MaxPool, the statistics of a LayerNormalization do not.
bool CarriesData(const Node& node, std::size_t index) {
  const Value* value = node.output(index);
  if (!IsF32(value)) return false;
  return index == 0 || node.Is("Split");
}

struct Tensor {               // a value with parameters, or several that share them
  Value* observed = nullptr;  // whose range counts; null: that of the constant
  Value* constant = nullptr;  // moved by a Gather, say: its own range
  std::optional<PlannedTensor> fixed;
};

// The parts that need no statistics: which nodes are taken and which values share parameters. Never edits.
class Plan {
 public:
  Plan(const Model& model, const QuantizationConfig& config, const ResolvedPrecision& precision,
       const DeviceDescriptor& device)
      : model_(model), config_(config), precision_(precision), device_(device) {
    CheckSelectors();
    for (Node* node : model_.graph->nodes()) Visit(*node);
    VisitNodes(*static_cast<const Graph*>(model_.graph.get()), [&](const Node& node) {
      ++nodes_total;
      if (node.graph() != model_.graph.get() && HasFloat(node)) {
        Skip(node, "it stands in a subgraph, whose values are not calibrated");
      }
    });
    for (Node* node : taken) Join(*node);
    FindMasks();
  }

  std::vector<Node*> taken;  // in execution order
  std::unordered_set<const Node*> is_taken;
  std::unordered_map<const Node*, Node*> absorbs;  // node -> the Relu or Clip behind it
  std::unordered_set<const Node*> absorbed;
  std::vector<SkippedNode> skipped;
  std::int64_t nodes_total = 0;
  std::vector<Tensor> tensors;
  std::unordered_map<const Value*, std::size_t> tensor_of;   // of every computed value or input that has parameters
  std::unordered_map<const Value*, const Value*> mask_sums;  // score + mask -> the score

  std::unordered_set<const Value*> mask_values;  // what a mask is made of, constants included

  bool Moves(const Node& node) const {
    if (device_.Support(node.op(), node.domain()) != QuantSupport::kPassThrough) return false;
    return true;
  }
  bool Produced(const Value& value) const {
    return value.producer() != nullptr && is_taken.count(value.producer()) > 0;
  }

 private:
  static bool HasFloat(const Node& node) {
    for (const Value* v : node.inputs()) {
      if (v != nullptr && v->type.dtype == DType::kF32) return true;
    }
    for (const Value* v : node.outputs()) {
      if (v != nullptr && v->type.dtype == DType::kF32) return true;
    }
    return false;
  }

  void Skip(const Node& node, std::string reason) { skipped.push_back({NodeName(node), node.op(), std::move(reason)}); }

  void CheckSelectors() const {
    std::vector<std::string> node_names, ops, values;
    VisitNodes(*static_cast<const Graph*>(model_.graph.get()), [&](const Node& node) {
      node_names.push_back(NodeName(node));
      ops.push_back(node.op());
      for (const Value* v : node.outputs()) {
        if (v != nullptr) values.push_back(v->name());
      }
    });
    for (const Value* v : model_.graph->inputs()) values.push_back(v->name());
    for (const Value* v : model_.graph->constants()) values.push_back(v->name());
    const auto check = [](const std::string& pattern, const std::vector<std::string>& names, const char* option,
                          const char* what) {
      for (const std::string& name : names) {
        if (name == pattern || GlobMatch(pattern, name)) return;
      }
      ThrowUsage(std::string("no ") + what + " matches '" + pattern + "'", option, DidYouMean(pattern, names));
    };
    for (const std::string& op : config_.op_types) check(op, ops, "--op-types", "operator of the model");
    for (const std::string& pattern : config_.exclude) check(pattern, node_names, "--exclude", "node");
    for (const auto& [pattern, type] : config_.overrides) check(pattern, values, "--override", "tensor");
  }

  // The reason why a node stays in float; empty: it is taken.
  std::string Refusal(const Node& node) const {
    const OpSupport* row = device_.Row(node.op(), node.domain());
    if (row == nullptr || row->support == QuantSupport::kFloatOnly) {
      return std::string(device_.Reason(node.op(), node.domain()));
    }
    const std::string name = NodeName(node);
    for (const std::string& pattern : config_.exclude) {
      if (pattern == name || GlobMatch(pattern, name)) return "it is excluded";
    }
    if (!config_.op_types.empty() &&
        std::find(config_.op_types.begin(), config_.op_types.end(), node.op()) == config_.op_types.end()) {
      return "its operator type is not among those to quantize";
    }
    for (std::size_t i = 0; i < node.inputs().size(); ++i) {
      const Value* v = node.input(i);
      if (v == nullptr) continue;
      if (v->graph() != node.graph()) return "an input comes from an enclosing graph";
      if (RoleOf(node, i) == Role::kNone) continue;
      if (OverrideOf(config_, v->name()) == DType::kF32) return "its input '" + v->name() + "' is overridden to f32";
      if (v->is_constant() && !IsConstantData(v)) return "a constant has no data";
      if (IsConstantData(v)) {
        std::vector<float> storage;
        for (const float f : FloatView(*v->data, storage)) {
          if (!std::isfinite(f)) return "its constant '" + v->name() + "' holds NaN or infinity";
        }
      }
    }
    const OpInfo& info = FindOp(node);
    if (info.bias_input >= 0) {
      const Value* bias = node.input(static_cast<std::size_t>(info.bias_input));
      if (bias != nullptr && !bias->is_constant()) return "its bias is computed";
    }
    for (const Value* v : node.outputs()) {
      if (v != nullptr && OverrideOf(config_, v->name()) == DType::kF32) {
        return "its output '" + v->name() + "' is overridden to f32";
      }
    }
    if (NormalizesWithScale(node) && !IsConstantData(node.input(1))) return "its scale is computed";
    if (node.Is("LayerNormalization")) {
      const std::int64_t axis = node.IntAttribute("axis", -1);
      const auto& shape = node.input(0)->type.shape;
      if (axis != -1 && (!shape || axis != static_cast<std::int64_t>(shape->size()) - 1)) {
        return "it normalizes over more than the last axis";
      }
    }
    return {};
  }

  void Visit(Node& node) {
    if (node.graph() != model_.graph.get() || !HasFloat(node)) return;
    bool data = false;
    for (std::size_t i = 0; i < node.inputs().size(); ++i) data = data || RoleOf(node, i) == Role::kData;
    if (!data) {
      // Casts and other makers of floats from integers: what they make is quantized behind them.
      const OpCategory category = FindOp(node).category;
      if (category != OpCategory::kShape) Skip(node, std::string(device_.Reason(node.op(), node.domain())));
      return;
    }
    std::string refusal = Refusal(node);
    if (!refusal.empty()) return Skip(node, std::move(refusal));
    taken.push_back(&node);
    is_taken.insert(&node);
  }

  std::size_t NewTensor(Value* observed) {
    tensors.push_back({});
    tensors.back().observed = observed;
    return tensors.size() - 1;
  }

  std::size_t TensorOf(Value* value) {
    const auto [it, fresh] = tensor_of.emplace(value, 0);
    if (fresh) it->second = NewTensor(value);
    return it->second;
  }

  static Node* OnlyUser(const Value& value) {
    if (value.is_graph_output() || value.uses().size() != 1) return nullptr;
    Node* node = value.uses()[0].node;
    return node->graph() == value.graph() ? node : nullptr;
  }

  // The Relu or Clip behind y that codes of the right range do by themselves.
  Node* Absorbable(const Node& node) const {
    if (precision_.activation_symmetric || Moves(node)) return nullptr;
    Node* user = OnlyUser(*node.output());
    if (user == nullptr || is_taken.count(user) == 0 || user->input(0) != node.output() || !IsF32(user->output())) {
      return nullptr;
    }
    if (user->Is("Relu")) return user;
    if (!user->Is("Clip")) return nullptr;
    float low = user->FloatAttribute("min", -std::numeric_limits<float>::infinity());
    float high = user->FloatAttribute("max", std::numeric_limits<float>::infinity());
    for (std::size_t i = 1; i < 3; ++i) {
      const Value* bound = user->input(i);
      if (bound == nullptr) continue;
      if (!IsConstantData(bound) || bound->data->elements() != 1 || !IsF32(bound)) return nullptr;
      (i == 1 ? low : high) = bound->data->ToFloats()[0];
    }
    return low <= 0 && high >= 0 ? user : nullptr;
  }

  // Node by node in execution order: inputs are known when a node is reached.
  void Join(Node& node) {
    for (std::size_t i = 0; i < node.inputs().size(); ++i) {
      if (RoleOf(node, i) == Role::kData && !node.input(i)->is_constant()) TensorOf(node.input(i));
    }
    if (absorbed.count(&node) > 0) return;
    for (std::size_t i = 0; i < node.outputs().size(); ++i) {
      if (!CarriesData(node, i)) continue;
      Value* y = node.output(i);
      if (Moves(node)) {
        Value* x = node.input(0);
        if (x->is_constant()) {
          const std::size_t t = NewTensor(nullptr);
          tensors[t].constant = x;
          tensor_of[y] = t;
        } else {
          tensor_of[y] = TensorOf(x);
        }
        continue;
      }
      const std::size_t t = NewTensor(y);
      tensor_of[y] = t;
      if (Node* relu = Absorbable(node); relu != nullptr && i == 0) {
        absorbs[&node] = relu;
        absorbed.insert(relu);
        tensor_of[relu->output()] = t;
        tensors[t].observed = relu->output();
      }
    }
  }

  // score + mask in front of a Softmax, where the mask can be far below any score. Structure only: one operand of the
  // Add comes, through data movement and arithmetic with constants alone, from integers or booleans (Cast, Where).
  void FindMasks() {
    for (Node* node : taken) {
      if (!node->Is("Softmax")) continue;
      const Value* v = node->input(0);
      while (v->producer() != nullptr && Moves(*v->producer())) v = v->producer()->input(0);
      const Node* add = v->producer();
      if (add == nullptr || (!add->Is("Add") && !add->Is("Sub")) || is_taken.count(add) == 0) continue;
      for (std::size_t i = 0; i < 2; ++i) {
        if (!FromMask(add->input(i), 0)) continue;
        mask_sums[add->output()] = add->input(1 - i);
        CollectMask(add->input(i), 0);
      }
    }
  }

  void CollectMask(const Value* value, int depth) {
    if (value == nullptr || depth > 16 || value->type.dtype != DType::kF32 || !mask_values.insert(value).second) return;
    if (value->producer() == nullptr) return;
    for (const Value* input : value->producer()->inputs()) CollectMask(input, depth + 1);
  }

  static bool FromMask(const Value* value, int depth) {
    if (value == nullptr || depth > 16) return false;
    const Node* node = value->producer();
    if (node == nullptr) return false;
    if (node->Is("Cast")) {
      const DType from = node->input(0)->type.dtype;
      return IsInteger(from) || from == DType::kBool;
    }
    const OpInfo& info = FindOp(*node);
    if (node->Is("Where")) {
      for (std::size_t i = 1; i < 3; ++i) {
        if (!node->input(i)->is_constant() && !FromMask(node->input(i), depth + 1)) return false;
      }
      return true;
    }
    const bool arithmetic = node->Is("Add") || node->Is("Sub") || node->Is("Mul") || node->Is("Div");
    if (info.category != OpCategory::kDataMovement && !arithmetic) return false;
    bool any = false;
    for (std::size_t i = 0; i < node->inputs().size(); ++i) {
      const Value* x = node->input(i);
      if (x == nullptr || x->is_constant() || x->type.dtype != DType::kF32) continue;
      if (!FromMask(x, depth + 1)) return false;
      any = true;
    }
    return any;
  }

  const Model& model_;
  const QuantizationConfig& config_;
  const ResolvedPrecision& precision_;
  const DeviceDescriptor& device_;
};

DType Wide(DType narrow) { return IsSignedInteger(narrow) ? DType::kS16 : DType::kU16; }

class WholeGraph {
 public:
  WholeGraph(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
             const ResolvedPrecision& precision, const Statistics& statistics, int threads, QuantizeResult& result)
      : model_(model),
        graph_(*model.graph),
        config_(config),
        device_(device),
        precision_(precision),
        statistics_(statistics),
        threads_(threads),
        result_(result),
        plan_(model, config, precision, device) {}

  void Run() {
    result_.nodes_total = plan_.nodes_total;
    result_.nodes_skipped = plan_.skipped;
    if (plan_.taken.empty()) {
      LogWarning("no node of this model can be quantized for " + std::string(device_.name));
      return;
    }
    ChooseWidths();
    QuantizeWeights();
    Apply();
    result_.nodes_quantized = static_cast<std::int64_t>(plan_.taken.size());
  }

 private:
  struct Weights {
    QuantizedWeight weight;
    std::vector<double> bias;
    std::vector<double> bias_scales;
  };

  // --- widths: of nodes, and from those of tensors

  void ChooseWidths() {
    for (const Node* node : plan_.taken) {
      DType type = precision_.activation;
      for (const Value* v : node->outputs()) {
        if (v == nullptr) continue;
        const DType wanted = OverrideOf(config_, v->name());
        if (wanted != DType::kUndefined && wanted != DType::kF32) type = wanted;
      }
      type_of_node_[node] = type;
    }
    if (config_.keep_float_auto) FindWideWeights();
    if (config_.keep_float_auto && BitWidth(precision_.activation) == 8) Widen();
    // What only moves is as wide as what it moves; what nobody here made, as its widest user.
    for (const Node* node : plan_.taken) {
      if (plan_.Moves(*node)) continue;
      for (std::size_t i = 0; i < node->outputs().size(); ++i) {
        const auto it = plan_.tensor_of.find(node->output(i));
        if (it != plan_.tensor_of.end() && plan_.absorbed.count(node) == 0) SetType(it->second, type_of_node_[node]);
      }
    }
    for (const Node* node : plan_.taken) {
      for (std::size_t i = 0; i < node->inputs().size(); ++i) {
        const Value* v = node->input(i);
        if (RoleOf(*node, i) != Role::kData || v->is_constant() || plan_.Produced(*v)) continue;
        DType& type = Type_(plan_.tensor_of.at(v));
        if (type == DType::kUndefined || BitWidth(type) < BitWidth(type_of_node_[node])) type = type_of_node_[node];
      }
    }
    for (const auto& [node, type] : type_of_node_) {
      if (!plan_.Moves(*node)) continue;
      const auto it = plan_.tensor_of.find(node->output());
      if (it != plan_.tensor_of.end() && plan_.tensors[it->second].constant != nullptr) {
        Type_(it->second) = BitWidth(precision_.weight) == 16 ? Wide(precision_.activation) : DType::kU8;
      }
    }
  }

  // Matrices of one scale whose outliers leave the other weights less than kLeastWeightDb.
  void FindWideWeights() {
    if (BitWidth(precision_.weight) != 8) return;
    for (const Node* node : plan_.taken) {
      if (!node->Is("MatMul") && !node->Is("Gemm")) continue;
      const Value* weight = node->input(1);
      if (!IsConstantData(weight) || OverrideOf(config_, weight->name()) != DType::kUndefined) continue;
      if (precision_.per_channel && device_.Row(node->op(), node->domain())->per_channel) continue;
      const DType type = type_of_node_.at(node);
      if (BitWidth(type) == 8 && type != precision_.activation) continue;  // the user's word stands
      double square = 0;
      std::vector<float> storage;
      const std::span<const float> values = FloatView(*weight->data, storage);
      for (const float f : values) square += static_cast<double>(f) * f;
      const auto [low, high] = RangeOfConstant(*weight);
      const double step = (static_cast<double>(high) - low) / 255;
      if (step * step / 12 * static_cast<double>(values.size()) > square * std::pow(10.0, -kLeastWeightDb / 10)) {
        wide_weights_.insert(node);
        if (BitWidth(type) == 16) result_.nodes_16bit.push_back(NodeName(*node));
      }
    }
    if (wide_weights_.empty()) return;
    result_.effective_weights += ", s16 at " + std::to_string(wide_weights_.size()) + " matrices with outliers";
  }

  // Tensors whose rounding to 8 bits alone leaves less than kLeastLocalDb (outliers set the step, all else is lost in
  // it) get 16 bits, and with them the operators that make and read them.
  void Widen() {
    std::vector<bool> wide(plan_.tensors.size());
    for (std::size_t t = 0; t < wide.size(); ++t) {
      const Value* observed = plan_.tensors[t].observed;
      if (observed == nullptr) continue;
      const Node* maker = observed->producer();
      if (maker != nullptr && FindOp(*maker).flow != ParamFlow::kOwn &&
          FindOp(*maker).flow != ParamFlow::kSameAsInput) {
        continue;
      }
      const TensorStatistics& stats = StatsOf(*observed);
      if (!stats.channels || !stats.channels->finite || stats.channels->squares.empty()) continue;
      double square = 0;
      for (std::size_t c = 0; c < stats.channels->squares.size(); ++c) square += stats.ChannelMeanSquare(c);
      square /= static_cast<double>(stats.channels->squares.size());
      const double step = ParamsOf(t, precision_.activation).params.scale;
      wide[t] = square > 0 && step * step / 12 > square * std::pow(10.0, -kLeastLocalDb / 10);
    }
    std::size_t count = 0;
    for (const Node* node : plan_.taken) {
      if (plan_.Moves(*node) || plan_.absorbed.count(node) > 0) continue;
      bool any = wide_weights_.count(node) > 0;
      const auto see = [&](const Value* v) {
        const auto it = plan_.tensor_of.find(v);
        any = any || (it != plan_.tensor_of.end() && wide[it->second]);
      };
      for (std::size_t i = 0; i < node->inputs().size(); ++i) {
        if (RoleOf(*node, i) == Role::kData) see(node->input(i));
      }
      see(node->output());
      if (!any) continue;
      DType& type = type_of_node_[node];
      if (type != precision_.activation) continue;  // the user's word stands
      type = Wide(type);
      ++count;
      result_.nodes_16bit.push_back(NodeName(*node));
    }
    if (count == 0) return;
    result_.effective_activations += ", " + std::string(Name(Wide(precision_.activation))) + " at " +
                                     std::to_string(count) + " operators whose tensors have outliers";
  }

  DType& Type_(std::size_t tensor) {
    if (types_.size() < plan_.tensors.size()) types_.resize(plan_.tensors.size(), DType::kUndefined);
    return types_[tensor];
  }
  void SetType(std::size_t tensor, DType type) { Type_(tensor) = type; }

  // --- parameters

  const TensorStatistics& StatsOf(const Value& value) const {
    const TensorStatistics* t = statistics_.Find(value.name());
    if (t == nullptr) ThrowInternal("a tensor was not calibrated", value.name());
    return *t;
  }

  // Parameters of a tensor at a width; the same whoever asks.
  PlannedTensor ParamsOf(std::size_t tensor, DType storage) {
    const auto key = std::make_pair(tensor, storage);
    if (const auto it = params_.find(key); it != params_.end()) return it->second;
    const Tensor& t = plan_.tensors[tensor];
    PlannedTensor out;
    out.storage = storage;
    const bool symmetric = precision_.activation_symmetric;
    if (t.constant != nullptr) {
      const auto [low, high] = RangeOfConstant(*t.constant);
      out.params = ChooseParams(low, high, storage, symmetric);
    } else {
      const Node* maker = t.observed->producer();
      const ParamFlow flow = maker == nullptr ? ParamFlow::kOwn : FindOp(*maker).flow;
      ValueRange used;
      if (flow == ParamFlow::kUnitRange) {
        used = {0, 1};
      } else if (flow == ParamFlow::kSymmetricUnitRange) {
        used = {-1, 1};
      } else {
        const QuantRange range = ChooseRange(StatsOf(*t.observed), config_.calibration,
                                             config_.percentile, storage, symmetric);
        used = {range.min, range.max};
        if (const auto mask = plan_.mask_sums.find(t.observed); mask != plan_.mask_sums.end()) {
          const QuantRange scores = ChooseRange(StatsOf(*mask->second), config_.calibration,
                                                config_.percentile, storage, symmetric);
          used.min = std::max(used.min, scores.min - kMaskDepth);
          used.max = std::min(used.max, std::max(scores.max, 0.0f));
        } else if (!symmetric && BitWidth(storage) == 8) {
          used = CutDeadZone(*t.observed, used);
        }
      }
      if (plan_.mask_values.count(t.observed) > 0) {
        used.min = std::max(used.min, -kMaskBound);
        used.max = std::min(used.max, kMaskBound);
      }
      out.params = ChooseParams(used.min, used.max, storage, symmetric);
    }
    params_[key] = out;
    return out;
  }

  static std::pair<float, float> RangeOfConstant(const Value& constant) {
    std::vector<float> storage;
    float low = 0, high = 0;
    for (const float f : FloatView(*constant.data, storage)) {
      low = std::min(low, f);
      high = std::max(high, f);
    }
    return {low, high};
  }

  // The type that a node reads its data input in.
  DType InputType(const Node& node) const { return type_of_node_.at(&node); }

  PlannedTensor InputParams(const Node& node, std::size_t index) {
    const Value* v = node.input(index);
    const std::size_t tensor = plan_.tensor_of.at(v);
    return ParamsOf(tensor, plan_.Moves(node) ? Type_(tensor) : InputType(node));
  }

  // --- weights

  struct WeightJob {
    Node* node;
    std::size_t weight_index = 0, bias_index = 0;  // bias_index is read where the operator has one
    bool has_bias = false;                         // the operator can have a bias
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
        x_params_[node] = InputParams(*node, 0);
        jobs_.push_back(std::move(job));
      }
    }
    ParallelFor(jobs_.size(), threads_, [&](std::size_t i) {
      CheckInterrupt();
      QuantizeOne(jobs_[i]);
    });
  }

  ChannelMoments MomentsOf(const Node& node) const {
    ChannelMoments m;
    const TensorStatistics* stats = statistics_.Find(node.input(0)->name());
    if (stats == nullptr || !stats->channels || !stats->channels->finite) return m;
    for (std::size_t c = 0; c < stats->channels->sums.size(); ++c) {
      m.mean.push_back(stats->ChannelMean(c));
      m.mean_square.push_back(stats->ChannelMeanSquare(c));
    }
    return m;
  }

  void QuantizeOne(WeightJob& job) const {
    const Node& node = *job.node;
    const Value& weight = *node.input(job.weight_index);
    const OpSupport& row = *device_.Row(node.op(), node.domain());
    WeightOptions options;
    options.storage = row.unsigned_weight ? DType::kU8 : precision_.weight;
    options.symmetric = !row.unsigned_weight && precision_.weight_symmetric;
    options.per_channel = precision_.per_channel && row.per_channel;
    if (wide_weights_.count(&node) > 0) {
      options.storage = DType::kS16;  // 16-bit products are of s16 weights
      options.symmetric = true;
    }
    const DType override_type = OverrideOf(config_, weight.name());
    if (override_type != DType::kUndefined) {
      options.storage = override_type;
      options.symmetric = IsSignedInteger(override_type);
    }
    const std::size_t rank = weight.data->dims.size();
    const std::int64_t axis =
        NormalizesWithScale(node) ? 0 : ResolveAxis(FindOp(node).channel_axis, node, rank).value_or(0);
    const PlannedTensor& x = x_params_.at(&node);
    const bool matrix = !NormalizesWithScale(node) && rank >= 2;
    const ChannelMoments moments = matrix ? MomentsOf(node) : ChannelMoments{};
    const bool corrected = job.has_bias && !moments.mean.empty();
    std::vector<float> floor;
    for (int attempt = 0; attempt < 3; ++attempt) {
      job.weight = QuantizeWeight(*weight.data, axis, options, floor);
      if (!job.has_bias) return;
      const Value* bias = node.input(job.bias_index);
      std::vector<double> shift;
      if (corrected) shift = AnalyzeWeight(node, *weight.data, job.weight, moments, true).bias_shift;
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
    }
    job.failure = "its bias does not fit in int32 at the scale of its products";
  }

  // --- the graph

  // A constant with quantized codes; equal ones are shared.
  Value* QuantizedConstant(Value* source, DType storage) {
    const auto key = std::make_pair(static_cast<const Value*>(source), storage);
    if (const auto it = constants_.find(key); it != constants_.end()) return it->second;
    auto [low, high] = RangeOfConstant(*source);
    if (plan_.mask_values.count(source) > 0) {
      low = std::max(low, -kMaskBound);
      high = std::min(high, kMaskBound);
    }
    PlannedTensor t;
    t.storage = storage;
    t.params = ChooseParams(low, high, storage, precision_.activation_symmetric);
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
    Value* fresh = graph_.AddConstant(
        old->name(), TensorRef::FromBuffer(job.weight.storage, old->data->dims, std::move(job.weight.codes)),
        std::move(type));
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
    if (produced && Type_(plan_.tensor_of.at(v)) == wanted.storage) return v;
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
          if (plan_.Moves(*node)) {
            const std::size_t tensor = plan_.tensor_of.at(node->output());
            made = ConstantWith(v, ParamsOf(tensor, Type_(tensor)));
          } else {
            made = QuantizedConstant(v, InputType(*node));
          }
          edges.push_back({node, i, made});
        } else {
          edges.push_back({node, i, AsCodes(v, InputParams(*node, i), plan_.Produced(*v))});
        }
      }
      for (std::size_t i = 0; i < node->outputs().size(); ++i) {
        if (!CarriesData(*node, i)) continue;
        const std::size_t tensor = plan_.tensor_of.at(node->output(i));
        const PlannedTensor params = ParamsOf(tensor, Type_(tensor));
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

  Model& model_;
  Graph& graph_;
  const QuantizationConfig& config_;
  const DeviceDescriptor& device_;
  const ResolvedPrecision& precision_;
  const Statistics& statistics_;
  int threads_;
  QuantizeResult& result_;
  Plan plan_;
  std::unordered_map<const Node*, DType> type_of_node_;
  std::unordered_set<const Node*> wide_weights_;  // their weight gets 16 bits
  std::vector<DType> types_;                      // of plan_.tensors
  std::map<std::pair<std::size_t, DType>, PlannedTensor> params_;
  std::unordered_map<const Node*, PlannedTensor> x_params_;
  std::vector<WeightJob> jobs_;
  std::map<std::pair<const Value*, DType>, Value*> constants_;
  std::map<std::pair<Value*, DType>, Value*> made_;
};

}  // namespace

std::vector<ObserveSpec> WholeGraphSpecs(const Model& prepared, const QuantizationConfig& config,
                                         const ResolvedPrecision& precision, const DeviceDescriptor& device) {
  const Plan plan(prepared, config, precision, device);
  const bool histogram = NeedsHistogram(config.calibration);
  std::map<std::string, ObserveSpec> specs;
  const auto add = [&](const Value& value) -> ObserveSpec& {
    ObserveSpec& spec = specs[value.name()];
    spec.value = value.name();
    spec.histogram = histogram;
    return spec;
  };
  for (const Tensor& t : plan.tensors) {
    if (t.observed != nullptr) add(*t.observed);
  }
  for (const auto& [sum, score] : plan.mask_sums) add(*score);
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
  // The power of every tensor, to find those of outliers.
  for (const Tensor& t : plan.tensors) {
    if (t.observed == nullptr || !t.observed->type.shape || t.observed->type.shape->empty()) continue;
    ObserveSpec& spec = add(*t.observed);
    if (!spec.channel_axis && conflicts.count(t.observed->name()) == 0) spec.channel_axis = -1;
  }
  std::vector<ObserveSpec> list;
  for (auto& [name, spec] : specs) list.push_back(std::move(spec));
  return list;
}

void WholeGraphQuantize(Model& model, const QuantizationConfig& config, const DeviceDescriptor& device,
                        const ResolvedPrecision& precision, const Statistics& statistics, int threads,
                        QuantizeResult& result) {
  WholeGraph(model, config, device, precision, statistics, threads, result).Run();
}

}  // namespace octavo
