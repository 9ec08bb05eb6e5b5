#include "octavo/emit/stablehlo_trace.h"

#include <algorithm>
#include <optional>
#include <set>

#include "octavo/emit/stablehlo_lowering.h"
#include "octavo/numerics/ggml.h"

namespace octavo::stablehlo {
namespace {

// How a value still holds a weight's codes: along which axis its scales run, and how many elements share one.
struct Encoding {
  std::optional<std::int64_t> axis;  // none: one scale for all
  std::int64_t block = 1;            // elements along the axis that share a scale
};

struct Step {
  std::optional<Encoding> encoding;  // after the operator; nullopt: lost
  std::string reason;                // why it is lost
  bool moves = true;                 // false: the operator computes; the weight has arrived
};

std::string EncodingName(const QuantType& quant) {
  switch (quant.kind) {
    case QuantType::Kind::kGgml: {
      const GgmlFormat* format = FindGgmlFormat(quant.ggml.format);
      return format != nullptr ? std::string(format->ggml_name) : quant.ggml.format;
    }
    case QuantType::Kind::kMx:
      return quant.mx.format;
    case QuantType::Kind::kAffine:
      break;
  }
  return std::string(Name(quant.affine.storage));
}

Encoding EncodingOf(const QuantType& quant) {
  switch (quant.kind) {
    case QuantType::Kind::kGgml: {
      const GgmlFormat* format = FindGgmlFormat(quant.ggml.format);
      return {quant.ggml.axis, format != nullptr ? static_cast<std::int64_t>(format->block) : 1};
    }
    case QuantType::Kind::kMx:
      return {quant.mx.axis, quant.mx.block};
    case QuantType::Kind::kAffine:
      break;
  }
  return {quant.affine.axis, std::max<std::int64_t>(quant.affine.block, 1)};
}

// The dimension of `to` that holds dimension `axis` of `from` in whole blocks, row by row: what stands before and
// behind it has the same size.
std::optional<std::int64_t> SameDimension(const Dims& from, const Dims& to, std::int64_t axis) {
  const auto product = [](const Dims& dims, std::size_t begin, std::size_t end) {
    std::uint64_t n = 1;
    for (std::size_t i = begin; i < end; ++i) n *= static_cast<std::uint64_t>(dims[i]);
    return n;
  };
  const auto a = static_cast<std::size_t>(axis);
  for (std::size_t i = 0; i < to.size(); ++i) {
    if (to[i] == from[a] && product(to, 0, i) == product(from, 0, a) &&
        product(to, i + 1, to.size()) == product(from, a + 1, from.size())) {
      return static_cast<std::int64_t>(i);
    }
  }
  return std::nullopt;
}

const TensorRef* Constant(const Node& node, std::size_t i) {
  const Value* value = node.input(i);
  return value != nullptr && value->is_constant() && !value->type.quant ? &*value->data : nullptr;
}

Step ThroughSlice(const Node& node, const Dims& from, const Encoding& e) {
  const TensorRef *starts = Constant(node, 1), *ends = Constant(node, 2), *axes = Constant(node, 3),
                  *steps = Constant(node, 4);
  if (starts == nullptr || ends == nullptr || (node.input(3) != nullptr && axes == nullptr) ||
      (node.input(4) != nullptr && steps == nullptr)) {
    return {std::nullopt, "its ranges are computed"};
  }
  const std::vector<std::int64_t> low = starts->ToInts(), high = ends->ToInts();
  for (std::size_t i = 0; i < low.size() && i < high.size(); ++i) {
    std::int64_t axis = static_cast<std::int64_t>(i);
    if (axes != nullptr && i < axes->elements()) axis = axes->ToInts()[i];
    if (axis < 0) axis += static_cast<std::int64_t>(from.size());
    if (!e.axis || axis != *e.axis) continue;
    const std::int64_t n = from[static_cast<std::size_t>(axis)];
    const auto at = [&](std::int64_t v) { return std::clamp<std::int64_t>(v < 0 ? v + n : v, 0, n); };
    if (steps != nullptr && i < steps->elements() && steps->ToInts()[i] != 1) {
      return {std::nullopt, "it takes every " + std::to_string(steps->ToInts()[i]) + ". element of the blocks"};
    }
    if (at(low[i]) % e.block != 0 || (at(high[i]) % e.block != 0 && at(high[i]) != n)) {
      return {std::nullopt, "it cuts blocks of " + std::to_string(e.block) + " at " + std::to_string(at(low[i])) +
                                " to " + std::to_string(at(high[i]))};
    }
  }
  return {e, ""};
}

Step Through(const Node& node, std::size_t input, const Value& value, const Encoding& e) {
  const std::optional<Dims> from = StaticShape(value.type);
  const Value* result = node.output();
  const std::optional<Dims> to = result != nullptr ? StaticShape(result->type) : std::nullopt;
  const std::string& op = node.op();
  if (input != 0 || !node.domain().empty()) return {std::nullopt, "", false};
  if (op == "Identity") return {e, ""};
  if (op == "Cast") {
    const auto type = static_cast<DType>(node.IntAttribute("to", 0));
    if (type == value.type.dtype) return {e, ""};
    return {std::nullopt, "it makes " + std::string(Name(type)) + " of the dequantized weight"};
  }
  if (op == "Transpose" && from) {
    if (!e.axis) return {e, ""};
    const auto* perm = node.IntsAttribute("perm");
    for (std::size_t i = 0; i < from->size(); ++i) {
      const std::int64_t source =
          perm != nullptr && i < perm->size() ? (*perm)[i] : static_cast<std::int64_t>(from->size() - 1 - i);
      if (source == *e.axis) return {Encoding{static_cast<std::int64_t>(i), e.block}, ""};
    }
    return {std::nullopt, "its permutation has no place for the axis of the scales"};
  }
  if (op == "Reshape" || op == "Flatten" || op == "Squeeze" || op == "Unsqueeze") {
    if (!e.axis) return {e, ""};
    if (!from || !to) return {std::nullopt, "its shape is not known"};
    if (const auto axis = SameDimension(*from, *to, *e.axis)) return {Encoding{axis, e.block}, ""};
    // The last dimension may be cut or joined in whole blocks: rows of blocks stay rows of blocks.
    const bool last = *e.axis + 1 == static_cast<std::int64_t>(from->size());
    if (e.block > 1 && last && !to->empty() && to->back() % e.block == 0 && from->back() % e.block == 0) {
      return {Encoding{static_cast<std::int64_t>(to->size()) - 1, e.block}, ""};
    }
    return {std::nullopt, "it takes the dimension of the scales apart"};
  }
  if (op == "Slice") {
    if (!from) return {std::nullopt, "its shape is not known"};
    return ThroughSlice(node, *from, e);
  }
  return {std::nullopt, "", false};
}

constexpr int kMaxDepth = 64;
constexpr std::size_t kMaxEnds = 256;

void Follow(const Value& value, const Encoding& encoding, const std::string& path, int depth, WeightLayout& layout) {
  const auto arrive = [&](const std::string& where) {
    if (layout.reaches.size() + layout.lost.size() < kMaxEnds) {
      layout.reaches.push_back(where + (path.empty() ? "" : " through " + path));
    }
  };
  if (value.is_graph_output()) arrive("the output '" + value.name() + "'");
  std::vector<Use> uses(value.uses().begin(), value.uses().end());
  for (const Use& use : uses) {
    const Step step = Through(*use.node, use.index, value, encoding);
    if (!step.moves) {
      arrive(NodeText(*use.node));
    } else if (!step.encoding || use.node->output() == nullptr || depth == kMaxDepth) {
      const std::string reason = step.reason.empty() ? "the chain is too long" : step.reason;
      layout.lost.push_back("at " + NodeText(*use.node) + (path.empty() ? "" : " behind " + path) + ": " + reason);
    } else {
      Follow(*use.node->output(), *step.encoding, path + (path.empty() ? "" : ", ") + use.node->op(), depth + 1,
             layout);
    }
    if (layout.reaches.size() + layout.lost.size() >= kMaxEnds) return;
  }
}

std::string StringList(const std::vector<std::string>& texts) {
  std::string out = "[";
  for (const std::string& text : texts) out += (out.size() > 1 ? ", " : "") + Quoted(text);
  return out + "]";
}

}  // namespace

EncodingTrace TraceEncodings(const Graph& graph) {
  EncodingTrace trace;
  for (const Value* value : graph.constants()) {
    if (!value->type.quant || value->dead()) continue;
    WeightLayout layout{value, {}, {}};
    Follow(*value, EncodingOf(*value->type.quant), "", 0, layout);
    const std::string head = "weight '" + value->name() + "' (" + EncodingName(*value->type.quant) + ") ";
    for (const std::string& where : layout.reaches) trace.lines.push_back(head + "reaches " + where);
    for (const std::string& where : layout.lost) trace.lines.push_back(head + "is dequantized " + where);
    trace.layouts.push_back(std::move(layout));
  }
  return trace;
}

std::string ModuleAttributes(const EncodingTrace& trace) {
  if (trace.layouts.empty()) return "";
  std::string layouts, encodings;
  for (const WeightLayout& layout : trace.layouts) {
    const Value& value = *layout.weight;
    const QuantType& quant = *value.type.quant;
    const Encoding e = EncodingOf(quant);
    const std::string comma = layouts.empty() ? "" : ", ";
    const std::string name = EncodingName(quant);
    const std::string key = Quoted(value.name());
    encodings += comma + key + " = " + Quoted(name);
    layouts += comma + key + " = {encoding = " + Quoted(name);
    if (const std::optional<Dims> shape = StaticShape(value.type)) {
      std::string dims;
      for (const std::int64_t d : *shape) dims += (dims.empty() ? "" : ", ") + std::to_string(d);
      layouts += ", shape = array<i64" + (dims.empty() ? "" : ": " + dims) + ">";
    }
    if (e.axis) layouts += ", axis = " + std::to_string(*e.axis) + " : i64";
    if (e.block > 1) layouts += ", block = " + std::to_string(e.block) + " : i64";
    layouts += ", reaches = " + StringList(layout.reaches) + ", dequantized = " + StringList(layout.lost) + "}";
  }
  return " attributes {octavo.tensor_layouts = {" + layouts + "}, skainet.tensor_encodings = {" + encodings + "}}";
}

}  // namespace octavo::stablehlo
