// Before:  %s = Unsqueeze %c0, [0]            After:  %y = Reshape %x, %t
//          %t = Concat %s, %c1                        %t = constant, computed once by the runtime
//          %y = Reshape %x, %t
#include <algorithm>
#include <array>
#include <unordered_map>
#include <unordered_set>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/plain_session.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

constexpr std::uint64_t kMaxResult = 64u << 20;
constexpr std::uint64_t kMaxTotal = 256u << 20;
constexpr std::uint64_t kSmall = 64u << 10;

bool In(std::string_view op, std::span<const std::string_view> list) {
  return std::find(list.begin(), list.end(), op) != list.end();
}

// Operators whose result is not a function of their inputs, or is not a tensor.
constexpr std::array<std::string_view, 19> kNeverFold = {"RandomNormal",
                                                         "RandomNormalLike",
                                                         "RandomUniform",
                                                         "RandomUniformLike",
                                                         "Multinomial",
                                                         "Bernoulli",
                                                         "Dropout",
                                                         "If",
                                                         "Loop",
                                                         "Scan",
                                                         "SequenceMap",
                                                         "SequenceConstruct",
                                                         "SequenceEmpty",
                                                         "SplitToSequence",
                                                         "Optional",
                                                         "QuantizeLinear",
                                                         "DequantizeLinear",
                                                         "DynamicQuantizeLinear",
                                                         "ImageDecoder"};

// Operators whose result can be larger than their inputs by any factor: run only where the size is known before.
constexpr std::array<std::string_view, 16> kGrows = {
    "ConstantOfShape", "Expand", "Tile",     "Range",          "OneHot",    "Pad",    "Resize",        "Upsample",
    "EyeLike",         "Gather", "GatherND", "GatherElements", "ScatterND", "MatMul", "CenterCropPad", "Einsum"};

std::optional<std::uint64_t> KnownBytes(const Type& type) {
  const std::optional<Dims> dims = StaticShape(type);
  if (!dims.has_value() || type.dtype == DType::kUndefined || type.dtype == DType::kString) return std::nullopt;
  return ByteSize(type.dtype, ElementCount(*dims));
}

// What a Gather of constants makes, whose type may not be known (shape inference cannot say "a scalar").
std::optional<std::uint64_t> GatheredBytes(const Node& node) {
  const Value* data = node.input(0);
  const Value* indices = node.input(1);
  if (!node.Is("Gather") || data == nullptr || indices == nullptr || !data->data || !indices->data) return std::nullopt;
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(data->data->bytes.size(), indices->data->elements(), &bytes)) return std::nullopt;
  return bytes;
}

// What a ConstantOfShape of a constant shape makes, at most; its type may not be known either.
std::optional<std::uint64_t> FilledBytes(const Node& node) {
  const Value* shape = node.input(0);
  if (!node.Is("ConstantOfShape") || shape == nullptr || !shape->data || shape->data->dtype != DType::kS64)
    return std::nullopt;
  std::uint64_t bytes = 8;
  for (const std::int64_t dim : shape->data->ToInts()) {
    if (dim < 0 || __builtin_mul_overflow(bytes, static_cast<std::uint64_t>(dim), &bytes)) return std::nullopt;
  }
  return bytes;
}

// Broadcasting of two constants can multiply their sizes; everything else not in kGrows gives at most what it gets, up
// to the width of the type.
// `unpacks`: scales of blocks may be products of smaller ones.
// kPassing: the result is bigger than what it is made of, which is worth it where only other folded nodes read it.
enum class Size { kRefused, kPassing, kAcceptable };

Size SizeOf(const Node& node, std::uint64_t input_bytes, bool unpacks) {
  if (node.Is("DequantizeLinear")) return Size::kAcceptable;  // as many elements as there are codes
  const bool scales = unpacks && (node.Is("Mul") || node.Is("Cast"));
  Size size = Size::kAcceptable;
  for (const Value* output : node.outputs()) {
    if (output == nullptr) continue;
    std::optional<std::uint64_t> bytes = KnownBytes(output->type);
    if (!bytes.has_value()) bytes = GatheredBytes(node);
    if (!bytes.has_value()) bytes = FilledBytes(node);
    if (bytes.has_value()) {
      if (*bytes > kMaxResult) return Size::kRefused;
      if (!scales && *bytes > kSmall && *bytes > 4 * input_bytes) size = Size::kPassing;
    } else if (In(node.op(), kGrows) || input_bytes > (node.inputs().size() > 1 ? 4096u : kMaxResult / 8)) {
      return Size::kRefused;
    }
  }
  return size;
}

// Leaves out what is bigger than what it is made of and read by nodes that are not folded, and what is made of it.
void LeaveGrown(std::vector<Node*>& folded, std::unordered_set<const Node*>& set,
                const std::unordered_map<const Node*, std::uint64_t>& passing) {
  const auto goes = [&](const Node* node) {
    for (const Value* input : node->inputs()) {
      if (input != nullptr && input->producer() != nullptr && !set.contains(input->producer())) return true;
    }
    return passing.contains(node) &&
           std::any_of(node->outputs().begin(), node->outputs().end(), [&](const Value* output) {
             return output != nullptr && std::any_of(output->uses().begin(), output->uses().end(),
                                                     [&](const Use& use) { return !set.contains(use.node); });
           });
  };
  for (bool again = !passing.empty(); again;) {
    again = false;
    // Consumers first: of a chain that is left out the last ones go, then what they read.
    for (auto it = folded.rbegin(); it != folded.rend(); ++it) again = (goes(*it) && set.erase(*it) > 0) || again;
    std::erase_if(folded, [&](const Node* node) { return !set.contains(node); });
  }
}

enum class Unpack { kNothing, kBlocks, kAll };

bool Foldable(const Node& node, Unpack unpack) {
  if (!node.domain().empty() || node.inputs().empty()) return false;
  const bool unpacked =
      node.Is("DequantizeLinear") && (unpack == Unpack::kAll || (unpack == Unpack::kBlocks && HasBlocks(node)));
  if (In(node.op(), kNeverFold) && !unpacked) return false;
  for (const Attribute& attribute : node.attributes()) {
    if (std::holds_alternative<std::unique_ptr<Graph>>(attribute.value)) return false;
  }
  for (const Value* output : node.outputs()) {
    if (output != nullptr &&
        (output->is_graph_output() || !output->type.opaque.empty() || output->type.quant.has_value()))
      return false;
  }
  return true;
}

AttributeValue CopyAttribute(const AttributeValue& value) {
  return std::visit(
      [](const auto& v) -> AttributeValue {
        if constexpr (std::is_same_v<std::decay_t<decltype(v)>, std::unique_ptr<Graph>>) {
          ThrowInternal("a node with a subgraph is not folded");
        } else {
          return v;
        }
      },
      value);
}

// `unpack`: which DequantizeLinear too, and then whatever the size.
std::int64_t Fold(Model& model, Unpack unpack) {
  Graph& graph = *model.graph;
  // 1. The nodes that depend on constants only, in execution order.
  std::vector<Node*> folded;
  std::unordered_set<const Node*> set;
  std::unordered_map<const Node*, std::uint64_t> passing;  // and the bytes that they are made of
  std::uint64_t passing_bytes = 0;
  for (Node* node = graph.first(); node != nullptr; node = node->next()) {
    if (!Foldable(*node, unpack)) continue;
    bool ready = true;
    std::uint64_t input_bytes = 0;
    for (const Value* input : node->inputs()) {
      if (input == nullptr) continue;
      if (input->is_constant() && input->data.has_value() && !input->type.quant.has_value()) {
        input_bytes += input->data->bytes.size();
      } else if (input->producer() != nullptr && set.contains(input->producer())) {
        const auto grown = passing.find(input->producer());
        input_bytes += grown != passing.end() ? grown->second : KnownBytes(input->type).value_or(kSmall);
      } else {
        ready = false;
      }
    }
    const Size size = ready ? SizeOf(*node, input_bytes, unpack != Unpack::kNothing) : Size::kRefused;
    if (size == Size::kRefused) continue;
    if (size == Size::kPassing) {
      passing_bytes += KnownBytes(node->output()->type).value_or(kSmall);
      if (passing_bytes > kMaxTotal) continue;
      passing[node] = input_bytes;
    }
    folded.push_back(node);
    set.insert(node);
  }
  LeaveGrown(folded, set, passing);
  if (folded.empty()) return 0;

  // 2. One model of them; its outputs are what the rest of the graph reads.
  Model sub;
  sub.ir_version = model.ir_version;
  sub.opsets = model.opsets;
  sub.graph = std::make_unique<Graph>();
  sub.graph->name = "constants";
  std::unordered_map<const Value*, Value*> copy;
  std::vector<std::pair<Node*, std::size_t>> wanted;  // node, output index
  for (Node* node : folded) {
    std::vector<Value*> inputs;
    for (Value* input : node->inputs()) {
      if (input != nullptr && !copy.contains(input))
        copy[input] = sub.graph->AddConstant(input->name(), *input->data, input->type);
      inputs.push_back(input == nullptr ? nullptr : copy[input]);
    }
    std::vector<Graph::OutputSpec> outputs;
    for (const Value* output : node->outputs()) {
      outputs.push_back(output == nullptr ? Graph::OutputSpec{} : Graph::OutputSpec{output->name(), output->type});
    }
    Node* twin = sub.graph->AddNode(node->op(), "", std::move(inputs), std::move(outputs));
    twin->name = node->name;
    for (const Attribute& attribute : node->attributes())
      twin->SetAttribute(attribute.name, CopyAttribute(attribute.value));
    for (std::size_t i = 0; i < node->outputs().size(); ++i) {
      const Value* output = node->output(i);
      if (output == nullptr) continue;
      copy[output] = twin->output(i);
      const bool leaves = std::any_of(output->uses().begin(), output->uses().end(),
                                      [&](const Use& use) { return !set.contains(use.node); });
      if (leaves) {
        wanted.emplace_back(node, i);
        sub.graph->AddOutput(twin->output(i));
      }
    }
  }
  if (wanted.empty()) return 0;  // dead code

  // 3. Run it once.
  std::vector<TensorRef> results;
  try {
    const Session session = PlainSession(sub);  // else the runtime would fold all of it while loading, twice the memory
    std::vector<std::string> names;
    for (const auto& [node, index] : wanted) names.push_back(copy[node->output(index)]->name());
    results = session.Run({}, names);
  } catch (const Error& error) {
    if (error.code() != ExitCode::kBadInput && error.code() != ExitCode::kUnsupported) throw;
    LogWarning(std::string("constant parts of the model are left unfolded, because the runtime cannot run them: ") +
               error.what());
    return 0;
  }

  // 4. Results in their place, and what they were made of away.
  std::uint64_t total = 0;
  std::vector<std::pair<Value*, std::string>> renames;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    Value* value = wanted[i].first->output(wanted[i].second);
    const std::uint64_t bytes = results[i].bytes.size();
    if (unpack == Unpack::kNothing && (bytes > kMaxResult || total + bytes > kMaxTotal)) continue;
    total += bytes;
    Value* constant = graph.AddConstant(value->name(), std::move(results[i]));
    graph.ReplaceAllUses(value, constant);
    renames.emplace_back(constant, value->name());
  }
  const std::size_t before = graph.node_count();
  // Consumers first, so that each erased node frees its inputs' producers.
  for (auto it = folded.rbegin(); it != folded.rend(); ++it) {
    const bool dead = std::all_of((*it)->outputs().begin(), (*it)->outputs().end(),
                                  [](const Value* v) { return v == nullptr || v->dead(); });
    if (dead) graph.Erase(*it);
  }
  for (auto& [constant, name] : renames) {
    if (graph.FindValue(name) == nullptr) graph.Rename(constant, name);
  }
  return static_cast<std::int64_t>(before - graph.node_count());
}

}  // namespace

std::int64_t FoldConstants(Model& model) { return Fold(model, Unpack::kNothing); }

bool HasBlocks(const Node& node) { return node.Is("DequantizeLinear") && node.IntAttribute("block_size", 0) > 0; }

std::int64_t UnpackWeights(Model& model, bool all) {
  FillTypes(model);  // scales that are products fold where their size is known
  return Fold(model, all ? Unpack::kAll : Unpack::kBlocks);
}

}  // namespace octavo
