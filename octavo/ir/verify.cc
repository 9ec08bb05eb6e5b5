#include "octavo/ir/verify.h"

#include <algorithm>
#include <cmath>
#include <unordered_map>
#include <unordered_set>

#include "octavo/base/error.h"

namespace octavo {
namespace {

// A broken model may be broken everywhere; the first sentences are what is read.
constexpr std::size_t kMaxViolations = 100;

class Verifier {
 public:
  std::vector<std::string> Run(const Model& model) {
    if (model.functions.size() != model.function_ids.size()) {
      Say("the model has " + std::to_string(model.functions.size()) + " functions and " +
          std::to_string(model.function_ids.size()) + " function ids");
    }
    if (model.graph == nullptr) {
      Say("the model has no graph");
      return std::move(out_);
    }
    if (model.graph->parent() != nullptr) Say("the main graph has a parent graph");
    Count(*model.graph);
    Walk(*model.graph);
    return std::move(out_);
  }

 private:
  void Say(std::string sentence) {
    if (out_.size() < kMaxViolations) out_.push_back(std::move(sentence));
  }

  static std::string Of(const Node& n) { return "node '" + n.name + "' (" + n.op() + ")"; }
  static std::string Of(const Value& v) { return "value '" + v.name() + "'"; }
  static std::string Of(const Graph& g) { return "graph '" + g.name + "'"; }

  // First the whole tree: which objects exist, and how often each value is used. Pointers in use lists are followed
  // only if they are among them.
  void Count(const Graph& graph) {
    for (const Value* v : graph.inputs()) values_.insert(v);
    for (const Value* v : graph.constants()) values_.insert(v);
    for (const Value* v : graph.outputs()) {
      if (v != nullptr) ++output_uses_[v];
    }
    graphs_.insert(&graph);
    for (const Node* n = graph.first(); n != nullptr; n = n->next()) {
      nodes_.insert(n);
      for (const Value* v : n->outputs()) {
        if (v != nullptr) values_.insert(v);
      }
      for (const Value* v : n->inputs()) {
        if (v != nullptr) ++uses_[v];
      }
      for (const Graph* sub : n->subgraphs()) Count(*sub);
    }
  }

  void Walk(const Graph& graph) {
    for (const Value* v : graph.inputs()) {
      Definition(graph, *v, ValueKind::kInput);
      if (v->data) Data(*v, *v->data);
      defined_.insert(v);
    }
    for (const Value* v : graph.constants()) {
      Definition(graph, *v, ValueKind::kConstant);
      if (!v->data) {
        Say(Of(*v) + " is a constant without data");
      } else {
        Data(*v, *v->data);
      }
      defined_.insert(v);
    }
    const Node* prev = nullptr;
    std::size_t count = 0;
    for (const Node* n = graph.first(); n != nullptr; prev = n, n = n->next()) {
      ++count;
      if (n->prev() != prev) Say(Of(*n) + " is linked wrongly to the node before it");
      if (n->graph() != &graph) Say(Of(*n) + " stands in " + Of(graph) + " but says it belongs to another graph");
      OneNode(graph, *n);
    }
    if (count != graph.node_count()) Say(Of(graph) + " counts its nodes wrongly");
    if (prev != graph.last()) Say(Of(graph) + " does not know its last node");
    for (std::size_t i = 0; i < graph.outputs().size(); ++i) {
      const Value* v = graph.outputs()[i];
      const std::string which = "output " + std::to_string(i) + " of " + Of(graph);
      if (v == nullptr) {
        Say(which + " is no value");
      } else if (!values_.contains(v)) {
        Say(which + " is a value that is not in the model");
      } else if (!defined_.contains(v) || !Visible(graph, *v)) {
        Say(which + ", " + Of(*v) + ", is not visible there");
      }
    }
  }

  static bool Visible(const Graph& from, const Value& v) {
    for (const Graph* g = &from; g != nullptr; g = g->parent()) {
      if (g == v.graph()) return true;
    }
    return false;
  }

  void OneNode(const Graph& graph, const Node& n) {
    if (n.op().empty()) Say(Of(n) + " has no operator");
    for (std::size_t i = 0; i < n.inputs().size(); ++i) {
      const Value* v = n.input(i);
      if (v == nullptr) continue;
      const std::string which = "input " + std::to_string(i) + " of " + Of(n);
      if (!values_.contains(v)) {
        Say(which + " is a value that is not in the model");
        continue;
      }
      if (!Visible(graph, *v)) {
        Say(which + ", " + Of(*v) + ", is not visible there");
      } else if (!defined_.contains(v)) {
        Say(which + ", " + Of(*v) + ", is used before it is defined, or in a cycle");
      } else if (graph.Lookup(v->name()) != v) {
        Say(which + ", " + Of(*v) + ", cannot be found by its name");
      }
    }
    std::unordered_set<std::string_view> names;
    for (const Attribute& a : n.attributes()) {
      if (!names.insert(a.name).second) Say(Of(n) + " has two attributes '" + a.name + "'");
      if (const auto* t = std::get_if<TensorRef>(&a.value)) {
        const std::string problem = DataProblem(*t);
        if (!problem.empty()) Say("attribute '" + a.name + "' of " + Of(n) + " " + problem);
      }
      const auto* sub = std::get_if<std::unique_ptr<Graph>>(&a.value);
      if (sub == nullptr) continue;
      if (*sub == nullptr) {
        Say("attribute '" + a.name + "' of " + Of(n) + " is a graph that is missing");
        continue;
      }
      if ((*sub)->parent() != &graph) {
        Say("attribute '" + a.name + "' of " + Of(n) + " is a graph whose parent is not the graph of the node");
      }
      Walk(**sub);
    }
    for (std::size_t i = 0; i < n.outputs().size(); ++i) {
      const Value* v = n.output(i);
      if (v == nullptr) continue;
      Definition(graph, *v, ValueKind::kResult);
      if (v->producer() != &n || v->output_index() != i) {
        Say(Of(*v) + " does not name " + Of(n) + " as its producer");
      }
      if (v->data) Say(Of(*v) + " is a node's output but has data");
      defined_.insert(v);
    }
    if (n.domain() == kIrDomain) IrOperator(n);
  }

  void Definition(const Graph& graph, const Value& v, ValueKind kind) {
    if (v.kind() != kind) Say(Of(v) + " has the wrong kind");
    if (v.graph() != &graph) Say(Of(v) + " stands in " + Of(graph) + " but says it belongs to another graph");
    if (kind != ValueKind::kResult && v.producer() != nullptr) Say(Of(v) + " has a producer but is no node's output");
    if (v.name().empty()) Say("a value of " + Of(graph) + " has no name");
    if (graph.FindValue(v.name()) != &v) Say(Of(v) + " is not the value that " + Of(graph) + " finds by that name");
    for (const Graph* g = graph.parent(); g != nullptr; g = g->parent()) {
      if (g->FindValue(v.name()) != nullptr) Say(Of(v) + " of " + Of(graph) + " hides a value of " + Of(*g));
    }
    if (!seen_.insert(&v).second) Say(Of(v) + " is defined twice");
    UseLists(v);
    const std::string problem = TypeProblem(v.type);
    if (!problem.empty()) Say(Of(v) + " " + problem);
  }

  void UseLists(const Value& v) {
    const auto expected = uses_.find(&v);
    if (v.uses().size() != (expected == uses_.end() ? 0 : expected->second)) {
      Say(Of(v) + " has " + std::to_string(v.uses().size()) + " entries in its use list for " +
          std::to_string(expected == uses_.end() ? 0 : expected->second) + " uses");
    }
    // Equal counts and every entry true and distinct: the list is exact.
    std::unordered_map<const Node*, std::unordered_set<std::size_t>> distinct;
    for (const Use& u : v.uses()) {
      if (!nodes_.contains(u.node)) {
        Say("the use list of " + Of(v) + " names a node that is not in the model");
      } else if (u.node->input(u.index) != &v) {
        Say("the use list of " + Of(v) + " names input " + std::to_string(u.index) + " of " + Of(*u.node) +
            ", which is another value");
      } else if (!distinct[u.node].insert(u.index).second) {
        Say("the use list of " + Of(v) + " names input " + std::to_string(u.index) + " of " + Of(*u.node) + " twice");
      }
    }
    const auto outputs = output_uses_.find(&v);
    if (v.output_uses().size() != (outputs == output_uses_.end() ? 0 : outputs->second)) {
      Say(Of(v) + " counts its uses as a graph output wrongly");
    }
    for (const OutputUse& u : v.output_uses()) {
      if (!graphs_.contains(u.graph) || u.index >= u.graph->outputs().size() || u.graph->outputs()[u.index] != &v) {
        Say(Of(v) + " says it is a graph output that it is not");
      }
    }
  }

  static std::string DataProblem(const TensorRef& t) {
    std::uint64_t n = 0;
    try {
      n = ElementCount(t.dims);
    } catch (const Error& e) {
      return "has data of impossible dimensions (" + e.reason() + ")";
    }
    if (t.dtype == DType::kString) {
      const std::size_t have = t.strings ? t.strings->size() : 0;
      return have == n && t.bytes.empty()
                 ? std::string()
                 : "has " + std::to_string(have) + " strings for " + std::to_string(n) + " elements";
    }
    const auto size = ByteSize(t.dtype, n);
    if (!size) return "has data without an element type";
    if (*size != t.bytes.size()) {
      return "has " + std::to_string(t.bytes.size()) + " bytes of data for " + std::to_string(n) + " elements of " +
             std::string(Name(t.dtype));
    }
    return {};
  }

  // Data against the type. Codes of ggml and mx formats have a layout of their own, which numerics knows.
  void Data(const Value& v, const TensorRef& t) {
    const std::string problem = DataProblem(t);
    if (!problem.empty()) {
      Say(Of(v) + " " + problem);
      return;
    }
    if (v.type.quant && v.type.quant->kind != QuantType::Kind::kAffine) return;
    const DType expected = v.type.quant ? v.type.quant->affine.storage : v.type.dtype;
    if (t.dtype != expected) {
      Say(Of(v) + " has data of " + std::string(Name(t.dtype)) + " where its type says " + std::string(Name(expected)));
    }
    if (!v.type.shape) return;
    const auto fits = [](const Dim& d, std::int64_t have) { return !d.known() || d.value == have; };
    if (!std::equal(v.type.shape->begin(), v.type.shape->end(), t.dims.begin(), t.dims.end(), fits)) {
      Say(Of(v) + " has data whose dimensions do not fit its type " + ToString(v.type));
    }
  }

  static std::string AxisProblem(const Type& type, std::int64_t axis) {
    if (axis < 0) return "is quantized along the negative axis " + std::to_string(axis);
    if (type.shape && static_cast<std::uint64_t>(axis) >= type.shape->size()) {
      return "is quantized along axis " + std::to_string(axis) + " but has rank " + std::to_string(type.shape->size());
    }
    return {};
  }

  static std::string TypeProblem(const Type& type) {
    if (static_cast<int>(type.dtype) >= kDTypeCount) return "has no such element type";
    if (!type.quant) return {};
    if (!IsFloat(type.dtype)) return "is quantized but does not mean a float type";
    const QuantType& q = *type.quant;
    if (q.kind != QuantType::Kind::kAffine) {
      const bool ggml = q.kind == QuantType::Kind::kGgml;
      if ((ggml ? q.ggml.format : q.mx.format).empty()) return "is quantized in a format without a name";
      if (!ggml && q.mx.block <= 0) return "is quantized in blocks of " + std::to_string(q.mx.block);
      return AxisProblem(type, ggml ? q.ggml.axis : q.mx.axis);
    }
    return AffineProblem(type, q.affine);
  }

  static std::string AffineProblem(const Type& type, const Affine& a) {
    const bool float8 = IsFloat(a.storage) && BitWidth(a.storage) == 8 && a.storage != DType::kF8E8M0;
    const bool integer = IsInteger(a.storage) && BitWidth(a.storage) <= 32;
    if (!float8 && !integer) return "is stored as " + std::string(Name(a.storage)) + ", which is no storage type";
    if (a.axis) {
      std::string problem = AxisProblem(type, *a.axis);
      if (!problem.empty()) return problem;
    }
    if (a.block < 0 || (a.block > 0 && !a.axis)) return "has a quantization block without an axis, or a negative one";
    if (a.scale.dtype != DType::kF32 && a.scale.dtype != DType::kF16 && a.scale.dtype != DType::kBF16) {
      return "has scales of " + std::string(Name(a.scale.dtype));
    }
    std::string problem = DataProblem(a.scale);
    if (!problem.empty()) return "has scales: it " + problem;
    problem = ParamShapeProblem(type, a, a.scale.dims);
    if (!problem.empty()) return problem;
    for (const float s : a.scale.ToFloats()) {
      if (!std::isfinite(s) || s <= 0) return "has a scale that is not positive and finite";
    }
    if (!a.zero_point) return {};
    // The storage type is what bounds a zero point; equal types mean it is in range.
    if (a.zero_point->dtype != a.storage) {
      return "has zero points of " + std::string(Name(a.zero_point->dtype)) + " but is stored as " +
             std::string(Name(a.storage));
    }
    problem = DataProblem(*a.zero_point);
    if (!problem.empty()) return "has zero points: it " + problem;
    if (a.zero_point->dims != a.scale.dims) return "has zero points of another shape than its scales";
    return {};
  }

  static std::string ParamShapeProblem(const Type& type, const Affine& a, const Dims& dims) {
    if (!a.axis) {
      return dims.empty() || (dims.size() == 1 && dims[0] == 1) ? std::string()
                                                                : "is quantized per tensor but has more than one scale";
    }
    const auto axis = static_cast<std::size_t>(*a.axis);
    if (a.block == 0) {
      if (dims.size() != 1) return "is quantized per axis but its scales are not a vector";
      if (type.shape && (*type.shape)[axis].known() && (*type.shape)[axis].value != dims[0]) {
        return "is quantized per axis with " + std::to_string(dims[0]) + " scales for " +
               std::to_string((*type.shape)[axis].value) + " indices";
      }
      return {};
    }
    if (dims.size() <= axis) return "is quantized in blocks but its scales lack the axis";
    if (!type.shape) return {};
    if (dims.size() != type.shape->size()) return "is quantized in blocks but its scales have another rank";
    for (std::size_t i = 0; i < dims.size(); ++i) {
      const Dim& d = (*type.shape)[i];
      if (!d.known()) continue;
      const std::int64_t expected = i == axis ? d.value / a.block + (d.value % a.block != 0 ? 1 : 0) : d.value;
      if (dims[i] != expected) return "is quantized in blocks but its scales do not fit dimension " + std::to_string(i);
    }
    return {};
  }

  void IrOperator(const Node& n) {
    const bool known = n.op() == kQuantize || n.op() == kDequantize || n.op() == kRequantize || n.op() == kStorageCast;
    if (!known) {
      Say(Of(n) + " is not an operator of " + std::string(kIrDomain));
      return;
    }
    if (n.inputs().size() != 1 || n.outputs().size() != 1 || n.input(0) == nullptr || n.output(0) == nullptr) {
      Say(Of(n) + " must have one input and one output");
      return;
    }
    const Type& x = n.input(0)->type;
    const Type& y = n.output(0)->type;
    const auto a = StaticShape(x);
    const auto b = StaticShape(y);
    if (a && b && *a != *b) Say(Of(n) + " changes the shape " + ToString(x) + " to " + ToString(y));
    if (n.op() == kStorageCast) {
      if (x.quant.has_value() == y.quant.has_value()) {
        Say(Of(n) + " must have exactly one quantized side");
        return;
      }
      const Type& quantized = x.quant ? x : y;
      const Type& raw = x.quant ? y : x;
      if (quantized.quant->kind != QuantType::Kind::kAffine || quantized.quant->affine.storage != raw.dtype) {
        Say(Of(n) + " casts between different storage types");
      }
      return;
    }
    const bool from = n.op() != kQuantize;
    const bool to = n.op() != kDequantize;
    if (x.quant.has_value() != from) Say(Of(n) + (from ? " needs a quantized input" : " needs a float input"));
    if (y.quant.has_value() != to) Say(Of(n) + (to ? " needs a quantized output" : " needs a float output"));
    if (!from && !IsFloat(x.dtype)) Say(Of(n) + " needs a float input");
    if (!to && !IsFloat(y.dtype)) Say(Of(n) + " needs a float output");
  }

  std::vector<std::string> out_;
  std::unordered_set<const Graph*> graphs_;
  std::unordered_set<const Node*> nodes_;
  std::unordered_set<const Value*> values_;
  std::unordered_set<const Value*> defined_, seen_;
  std::unordered_map<const Value*, std::size_t> uses_, output_uses_;
};

}  // namespace

std::vector<std::string> Verify(const Model& model) { return Verifier().Run(model); }

void VerifyOrThrow(const Model& model, const std::string& when) {
  const std::vector<std::string> violations = Verify(model);
  if (!violations.empty()) ThrowInternal("the graph is broken after " + when + ": " + violations[0]);
}

}  // namespace octavo
