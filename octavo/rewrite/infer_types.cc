#include <algorithm>
#include <unordered_set>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/plain_session.h"
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

// Takes the nodes that hold subgraphs away, and all that needs them. False: there are none.
bool HideSubgraphs(Graph& graph) {
  std::unordered_set<const Node*> hidden;
  for (const Node* node : graph.nodes()) {
    const bool needs = std::any_of(node->inputs().begin(), node->inputs().end(), [&](const Value* v) {
      return v != nullptr && v->producer() != nullptr && hidden.count(v->producer()) > 0;
    });
    if (needs || !node->subgraphs().empty()) hidden.insert(node);
  }
  std::vector<Value*> kept;
  for (Value* v : graph.outputs()) {
    if (v->producer() == nullptr || hidden.count(v->producer()) == 0) kept.push_back(v);
  }
  while (!graph.outputs().empty()) graph.PopOutput();
  for (Value* v : kept) graph.AddOutput(v);
  graph.EraseDead();
  return !hidden.empty();
}

// What the runtime infers of `probe` goes to the values of `model`. Errors: the runtime's.
std::int64_t AskRuntime(const Model& probe, Model& model) {
  const Session session = PlainSession(probe);
  std::int64_t refined = 0;
  for (const IoSpec& spec : session.outputs()) {
    Value* value = model.graph->FindValue(spec.name);
    if (value == nullptr || value->kind() != ValueKind::kResult) continue;
    if (value->type.quant || !value->type.opaque.empty() || !spec.type.opaque.empty()) continue;
    if (value->is_graph_output() ? Refine(value->type, spec.type) : Replace(value->type, spec.type)) ++refined;
  }
  DeriveTypes(model);  // the runtime does not tell a scalar from a tensor of unknown rank
  return refined;
}

bool IsRefusal(const Error& error) {
  return error.code() == ExitCode::kBadInput || error.code() == ExitCode::kUnsupported;
}

}  // namespace

std::int64_t InferTypes(Model& model, bool quiet) {
  OrtVersion();  // a runtime that is missing is an error of its own, not a model that it refuses
  Model probe = Clone(model);
  ForgetTypes(*probe.graph);
  // The symbols that the model gives its results' dimensions would hide what they are.
  for (Value* value : probe.graph->outputs()) {
    if (value->type.opaque.empty() && !value->type.quant && !StaticShape(value->type)) value->type.shape.reset();
  }
  for (Node* node : probe.graph->nodes()) {
    if (node->domain() == kIrDomain) return 0;  // quantized: not an ONNX graph, and its types are known
    for (Value* value : node->outputs()) {
      if (value == nullptr || value->type.quant.has_value() || !value->type.opaque.empty()) continue;
      if (!value->is_graph_output()) probe.graph->AddOutput(value);
    }
  }
  try {
    return AskRuntime(probe, model);
  } catch (const Error& error) {
    if (!IsRefusal(error)) throw;
    // A branch that fixed dimensions rule out contradicts them, and the runtime refuses the model for it: what does not
    // come out of an If is known without it.
    if (HideSubgraphs(*probe.graph)) {
      try {
        return AskRuntime(probe, model);
      } catch (const Error& again) {
        if (!IsRefusal(again)) throw;
      }
    }
    if (quiet) return 0;
    LogWarning(std::string("the runtime cannot infer the types of this model, which leaves some of it as it is: ") +
               error.what());
  }
  return 0;
}

bool RuntimeAccepts(const Model& model, GraphOptimization optimization) {
  try {
    PlainSession(model, optimization);
    return true;
  } catch (const Error& error) {
    if (!IsRefusal(error)) throw;
    return false;
  }
}

void InferMissingTypes(Model& model, bool quiet) {
  for (const Node* node : model.graph->nodes()) {
    for (const Value* value : node->outputs()) {
      if (value == nullptr || value->type.quant || !value->type.opaque.empty()) continue;
      if (value->type.dtype == DType::kUndefined || !StaticShape(value->type)) {
        InferTypes(model, quiet);
        return;
      }
    }
  }
}

}  // namespace octavo
