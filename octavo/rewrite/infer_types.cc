#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/emit/onnx.h"
#include "octavo/rewrite/passes.h"
#include "octavo/runtime/session.h"

namespace octavo {
namespace {

// A graph output's declaration is part of the interface: it stands, and what it does not say is taken from `found`.
bool Refine(Type& type, const Type& found) {
  bool changed = false;
  if (type.dtype == DType::kUndefined && found.dtype != DType::kUndefined) {
    type.dtype = found.dtype;
    changed = true;
  }
  if (!found.shape.has_value()) return changed;
  if (!type.shape.has_value()) {
    type.shape = found.shape;
    return true;
  }
  if (type.shape->size() != found.shape->size()) return changed;
  for (std::size_t i = 0; i < type.shape->size(); ++i) {
    Dim& dim = (*type.shape)[i];
    if (!dim.known() && (*found.shape)[i].known()) {
      dim = (*found.shape)[i];
      changed = true;
    }
  }
  return changed;
}

// What a model says of a value inside (value_info) is a note of its exporter: editors leave it behind, and the runtime
// goes by its own inference. So does this; of the note only the names of unknown dimensions stay.
bool Replace(Type& type, const Type& found) {
  Type now = type;
  if (found.dtype != DType::kUndefined) now.dtype = found.dtype;
  now.shape = found.shape;
  bool changed = now.dtype != type.dtype || now.shape.has_value() != type.shape.has_value();
  if (now.shape.has_value() && type.shape.has_value()) {
    const bool same_rank = now.shape->size() == type.shape->size();
    changed = changed || !same_rank;
    for (std::size_t i = 0; same_rank && i < now.shape->size(); ++i) {
      Dim& dim = (*now.shape)[i];
      const Dim& noted = (*type.shape)[i];
      changed = changed || dim.value != noted.value;
      if (!dim.known() && !noted.known()) dim = noted;
    }
  }
  type = std::move(now);
  return changed;
}

// Forgets what the model says of the values inside, those of subgraphs too.
void ForgetTypes(Graph& graph) {
  VisitNodes(graph, [](Node& node) {
    for (Value* value : node.outputs()) {
      if (value == nullptr || value->is_graph_output() || value->type.quant || !value->type.opaque.empty()) continue;
      value->type = Type{};
    }
  });
}

}  // namespace

std::int64_t InferTypes(Model& model) {
  OrtVersion();  // a runtime that is missing is an error of its own, not a model that it refuses
  Model probe = Clone(model);
  ForgetTypes(*probe.graph);
  // The symbols that the model gives its results' dimensions would hide what they are.
  for (Value* value : probe.graph->outputs()) {
    if (value->type.opaque.empty() && !value->type.quant && !StaticShape(value->type)) value->type.shape.reset();
  }
  std::vector<std::string> names;
  for (Node* node : probe.graph->nodes()) {
    if (node->domain() == kIrDomain) return 0;  // quantized: not an ONNX graph, and its types are known
    for (Value* value : node->outputs()) {
      if (value == nullptr || value->type.quant.has_value() || !value->type.opaque.empty()) continue;
      if (!value->is_graph_output()) probe.graph->AddOutput(value);
    }
  }
  SessionOptions options;
  options.optimization = GraphOptimization::kNone;
  options.intra_op_threads = 1;
  options.disable_prepacking = true;  // weights are not touched: they stay mapped
  options.arena = false;
  std::int64_t refined = 0;
  try {
    OnnxSkeleton skeleton = SerializeSkeleton(probe);
    const Session session(skeleton.bytes, std::move(skeleton.externals), options);
    for (const IoSpec& spec : session.outputs()) {
      Value* value = model.graph->FindValue(spec.name);
      if (value == nullptr || value->kind() != ValueKind::kResult) continue;
      if (value->type.quant || !value->type.opaque.empty() || !spec.type.opaque.empty()) continue;
      if (value->is_graph_output() ? Refine(value->type, spec.type) : Replace(value->type, spec.type)) ++refined;
    }
  } catch (const Error& error) {
    if (error.code() != ExitCode::kBadInput && error.code() != ExitCode::kUnsupported) throw;
    LogWarning(std::string("the runtime cannot infer the types of this model, which leaves some of it as it is: ") +
               error.what());
  }
  return refined;
}

void InferMissingTypes(Model& model) {
  for (const Node* node : model.graph->nodes()) {
    for (const Value* value : node->outputs()) {
      if (value == nullptr || value->type.quant || !value->type.opaque.empty()) continue;
      if (value->type.dtype == DType::kUndefined || !StaticShape(value->type)) {
        InferTypes(model);
        return;
      }
    }
  }
}

}  // namespace octavo
