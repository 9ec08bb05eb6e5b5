#include "octavo/build/load_check.h"

#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/emit/onnx.h"

namespace octavo {
namespace {

constexpr std::size_t kLargeGraph = 5000;  // nodes

std::size_t CountNodes(const Model& model) {
  std::size_t count = 0;
  VisitNodes(static_cast<const Graph&>(*model.graph), [&](const Node&) { ++count; });
  return count;
}

std::string Kind(const Node& node);

struct KindOfAttribute {
  std::string operator()(std::int64_t v) const { return std::to_string(v); }
  std::string operator()(float v) const { return std::to_string(v); }
  std::string operator()(const std::string& v) const { return v; }
  std::string operator()(const TensorRef& v) const { return ToString(TypeOf(v)); }
  template <class T>
  std::string operator()(const std::vector<T>& list) const {
    std::string text;
    for (const T& v : list) text += (*this)(v) + ",";
    return text;
  }
  std::string operator()(const std::unique_ptr<Graph>& body) const {
    std::string text;
    for (const Node* node = body->first(); node != nullptr; node = node->next()) text += Kind(*node) + "\n";
    return text;
  }
  std::string operator()(const OpaqueAttribute& v) const { return v.bytes; }
};

std::string Kind(const Node& node) {
  std::string text = node.domain() + ":" + node.op() + ":" + node.overload;
  for (const Attribute& attribute : node.attributes()) {
    text += " " + attribute.name + "=" + std::visit(KindOfAttribute(), attribute.value);
  }
  for (const Value* v : node.inputs()) {
    text += v == nullptr ? " -" : v->is_constant() ? " " + ToString(v->type) : " " + std::string(Name(v->type.dtype));
  }
  text += " ->";
  for (const Value* v : node.outputs()) text += v == nullptr ? " -" : " " + std::string(Name(v->type.dtype));
  return text;
}

// Values of the main graph that the node reads, itself or in its subgraphs.
template <class Visit>
void VisitReads(const Node& node, const Graph& graph, Visit visit) {
  const auto reads = [&](const Node& reader) {
    for (Value* v : reader.inputs()) {
      if (v != nullptr && v->graph() == &graph) visit(v);
    }
  };
  reads(node);
  for (const Graph* body : node.subgraphs()) {
    VisitNodes(*body, reads);
    for (Value* v : body->outputs()) {
      if (v->graph() == &graph) visit(v);
    }
  }
}

// One node of each kind; what the others would compute is an input.
Model OneOfEachKind(const Model& model) {
  Model probe = Clone(model);
  Graph& graph = *probe.graph;
  const std::vector<Node*> nodes = graph.nodes();
  std::unordered_set<std::string> kinds;
  std::unordered_set<const Node*> kept;
  for (const Node* node : nodes) {
    if (kinds.insert(Kind(*node)).second) kept.insert(node);
  }
  for (std::size_t i = nodes.size(); i-- > 0;) {  // a value without a type cannot be an input
    if (!kept.contains(nodes[i])) continue;
    VisitReads(*nodes[i], graph, [&](const Value* v) {
      if (v->producer() != nullptr && v->type.dtype == DType::kUndefined) kept.insert(v->producer());
    });
  }
  while (!graph.outputs().empty()) graph.PopOutput();
  for (std::size_t i = nodes.size(); i-- > 0;) {
    const bool keep = kept.contains(nodes[i]);
    for (Value* v : nodes[i]->outputs()) {
      if (v == nullptr) continue;
      if (keep && v->dead()) graph.AddOutput(v);
      if (keep || v->dead()) continue;
      Type type;  // of its shape only what the runtime infers is sure
      type.dtype = v->type.dtype;
      graph.ReplaceAllUses(v, graph.AddInput({}, std::move(type)));
    }
    if (!keep) graph.Erase(nodes[i]);
  }
  graph.EraseDead();
  return probe;
}

}  // namespace

Session OpenModel(const Model& model, GraphOptimization optimization, int threads) {
  OnnxSkeleton skeleton = SerializeSkeleton(model);
  SessionOptions options;
  options.optimization = optimization;
  options.intra_op_threads = threads;
  return Session(skeleton.bytes, std::move(skeleton.externals), options);
}

std::size_t CheckLoads(const Model& model) {
  const std::size_t count = CountNodes(model);
  if (count <= kLargeGraph) {
    OpenModel(model, GraphOptimization::kAll, 1);
    return count;
  }
  try {
    const Model probe = OneOfEachKind(model);
    const std::size_t kinds = CountNodes(probe);
    if (kinds <= kLargeGraph) {
      OpenModel(probe, GraphOptimization::kAll, 1);
      return kinds;
    }
  } catch (const Error& error) {
    if (error.code() != ExitCode::kBadInput && error.code() != ExitCode::kUnsupported) throw;
  }
  OpenModel(model, GraphOptimization::kNone, 1);
  return count;
}

}  // namespace octavo
