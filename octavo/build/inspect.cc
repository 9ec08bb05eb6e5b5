#include "octavo/build/inspect.h"

#include <cstdio>
#include <map>
#include <string_view>

#include "octavo/base/error.h"
#include "octavo/base/mapped_file.h"
#include "octavo/build/inspect_gguf.h"
#include "octavo/build/pipeline.h"
#include "octavo/calibrate/statistics.h"
#include "octavo/import/circle.h"
#include "octavo/import/onnx.h"
#include "octavo/import/safetensors.h"
#include "octavo/ir/text.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/quantized.h"
#include "octavo/validate/json_writer.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

std::string QuantText(const QuantType& quant) {
  if (quant.kind == QuantType::Kind::kGgml) return quant.ggml.format;
  if (quant.kind == QuantType::Kind::kMx) return quant.mx.format;
  const Affine& a = quant.affine;
  std::string out(Name(a.storage));
  if (a.block > 0) return out + " blocks of " + std::to_string(a.block);
  return out + (a.per_tensor() ? "" : " per channel");
}

bool HasQuantizedInput(const Node& node) {
  for (const Value* input : node.inputs()) {
    if (input != nullptr && input->type.quant) return true;
  }
  return false;
}

bool IsConversion(const Node& node) {
  return node.domain() == kIrDomain || node.Is("QuantizeLinear") || node.Is("DequantizeLinear") ||
         node.Is("QUANTIZE", "circle") || node.Is("DEQUANTIZE", "circle");
}

bool IsQuantizedOp(const Node& node) {
  return node.op().starts_with("QLinear") || node.op().starts_with("QGemm") || node.op().ends_with("Integer") ||
         node.op() == "MatMulIntegerToFloat" || node.op() == "MatMulNBits";
}

struct OpCount {
  std::int64_t total = 0, quantized = 0;
  std::map<std::string, std::int64_t> weights;  // how the constant inputs are stored -> nodes
};

struct StoredCount {
  std::int64_t tensors = 0;
  std::uint64_t bytes = 0;
};

std::string TypeText(const Value* value) {
  if (value == nullptr) return "-";
  if (value->type.quant) return QuantText(*value->type.quant);
  return std::string(Name(value->type.dtype));
}

// `kind`: "onnx", "circle" or "tflite".
InspectResult InspectModel(const fs::path& path, const std::string& kind, const InspectOptions& options) {
  const bool circle = kind != "onnx";
  Model model = circle ? ReadCircle(path) : ReadOnnx(path);
  const bool context = HasEpContext(model);
  const std::int64_t pairs = circle ? 0 : FoldQdq(model);
  // A product in two forms, of which the runtime keeps one when it loads the model, is one operator.
  const std::int64_t choices = circle ? 0 : FoldChoices(*model.graph);
  if (choices > 0) model.graph->EraseDead();
  InspectResult out;
  std::map<std::string, OpCount> ops;
  std::map<std::string, StoredCount> stored;
  std::map<std::string, std::int64_t> activations;
  std::string node_lines;
  std::int64_t nodes = 0, quantized = 0, conversions = 0;
  const auto count_constants = [&stored](const Graph& graph) {
    for (const Value* value : graph.constants()) {
      if (!value->data) continue;
      StoredCount& s =
          stored[value->type.quant ? QuantText(*value->type.quant) : std::string(Name(value->data->dtype))];
      ++s.tensors;
      s.bytes += value->data->bytes.size();
    }
  };
  count_constants(*model.graph);
  VisitNodes(static_cast<const Graph&>(*model.graph), [&](const Node& node) {
    for (const Attribute& attribute : node.attributes()) {
      if (const auto* inner = std::get_if<std::unique_ptr<Graph>>(&attribute.value); inner != nullptr && *inner) {
        count_constants(**inner);
      }
    }
    for (const Value* value : node.outputs()) {
      if (value != nullptr && value->type.quant) ++activations[QuantText(*value->type.quant)];
    }
    if (IsConversion(node)) {
      ++conversions;
      return;
    }
    ++nodes;
    OpCount& op = ops[node.domain().empty() ? node.op() : node.domain() + ":" + node.op()];
    ++op.total;
    const bool q = HasQuantizedInput(node) || IsQuantizedOp(node);
    op.quantized += q ? 1 : 0;
    quantized += q ? 1 : 0;
    for (const Value* input : node.inputs()) {
      if (input != nullptr && input->is_constant() && input->type.quant) {
        ++op.weights[QuantText(*input->type.quant)];
        break;
      }
    }
    if (options.nodes) {
      node_lines += "  " + node.op() + " " + (node.name.empty() ? "(no name)" : node.name) + ": ";
      for (std::size_t i = 0; i < node.inputs().size(); ++i) node_lines += (i ? ", " : "") + TypeText(node.inputs()[i]);
      node_lines += " -> ";
      for (std::size_t i = 0; i < node.outputs().size(); ++i)
        node_lines += (i ? ", " : "") + TypeText(node.outputs()[i]);
      node_lines += "\n";
    }
  });

  JsonWriter json;
  json.BeginObject().Field("kind", kind).Field("path", path.string()).Field("ir_version", model.ir_version);
  json.Key("opsets").BeginObject();
  std::string opsets;
  for (const OpsetImport& o : model.opsets) {
    json.Field(o.domain.empty() ? "ai.onnx" : o.domain, o.version);
    opsets +=
        (opsets.empty() ? "" : ", ") + (o.domain.empty() ? "ai.onnx" : o.domain) + " " + std::to_string(o.version);
  }
  json.EndObject();
  std::error_code error;
  const std::uint64_t bytes = fs::file_size(path, error);
  std::uint64_t external = 0;
  for (const fs::path& file : ExternalFiles(model, path)) external += fs::file_size(file, error);
  char line[320], beside[48] = "";
  if (external > 0) {
    std::snprintf(beside, sizeof beside, " and %.2f MB beside it", static_cast<double>(external) / 1e6);
  }
  if (circle) {
    std::snprintf(line, sizeof line, "%s flatbuffer, %.2f MB\n", kind == "circle" ? "Circle" : "TFLite",
                  static_cast<double>(bytes) / 1e6);
  } else {
    std::snprintf(line, sizeof line, "ONNX model, %.2f MB%s, IR version %lld, opset %s\n",
                  static_cast<double>(bytes) / 1e6, beside, static_cast<long long>(model.ir_version), opsets.c_str());
  }
  std::string& text = out.text;
  text += line;
  if (context) text += "holds EPContext nodes: compiled for a device\n";
  json.Field("bytes", bytes).Field("external_bytes", external).Field("ep_context", context);
  const auto values = [&](const char* key, std::span<Value* const> list) {
    json.Key(key).BeginArray();
    for (const Value* v : list) {
      text += "  " + std::string(key == std::string_view("inputs") ? "input " : "output") + " " + v->name() + ": " +
              ToString(v->type) + "\n";
      json.BeginObject().Field("name", v->name()).Field("type", ToString(v->type)).EndObject();
    }
    json.EndArray();
  };
  values("inputs", model.graph->inputs());
  values("outputs", model.graph->outputs());
  json.Field("nodes", nodes).Field("nodes_quantized", quantized).Field("conversions", conversions);
  json.Field("qdq_pairs_folded", pairs).Field("chosen_at_load", choices);
  std::snprintf(line, sizeof line, "%lld nodes, %lld of them quantized; %lld conversions between float and quantized\n",
                static_cast<long long>(nodes), static_cast<long long>(quantized), static_cast<long long>(conversions));
  text += line;
  if (choices > 0) {
    text +=
        std::to_string(choices) + " of them in two forms: the machine that loads the model chooses the weights' sign\n";
  }
  std::snprintf(line, sizeof line, "  %-32s %8s %10s  %s\n", "operator", "nodes", "quantized", "weights");
  text += line;
  json.Key("operators").BeginArray();
  for (const auto& [name, op] : ops) {
    std::string weights;
    json.BeginObject().Field("op", name).Field("nodes", op.total).Field("quantized", op.quantized);
    json.Key("weights").BeginObject();
    for (const auto& [how, n] : op.weights) {
      weights += (weights.empty() ? "" : ", ") + std::to_string(n) + " " + how;
      json.Field(how, n);
    }
    json.EndObject().EndObject();
    std::snprintf(line, sizeof line, "  %-32.120s %8lld %10lld  %.120s\n", name.c_str(),
                  static_cast<long long>(op.total), static_cast<long long>(op.quantized), weights.c_str());
    text += line;
  }
  json.EndArray().Key("constants").BeginArray();
  text += "constants\n";
  for (const auto& [how, s] : stored) {
    std::snprintf(line, sizeof line, "  %-32.120s %8lld tensors %12.3f MB\n", how.c_str(),
                  static_cast<long long>(s.tensors), static_cast<double>(s.bytes) / 1e6);
    text += line;
    json.BeginObject().Field("stored_as", how).Field("tensors", s.tensors).Field("bytes", s.bytes).EndObject();
  }
  json.EndArray().Key("quantized_values").BeginObject();
  if (!activations.empty()) text += "quantized values (not constants)\n";
  for (const auto& [how, n] : activations) {
    std::snprintf(line, sizeof line, "  %-32.120s %8lld\n", how.c_str(), static_cast<long long>(n));
    text += line;
    json.Field(how, n);
  }
  json.EndObject();
  if (!model.function_ids.empty()) {
    json.Key("functions").BeginArray();
    text += "local functions\n";
    for (const std::string& id : model.function_ids) {
      text += "  " + id + "\n";
      json.String(id);
    }
    json.EndArray();
  }
  if (options.nodes) text += "nodes (types of inputs -> outputs)\n" + node_lines;
  if (options.ir) text = Print(model);
  out.json = json.EndObject().Take();
  return out;
}

InspectResult InspectStatistics(const fs::path& path) {
  const Statistics statistics = LoadStatistics(path);
  InspectResult out;
  JsonWriter json;
  json.BeginObject().Field("kind", "statistics").Field("path", path.string()).Field("method", statistics.method);
  json.Field("samples", static_cast<std::uint64_t>(statistics.samples.size()));
  json.Key("tensors").BeginArray();
  char line[320];
  std::snprintf(line, sizeof line, "calibration statistics (%.40s): %zu samples, %zu tensors\n",
                statistics.method.c_str(), statistics.samples.size(), statistics.tensors.size());
  out.text += line;
  std::snprintf(line, sizeof line, "  %-48s %14s %14s %14s  %s\n", "tensor", "min", "max", "elements", "histogram");
  out.text += line;
  for (const auto& [name, t] : statistics.tensors) {
    const auto elements = static_cast<unsigned long long>(t.range.elements);
    std::snprintf(line, sizeof line, "  %-48.120s %14.6g %14.6g %14llu  %s\n", name.c_str(),
                  static_cast<double>(t.range.min), static_cast<double>(t.range.max), elements,
                  t.histogram ? "yes" : "no");
    out.text += line;
    json.BeginObject().Field("name", name).Field("min", static_cast<double>(t.range.min));
    json.Field("max", static_cast<double>(t.range.max)).Field("elements", static_cast<std::uint64_t>(elements));
    json.Field("histogram", t.histogram.has_value()).EndObject();
  }
  out.json = json.EndArray().EndObject().Take();
  return out;
}

}  // namespace

InspectResult Inspect(const fs::path& path, const InspectOptions& options) {
  std::string_view head;
  const std::shared_ptr<const MappedFile> file = MappedFile::Open(path);
  head = {reinterpret_cast<const char*>(file->bytes().data()), std::min<std::size_t>(file->bytes().size(), 64)};
  const bool gguf = head.starts_with("GGUF");
  if (gguf || LooksLikeSafetensors(file->bytes())) {
    if (options.ir || options.nodes) {
      ThrowUsage("a file of weights has neither nodes nor IR", path.string(), "leave --ir and --nodes out");
    }
    return gguf ? InspectGguf(path) : InspectSafetensors(path);
  }
  if (head.size() >= 8 && (head.substr(4, 4) == "CIR0" || head.substr(4, 4) == "TFL3")) {
    return InspectModel(path, head.substr(4, 4) == "CIR0" ? "circle" : "tflite", options);
  }
  if (head.empty()) ThrowBadInput("the file is empty", path.string());
  // No ONNX model starts with a brace: 0x7b would be a field of a wire type that does not exist.
  if (const std::size_t at = head.find_first_not_of(" \t\r\n"); at != std::string_view::npos && head[at] == '{') {
    if (options.ir) ThrowUsage("statistics have no IR", path.string(), "leave --ir out");
    return InspectStatistics(path);
  }
  return InspectModel(path, "onnx", options);
}

}  // namespace octavo
