// Before:  %y, %ys = Loop 3, true, %x {body = graph (%i, %c, %h) -> (%c, %n, %n) {%n = Tanh (MatMul %h, %w)}}
// After:   %n1 = Tanh (MatMul %x, %w); %n2 = Tanh (MatMul %n1, %w); %y = Tanh (MatMul %n2, %w)
//          %ys = Concat (Unsqueeze %n1), (Unsqueeze %n2), (Unsqueeze %y)
//
// and what a step computes from its slice of something outside of the loop alone, for all steps at once:
// Before:  {%s = Gather %xs, %i; %p = MatMul %s, %w; ...}
// After:   %ps = MatMul %xs, %w; %p1, %p2, %p3 = Split %ps
#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "octavo/ir/copy_nodes.h"
#include "octavo/ir/make_type.h"
#include "octavo/rewrite/loop_steps.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/replace_node.h"
#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

constexpr std::int64_t kMostNodes = 20'000;  // that all loops of a model become
constexpr int kMostRounds = 16;              // of loops in loops

constexpr std::array<std::string_view, 12> kOfOne = {"Cast", "Not",  "Neg", "Abs",      "Sigmoid",  "Tanh",
                                                     "Relu", "Sqrt", "Exp", "Softsign", "Identity", "HardSigmoid"};
constexpr std::array<std::string_view, 12> kOfTwo = {
    "Add", "Sub", "Mul", "Div", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Xor"};

bool In(std::string_view op, std::span<const std::string_view> list) {
  return std::find(list.begin(), list.end(), op) != list.end();
}

std::int64_t NodesIn(const Graph& graph) {
  std::int64_t count = 0;
  VisitNodes(graph, [&](const Node&) { ++count; });
  return count;
}

// Why the steps that are known cannot be written out; empty: they can.
std::string WhyNotWritten(const Node& node, const LoopSteps& steps, std::int64_t left) {
  if (!steps.why.empty()) return steps.why;
  const std::int64_t nodes = NodesIn(*steps.body);
  if (nodes > 0 && steps.count > left / nodes) {
    return "its " + std::to_string(steps.count) + " steps would become more than " + std::to_string(kMostNodes) +
           " operators";
  }
  for (std::size_t i = 0; steps.count == 0 && i < steps.collects.size(); ++i) {
    const Value* out = node.output(steps.states + i);
    if (out != nullptr && !out->dead()) return "it takes no step, and what it collects has no shape";
  }
  for (std::size_t i = 0; i < steps.collects.size(); ++i) {
    const Value* out = node.output(steps.states + i);
    if (out != nullptr && !out->type.opaque.empty()) return "it collects what is no tensor";
  }
  return {};
}

// Something of all steps: step t reads place `t` (from the back: count - 1 - t) of it along an axis.
struct Stack {
  Value* whole;
  LoopSteps::Track track;
  std::size_t rank;  // of the whole; 0: not known
};

class Unroller {
 public:
  Unroller(const Model& model, Node& node, LoopSteps steps)
      : opset_(model.OpsetVersion()),
        node_(node),
        graph_(*node.graph()),
        body_(*node.subgraphs()[0]),
        steps_(std::move(steps)),
        base_(node.name.empty() ? node.op() : node.name) {}

  void Run() {
    TakeConstantsOut();
    TakeUnchangedOut();
    FindStacks();
    HoistFromSteps();
    std::vector<Value*> state;
    for (std::size_t i = 0; i < steps_.states; ++i) state.push_back(node_.input(steps_.first_input + i));
    std::vector<std::vector<Value*>> collected(steps_.collects.size());
    for (std::int64_t t = 0; t < steps_.count; ++t) {
      std::unordered_map<const Value*, Value*> mapping;
      for (std::size_t i = 0; i < steps_.first_state; ++i) Enter(mapping, body_.inputs()[i], nullptr, t);
      for (std::size_t i = 0; i < steps_.states; ++i) {
        Enter(mapping, body_.inputs()[steps_.first_state + i], state[i], t);
      }
      for (auto& [slice, stack] : stacks_) {
        if (!slice->dead()) mapping[slice] = Slice(stack, t);
      }
      CopyNodes(body_, graph_, &node_, mapping);
      for (const Node* n = body_.first(); n != nullptr; n = n->next()) {
        for (const Value* v : n->outputs()) {
          if (v != nullptr && v->type.opaque.empty()) mapping.at(v)->type = TypeOf(v->type.dtype);  // of this step
        }
      }
      const auto result = [&](std::size_t i) {
        Value* v = body_.outputs()[i];
        const auto it = mapping.find(v);
        return it == mapping.end() ? v : it->second;
      };
      for (std::size_t i = 0; i < steps_.states; ++i) state[i] = result(steps_.first_result + i);
      for (std::size_t i = 0; i < collected.size(); ++i) {
        collected[i].push_back(result(steps_.first_result + steps_.states + i));
      }
    }
    std::vector<Value*> made;
    for (std::size_t i = 0; i < node_.outputs().size(); ++i) {
      Value* out = node_.output(i);
      if (out == nullptr || out->dead()) {
        made.push_back(nullptr);
      } else if (i < steps_.states) {
        made.push_back(Known(body_.inputs()[steps_.first_state + i], steps_.count, state[i]));
      } else {
        const std::size_t k = i - steps_.states;
        made.push_back(Joined(collected[k], steps_.collects[k], *out));
      }
    }
    for (auto& [slice, stack] : stacks_) {
      if (stack.whole->type.dtype == DType::kUndefined) stack.whole->type.shape.reset();  // to be inferred as a whole
    }
    ReplaceNode(node_, std::move(made));
  }

 private:
  Value* Add(const char* op, std::vector<Value*> inputs, DType dtype) {
    last_ = graph_.AddNode(op, "", std::move(inputs), {{graph_.UniqueName(base_ + "_" + op), TypeOf(dtype)}}, &node_);
    last_->name = last_->output()->name();
    return last_->output();
  }
  Value* Constant(TensorRef data) {
    std::string key(Name(data.dtype));
    for (const std::int64_t d : data.dims) key += "," + std::to_string(d);
    key += ":";
    key.append(reinterpret_cast<const char*>(data.bytes.data()), data.bytes.size());
    Value*& made = constants_[key];
    if (made == nullptr) made = graph_.AddConstant(graph_.UniqueName(base_ + "_number"), std::move(data));
    return made;
  }
  Value* Ints(Dims values) {
    return Constant(TensorRef::FromInts(DType::kS64, {static_cast<std::int64_t>(values.size())}, values));
  }
  // Squeeze and Unsqueeze along one axis.
  Value* WithAxis(const char* op, Value* v, std::int64_t axis) {
    if (opset_ >= 13) return Add(op, {v, Ints({axis})}, v->type.dtype);
    Value* out = Add(op, {v}, v->type.dtype);
    last_->SetAttribute("axes", Dims{axis});
    return out;
  }

  // What an input of the body is in step t.
  Value* Known(const Value* input, std::int64_t t, Value* otherwise) {
    const auto it = steps_.known.find(input);
    return it == steps_.known.end() ? otherwise : Constant(it->second.at(static_cast<std::size_t>(t)));
  }
  void Enter(std::unordered_map<const Value*, Value*>& mapping, const Value* input, Value* v, std::int64_t t) {
    mapping[input] = Known(input, t, v);
  }

  // One for all steps.
  void TakeConstantsOut() {
    for (Value* c : body_.constants()) {
      Value* outer = graph_.AddConstant(graph_.UniqueName(c->name()), c->data.value_or(TensorRef{}), c->type);
      body_.ReplaceAllUses(c, outer);
      body_.Erase(c);
    }
  }
  // What every step hands on as it got it is what it was before the first one.
  void TakeUnchangedOut() {
    for (std::size_t i = 0; i < steps_.states; ++i) {
      Value* in = body_.inputs()[steps_.first_state + i];
      if (body_.outputs()[steps_.first_result + i] == in) {
        body_.ReplaceAllUses(in, node_.input(steps_.first_input + i));
      }
    }
  }

  // Slices of what stands outside: what a Scan reads, and Gathers by a known number.
  void FindStacks() {
    const auto rank = [](const Value& v) {
      const std::optional<Dims> dims = StaticShape(v.type);
      return dims ? dims->size() : 0;
    };
    for (std::size_t i = 0; i < steps_.reads.size(); ++i) {
      Value* whole = node_.input(steps_.states + i);
      stacks_.emplace_back(body_.inputs()[steps_.states + i], Stack{whole, steps_.reads[i], rank(*whole)});
    }
    for (Node* n : body_.nodes()) {
      const auto index =
          n->Is("Gather") && n->IntAttribute("axis", 0) == 0 ? steps_.known.find(n->input(1)) : steps_.known.end();
      Value* whole = n->input(0);
      const std::optional<Dims> dims = whole == nullptr ? std::nullopt : StaticShape(whole->type);
      if (index == steps_.known.end() || !dims || dims->empty() || whole->graph() == &body_ || steps_.count < 1)
        continue;
      Dims places;
      for (std::int64_t t = 0; t < steps_.count; ++t) {
        const TensorRef& at = index->second[static_cast<std::size_t>(t)];
        if (!at.dims.empty() || !IsInteger(at.dtype)) break;
        const std::int64_t place = at.ToInts()[0];
        if (place < -(*dims)[0] || place >= (*dims)[0]) break;
        places.push_back(place < 0 ? place + (*dims)[0] : place);
      }
      if (static_cast<std::int64_t>(places.size()) != steps_.count) continue;
      LoopSteps::Track track;
      if (!AllInOrder(places, (*dims)[0], track)) {
        whole = Add("Gather", {whole, Ints(places)}, whole->type.dtype);
        Dims gathered = *dims;
        gathered[0] = steps_.count;
        Shape(whole, gathered);
      }
      stacks_.emplace_back(n->output(), Stack{whole, track, dims->size()});
    }
  }
  bool AllInOrder(const Dims& places, std::int64_t length, LoopSteps::Track& track) const {
    if (length != steps_.count) return false;
    bool forward = true, backward = true;
    for (std::int64_t t = 0; t < length; ++t) {
      forward = forward && places[static_cast<std::size_t>(t)] == t;
      backward = backward && places[static_cast<std::size_t>(t)] == length - 1 - t;
    }
    track.backward = backward && !forward;
    return forward || backward;
  }
  static void Shape(Value* v, const Dims& dims) { v->type.shape = TypeOf(v->type.dtype, dims).shape; }

  const Stack* StackOf(const Value* v) const {
    for (const auto& [slice, stack] : stacks_) {
      if (slice == v) return &stack;
    }
    return nullptr;
  }
  // Of a constant or a value outside, which all steps read alike: its dimensions.
  std::optional<Dims> Outside(const Value* v) const {
    return v == nullptr || v->graph() == &body_ ? std::nullopt : StaticShape(v->type);
  }

  // Operators of slices alone, done once for all steps. They join the stacks.
  void HoistFromSteps() {
    for (Node* n : body_.nodes()) {
      if (!n->domain().empty() || n->outputs().size() != 1 || n->output() == nullptr || StackOf(n->output()) != nullptr)
        continue;
      const Stack* first = StackOf(n->input(0));
      const Stack* second = StackOf(n->input(1));
      const Stack* one = first != nullptr ? first : second;
      if (one == nullptr || one->track.axis != 0 || one->rank == 0) continue;
      std::vector<Value*> inputs;
      Dims dims = *StaticShape(one->whole->type);
      if (In(n->op(), kOfOne) && n->inputs().size() == 1) {
        inputs = {one->whole};
      } else if (In(n->op(), kOfTwo)) {
        const std::optional<Dims> other = first != nullptr && second != nullptr
                                              ? StaticShape(second->whole->type)
                                              : Outside(n->input(first != nullptr ? 1 : 0));
        if (!other) continue;
        if (first != nullptr && second != nullptr) {
          if (first->track.axis != second->track.axis || first->track.backward != second->track.backward ||
              dims != *other) {
            continue;
          }
        } else if (other->size() >= dims.size() || !StretchesTo(*other, dims)) {
          continue;
        }
        inputs = {first != nullptr ? first->whole : n->input(0), second != nullptr ? second->whole : n->input(1)};
      } else if (n->Is("MatMul") && first != nullptr && second == nullptr) {
        const std::optional<Dims> other = Outside(n->input(1));
        if (!other || other->size() != 2 || dims.size() < 3 || dims.back() != (*other)[0]) continue;
        inputs = {first->whole, n->input(1)};
        dims.back() = (*other)[1];
      } else {
        continue;
      }
      Value* whole = Add(n->op().c_str(), std::move(inputs), n->output()->type.dtype);
      CopyAttributes(*n, *last_);
      Shape(whole, dims);
      stacks_.emplace_back(n->output(), Stack{whole, one->track, dims.size()});
    }
    // Slices come from outside from now on.
    for (auto& [slice, stack] : stacks_) {
      if (slice->kind() != ValueKind::kResult) continue;
      Value* input = body_.AddInput(slice->name() + "_slice", TypeOf(slice->type.dtype));
      body_.ReplaceAllUses(slice, input);
      slice = input;
    }
    body_.EraseDead();
  }

  Value* Slice(Stack& stack, std::int64_t t) {
    const std::int64_t place = stack.track.backward ? steps_.count - 1 - t : t;
    if (stack.rank == 0 || opset_ < 13) {
      Value* out = Add("Gather", {stack.whole, Constant(TensorRef::FromInts(DType::kS64, {}, {&place, 1}))},
                       stack.whole->type.dtype);
      last_->SetAttribute("axis", stack.track.axis);
      return out;
    }
    std::vector<Value*>& parts = parts_[{stack.whole, stack.track.axis}];
    if (parts.empty()) {
      if (steps_.count == 1) {
        parts = {stack.whole};
      } else {
        std::vector<Graph::OutputSpec> outputs;
        for (std::int64_t i = 0; i < steps_.count; ++i)
          outputs.push_back({graph_.UniqueName(base_ + "_part"), TypeOf(stack.whole->type.dtype)});
        Node* split = graph_.AddNode("Split", "", {stack.whole, Ints(Dims(static_cast<std::size_t>(steps_.count), 1))},
                                     std::move(outputs), &node_);
        split->name = split->output()->name();
        split->SetAttribute("axis", stack.track.axis);
        parts.assign(split->outputs().begin(), split->outputs().end());
      }
      for (Value*& part : parts) part = WithAxis("Squeeze", part, stack.track.axis);
    }
    return parts[static_cast<std::size_t>(place)];
  }

  // What the steps gave, along a new axis.
  Value* Joined(std::vector<Value*> each, const LoopSteps::Track& track, const Value& out) {
    if (track.backward) std::reverse(each.begin(), each.end());
    const DType dtype = out.type.dtype;
    for (Value*& v : each) {
      v = WithAxis("Unsqueeze", v, track.axis);
      v->type.dtype = dtype;
    }
    if (each.size() == 1) return each[0];
    Value* all = Add("Concat", std::move(each), dtype);
    last_->SetAttribute("axis", track.axis);
    return all;
  }

  std::int64_t opset_;
  Node& node_;
  Graph& graph_;
  Graph& body_;
  LoopSteps steps_;
  std::string base_;
  Node* last_ = nullptr;
  std::vector<std::pair<Value*, Stack>> stacks_;  // of each slice in the body, in its order
  std::map<std::pair<Value*, std::int64_t>, std::vector<Value*>> parts_;
  std::map<std::string, Value*> constants_;
};

// Loops that are in no loop: those of the graph, and of the branches in it.
void Loops(Graph& graph, std::vector<Node*>& found) {
  for (Node* node : graph.nodes()) {
    if (node->Is("Loop") || node->Is("Scan")) {
      found.push_back(node);
    } else {
      for (Graph* sub : node->subgraphs()) Loops(*sub, found);
    }
  }
}

}  // namespace

std::int64_t UnrollLoops(Model& model) {
  std::int64_t unrolled = 0, left = kMostNodes;
  for (int round = 0; round < kMostRounds; ++round) {
    std::vector<Node*> loops;
    Loops(*model.graph, loops);
    const std::int64_t before = unrolled;
    for (Node* node : loops) {
      LoopSteps steps = ReadLoopSteps(model, *node);
      if (!WhyNotWritten(*node, steps, left).empty()) continue;
      left -= steps.count * NodesIn(*steps.body);
      Unroller(model, *node, std::move(steps)).Run();
      ++unrolled;
    }
    if (unrolled == before) break;
    model.graph->EraseDead();
  }
  if (unrolled > 0) MergeEqual(*model.graph);
  return unrolled;
}

std::vector<PassCount> UnrollAndSimplify(Model& model, RuleClass most) {
  std::vector<PassCount> applied;
  for (;;) {
    const std::int64_t loops = UnrollLoops(model), sequences = ResolveSequences(model);
    if (loops + sequences == 0) break;
    if (loops > 0) applied.push_back({"unroll-loop", loops});
    if (sequences > 0) applied.push_back({"resolve-sequence", sequences});
    for (PassCount& pass : SimplifyFloat(model, most)) applied.push_back(std::move(pass));
  }
  return applied;
}

std::string WhyLoopStays(const Model& model, const Node& node) {
  return WhyNotWritten(node, ReadLoopSteps(model, node), kMostNodes);
}

}  // namespace octavo
