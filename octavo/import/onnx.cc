#include "octavo/import/onnx.h"

#include <algorithm>
#include <limits>
#include <map>
#include <unordered_map>
#include <utility>

#include "octavo/import/onnx_bytes.h"
#include "octavo/import/onnx_tensor.h"
#include "octavo/import/project_ops.h"
#include "octavo/import/wire.h"

namespace octavo {
namespace {

constexpr int kMaxNesting = 64;
constexpr std::int64_t kMinOpset = 7;
// Field number of ValueInfoProto.type and TypeProto.denotation.
constexpr std::uint32_t kValueInfoType = 2;

std::string NormalDomain(std::string_view domain) { return domain == "ai.onnx" ? std::string() : std::string(domain); }

// AttributeProto.AttributeType, onnx.proto.
enum AttributeType : std::int64_t {
  kUndefinedAttribute = 0,
  kFloatAttribute = 1,
  kIntAttribute = 2,
  kStringAttribute = 3,
  kTensorAttribute = 4,
  kGraphAttribute = 5,
  kFloatsAttribute = 6,
  kIntsAttribute = 7,
  kStringsAttribute = 8,
  kTensorsAttribute = 9,
  kGraphsAttribute = 10,
};

struct RawAttribute {
  std::string name;
  std::int64_t type = kUndefinedAttribute;
  std::optional<std::int64_t> i;
  std::optional<float> f;
  std::optional<std::string_view> s;
  std::optional<std::span<const std::byte>> t, g;
  std::vector<float> floats;
  std::vector<std::int64_t> ints;
  std::vector<std::string> strings;
  bool reference = false;
  bool graphs = false;
  bool other = false;
  std::span<const std::byte> bytes;
};

struct RawNode {
  Node* node;
  std::vector<std::string_view> inputs;
  std::vector<std::span<const std::byte>> attributes;
};

struct ValueInfo {
  std::string name;
  Type type;
  std::string extras;
};

struct Initializer {
  OnnxTensor tensor;
  bool used = false;
};

class Importer {
 public:
  Importer(const TensorSource& source) : source_(source), context_(source.context) {}

  Model Run(std::span<const std::byte> bytes);

 private:
  [[noreturn]] void Bad(std::string what, const std::string& where, std::string how = {}) const {
    ThrowBadInput(std::move(what), context_.name + (where.empty() ? "" : ", " + where), std::move(how));
  }

  void ReadGraph(std::span<const std::byte> bytes, Graph& graph, int depth);
  void ReadValues(Graph& graph, std::span<const std::span<const std::byte>> initializers,
                  std::span<const std::span<const std::byte>> inputs);
  std::optional<RawNode> ReadNode(std::span<const std::byte> bytes, Graph& graph);
  void ConnectNode(const RawNode& raw, Graph& graph, int depth);
  RawAttribute ReadAttribute(std::span<const std::byte> bytes, const std::string& where) const;
  AttributeValue Convert(RawAttribute raw, Graph& graph, int depth, const std::string& where);
  std::optional<TensorRef> ConstantData(const std::vector<std::span<const std::byte>>& attributes,
                                        const std::string& where);
  ValueInfo ReadValueInfo(std::span<const std::byte> bytes) const;
  Type ReadType(std::span<const std::byte> bytes, std::string& denotation) const;
  std::optional<std::vector<Dim>> ReadShape(std::span<const std::byte> bytes) const;
  void CheckFree(const Graph& graph, const std::string& name, const char* what) const;

  const TensorSource& source_;
  const WireContext& context_;
  Model model_;
  bool uses_default_domain_ = false;
};

std::optional<std::vector<Dim>> Importer::ReadShape(std::span<const std::byte> bytes) const {
  std::vector<Dim> dims;
  WireReader reader(bytes, context_);
  for (WireField field; reader.Next(field);) {
    if (field.number != 1) continue;
    reader.Expect(field, WireType::kBytes);
    Dim dim;
    WireReader inner(field.bytes, context_);
    for (WireField part; inner.Next(part);) {
      if (part.number == 1) {
        inner.Expect(part, WireType::kVarint);
        // A negative size is what several exporters write for "unknown".
        dim = {std::max<std::int64_t>(part.Int(), -1), ""};
      } else if (part.number == 2) {
        inner.Expect(part, WireType::kBytes);
        dim = {-1, std::string(part.Text())};
      }
    }
    if (dims.size() == kMaxTensorRank) Bad("shape of more than 64 dimensions", "a value's type");
    dims.push_back(std::move(dim));
  }
  return dims;
}

// A tensor type becomes dtype and shape; every other type stays the serialized TypeProto.
Type Importer::ReadType(std::span<const std::byte> bytes, std::string& denotation) const {
  Type type;
  const std::string_view whole(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  WireReader reader(bytes, context_);
  for (WireField field; reader.Next(field);) {
    if (field.number == 6) {
      denotation = std::string(field.Whole());
    } else if (field.number == 1) {
      reader.Expect(field, WireType::kBytes);
      WireReader tensor(field.bytes, context_);
      for (WireField part; tensor.Next(part);) {
        if (part.number == 1) {
          tensor.Expect(part, WireType::kVarint);
          if (part.scalar >= kDTypeCount) {
            denotation.clear();
            return Type{.dtype = DType::kUndefined, .shape = {}, .quant = {}, .opaque = std::string(whole)};
          }
          type.dtype = static_cast<DType>(part.scalar);
        } else if (part.number == 2) {
          tensor.Expect(part, WireType::kBytes);
          type.shape = ReadShape(part.bytes);
        }
      }
    } else {
      denotation.clear();
      return Type{.dtype = DType::kUndefined, .shape = {}, .quant = {}, .opaque = std::string(whole)};
    }
  }
  return type;
}

ValueInfo Importer::ReadValueInfo(std::span<const std::byte> bytes) const {
  ValueInfo info;
  WireReader reader(bytes, context_);
  for (WireField field; reader.Next(field);) {
    if (field.number == 1) {
      reader.Expect(field, WireType::kBytes);
      info.name = std::string(field.Text());
    } else if (field.number == kValueInfoType) {
      reader.Expect(field, WireType::kBytes);
      std::string denotation;
      Type part = ReadType(field.bytes, denotation);
      if (part.dtype != DType::kUndefined || part.shape || !part.opaque.empty()) info.type = std::move(part);
      // Protobuf merges a message field given twice: a second `type` that holds just the denotation is how it survives.
      if (!denotation.empty() && denotation.size() < 0x80) {
        info.extras += {static_cast<char>(kValueInfoType << 3 | 2), static_cast<char>(denotation.size())};
        info.extras += denotation;
      }
    } else {
      info.extras += field.Whole();
    }
  }
  return info;
}

void Importer::CheckFree(const Graph& graph, const std::string& name, const char* what) const {
  if (name.empty()) Bad(std::string(what) + " without a name", "graph '" + graph.name + "'");
  if (graph.Lookup(name)) {
    Bad("name defined twice", std::string(what) + " '" + name + "'", "every value needs a name of its own (SSA form)");
  }
}

void Importer::ReadValues(Graph& graph, std::span<const std::span<const std::byte>> initializers,
                          std::span<const std::span<const std::byte>> inputs) {
  std::vector<Initializer> tensors;
  std::unordered_map<std::string, std::size_t> by_name;
  tensors.reserve(initializers.size());
  for (const auto& bytes : initializers) {
    tensors.push_back({ReadOnnxTensor(bytes, source_, "initializer"), false});
    const std::string& name = tensors.back().tensor.name;
    if (name.empty()) Bad("initializer without a name", "graph '" + graph.name + "'");
    if (!by_name.emplace(name, tensors.size() - 1).second) {
      Bad("name defined twice", "initializer '" + name + "'", "every value needs a name of its own (SSA form)");
    }
  }
  for (const auto& bytes : inputs) {
    ValueInfo info = ReadValueInfo(bytes);
    const auto found = by_name.find(info.name);
    // Before IR version 4 every initializer had to be listed as an input; it was not meant to be overridden.
    if (found != by_name.end() && model_.ir_version < 4) continue;
    CheckFree(graph, info.name, "graph input");
    Value* value = graph.AddInput(info.name, std::move(info.type));
    value->extras = std::move(info.extras);
    if (found != by_name.end()) {
      value->data = std::move(tensors[found->second].tensor.data);
      tensors[found->second].used = true;
    }
  }
  for (Initializer& initializer : tensors) {
    if (initializer.used) continue;
    CheckFree(graph, initializer.tensor.name, "initializer");
    Value* value = graph.AddConstant(initializer.tensor.name, std::move(initializer.tensor.data));
    value->extras = std::move(initializer.tensor.extras);
  }
}

RawAttribute Importer::ReadAttribute(std::span<const std::byte> bytes, const std::string& where) const {
  RawAttribute raw;
  raw.bytes = bytes;
  WireReader reader(bytes, context_);
  for (WireField field; reader.Next(field);) {
    const auto expect = [&](WireType type) { reader.Expect(field, type); };
    switch (field.number) {
      case 1:
        expect(WireType::kBytes);
        raw.name = std::string(field.Text());
        break;
      case 2:
        expect(WireType::kFixed32);
        raw.f = field.Float();
        break;
      case 3:
        expect(WireType::kVarint);
        raw.i = field.Int();
        break;
      case 4:
        expect(WireType::kBytes);
        raw.s = field.Text();
        break;
      case 5:
        expect(WireType::kBytes);
        raw.t = field.bytes;
        break;
      case 6:
        expect(WireType::kBytes);
        raw.g = field.bytes;
        break;
      case 7:
        reader.ForEach(field, WireType::kFixed32, [&](std::uint64_t v) {
          raw.floats.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(v)));
        });
        break;
      case 8:
        reader.ForEach(field, WireType::kVarint,
                       [&](std::uint64_t v) { raw.ints.push_back(static_cast<std::int64_t>(v)); });
        break;
      case 9:
        expect(WireType::kBytes);
        raw.strings.emplace_back(field.Text());
        break;
      case 11:
        raw.graphs = true;
        break;
      case 13:
        break;  // doc_string of an attribute: says nothing to any runtime
      case 20:
        expect(WireType::kVarint);
        raw.type = field.Int();
        break;
      case 21:
        expect(WireType::kBytes);
        raw.reference = !field.bytes.empty();
        break;
      default:
        raw.other = true;
    }
  }
  if (raw.name.empty()) Bad("attribute without a name", where);
  if (raw.type == kUndefinedAttribute) {
    // IR version 1 had no type field; the value that is there tells.
    if (raw.f) raw.type = kFloatAttribute;
    if (raw.i) raw.type = kIntAttribute;
    if (raw.s) raw.type = kStringAttribute;
    if (raw.t) raw.type = kTensorAttribute;
    if (raw.g) raw.type = kGraphAttribute;
    if (!raw.floats.empty()) raw.type = kFloatsAttribute;
    if (!raw.ints.empty()) raw.type = kIntsAttribute;
    if (!raw.strings.empty()) raw.type = kStringsAttribute;
  }
  return raw;
}

AttributeValue Importer::Convert(RawAttribute raw, Graph& graph, int depth, const std::string& where) {
  const std::string at = where + ", attribute '" + raw.name + "'";
  if (!raw.reference) {
    switch (raw.type) {
      case kFloatAttribute:
        return raw.f.value_or(0.0f);
      case kIntAttribute:
        return raw.i.value_or(0);
      case kStringAttribute:
        return std::string(raw.s.value_or(""));
      case kTensorAttribute:
        if (!raw.t) Bad("tensor attribute without a tensor", at);
        return ReadOnnxTensor(*raw.t, source_, at).data;
      case kGraphAttribute: {
        if (!raw.g) Bad("graph attribute without a graph", at);
        if (depth + 1 > kMaxNesting) Bad("subgraphs nested more than 64 deep", at);
        auto child = std::make_unique<Graph>(&graph);
        ReadGraph(*raw.g, *child, depth + 1);
        return child;
      }
      case kFloatsAttribute:
        return std::move(raw.floats);
      case kIntsAttribute:
        return std::move(raw.ints);
      case kStringsAttribute:
        return std::move(raw.strings);
      case kGraphsAttribute:
        ThrowUnsupported("attribute with a list of graphs", context_.name + ", " + at,
                         "octavo reads single subgraphs only");
      default:
        break;
    }
  }
  if (raw.graphs) {
    ThrowUnsupported("attribute with a list of graphs", context_.name + ", " + at,
                     "octavo reads single subgraphs only");
  }
  return OpaqueAttribute{std::string(reinterpret_cast<const char*>(raw.bytes.data()), raw.bytes.size())};
}

// The tensor of a Constant node; nullopt for the forms that stay a node (sparse_value, references).
std::optional<TensorRef> Importer::ConstantData(const std::vector<std::span<const std::byte>>& attributes,
                                                const std::string& where) {
  for (const auto& bytes : attributes) {
    RawAttribute raw = ReadAttribute(bytes, where);
    if (raw.reference) return std::nullopt;
    if (raw.name == "value" && raw.t) return ReadOnnxTensor(*raw.t, source_, where).data;
    if (raw.name == "value_float" && raw.f) return TensorRef::Scalar(*raw.f);
    if (raw.name == "value_int" && raw.i) return TensorRef::FromInts(DType::kS64, {}, {&*raw.i, 1});
    if (raw.name == "value_floats" && raw.type == kFloatsAttribute) {
      return TensorRef::FromFloats({static_cast<std::int64_t>(raw.floats.size())}, raw.floats);
    }
    if (raw.name == "value_ints" && raw.type == kIntsAttribute) {
      return TensorRef::FromInts(DType::kS64, {static_cast<std::int64_t>(raw.ints.size())}, raw.ints);
    }
    if (raw.name == "value_string" && raw.s) {
      TensorRef tensor;
      tensor.dtype = DType::kString;
      tensor.strings = std::make_shared<std::vector<std::string>>(1, std::string(*raw.s));
      return tensor;
    }
    if (raw.name == "value_strings" && raw.type == kStringsAttribute) {
      TensorRef tensor;
      tensor.dtype = DType::kString;
      tensor.dims = {static_cast<std::int64_t>(raw.strings.size())};
      tensor.strings = std::make_shared<std::vector<std::string>>(std::move(raw.strings));
      return tensor;
    }
  }
  return std::nullopt;
}

// Creates the node with its outputs; inputs and attributes follow when all values of the graph exist. A Constant node
// becomes a constant instead (nullopt).
std::optional<RawNode> Importer::ReadNode(std::span<const std::byte> bytes, Graph& graph) {
  RawNode raw{};
  std::vector<Graph::OutputSpec> outputs;
  std::string name, op, domain, overload, extras;
  WireReader reader(bytes, context_);
  for (WireField field; reader.Next(field);) {
    if (field.number <= 8 && field.number != 6) reader.Expect(field, WireType::kBytes);
    switch (field.number) {
      case 1:
        raw.inputs.push_back(field.Text());
        break;
      case 2:
        outputs.push_back({std::string(field.Text()), {}});
        break;
      case 3:
        name = std::string(field.Text());
        break;
      case 4:
        op = std::string(field.Text());
        break;
      case 5:
        raw.attributes.push_back(field.bytes);
        break;
      case 7:
        domain = NormalDomain(field.Text());
        break;
      case 8:
        overload = std::string(field.Text());
        break;
      default:
        extras += field.Whole();
    }
  }
  const std::string where = "node '" + name + "' (" + op + ")";
  if (op.empty()) Bad("node without an operator", where);
  if (domain == kIrDomain) Bad("operator of the reserved domain 'octavo.ir'", where);
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].name.empty()) continue;
    CheckFree(graph, outputs[i].name, "output of a node");
    for (std::size_t k = 0; k < i; ++k) {
      if (outputs[k].name == outputs[i].name) Bad("name defined twice", where + ", output '" + outputs[i].name + "'");
    }
  }
  if (op == "Constant" && domain.empty() && outputs.size() == 1 && !outputs[0].name.empty()) {
    if (std::optional<TensorRef> data = ConstantData(raw.attributes, where)) {
      graph.AddConstant(outputs[0].name, std::move(*data));
      return std::nullopt;
    }
  }
  uses_default_domain_ |= domain.empty();
  raw.node = graph.AddNode(std::move(op), std::move(domain), {}, std::move(outputs));
  raw.node->name = std::move(name);
  raw.node->overload = std::move(overload);
  raw.node->extras = std::move(extras);
  return raw;
}

void Importer::ConnectNode(const RawNode& raw, Graph& graph, int depth) {
  Node* node = raw.node;
  const std::string where = "node '" + node->name + "' (" + node->op() + ")";
  for (std::size_t i = 0; i < raw.inputs.size(); ++i) {
    if (raw.inputs[i].empty()) continue;  // an absent optional input
    Value* value = graph.Lookup(raw.inputs[i]);
    if (!value) {
      Bad("undefined value", where + ", input '" + std::string(raw.inputs[i]) + "'",
          "no input, initializer or node output has that name");
    }
    node->SetInput(i, value);
  }
  for (const auto& bytes : raw.attributes) {
    RawAttribute attribute = ReadAttribute(bytes, where);
    if (node->FindAttribute(attribute.name))
      Bad("attribute given twice", where + ", attribute '" + attribute.name + "'");
    std::string name = attribute.name;
    node->SetAttribute(std::move(name), Convert(std::move(attribute), graph, depth, where));
  }
}

void Importer::ReadGraph(std::span<const std::byte> bytes, Graph& graph, int depth) {
  std::vector<std::span<const std::byte>> nodes, initializers, inputs, outputs, infos;
  WireReader reader(bytes, context_);
  for (WireField field; reader.Next(field);) {
    std::vector<std::span<const std::byte>>* list = nullptr;
    switch (field.number) {
      case 1:
        list = &nodes;
        break;
      case 2:
        reader.Expect(field, WireType::kBytes);
        graph.name = std::string(field.Text());
        break;
      case 5:
        list = &initializers;
        break;
      case 11:
        list = &inputs;
        break;
      case 12:
        list = &outputs;
        break;
      case 13:
        list = &infos;
        break;
      case 15:
        ThrowUnsupported("sparse initializer", context_.name + ", graph '" + graph.name + "'",
                         "store it as a dense initializer");
      default:
        graph.extras += field.Whole();
    }
    if (list) {
      reader.Expect(field, WireType::kBytes);
      list->push_back(field.bytes);
    }
  }
  ReadValues(graph, initializers, inputs);
  std::vector<RawNode> pending;
  pending.reserve(nodes.size());
  for (const auto& node : nodes) {
    if (std::optional<RawNode> raw = ReadNode(node, graph)) pending.push_back(std::move(*raw));
  }
  for (const RawNode& raw : pending) ConnectNode(raw, graph, depth);
  const auto attach = [](Value& value, ValueInfo&& info) {
    if (value.kind() != ValueKind::kResult) return;  // an input or a constant has its type already
    value.type = std::move(info.type);
    value.extras = std::move(info.extras);
  };
  for (const auto& span : infos) {
    ValueInfo info = ReadValueInfo(span);
    if (Value* value = graph.FindValue(info.name)) attach(*value, std::move(info));
  }
  for (const auto& span : outputs) {
    ValueInfo info = ReadValueInfo(span);
    Value* value = graph.FindValue(info.name);
    if (!value) {
      Bad("undefined graph output", "graph '" + graph.name + "', output '" + info.name + "'",
          depth > 0 && graph.Lookup(info.name) ? "a subgraph must pass an outer value through an Identity"
                                               : "no input, initializer or node output has that name");
    }
    // A subgraph's outputs are often listed without a type; what value_info said then stays.
    if (info.type.dtype != DType::kUndefined || info.type.shape || !info.type.opaque.empty() || !info.extras.empty()) {
      attach(*value, std::move(info));
    }
    graph.AddOutput(value);
  }
  if (depth == 0) graph.SortTopologically();  // sorts the subgraphs too
}

Model Importer::Run(std::span<const std::byte> bytes) {
  std::optional<std::span<const std::byte>> graph;
  WireReader reader(bytes, context_);
  for (WireField field; reader.Next(field);) {
    switch (field.number) {
      case 1:
        reader.Expect(field, WireType::kVarint);
        model_.ir_version = field.Int();
        break;
      case 7:
        reader.Expect(field, WireType::kBytes);
        if (graph) Bad("model with two graphs", "");
        graph = field.bytes;
        break;
      case 8: {
        reader.Expect(field, WireType::kBytes);
        OpsetImport opset{"", 0};
        WireReader inner(field.bytes, context_);
        for (WireField part; inner.Next(part);) {
          if (part.number == 1) {
            inner.Expect(part, WireType::kBytes);
            opset.domain = NormalDomain(part.Text());
          } else if (part.number == 2) {
            inner.Expect(part, WireType::kVarint);
            opset.version = part.Int();
          }
        }
        for (const OpsetImport& other : model_.opsets) {
          if (other.domain == opset.domain) Bad("operator set imported twice", "domain '" + opset.domain + "'");
        }
        model_.opsets.push_back(std::move(opset));
        break;
      }
      case 14: {
        reader.Expect(field, WireType::kBytes);
        std::string key, value;
        WireReader inner(field.bytes, context_);
        for (WireField part; inner.Next(part);) {
          if (part.number == 1 || part.number == 2) inner.Expect(part, WireType::kBytes);
          if (part.number == 1) key = std::string(part.Text());
          if (part.number == 2) value = std::string(part.Text());
        }
        model_.metadata[key] = std::move(value);
        break;
      }
      case 25: {
        reader.Expect(field, WireType::kBytes);
        std::string name, domain, overload;
        WireReader inner(field.bytes, context_);
        for (WireField part; inner.Next(part);) {
          if (part.number == 1 || part.number == 10 || part.number == 13) inner.Expect(part, WireType::kBytes);
          if (part.number == 1) name = std::string(part.Text());
          if (part.number == 10) domain = NormalDomain(part.Text());
          if (part.number == 13) overload = std::string(part.Text());
        }
        model_.functions.emplace_back(field.Text());
        model_.function_ids.push_back(domain + ":" + name + (overload.empty() ? "" : ":" + overload));
        break;
      }
      default:
        model_.extras += field.Whole();
    }
  }
  if (!graph) Bad("no graph in the model", "", "the file is not an ONNX model");
  if (model_.ir_version < 1) Bad("no ir_version in the model", "", "the file is not an ONNX model");
  for (const OpsetImport& opset : model_.opsets) {
    if (!opset.domain.empty()) continue;
    if (opset.version < kMinOpset) {
      ThrowUnsupported("operator set " + std::to_string(opset.version), context_.name,
                       "octavo reads operator set 7 and newer; convert the model with onnx.version_converter");
    }
  }
  model_.graph = std::make_unique<Graph>();
  ReadGraph(*graph, *model_.graph, 0);
  if (uses_default_domain_ && model_.OpsetVersion() == 0) {
    Bad("the model imports no operator set of the default domain", "");
  }
  CheckProjectOps(model_, context_.name);
  model_.source = context_.name;
  return std::move(model_);
}

}  // namespace

Model ReadOnnxBytes(std::span<const std::byte> bytes, std::shared_ptr<const void> owner, const std::string& name) {
  TensorSource source;
  source.context = {bytes.data(), name};
  source.owner = std::move(owner);
  return Importer(source).Run(bytes);
}

Model ReadOnnx(const std::filesystem::path& path) {
  TensorSource source;
  source.file = MappedFile::Open(path);
  source.owner = source.file;
  source.folder = path.has_parent_path() ? path.parent_path() : std::filesystem::path(".");
  source.context = {source.file->bytes().data(), path.string()};
  return Importer(source).Run(source.file->bytes());
}

}  // namespace octavo
