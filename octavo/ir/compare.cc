#include "octavo/ir/compare.h"

#include <algorithm>
#include <bit>
#include <type_traits>

namespace octavo {
namespace {

std::string InGraph(const Graph& a, const Graph& b, const std::string& where);

bool SameBits(float a, float b) { return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b); }

// Equal names resolve to the same value because a name is unique within what is visible.
bool SameName(const Value* a, const Value* b) { return a == nullptr || b == nullptr ? a == b : a->name() == b->name(); }

std::string OfValue(const Value* a, const Value* b, const std::string& where) {
  if (!SameName(a, b)) {
    return where + ": value '" + (a != nullptr ? a->name() : "") + "' against '" + (b != nullptr ? b->name() : "") +
           "'";
  }
  if (a == nullptr) return {};
  const std::string at = where + ": value '" + a->name() + "'";
  if (a->kind() != b->kind()) return at + " differs in kind";
  if (!SameType(a->type, b->type))
    return at + " differs in type: " + ToString(a->type) + " against " + ToString(b->type);
  if (a->data.has_value() != b->data.has_value()) return at + " has data on one side only";
  if (a->data && !SameContent(*a->data, *b->data)) return at + " differs in data";
  if (a->extras != b->extras) return at + " differs in extras";
  return {};
}

std::string OfAttribute(const Attribute& a, const Attribute& b, const std::string& where) {
  if (a.name != b.name) return where + ": attribute '" + a.name + "' against '" + b.name + "'";
  const std::string at = where + ": attribute '" + a.name + "'";
  if (a.value.index() != b.value.index()) return at + " differs in kind";
  return std::visit(
      [&](const auto& x) -> std::string {
        using T = std::decay_t<decltype(x)>;
        const T& y = std::get<T>(b.value);
        bool same = true;
        if constexpr (std::is_same_v<T, std::unique_ptr<Graph>>) {
          return InGraph(*x, *y, at);
        } else if constexpr (std::is_same_v<T, float>) {
          same = SameBits(x, y);
        } else if constexpr (std::is_same_v<T, std::vector<float>>) {
          same = std::equal(x.begin(), x.end(), y.begin(), y.end(), SameBits);
        } else if constexpr (std::is_same_v<T, TensorRef>) {
          same = SameContent(x, y);
        } else if constexpr (std::is_same_v<T, OpaqueAttribute>) {
          same = x.bytes == y.bytes;
        } else {
          same = x == y;
        }
        return same ? std::string() : at + " differs";
      },
      a.value);
}

std::string OfNode(const Node& a, const Node& b, const std::string& where) {
  const std::string at = where + ": node '" + a.name + "' (" + a.op() + ")";
  if (a.op() != b.op() || a.domain() != b.domain() || a.overload != b.overload) return at + " differs in operator";
  if (a.name != b.name) return at + " against '" + b.name + "'";
  if (a.form != b.form) return at + " differs in form";
  if (a.extras != b.extras) return at + " differs in extras";
  if (a.inputs().size() != b.inputs().size() || a.outputs().size() != b.outputs().size()) {
    return at + " differs in its number of inputs or outputs";
  }
  for (std::size_t i = 0; i < a.inputs().size(); ++i) {
    if (!SameName(a.input(i), b.input(i))) return at + " differs in input " + std::to_string(i);
  }
  for (std::size_t i = 0; i < a.outputs().size(); ++i) {
    if (std::string d = OfValue(a.output(i), b.output(i), at); !d.empty()) return d;
  }
  if (a.attributes().size() != b.attributes().size()) return at + " differs in its number of attributes";
  for (std::size_t i = 0; i < a.attributes().size(); ++i) {
    if (std::string d = OfAttribute(a.attributes()[i], b.attributes()[i], at); !d.empty()) return d;
  }
  return {};
}

std::string InGraph(const Graph& a, const Graph& b, const std::string& where) {
  const std::string at = where + " graph '" + a.name + "'";
  if (a.name != b.name) return at + " against '" + b.name + "'";
  if (a.extras != b.extras) return at + " differs in extras";
  if (a.inputs().size() != b.inputs().size()) return at + " differs in its number of inputs";
  for (std::size_t i = 0; i < a.inputs().size(); ++i) {
    if (std::string d = OfValue(a.inputs()[i], b.inputs()[i], at); !d.empty()) return d;
  }
  const auto ca = a.constants();
  const auto cb = b.constants();
  if (ca.size() != cb.size()) return at + " differs in its number of constants";
  for (std::size_t i = 0; i < ca.size(); ++i) {
    if (std::string d = OfValue(ca[i], cb[i], at); !d.empty()) return d;
  }
  if (a.node_count() != b.node_count()) return at + " differs in its number of nodes";
  for (const Node *na = a.first(), *nb = b.first(); na != nullptr && nb != nullptr; na = na->next(), nb = nb->next()) {
    if (std::string d = OfNode(*na, *nb, at); !d.empty()) return d;
  }
  if (!std::equal(a.outputs().begin(), a.outputs().end(), b.outputs().begin(), b.outputs().end(), SameName)) {
    return at + " differs in outputs";
  }
  return {};
}

}  // namespace

std::string Difference(const Model& a, const Model& b) {
  if (a.ir_version != b.ir_version) return "ir_version differs";
  if (!std::equal(
          a.opsets.begin(), a.opsets.end(), b.opsets.begin(), b.opsets.end(),
          [](const OpsetImport& x, const OpsetImport& y) { return x.domain == y.domain && x.version == y.version; })) {
    return "opsets differ";
  }
  if (a.metadata != b.metadata) return "metadata differ";
  if (a.extras != b.extras) return "extras differ";
  if (a.functions != b.functions || a.function_ids != b.function_ids) return "functions differ";
  if ((a.graph == nullptr) != (b.graph == nullptr)) return "one model has no graph";
  return a.graph ? InGraph(*a.graph, *b.graph, "in") : std::string();
}

}  // namespace octavo
