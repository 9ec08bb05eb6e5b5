// Regions: loops of a known number of steps, choices, and what needs an order (sorting).
#include <algorithm>
#include <limits>

#include "octavo/base/error.h"
#include "octavo/emit/stablehlo_lowering.h"

namespace octavo::stablehlo {
namespace {

// "%1, %2" and "tensor<..>, tensor<..>"
std::string NamesOf(std::span<const Tensor> tensors) {
  std::string text;
  for (const Tensor& t : tensors) text += (text.empty() ? "" : ", ") + t.ssa;
  return text;
}
std::string TypesOf(std::span<const Tensor> tensors) {
  std::string text;
  for (const Tensor& t : tensors) text += (text.empty() ? "" : ", ") + t.type();
  return text;
}
std::string Return(std::span<const Tensor> tensors) {
  return "    stablehlo.return " + NamesOf(tensors) + " : " + TypesOf(tensors) + "\n";
}

bool SameTypes(std::span<const Tensor> a, std::span<const Tensor> b) { return TypesOf(a) == TypesOf(b); }

// `at` for the first dimension, zeros for the others.
std::string RowIndices(Builder& b, const Tensor& x, const Tensor& at) {
  std::string text = at.ssa;
  if (x.rank() > 1) {
    const Tensor zero = b.Splat(DType::kS64, {}, 0);
    for (std::size_t i = 1; i < x.rank(); ++i) text += ", " + zero.ssa;
  }
  return text;
}
std::string RowIndexTypes(const Tensor& x) {
  std::string text;
  for (std::size_t i = 0; i < x.rank(); ++i) text += ", tensor<i64>";
  return text;
}

void CheckRow(const Tensor& x, const Tensor& at) {
  if (x.rank() == 0 || at.dtype != DType::kS64 || at.rank() != 0) {
    ThrowInternal("operands of stablehlo.dynamic_slice do not go together");
  }
}

const Graph* Branch(Emitter& e, const Node& node, std::string_view name) {
  const Attribute* attribute = node.FindAttribute(name);
  const auto* graph = attribute != nullptr ? std::get_if<std::unique_ptr<Graph>>(&attribute->value) : nullptr;
  if (graph == nullptr || (*graph)->outputs().size() != node.outputs().size()) {
    e.Refuse(node, "its " + std::string(name) + " does not give its results");
  }
  return graph->get();
}

// Where the condition follows from shapes and constants, its branch alone; else a region for each.
void IfNode(Emitter& e, const Node& node) {
  const Graph* yes = Branch(e, node, "then_branch");
  const Graph* no = Branch(e, node, "else_branch");
  if (const TensorRef* condition = e.ConstantIn(node, 0)) {
    if (condition->dtype != DType::kBool || condition->elements() != 1) e.Refuse(node, "its condition is not one bool");
    const Graph& taken = condition->bytes[0] != std::byte{0} ? *yes : *no;
    e.LowerNodes(taken);
    for (std::size_t i = 0; i < node.outputs().size(); ++i) e.OutAlias(node, i, *taken.outputs()[i]);
    return;
  }
  const Tensor condition = e.In(node, 0);
  if (condition.dtype != DType::kBool || ElementCount(condition.dims) != 1) {
    e.Refuse(node, "its condition is not one bool");
  }
  // Both are lowered with the shapes there are; a model may hold a branch for others, which no run can take.
  const Graph* branches[] = {yes, no};
  constexpr std::string_view kNames[] = {"then_branch", "else_branch"};
  Emitter::Trial trials[2];
  for (std::size_t i = 0; i < 2; ++i) {
    try {
      trials[i] = e.Try(*branches[i]);
    } catch (const Error& error) {
      if (error.code() != ExitCode::kUnsupported) throw;
      e.Refuse(node, "its condition is computed, and its " + std::string(kNames[i]) +
                         " cannot be lowered with the shapes there are (" + error.reason() + ", " + error.where() +
                         "): where one branch is enough, make what decides an initializer");
    }
  }
  if (trials[0].why && trials[1].why) e.Misfit(node, "neither branch goes with its inputs: " + *trials[0].why);
  if (!trials[0].why && !trials[1].why && !SameTypes(trials[0].results, trials[1].results)) {
    e.Refuse(node, "its condition is computed and its branches give " + TypesOf(trials[0].results) + " and " +
                       TypesOf(trials[1].results) + ": shapes must be one");
  }
  const std::vector<Tensor>& types = trials[trials[0].why ? 1 : 0].results;
  for (std::size_t i = 0; i < 2; ++i) {
    if (!trials[i].why) continue;
    const std::string reason =
        std::string(kNames[i]) + " does not go with the shapes there are (" + *trials[i].why + ")";
    if (!std::all_of(types.begin(), types.end(), [](const Tensor& t) { return IsFloat(t.dtype); })) {
      e.Refuse(node, "its condition is computed, its " + reason + ", and a result is not of floats");
    }
    e.Note(NodeText(node) + ": its " + reason + ": a run that would take it gives NaN");
  }
  std::vector<Tensor> results = types;
  if (!e.trying()) {
    const auto lower = [&](std::size_t i) {
      if (!trials[i].why) return e.InRegion(*branches[i]);
      std::vector<Tensor> nothing;
      for (const Tensor& t : types) {
        nothing.push_back(e.b.Splat(t.dtype, t.dims, std::numeric_limits<double>::quiet_NaN()));
      }
      return nothing;
    };
    results = e.b.If(
        e.b.Reshape(condition, {}), types.size(), [&] { return lower(0); }, [&] { return lower(1); });
  }
  for (std::size_t i = 0; i < results.size(); ++i) e.Out(node, i, results[i]);
}

constexpr Lowering kTable[] = {
    {"If", "", IfNode, "a computed condition with branches of different shapes"},
};

}  // namespace

std::span<const Lowering> ControlLowerings() { return kTable; }

Tensor Builder::Row(const Tensor& x, const Tensor& at) {
  CheckRow(x, at);
  Dims dims = x.dims;
  dims[0] = 1;
  const std::string text = "stablehlo.dynamic_slice " + x.ssa + ", " + RowIndices(*this, x, at) +
                           ", sizes = " + IntList(dims) + " : (" + x.type() + RowIndexTypes(x) + ") -> " +
                           TensorType(x.dtype, dims);
  return Define(text, x.dtype, std::move(dims));
}

Tensor Builder::WithRow(const Tensor& x, const Tensor& row, const Tensor& at) {
  CheckRow(x, at);
  const std::string indices = RowIndices(*this, x, at);
  return Define("stablehlo.dynamic_update_slice " + x.ssa + ", " + row.ssa + ", " + indices + " : (" + x.type() + ", " +
                    row.type() + RowIndexTypes(x) + ") -> " + x.type(),
                x.dtype, x.dims);
}

std::pair<Tensor, Tensor> Builder::Sorted(const Tensor& x, bool descending) {
  if (x.rank() == 0) ThrowInternal("operands of stablehlo.sort do not go together");
  const std::size_t axis = x.rank() - 1;
  // Behind a barrier: IREE makes a sort with an iota a top-k, whose order of equal elements is another.
  const Tensor both[] = {x, Barrier(Iota(DType::kS32, x.dims, axis))};
  const Tensor element{"", x.dtype, {}, std::nullopt, std::nullopt};
  const Tensor place{"", DType::kS32, {}, std::nullopt, std::nullopt};
  const auto named = [&](Tensor t) {
    t.ssa = NewName();
    return t;
  };
  const std::string name = NewName();
  const Tensor a = named(element), b = named(element), i = named(place), j = named(place);
  text_.Put("    " + name + ":2 = \"stablehlo.sort\"(" + NamesOf(both) + ") <{dimension = " + std::to_string(axis) +
            " : i64, is_stable = true}> ({\n    ^bb0(" + a.ssa + ": " + a.type() + ", " + b.ssa + ": " + b.type() +
            ", " + i.ssa + ": " + i.type() + ", " + j.ssa + ": " + j.type() + "):\n");
  // The places decide between equal elements: IREE's sort is not stable.
  const Tensor before = CompareTo(descending ? Compare::kGt : Compare::kLt, a, b);
  const Tensor tie = Binary("and", CompareTo(Compare::kEq, a, b), CompareTo(Compare::kLt, i, j));
  const Tensor order[] = {Binary("or", before, tie)};
  text_.Put(Return(order) + "    }) : (" + TypesOf(both) + ") -> (" + TypesOf(both) + ")\n");
  return {Tensor{name + "#0", x.dtype, x.dims, std::nullopt, std::nullopt},
          Tensor{name + "#1", DType::kS32, x.dims, std::nullopt, std::nullopt}};
}

std::vector<Tensor> Builder::While(std::span<const Tensor> state, const StateTest& goes_on, const StateBody& body) {
  std::vector<Tensor> inside;
  std::string bindings;
  for (const Tensor& t : state) {
    inside.push_back({NewName(), t.dtype, t.dims, std::nullopt, std::nullopt});
    bindings += (bindings.empty() ? "" : ", ") + inside.back().ssa + " = " + t.ssa;
  }
  const std::string name = NewName(), many = state.size() > 1 ? ":" + std::to_string(state.size()) : "";
  text_.Put("    " + name + many + " = stablehlo.while(" + bindings + ") : " + TypesOf(state) + "\n    cond {\n");
  const Tensor more[] = {goes_on(inside)};
  text_.Put(Return(more) + "    } do {\n");
  const std::vector<Tensor> next = body(inside);
  if (!SameTypes(next, inside)) ThrowInternal("the body of a loop changes the types of its state");
  text_.Put(Return(next) + "    }\n");
  std::vector<Tensor> results;
  for (std::size_t i = 0; i < state.size(); ++i) {
    results.push_back({many.empty() ? name : name + "#" + std::to_string(i), state[i].dtype, state[i].dims,
                       std::nullopt, std::nullopt});
  }
  return results;
}

std::vector<Tensor> Builder::Repeat(std::int64_t count, std::span<const Tensor> state, const StepBody& body) {
  std::vector<Tensor> carried = {Splat(DType::kS64, {}, 0)};
  carried.insert(carried.end(), state.begin(), state.end());
  const Tensor end = Splat(DType::kS64, {}, static_cast<double>(count)), one = Splat(DType::kS64, {}, 1);
  std::vector<Tensor> results = While(
      carried, [&](std::span<const Tensor> now) { return CompareTo(Compare::kLt, now[0], end); },
      [&](std::span<const Tensor> now) {
        std::vector<Tensor> next = body(now[0], now.subspan(1));
        next.insert(next.begin(), Add(now[0], one));
        return next;
      });
  results.erase(results.begin());
  return results;
}

std::vector<Tensor> Builder::If(const Tensor& condition, std::size_t count, const BranchBody& yes,
                                const BranchBody& no) {
  if (count == 0) return {};
  const std::string name = NewName();
  text_.Put("    " + name + (count > 1 ? ":" + std::to_string(count) : "") + " = \"stablehlo.if\"(" + condition.ssa +
            ") ({\n");
  const std::vector<Tensor> first = yes();
  text_.Put(Return(first) + "    }, {\n");
  const std::vector<Tensor> second = no();
  if (first.size() != count || !SameTypes(first, second)) ThrowInternal("the branches of a choice differ in type");
  text_.Put(Return(second) + "    }) : (" + condition.type() + ") -> (" + TypesOf(first) + ")\n");
  std::vector<Tensor> results;
  for (std::size_t i = 0; i < count; ++i) {
    results.push_back(
        {count > 1 ? name + "#" + std::to_string(i) : name, first[i].dtype, first[i].dims, std::nullopt, std::nullopt});
  }
  return results;
}

}  // namespace octavo::stablehlo
