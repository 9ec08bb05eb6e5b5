#include "octavo/rewrite/loop_steps.h"

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/rewrite/plain_constant.h"
#include "octavo/rewrite/plain_session.h"
#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

constexpr std::uint64_t kMostFollowed = 64;  // elements, in at most one dimension: nothing grows by broadcasting

// Give as many elements as the largest of what they get, or fewer, in no more dimensions.
constexpr std::array<std::string_view, 27> kFollowed = {"Add",
                                                        "Sub",
                                                        "Mul",
                                                        "Div",
                                                        "Neg",
                                                        "Abs",
                                                        "Min",
                                                        "Max",
                                                        "Mod",
                                                        "Cast",
                                                        "Identity",
                                                        "Less",
                                                        "Greater",
                                                        "LessOrEqual",
                                                        "Equal",
                                                        "And",
                                                        "GreaterOrEqual",
                                                        "Or",
                                                        "Xor",
                                                        "Not",
                                                        "Where",
                                                        "Floor",
                                                        "Ceil",
                                                        "Gather",
                                                        "Squeeze",
                                                        "ReduceMax",
                                                        "ReduceMin"};

bool Small(const TensorRef& data) {
  return data.dims.size() <= 1 && data.elements() <= kMostFollowed && data.dtype != DType::kString;
}
bool SmallConstant(const Value* v) { return IsPlainConstant(v) && Small(*v->data); }

class Follower {
 public:
  Follower(const Model& model, const Node& node, LoopSteps& steps) : model_(model), node_(node), steps_(steps) {}

  void Run() {
    std::optional<std::int64_t> most;
    if (const Value* m = node_.input(0)) {
      if (!SmallConstant(m) || m->data->elements() != 1 || m->data->dtype != DType::kS64)
        return Stop("the number of its steps is computed");
      most = m->data->ToInts()[0];
    }
    bool goes = true;
    if (const Value* c = node_.input(1)) {
      if (!SmallConstant(c) || c->data->elements() != 1 || c->data->dtype != DType::kBool)
        return Stop("whether it takes a first step is computed");
      goes = c->data->ToInts()[0] != 0;
    }
    const Graph& body = *steps_.body;
    const Value* again = body.outputs()[0];
    FindFollowed();
    if (!Follows(again)) return Stop("after how many steps it ends depends on data");
    Observe();
    std::vector<TensorRef> now;
    for (const Value* v : inputs_) now.push_back(Initial(v));
    std::optional<Session> session;
    for (;; ++steps_.count) {
      for (std::size_t i = 0; i < inputs_.size(); ++i) steps_.known[inputs_[i]].push_back(now[i]);
      if (!goes || (most && steps_.count >= *most)) return;
      if (steps_.count >= kMostLoopSteps) {
        return Stop("it takes more than " + std::to_string(kMostLoopSteps) + " steps");
      }
      if (!session) session.emplace(PlainSession(BodyOfNumbers()));
      const std::vector<TensorRef> results = session->Run(now);
      for (std::size_t i = 0; i < results.size(); ++i) {
        if (!Small(results[i])) return Stop("what counts its steps grows");
      }
      if (results[0].dtype != DType::kBool) return Stop("its condition is no truth value");
      goes = results[0].elements() == 1 && results[0].ToInts()[0] != 0;
      for (std::size_t i = 0; i < observed_.size(); ++i) steps_.known[observed_[i]].push_back(results[1 + i]);
      now[0] = Number(steps_.count + 1);
      now[1] = results[0];
      for (std::size_t i = 2; i < inputs_.size(); ++i) now[i] = results[1 + observed_.size() + i - 2];
    }
  }

 private:
  static TensorRef Number(std::int64_t n) { return TensorRef::FromInts(DType::kS64, {}, {&n, 1}); }
  void Stop(std::string why) { steps_.why = std::move(why); }

  std::size_t StateOf(const Value* input) const {
    const auto inputs = steps_.body->inputs();
    return static_cast<std::size_t>(std::find(inputs.begin(), inputs.end(), input) - inputs.begin()) - 2;
  }
  TensorRef Initial(const Value* input) const {
    if (input == steps_.body->inputs()[0]) return Number(0);
    if (input == steps_.body->inputs()[1]) {
      return TensorRef::FromBytes(DType::kBool, input->type.shape ? Dims(input->type.shape->size(), 1) : Dims{},
                                  {std::byte{1}});
    }
    return *node_.input(2 + StateOf(input))->data;
  }
  bool Follows(const Value* v) const { return SmallConstant(v) || followed_.contains(v); }

  // The states that are made of numbers that are known, and all that is made of these.
  void FindFollowed() {
    const Graph& body = *steps_.body;
    inputs_.assign(body.inputs().begin(), body.inputs().begin() + 2);
    for (std::size_t i = 0; i < steps_.states; ++i) {
      if (SmallConstant(node_.input(2 + i))) inputs_.push_back(body.inputs()[2 + i]);
    }
    for (bool dropped = true; dropped;) {
      followed_ = {inputs_.begin(), inputs_.end()};
      for (const Node* n = body.first(); n != nullptr; n = n->next()) {
        if (!n->domain().empty() || n->outputs().size() != 1 || n->output() == nullptr ||
            std::find(kFollowed.begin(), kFollowed.end(), n->op()) == kFollowed.end()) {
          continue;
        }
        const auto all = n->inputs();
        if (std::all_of(all.begin(), all.end(), [&](const Value* v) { return v == nullptr || Follows(v); }))
          followed_.insert(n->output());
      }
      const std::size_t before = inputs_.size();
      std::erase_if(inputs_, [&](const Value* v) {
        return v != body.inputs()[0] && v != body.inputs()[1] && !Follows(body.outputs()[1 + StateOf(v)]);
      });
      dropped = inputs_.size() != before;
    }
  }

  // Indices by which the body reads.
  void Observe() {
    for (const Node* n = steps_.body->first(); n != nullptr; n = n->next()) {
      const Value* index = n->Is("Gather") ? n->input(1) : nullptr;
      if (index == nullptr || index->producer() == nullptr || !followed_.contains(index)) continue;
      if (std::find(observed_.begin(), observed_.end(), index) == observed_.end()) observed_.push_back(index);
    }
  }

  // What is followed, as a model: the inputs that are known to the condition, the observed indices and the next states.
  Model BodyOfNumbers() const {
    Model sub;
    sub.ir_version = model_.ir_version;
    sub.opsets = model_.opsets;
    sub.graph = std::make_unique<Graph>();
    sub.graph->name = "steps";
    std::unordered_map<const Value*, Value*> copy;
    for (const Value* v : inputs_) {
      Type type;
      type.dtype = Initial(v).dtype;
      copy[v] = sub.graph->AddInput(v->name(), std::move(type));
    }
    const auto map = [&](const Value* v) -> Value* {
      if (v == nullptr) return nullptr;
      const auto it = copy.find(v);
      if (it != copy.end()) return it->second;
      return copy[v] = sub.graph->AddConstant(v->name(), *v->data, v->type);
    };
    for (const Node* n = steps_.body->first(); n != nullptr; n = n->next()) {
      if (n->output() == nullptr || !followed_.contains(n->output())) continue;
      std::vector<Value*> inputs;
      for (const Value* v : n->inputs()) inputs.push_back(map(v));
      Type type;
      type.dtype = n->output()->type.dtype;
      Node* twin = sub.graph->AddNode(n->op(), "", std::move(inputs), {{n->output()->name(), std::move(type)}});
      copy[n->output()] = twin->output();
      CopyAttributes(*n, *twin);
    }
    std::vector<const Value*> wanted = {steps_.body->outputs()[0]};
    wanted.insert(wanted.end(), observed_.begin(), observed_.end());
    for (std::size_t i = 2; i < inputs_.size(); ++i) wanted.push_back(steps_.body->outputs()[1 + StateOf(inputs_[i])]);
    for (const Value* v : wanted) {
      Value* from = map(v);
      Type type;
      type.dtype = from->type.dtype;
      sub.graph->AddOutput(sub.graph->AddNode("Identity", "", {from}, {{"result", std::move(type)}})->output());
    }
    sub.graph->EraseDead();
    return sub;
  }

  const Model& model_;
  const Node& node_;
  LoopSteps& steps_;
  std::vector<const Value*> inputs_;    // of the body: number, condition, states
  std::vector<const Value*> observed_;  // indices that the body computes
  std::unordered_set<const Value*> followed_;
};

const Graph* BodyOf(const Node& node) {
  const Attribute* attribute = node.FindAttribute("body");
  const auto* graph = attribute == nullptr ? nullptr : std::get_if<std::unique_ptr<Graph>>(&attribute->value);
  return graph == nullptr ? nullptr : graph->get();
}

void ReadLoop(const Model& model, const Node& node, LoopSteps& steps) {
  steps.first_input = steps.first_state = 2;
  steps.first_result = 1;
  steps.states = node.inputs().size() < 2 ? 0 : node.inputs().size() - 2;
  if (steps.body->inputs().size() != 2 + steps.states || steps.body->outputs().size() < 1 + steps.states ||
      node.outputs().size() + 1 > steps.body->outputs().size()) {
    steps.why = "its body has other inputs and outputs than it";
    return;
  }
  steps.collects.resize(steps.body->outputs().size() - 1 - steps.states);
  try {
    Follower(model, node, steps).Run();
  } catch (const Error& error) {
    if (error.code() != ExitCode::kBadInput && error.code() != ExitCode::kUnsupported) throw;
    steps.why = "the runtime cannot follow what counts its steps";
  }
}

// An axis of `rank` dimensions, counted from the front; nullopt: there is none of that number.
std::optional<std::int64_t> Axis(std::int64_t axis, std::size_t rank) {
  const auto n = static_cast<std::int64_t>(rank);
  if (axis < -n || axis >= n) return std::nullopt;
  return axis < 0 ? axis + n : axis;
}

void ReadScan(const Model& model, const Node& node, LoopSteps& steps) {
  const std::int64_t reads = node.IntAttribute("num_scan_inputs", 0);
  const auto inputs = static_cast<std::int64_t>(node.inputs().size());
  if (model.OpsetVersion() < 9) {
    steps.why = "it is the Scan of operator set 8, over a batch";
    return;
  }
  steps.states = reads < 1 || reads > inputs ? 0 : static_cast<std::size_t>(inputs - reads);
  if (reads < 1 || reads > inputs || steps.body->inputs().size() != node.inputs().size() ||
      steps.body->outputs().size() < steps.states || node.outputs().size() > steps.body->outputs().size()) {
    steps.why = "its body has other inputs and outputs than it";
    return;
  }
  steps.reads.resize(static_cast<std::size_t>(reads));
  steps.collects.resize(steps.body->outputs().size() - steps.states);
  const auto fill = [&](std::vector<LoopSteps::Track>& tracks, const char* axes, const char* directions) {
    const std::vector<std::int64_t>* list = node.IntsAttribute(axes);
    const std::vector<std::int64_t>* ways = node.IntsAttribute(directions);
    for (std::size_t i = 0; i < tracks.size(); ++i) {
      if (list != nullptr && i < list->size()) tracks[i].axis = (*list)[i];
      if (ways != nullptr && i < ways->size()) tracks[i].backward = (*ways)[i] != 0;
    }
  };
  fill(steps.reads, "scan_input_axes", "scan_input_directions");
  fill(steps.collects, "scan_output_axes", "scan_output_directions");
  for (std::size_t i = 0; i < steps.reads.size(); ++i) {
    const Value* x = node.input(steps.states + i);
    const std::optional<Dims> dims = x == nullptr ? std::nullopt : StaticShape(x->type);
    const std::optional<std::int64_t> axis = dims ? Axis(steps.reads[i].axis, dims->size()) : std::nullopt;
    if (!axis) {
      steps.why = "the shape of what it reads is not known";
      return;
    }
    steps.reads[i].axis = *axis;
    const std::int64_t length = (*dims)[static_cast<std::size_t>(*axis)];
    if (i > 0 && length != steps.count) {
      steps.why = "what it reads is not of one length";
      return;
    }
    steps.count = length;
  }
  if (steps.count > kMostLoopSteps) steps.why = "it takes more than " + std::to_string(kMostLoopSteps) + " steps";
}

}  // namespace

LoopSteps ReadLoopSteps(const Model& model, const Node& node) {
  LoopSteps steps;
  steps.body = BodyOf(node);
  const auto inputs = node.inputs();
  const bool loop = node.Is("Loop");
  if (steps.body == nullptr || (!loop && !node.Is("Scan"))) {
    steps.why = "it has no body of steps";
  } else if (std::any_of(
                 inputs.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(loop ? 2 : 0, inputs.size())),
                 inputs.end(), [](const Value* v) { return v == nullptr; })) {
    steps.why = "an initial state is left out";
  } else if (loop) {
    ReadLoop(model, node, steps);
  } else {
    ReadScan(model, node, steps);
  }
  return steps;
}

}  // namespace octavo
