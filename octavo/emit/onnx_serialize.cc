#include "octavo/emit/onnx_serialize.h"

#include <algorithm>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>

#include "octavo/base/error.h"

namespace octavo {
namespace {

// AttributeProto.AttributeType values.
enum : std::int64_t {
  kFloat = 1,
  kInt = 2,
  kString = 3,
  kTensor = 4,
  kGraph = 5,
  kFloats = 6,
  kInts = 7,
  kStrings = 8
};

class Serializer {
 public:
  explicit Serializer(const Placement& place) : place_(place) {}
  WireRope GraphProto(const Graph& graph, bool top) const;

 private:
  WireRope TensorProto(const std::string& name, const TensorRef& tensor, const Value* value, bool top) const;
  WireRope TypeProto(const Type& type) const;
  WireRope ValueInfoProto(const Value& value) const;
  WireRope NodeProto(const Node& node, const std::string& name) const;
  WireRope AttributeProto(const Attribute& attribute) const;

  const Placement& place_;
};

bool HasType(const Type& type) { return type.dtype != DType::kUndefined || !type.opaque.empty(); }

WireRope Serializer::TensorProto(const std::string& name, const TensorRef& tensor, const Value* value, bool top) const {
  WireRope out;
  for (std::int64_t dim : tensor.dims) out.Int(1, dim);
  out.Varint(2, static_cast<std::uint64_t>(tensor.dtype));
  if (!name.empty()) out.Text(8, name);
  if (tensor.dtype == DType::kString) {
    if (tensor.strings) {
      for (const std::string& text : *tensor.strings) out.Text(6, text);
    }
    return out;
  }
  std::optional<ExternalSlot> slot;
  if (top && value && tensor.bytes.size() >= kLargeTensorBytes) slot = place_(*value, tensor);
  if (slot) {
    const auto entry = [&](std::string_view key, std::string_view text) {
      WireRope pair;
      pair.Text(1, key);
      pair.Text(2, text);
      out.Message(13, std::move(pair));
    };
    entry("location", slot->location);
    entry("offset", std::to_string(slot->offset));
    entry("length", std::to_string(tensor.bytes.size()));
    out.Varint(14, 1);
  } else if (tensor.bytes.size() >= kLargeTensorBytes) {
    out.View(9, tensor.bytes, tensor.file.get());
  } else {
    out.Text(9, {reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size()});
  }
  return out;
}

WireRope Serializer::TypeProto(const Type& type) const {
  WireRope out;
  if (!type.opaque.empty()) {
    out.Raw(type.opaque);
    return out;
  }
  WireRope tensor;
  tensor.Varint(1, static_cast<std::uint64_t>(type.dtype));
  if (type.shape) {
    WireRope shape;
    for (const Dim& dim : *type.shape) {
      WireRope proto;
      if (dim.known()) {
        proto.Int(1, dim.value);
      } else if (!dim.symbol.empty()) {
        proto.Text(2, dim.symbol);
      }
      shape.Message(1, std::move(proto));
    }
    tensor.Message(2, std::move(shape));
  }
  out.Message(1, std::move(tensor));
  return out;
}

WireRope Serializer::ValueInfoProto(const Value& value) const {
  if (value.type.quant) ThrowInternal("quantized value in a model to be written", value.name());
  WireRope out;
  out.Text(1, value.name());
  if (HasType(value.type)) out.Message(2, TypeProto(value.type));
  if (!value.is_constant()) out.Raw(value.extras);  // a constant's extras are fields of its TensorProto
  return out;
}

WireRope Serializer::AttributeProto(const Attribute& attribute) const {
  WireRope out;
  if (const auto* opaque = std::get_if<OpaqueAttribute>(&attribute.value)) {
    out.Raw(opaque->bytes);
    return out;
  }
  out.Text(1, attribute.name);
  std::int64_t type = 0;
  if (const auto* i = std::get_if<std::int64_t>(&attribute.value)) {
    out.Int(3, *i);
    type = kInt;
  } else if (const auto* f = std::get_if<float>(&attribute.value)) {
    out.Float(2, *f);
    type = kFloat;
  } else if (const auto* s = std::get_if<std::string>(&attribute.value)) {
    out.Text(4, *s);
    type = kString;
  } else if (const auto* t = std::get_if<TensorRef>(&attribute.value)) {
    out.Message(5, TensorProto("", *t, nullptr, false));
    type = kTensor;
  } else if (const auto* g = std::get_if<std::unique_ptr<Graph>>(&attribute.value)) {
    out.Message(6, GraphProto(**g, false));
    type = kGraph;
  } else if (const auto* ints = std::get_if<std::vector<std::int64_t>>(&attribute.value)) {
    for (std::int64_t v : *ints) out.Int(8, v);
    type = kInts;
  } else if (const auto* floats = std::get_if<std::vector<float>>(&attribute.value)) {
    for (float v : *floats) out.Float(7, v);
    type = kFloats;
  } else if (const auto* strings = std::get_if<std::vector<std::string>>(&attribute.value)) {
    for (const std::string& v : *strings) out.Text(9, v);
    type = kStrings;
  }
  out.Int(20, type);
  return out;
}

WireRope Serializer::NodeProto(const Node& node, const std::string& name) const {
  if (node.domain() == kIrDomain) {
    ThrowInternal("operator of the IR in a model to be written", "node '" + node.name + "' (" + node.op() + ")");
  }
  WireRope out;
  for (const Value* input : node.inputs()) out.Text(1, input ? input->name() : "");
  for (const Value* output : node.outputs()) out.Text(2, output ? output->name() : "");
  if (!name.empty()) out.Text(3, name);
  out.Text(4, node.op());
  if (!node.domain().empty()) out.Text(7, node.domain());
  if (!node.overload.empty()) out.Text(8, node.overload);
  for (const Attribute& attribute : node.attributes()) out.Message(5, AttributeProto(attribute));
  out.Raw(node.extras);
  return out;
}

WireRope Serializer::GraphProto(const Graph& graph, bool top) const {
  WireRope out;
  // ONNX Runtime refuses a graph with two nodes of one name. What a pass names after a value may meet a node of the
  // source that has this name already.
  std::unordered_map<std::string, int> names;
  for (const Node* node = graph.first(); node; node = node->next()) names.emplace(node->name, 0);
  for (const Node* node = graph.first(); node; node = node->next()) {
    std::string name = node->name;
    if (int& used = names.at(name); !name.empty() && used++ > 0) {
      int suffix = used;
      while (!names.emplace(node->name + "_" + std::to_string(suffix), 1).second) ++suffix;
      name += "_" + std::to_string(suffix);
    }
    out.Message(1, NodeProto(*node, name));
  }
  if (!graph.name.empty()) out.Text(2, graph.name);
  const auto initializer = [&](const Value& value) {
    WireRope tensor = TensorProto(value.name(), *value.data, &value, top);
    if (value.is_constant()) tensor.Raw(value.extras);
    out.Message(5, std::move(tensor));
  };
  for (const Value* value : graph.constants()) {
    if (value->type.quant) ThrowInternal("quantized value in a model to be written", value->name());
    initializer(*value);
  }
  for (const Value* input : graph.inputs()) {
    if (input->data) initializer(*input);
  }
  for (const Value* input : graph.inputs()) out.Message(11, ValueInfoProto(*input));
  for (const Value* output : graph.outputs()) out.Message(12, ValueInfoProto(*output));
  for (const Node* node = graph.first(); node; node = node->next()) {
    for (const Value* value : node->outputs()) {
      if (!value || value->is_graph_output() || !(HasType(value->type) || !value->extras.empty())) continue;
      out.Message(13, ValueInfoProto(*value));
    }
  }
  out.Raw(graph.extras);
  return out;
}

std::int64_t IrVersionOf(DType dtype) {
  switch (dtype) {
    case DType::kF8E4M3FN:
    case DType::kF8E4M3FNUZ:
    case DType::kF8E5M2:
    case DType::kF8E5M2FNUZ:
      return 9;
    case DType::kU4:
    case DType::kS4:
      return 10;
    case DType::kF4E2M1:
      return 11;
    case DType::kF8E8M0:
      return 12;
    case DType::kU2:
    case DType::kS2:
      return 13;
    default:
      return 4;
  }
}

std::int64_t MinIrVersionOf(const Graph& graph) {
  std::int64_t version = 4;
  const auto see = [&](DType dtype) { version = std::max(version, IrVersionOf(dtype)); };
  for (const Value* value : graph.constants()) see(value->data->dtype);
  for (const Value* value : graph.inputs()) see(value->type.dtype);
  for (const Node* node = graph.first(); node; node = node->next()) {
    for (const Value* value : node->outputs()) {
      if (value) see(value->type.dtype);
    }
    for (const Attribute& attribute : node->attributes()) {
      if (const auto* t = std::get_if<TensorRef>(&attribute.value)) see(t->dtype);
      if (const auto* g = std::get_if<std::unique_ptr<Graph>>(&attribute.value)) {
        version = std::max(version, MinIrVersionOf(**g));
      }
    }
  }
  return version;
}

}  // namespace

std::int64_t MinIrVersion(const Model& model) { return MinIrVersionOf(*model.graph); }

WireRope SerializeModel(const Model& model, const Placement& place) {
  WireRope out;
  out.Int(1, std::max(model.ir_version, MinIrVersion(model)));
  out.Raw(model.extras);
  std::set<std::string> missing;
  VisitNodes(*model.graph, [&](const Node& node) {
    if (model.OpsetVersion(node.domain()) == 0) missing.insert(node.domain());
  });
  if (missing.contains("")) ThrowInternal("model to be written imports no default operator set", model.source);
  const auto opset = [&](const std::string& domain, std::int64_t version) {
    WireRope import;
    import.Text(1, domain);
    import.Int(2, version);
    out.Message(8, std::move(import));
  };
  for (const OpsetImport& import : model.opsets) opset(import.domain, import.version);
  for (const std::string& domain : missing) opset(domain, 1);
  for (const auto& [key, value] : model.metadata) {
    WireRope pair;
    pair.Text(1, key);
    pair.Text(2, value);
    out.Message(14, std::move(pair));
  }
  for (const std::string& function : model.functions) out.Text(25, function);
  out.Message(7, Serializer(place).GraphProto(*model.graph, true));
  return out;
}

}  // namespace octavo
