// Questions and edits on a whole imported model.
#include <algorithm>
#include <charconv>
#include <set>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/names.h"
#include "octavo/import/onnx.h"

namespace octavo {
namespace {

// "?", "-1", "": what exporters write for "some dimension". Two of them need not be equal.
bool IsPlaceholder(const std::string& symbol) {
  return std::none_of(symbol.begin(), symbol.end(), [](unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || c >= 0x80;
  });
}

template <typename Fn>
void ForEachDim(Value& value, Fn&& fn) {
  if (!value.type.shape) return;
  for (Dim& dim : *value.type.shape) fn(dim);
}

// Every value that is not an input of the top graph: outputs, value infos, values of subgraphs.
template <typename Fn>
void ForEachOtherDim(Model& model, Fn&& fn) {
  VisitNodes(*model.graph, [&](Node& node) {
    for (Value* value : node.outputs()) {
      if (value) ForEachDim(*value, fn);
    }
    for (Attribute& attribute : node.attributes()) {
      if (auto* graph = std::get_if<std::unique_ptr<Graph>>(&attribute.value)) {
        for (Value* value : (*graph)->inputs()) ForEachDim(*value, fn);
      }
    }
  });
}

void FixSymbol(Model& model, const std::string& symbol, std::int64_t size) {
  const auto fix = [&](Dim& dim) {
    if (dim.symbol == symbol) dim = {size, ""};
  };
  for (Value* input : model.graph->inputs()) ForEachDim(*input, fix);
  if (IsPlaceholder(symbol)) {
    // Elsewhere the placeholder may stand for another size: what is not known is left out.
    ForEachOtherDim(model, [&](Dim& dim) {
      if (dim.symbol == symbol) dim = {};
    });
  } else {
    ForEachOtherDim(model, fix);
  }
}

void FixAxis(Model& model, const std::string& name, Dim& dim, std::int64_t size) {
  if (dim.known()) {
    if (dim.value == size) return;
    ThrowUsage("dimension is fixed already", name, "it is " + std::to_string(dim.value));
  }
  const std::string symbol = std::exchange(dim, Dim{size, ""}).symbol;
  if (symbol.empty()) return;
  // The symbol no longer names one size for the whole model, so shapes further down may not speak of it.
  ForEachOtherDim(model, [&](Dim& other) {
    if (other.symbol == symbol) other = {};
  });
}

}  // namespace

bool HasEpContext(const Model& model) {
  bool found = false;
  VisitNodes(std::as_const(*model.graph), [&](const Node& node) { found |= node.Is("EPContext", "com.microsoft"); });
  return found;
}

void FixDims(Model& model, const std::vector<std::pair<std::string, std::int64_t>>& dims) {
  for (const std::pair<std::string, std::int64_t>& wanted : dims) {
    const std::string& name = wanted.first;
    const std::int64_t size = wanted.second;
    if (size <= 0) ThrowUsage("dimension must be positive", name + "=" + std::to_string(size));
    std::set<std::string> known;
    bool is_symbol = false;
    const auto collect = [&](Dim& dim) {
      if (dim.symbol.empty()) return;
      known.insert(dim.symbol);
      is_symbol |= dim.symbol == name;
    };
    for (Value* input : model.graph->inputs()) ForEachDim(*input, collect);
    ForEachOtherDim(model, collect);
    if (is_symbol) {
      FixSymbol(model, name, size);
      continue;
    }
    const std::size_t colon = name.rfind(':');
    Value* input = nullptr;
    if (colon != std::string::npos) {
      for (Value* candidate : model.graph->inputs()) {
        if (candidate->name() == name.substr(0, colon)) input = candidate;
      }
    }
    if (!input) {
      for (Value* candidate : model.graph->inputs()) {
        const std::size_t rank = candidate->type.shape ? candidate->type.shape->size() : 0;
        for (std::size_t axis = 0; axis < rank; ++axis) known.insert(candidate->name() + ":" + std::to_string(axis));
      }
      const std::vector<std::string> names(known.begin(), known.end());
      ThrowUsage("no such symbolic dimension", name, DidYouMean(name, names));
    }
    const std::string digits = name.substr(colon + 1);
    std::size_t axis = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), axis);
    if (error != std::errc() || end != digits.data() + digits.size() || !input->type.shape ||
        axis >= input->type.shape->size()) {
      ThrowUsage("no such axis", name, "the input is " + ToString(input->type));
    }
    FixAxis(model, name, (*input->type.shape)[axis], size);
  }
}

}  // namespace octavo
