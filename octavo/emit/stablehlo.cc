#include "octavo/emit/stablehlo.h"

#include <algorithm>

#include "octavo/base/error.h"
#include "octavo/base/names.h"
#include "octavo/emit/irpa.h"
#include "octavo/emit/stablehlo_lowering.h"
#include "octavo/emit/stablehlo_trace.h"

namespace octavo {
namespace stablehlo {
namespace {

using TopicFn = std::span<const Lowering> (*)();
constexpr TopicFn kTopics[] = {ConvLowerings,  MatMulLowerings, ElementwiseLowerings, NormLowerings,
                               ShapeLowerings, QuantLowerings,  RecurrentLowerings,   ControlLowerings,
                               LoopLowerings,  ScatterLowerings};

const Lowering* FindLowering(const Node& node) {
  for (const TopicFn topic : kTopics) {
    for (const Lowering& row : topic()) {
      if (row.op == node.op() && row.domain == node.domain()) return &row;
    }
  }
  return nullptr;
}

}  // namespace

std::string NodeText(const Node& node) {
  std::string name = node.name;
  for (std::size_t i = 0; name.empty() && i < node.outputs().size(); ++i) {
    if (node.output(i) != nullptr) name = node.output(i)->name();
  }
  return (node.domain().empty() ? "" : node.domain() + ".") + node.op() + " '" + name + "'";
}

void Emitter::Refuse(const Node& node, const std::string& reason) const {
  ThrowUnsupported(reason, "node " + NodeText(node) + ", export to StableHLO");
}

void Emitter::Misfit(const Node& node, const std::string& reason) const {
  ThrowBadInput(reason, "node " + NodeText(node) + ", export to StableHLO",
                "the shapes of the model do not go together");
}

Tensor Emitter::In(const Node& node, std::size_t i) {
  const Value* value = node.input(i);
  if (value == nullptr) Refuse(node, "input " + std::to_string(i) + " is missing");
  return Use(*value);
}

Tensor Emitter::Use(const Value& value) {
  if (const auto found = values_.find(&value); found != values_.end()) return found->second;
  Tensor tensor;
  if (value.is_constant()) {
    tensor = value.type.quant ? Weight(value) : PlainConstant(value);
  } else if (const auto codes = codes_.find(&value); codes != codes_.end()) {
    tensor = DequantizeFrom(codes->second, value.type.quant->affine, value.type.dtype);
  } else if (const auto known = known_.find(&value); known != known_.end()) {
    tensor = b.Constant(known->second);
  } else {
    ThrowInternal("a value is used before it is defined", value.name());
  }
  values_[&value] = tensor;
  return tensor;
}

const TensorRef* Emitter::ConstantIn(const Node& node, std::size_t i) const {
  const Value* value = node.input(i);
  return value == nullptr ? nullptr : Known(*value);
}

Dims Emitter::DimsOf(const Value& value) const {
  if (value.is_constant()) {
    const std::optional<Dims> dims = StaticShape(value.type);
    return dims ? *dims : value.data->dims;
  }
  if (const auto found = values_.find(&value); found != values_.end()) return found->second.dims;
  if (const auto found = codes_.find(&value); found != codes_.end()) return found->second.dims;
  if (const auto found = known_.find(&value); found != known_.end()) return found->second.dims;
  ThrowInternal("a value is used before it is defined", value.name());
}

std::optional<std::vector<std::int64_t>> Emitter::IntsIn(const Node& node, std::size_t i, std::string_view what) const {
  if (!Has(node, i)) return std::nullopt;
  const TensorRef* data = ConstantIn(node, i);
  if (data == nullptr || !IsInteger(data->dtype)) {
    Refuse(node, std::string(what) + " must be a constant of integers; '" + node.input(i)->name() +
                     "' is computed: fix symbolic dimensions with --dim");
  }
  return data->ToInts();
}

std::vector<std::int64_t> Emitter::NeedInts(const Node& node, std::size_t i, std::string_view what) const {
  std::optional<std::vector<std::int64_t>> ints = IntsIn(node, i, what);
  if (!ints) Refuse(node, std::string(what) + " is missing");
  return *std::move(ints);
}

std::optional<std::vector<std::int64_t>> Emitter::IntsAttributeOrIn(const Node& node, std::string_view attribute,
                                                                    std::size_t i) const {
  if (const std::vector<std::int64_t>* ints = node.IntsAttribute(attribute)) return *ints;
  return IntsIn(node, i, attribute);
}

std::int64_t Emitter::Axis(const Node& node, std::int64_t axis, std::size_t rank) const {
  const auto r = static_cast<std::int64_t>(rank);
  if (axis < -r || axis >= r) {
    Refuse(node, "axis " + std::to_string(axis) + " is outside a tensor of " + std::to_string(r) + " dimensions");
  }
  return axis < 0 ? axis + r : axis;
}

std::optional<Tensor> Emitter::Codes(const Value& value) {
  const auto found = codes_.find(&value);
  if (found == codes_.end()) return std::nullopt;
  return found->second;
}

bool Emitter::Wanted(const Node& node, std::size_t i) const {
  const Value* value = node.output(i);
  return value != nullptr && !value->dead();
}

void Emitter::OutCodes(const Node& node, std::size_t i, Tensor codes) {
  const Value* value = node.output(i);
  if (value != nullptr) codes_[value] = std::move(codes);
}

void Emitter::Out(const Node& node, std::size_t i, Tensor tensor) {
  const Value* value = node.output(i);
  if (value == nullptr) return;
  if (value->type.shape) {
    bool same = value->type.shape->size() == tensor.rank();
    for (std::size_t d = 0; same && d < tensor.rank(); ++d) {
      const Dim& dim = (*value->type.shape)[d];
      same = !dim.known() || dim.value == tensor.dims[d];
    }
    if (!same) {
      notes_.push_back("the model says that the result '" + value->name() + "' of " + NodeText(node) + " is " +
                       ToString(value->type) + "; it is " + IntList(tensor.dims));
    }
  }
  if (value->type.quant) {
    if (value->type.quant->kind != QuantType::Kind::kAffine) {
      Refuse(node, "its result is computed in the block format " + ToString(value->type));
    }
    codes_[value] = QuantizeTo(tensor, value->type.quant->affine);
    return;
  }
  if (value->type.dtype != DType::kUndefined && value->type.dtype != tensor.dtype) {
    ThrowInternal("lowering gives " + tensor.type() + " where the IR says " + ToString(value->type), NodeText(node));
  }
  values_[value] = std::move(tensor);
}

void Emitter::Lower(const Node& node) {
  if (Fold(node)) return;
  const Lowering* row = FindLowering(node);
  if (row == nullptr) {
    Refuse(node,
           node.subgraphs().empty()
               ? "operator " + node.op() + " has no lowering"
               : "operator " + node.op() + " holds subgraphs; of such operators If, Loop and Scan have a lowering");
  }
  // A lowering checks what its operator may ask for; what contradicts itself is the model's fault, and is said so.
  try {
    row->lower(*this, node);
  } catch (const Error& error) {
    if (error.code() != ExitCode::kInternal) throw;
    ThrowBadInput("its inputs do not go together (" + error.reason() + ")", "node " + NodeText(node),
                  "the model is not valid");
  } catch (const std::out_of_range&) {
    ThrowBadInput("its inputs have too few dimensions", "node " + NodeText(node), "the model is not valid");
  }
  ++operators_;
}

void Emitter::LowerNodes(const Graph& graph) {
  for (const Node* node = graph.first(); node != nullptr; node = node->next()) Lower(*node);
}

std::vector<Tensor> Emitter::InRegion(const Graph& branch, const std::function<void()>& enter) {
  const auto values = values_, codes = codes_;
  const auto block_rows = block_rows_;
  if (enter) enter();
  LowerNodes(branch);
  std::vector<Tensor> results;
  for (const Value* output : branch.outputs()) results.push_back(Use(*output));
  Forget(branch);
  values_ = values;
  codes_ = codes;
  block_rows_ = block_rows;
  return results;
}

Emitter::Trial Emitter::Try(const Graph& branch) {
  const auto values = values_, codes = codes_;
  const auto block_rows = block_rows_;
  const auto known = known_;
  const auto made = made_;
  const auto parameters = parameters_;
  const auto notes = notes_;
  const std::int64_t operators = operators_;
  const bool text = b.text().Keep(false), functions = functions_.Keep(false), trying = std::exchange(trying_, true);
  Trial trial;
  try {
    trial.results = InRegion(branch);
  } catch (const Error& error) {
    if (error.code() != ExitCode::kBadInput) throw;
    trial.why = error.reason() + ", " + error.where();
  }
  values_ = values;
  codes_ = codes;
  block_rows_ = block_rows;
  known_ = known;
  made_ = made;
  parameters_ = parameters;
  notes_ = notes;
  operators_ = operators;
  b.text().Keep(text);
  functions_.Keep(functions);
  trying_ = trying;
  return trial;
}

const TensorRef* Emitter::Known(const Value& value) const {
  if (value.type.quant) return nullptr;
  if (value.is_constant()) return &*value.data;
  const auto known = known_.find(&value);
  return known == known_.end() ? nullptr : &known->second;
}

void Emitter::FoldNodes(const Graph& graph) {
  const auto has_dims = [&](const Value& value) {
    return value.is_constant() || values_.count(&value) + codes_.count(&value) + known_.count(&value) > 0;
  };
  for (const Node* node = graph.first(); node != nullptr; node = node->next()) {
    const Value* first = node->input(0);
    if ((node->Is("Shape") || node->Is("Size")) && (first == nullptr || !has_dims(*first))) continue;
    Fold(*node);
  }
}

void Emitter::Forget(const Graph& graph) {
  const auto forget = [&](const Value* value) {
    values_.erase(value);
    codes_.erase(value);
    known_.erase(value);
    block_rows_.erase(value);
  };
  for (const Value* input : graph.inputs()) forget(input);
  for (const Node* node = graph.first(); node != nullptr; node = node->next()) {
    for (const Value* output : node->outputs()) {
      if (output != nullptr) forget(output);
    }
    for (const Graph* inner : node->subgraphs()) Forget(*inner);
  }
}

void Emitter::OutAlias(const Node& node, std::size_t i, const Value& value) {
  if (node.output(i) == nullptr) return;
  if (const auto known = known_.find(&value); known != known_.end() && !node.output(i)->type.quant) {
    known_[node.output(i)] = TensorRef(known->second);
  } else if (value.is_constant() && !value.type.quant && !node.output(i)->type.quant) {
    known_[node.output(i)] = *value.data;
  } else {
    Out(node, i, Use(value));
  }
}

}  // namespace stablehlo

ConstantForm ParseConstantForm(const std::string& name) {
  constexpr std::pair<const char*, ConstantForm> kForms[] = {{"dequantize", ConstantForm::kFloats},
                                                             {"codes", ConstantForm::kCodes},
                                                             {"quant", ConstantForm::kQuant},
                                                             {"packed", ConstantForm::kPacked},
                                                             {"parameters", ConstantForm::kParameters}};
  std::vector<std::string> names;
  for (const auto& [text, form] : kForms) {
    if (name == text) return form;
    names.emplace_back(text);
  }
  const std::string how = DidYouMean(name, names);
  ThrowUsage("unknown form of constants '" + name + "'", "--constants",
             how.empty() ? "forms are dequantize, codes, quant, packed, parameters" : how);
}

std::vector<StablehloOperator> StablehloOperators() {
  std::vector<StablehloOperator> all = {{"Shape", "", ""}, {"Range", "", "computed limits"}};  // always known numbers
  for (const stablehlo::TopicFn topic : stablehlo::kTopics) {
    for (const stablehlo::Lowering& row : topic()) {
      if (row.domain != kIrDomain) all.push_back({row.op, row.domain, row.refused});
    }
  }
  std::sort(all.begin(), all.end(), [](const StablehloOperator& a, const StablehloOperator& b) {
    return std::pair(a.domain, a.op) < std::pair(b.domain, b.op);
  });
  return all;
}

namespace {

std::string InputType(const Value& value) {
  const std::optional<Dims> dims = StaticShape(value.type);
  if (!value.type.opaque.empty()) {
    ThrowUnsupported("not a tensor", "input '" + value.name() + "', export to StableHLO");
  }
  if (!dims) {
    std::string symbol;
    if (value.type.shape) {
      for (const Dim& dim : *value.type.shape) {
        if (!dim.known() && symbol.empty()) symbol = dim.symbol;
      }
    }
    ThrowUnsupported("its shape is not fixed: " + ToString(value.type),
                     "input '" + value.name() + "', export to StableHLO",
                     "fix it, for example --dim " + (symbol.empty() ? value.name() + ":0" : symbol) + "=1");
  }
  return stablehlo::TensorType(value.type.dtype, *dims);
}

// Lowers the whole graph; gives the results.
std::vector<stablehlo::Tensor> LowerGraph(stablehlo::Emitter& emitter, const Graph& graph) {
  std::size_t index = 0;
  for (const Value* input : graph.inputs()) {
    emitter.Bind(*input, {"%arg" + std::to_string(index++), input->type.dtype, *StaticShape(input->type), {}, {}});
  }
  emitter.LowerNodes(graph);
  std::vector<stablehlo::Tensor> results;
  for (const Value* output : graph.outputs()) {
    results.push_back(emitter.Use(*output));
    if (const std::optional<Dims> dims = StaticShape(output->type); dims && *dims != results.back().dims) {
      ThrowBadInput(
          "the model says that it is " + ToString(output->type) + ", it is " + stablehlo::IntList(results.back().dims),
          "output '" + output->name() + "'", "correct the declared shape");
    }
  }
  return results;
}

}  // namespace

StablehloResult WriteStablehlo(const Model& model, const std::filesystem::path& path, const StablehloOptions& options) {
  using namespace stablehlo;
  const Graph& graph = *model.graph;
  std::string arguments, results;
  for (std::size_t i = 0; i < graph.inputs().size(); ++i) {
    arguments += (i == 0 ? "%arg" : ", %arg") + std::to_string(i) + ": " + InputType(*graph.inputs()[i]);
  }
  // The signature comes first. Where the model does not say what its outputs are, a run that writes nothing finds out.
  const bool known = std::all_of(graph.outputs().begin(), graph.outputs().end(), [](const Value* output) {
    return StaticShape(output->type).has_value() && output->type.dtype != DType::kUndefined;
  });
  if (known) {
    for (const Value* output : graph.outputs()) {
      results += (results.empty() ? "" : ", ") + TensorType(output->type.dtype, *StaticShape(output->type));
    }
  } else {
    TextWriter nothing = TextWriter::Nothing();
    Emitter shapes(model, nothing, options);
    for (const Tensor& tensor : LowerGraph(shapes, graph)) results += (results.empty() ? "" : ", ") + tensor.type();
  }

  StablehloResult result;
  const EncodingTrace trace = TraceEncodings(graph);
  result.trace = trace.lines;
  result.quantized_weights = static_cast<std::int64_t>(trace.layouts.size());

  TextWriter text(path);
  Emitter emitter(model, text, options);
  text.Put("module @octavo" + ModuleAttributes(trace) + " {\n");
  text.Put("  func.func public @main(" + arguments + ") -> (" + results + ") {\n");
  std::string names, types;
  for (const Tensor& tensor : LowerGraph(emitter, graph)) {
    names += (names.empty() ? "" : ", ") + tensor.ssa;
    types += (types.empty() ? "" : ", ") + tensor.type();
  }
  text.Put("    return " + names + (names.empty() ? "" : " : " + types) + "\n  }\n");
  text.Put(emitter.functions());
  text.Put("}\n");
  result.notes = emitter.notes();
  result.archive_reads = static_cast<std::int64_t>(emitter.parameters().size());
  if (options.constants == ConstantForm::kParameters && options.archive.empty()) {
    std::vector<IrpaEntry> entries;
    for (const auto& [name, tensor] : emitter.parameters()) entries.push_back({name, tensor.bytes});
    result.archive = path;
    result.archive += ".irpa";
    WriteIrpa(result.archive, entries);
  }
  text.Commit();
  result.bytes = text.bytes();
  result.operators = emitter.operators();
  return result;
}

}  // namespace octavo
