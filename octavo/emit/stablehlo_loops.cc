// Loop and Scan (onnx.ai, operators of these names). How many steps a loop takes is found out by following what its
// condition reads; with static shapes that is mostly known. The first step stands before the loop: it tells the types
// of what the steps hand on and collect, and defines the weights that all of them read.
#include <algorithm>
#include <memory>

#include "octavo/emit/stablehlo_lowering.h"

namespace octavo::stablehlo {
namespace {

constexpr std::int64_t kMostUnrolled = 64;             // steps, where what they hand on changes its type
constexpr std::int64_t kMostOperators = 1 << 19;       // in the text, with loops in loops: each writes its body twice
constexpr std::uint64_t kMostFollowed = 1ULL << 22;    // nodes looked at to count steps
constexpr std::uint64_t kMostCollected = 1ULL << 31U;  // elements of one result

struct Carried {
  Tensor tensor;
  const TensorRef* known = nullptr;  // where its value follows from shapes and constants
};

// What is read by slices, or collected, along an axis, forward or backward.
struct Track {
  std::int64_t axis = 0;
  bool backward = false;
};

struct Body {
  const Graph* graph = nullptr;
  std::size_t first = 0;   // result of the graph where the state begins: 1 behind a Loop's condition
  std::size_t states = 0;  // of its results; what is collected follows
  std::vector<Track> collects;
};

const Graph* BodyOf(Emitter& e, const Node& node) {
  const Attribute* attribute = node.FindAttribute("body");
  const auto* graph = attribute != nullptr ? std::get_if<std::unique_ptr<Graph>>(&attribute->value) : nullptr;
  if (graph == nullptr || *graph == nullptr) e.Refuse(node, "it has no body");
  return graph->get();
}

// Larger tensors decide no shape: they are handed on, not written again.
const TensorRef* IfSmall(const TensorRef* data) { return data != nullptr && data->elements() <= 1024 ? data : nullptr; }

bool SameType(const Tensor& a, const Tensor& b) { return a.dtype == b.dtype && a.dims == b.dims; }

// The axis becomes the first one, or the first one goes to the axis.
Tensor AxisFirst(Builder& b, const Tensor& x, std::int64_t axis) {
  Dims order = {axis};
  for (std::int64_t d = 0; d < static_cast<std::int64_t>(x.rank()); ++d) {
    if (d != axis) order.push_back(d);
  }
  return axis == 0 ? x : b.Transpose(x, order);
}
Tensor FirstTo(Builder& b, const Tensor& x, std::int64_t axis) {
  Dims order;
  for (std::int64_t d = 1; d < static_cast<std::int64_t>(x.rank()); ++d) order.push_back(d);
  order.insert(order.begin() + axis, 0);
  return axis == 0 ? x : b.Transpose(x, order);
}

// Runs `steps` (at least one) steps. `enter` binds what a step reads; its number is known, too, where the step stands
// outside of the loop.
class Steps {
 public:
  using Enter = std::function<void(const Tensor& step, const std::int64_t* known, std::span<const Carried> state)>;

  Steps(Emitter& e, const Node& node, const Body& body, std::int64_t steps, Enter enter)
      : e_(e), node_(node), body_(body), steps_(steps), enter_(std::move(enter)) {}

  void Run(std::vector<Carried> state) {
    std::vector<Tensor> collected;
    const auto before = state;
    state = Alone(0, state, &collected);
    std::vector<Tensor> buffers;
    for (std::size_t i = 0; i < collected.size(); ++i) {
      Dims dims = collected[i].dims;
      dims.insert(dims.begin(), steps_);
      if (ElementCount(dims) > kMostCollected) e_.Refuse(node_, "what its steps collect is too large");
      buffers.push_back(e_.b.Splat(collected[i].dtype, dims, 0));
      buffers.back().splat.reset();
      Put(buffers[i], collected[i], At(i, Number(0)));
    }
    const bool stays = std::equal(before.begin(), before.end(), state.begin(),
                                  [](const Carried& a, const Carried& b) { return SameType(a.tensor, b.tensor); });
    if (!stays && steps_ > kMostUnrolled) {
      e_.Refuse(node_, "its state changes its type in " + std::to_string(steps_) + " steps; up to " +
                           std::to_string(kMostUnrolled) + " such steps have a lowering");
    }
    if (stays && steps_ > 1) {
      Rest(&state, &buffers);
    } else {
      for (std::int64_t step = 1; step < steps_; ++step) {
        std::vector<Tensor> more;
        state = Alone(step, state, &more);
        for (std::size_t i = 0; i < more.size(); ++i) {
          if (!SameType(more[i], collected[i])) e_.Refuse(node_, "what its steps collect changes its type");
          Put(buffers[i], more[i], At(i, Number(step)));
        }
      }
    }
    for (std::size_t i = 0; i < state.size(); ++i) e_.Out(node_, i, state[i].tensor);
    for (std::size_t i = 0; i < buffers.size(); ++i) {
      if (Wants(i))
        e_.Out(node_, body_.states + i,
               FirstTo(e_.b, buffers[i], e_.Axis(node_, body_.collects[i].axis, buffers[i].rank())));
    }
  }

 private:
  Tensor Number(std::int64_t i) { return e_.b.Splat(DType::kS64, {}, static_cast<double>(i)); }
  bool Wants(std::size_t i) const { return e_.Wanted(node_, body_.states + i); }
  Tensor At(std::size_t i, const Tensor& step) {
    return body_.collects[i].backward ? e_.b.Sub(Number(steps_ - 1), step) : step;
  }
  void Put(Tensor& buffer, const Tensor& element, const Tensor& at) {
    Dims row = element.dims;
    row.insert(row.begin(), 1);
    buffer = e_.b.WithRow(buffer, e_.b.Reshape(element, row), at);
  }
  const Value& Result(std::size_t i) const { return *body_.graph->outputs()[body_.first + i]; }

  // A step outside of a loop.
  std::vector<Carried> Alone(std::int64_t step, std::span<const Carried> state, std::vector<Tensor>* collected) {
    if (e_.operators() > kMostOperators) {
      e_.Refuse(node_, "its steps, written out, would be more than " + std::to_string(kMostOperators) + " operators");
    }
    enter_(Number(step), &step, state);
    e_.LowerNodes(*body_.graph);
    std::vector<Carried> next;
    kept_[step % 2].clear();
    for (std::size_t i = 0; i < body_.states; ++i) {
      next.push_back({e_.Use(Result(i))});
      if (const TensorRef* known = IfSmall(e_.Known(Result(i)))) {
        kept_[step % 2].push_back(std::make_unique<TensorRef>(*known));
        next.back().known = kept_[step % 2].back().get();
      }
    }
    for (std::size_t i = 0; i < body_.collects.size(); ++i) collected->push_back(e_.Use(Result(body_.states + i)));
    e_.Forget(*body_.graph);
    return next;
  }

  // The steps from the second one on, in a loop.
  void Rest(std::vector<Carried>* state, std::vector<Tensor>* buffers) {
    std::vector<Tensor> all;
    for (const Carried& c : *state) all.push_back(c.tensor);
    all.insert(all.end(), buffers->begin(), buffers->end());
    const auto body = [&](const Tensor& step, std::span<const Tensor> old) {
      const Tensor number = e_.b.Add(step, 1);
      std::vector<Carried> inside;
      for (std::size_t i = 0; i < body_.states; ++i) inside.push_back({old[i]});
      std::vector<Tensor> next = e_.InRegion(*body_.graph, [&] { enter_(number, nullptr, inside); });
      next.erase(next.begin(), next.begin() + static_cast<std::ptrdiff_t>(body_.first));
      for (std::size_t i = 0; i < next.size(); ++i) {
        const bool is_state = i < body_.states;
        const Dims row = is_state ? Dims() : Dims(old[i].dims.begin() + 1, old[i].dims.end());
        if (next[i].dtype != old[i].dtype || next[i].dims != (is_state ? old[i].dims : row))
          e_.Refuse(node_, "its state or what it collects changes its type from step to step");
        if (is_state) continue;
        Tensor buffer = old[i];
        Put(buffer, next[i], At(i - body_.states, number));
        next[i] = buffer;
      }
      return next;
    };
    const std::vector<Tensor> done = e_.b.Repeat(steps_ - 1, all, body);
    for (std::size_t i = 0; i < body_.states; ++i) (*state)[i] = {done[i]};
    for (std::size_t i = 0; i < buffers->size(); ++i) (*buffers)[i] = done[body_.states + i];
  }

  Emitter& e_;
  const Node& node_;
  const Body& body_;
  std::int64_t steps_;
  Enter enter_;
  std::vector<std::unique_ptr<TensorRef>> kept_[2];  // known states of this step and of the one before
};

// --- Loop -----------------------------------------------------------------------------------------------------------

TensorRef KnownTrue() { return TensorRef::FromBytes(DType::kBool, {}, {std::byte{1}}); }
TensorRef KnownNumber(std::int64_t i) { return TensorRef::FromInts(DType::kS64, {}, std::span(&i, 1)); }
std::optional<bool> AsBool(const TensorRef* data) {
  if (data == nullptr || data->dtype != DType::kBool || data->elements() != 1) return {};
  return data->bytes[0] != std::byte{0};
}

// Steps that a loop takes which begins; nullopt where that is not known. `most`: its trip count, where it has one.
std::optional<std::int64_t> CountSteps(Emitter& e, const Graph& body, std::optional<std::int64_t> most,
                                       std::span<const Carried> start) {
  const auto follow = [&](std::optional<std::int64_t> step, const std::vector<std::optional<TensorRef>>& state) {
    if (step) e.BindKnown(*body.inputs()[0], KnownNumber(*step));
    e.BindKnown(*body.inputs()[1], KnownTrue());
    for (std::size_t i = 0; i < state.size(); ++i) {
      if (state[i]) e.BindKnown(*body.inputs()[i + 2], *state[i]);
    }
    e.FoldNodes(body);
    return AsBool(e.Known(*body.outputs()[0]));
  };
  std::vector<std::optional<TensorRef>> state(start.size());
  const std::optional<bool> always = follow({}, state);
  e.Forget(body);
  if (always) return *always ? most : 1;
  for (std::size_t i = 0; i < state.size(); ++i) {
    if (start[i].known != nullptr) state[i] = *start[i].known;
  }
  std::uint64_t nodes = 1;
  for (const Node* node = body.first(); node != nullptr; node = node->next()) ++nodes;
  for (std::int64_t step = 0;; ++step) {
    if (most && step == *most) return step;
    if (static_cast<std::uint64_t>(step) * nodes > kMostFollowed) return {};
    const std::optional<bool> more = follow(step, state);
    for (std::size_t i = 0; i < state.size(); ++i) {
      const TensorRef* known = e.Known(*body.outputs()[i + 1]);
      state[i] = known != nullptr ? std::optional(*known) : std::nullopt;
    }
    e.Forget(body);
    if (!more) return {};
    if (!*more) return step + 1;
  }
}

// A loop whose end is computed: a stablehlo.while over number, condition and state.
void Open(Emitter& e, const Node& node, const Body& body, const std::vector<Carried>& state) {
  for (std::size_t i = 0; i < body.collects.size(); ++i) {
    if (e.Wanted(node, body.states + i))
      e.Refuse(node,
               "it collects results of its steps, and their number is computed: make what ends it an initializer");
  }
  const auto scalar = [&](std::size_t i, DType dtype) {
    const Tensor x = e.In(node, i);
    if (ElementCount(x.dims) != 1 || x.dtype != dtype) e.Refuse(node, "its trip count or condition is not one value");
    return e.b.Reshape(x, {});
  };
  std::vector<Tensor> all = {e.b.Splat(DType::kS64, {}, 0)};
  all.push_back(e.Has(node, 1) ? scalar(1, DType::kBool) : e.b.Splat(DType::kBool, {}, 1));
  for (const Carried& c : state) all.push_back(c.tensor);
  for (Tensor& t : all) t.splat.reset();
  std::optional<Tensor> most;
  if (e.Has(node, 0)) most = scalar(0, DType::kS64);
  const auto goes_on = [&](std::span<const Tensor> now) {
    return most ? e.b.Binary("and", now[1], e.b.CompareTo(Compare::kLt, now[0], *most)) : now[1];
  };
  const auto step = [&](std::span<const Tensor> now) {
    std::vector<Tensor> next = e.InRegion(*body.graph, [&] {
      e.Bind(*body.graph->inputs()[0], now[0]);
      e.BindKnown(*body.graph->inputs()[1], KnownTrue());
      for (std::size_t i = 2; i < now.size(); ++i) e.Bind(*body.graph->inputs()[i], now[i]);
    });
    next.resize(1 + body.states);
    if (next[0].dtype != DType::kBool || ElementCount(next[0].dims) != 1)
      e.Refuse(node, "the condition of its body is not one bool");
    next[0] = e.b.Reshape(next[0], {});
    next.insert(next.begin(), e.b.Add(now[0], 1));
    for (std::size_t i = 0; i < next.size(); ++i) {
      if (!SameType(next[i], now[i])) {
        e.Refuse(node, "its state changes its type from " + now[i].type() + " to " + next[i].type() +
                           " and the number of steps is computed");
      }
    }
    return next;
  };
  const std::vector<Tensor> done = e.b.While(all, goes_on, step);
  for (std::size_t i = 0; i < body.states; ++i) e.Out(node, i, done[i + 2]);
}

void LoopNode(Emitter& e, const Node& node) {
  Body body;
  body.graph = BodyOf(e, node);
  body.first = 1;
  body.states = std::max<std::size_t>(node.inputs().size(), 2) - 2;
  const std::size_t results = body.graph->outputs().size();
  if (body.graph->inputs().size() != body.states + 2 || results < body.states + 1 ||
      node.outputs().size() > results - 1) {
    e.Refuse(node, "its body does not fit its inputs and results");
  }
  body.collects.resize(results - 1 - body.states);

  std::vector<Carried> state;
  for (std::size_t i = 0; i < body.states; ++i) {
    if (!e.Has(node, i + 2)) e.Refuse(node, "input " + std::to_string(i + 2) + " is missing");
    state.push_back({e.In(node, i + 2), IfSmall(e.ConstantIn(node, i + 2))});
  }
  std::optional<std::int64_t> most;
  bool computed = false;
  if (e.Has(node, 0)) {
    const TensorRef* data = e.ConstantIn(node, 0);
    computed = data == nullptr;
    if (data != nullptr && (data->dtype != DType::kS64 || data->elements() != 1))
      e.Refuse(node, "its trip count is not one number");
    if (data != nullptr) most = std::max<std::int64_t>(0, data->ToInts()[0]);
  }
  std::optional<bool> begins = true;
  if (e.Has(node, 1)) begins = AsBool(e.ConstantIn(node, 1));
  if (most == 0) begins = false;
  if (begins == false) {
    for (std::size_t i = 0; i < body.collects.size(); ++i) {
      if (e.Wanted(node, body.states + i)) e.Refuse(node, "it collects the results of no steps");
    }
    for (std::size_t i = 0; i < body.states; ++i) e.Out(node, i, state[i].tensor);
    return;
  }
  std::optional<std::int64_t> steps;
  if (begins && !computed) steps = CountSteps(e, *body.graph, most, state);
  if (!steps) {
    Open(e, node, body, state);
    return;
  }
  const auto enter = [&](const Tensor& step, const std::int64_t* known, std::span<const Carried> now) {
    if (known != nullptr) {
      e.BindKnown(*body.graph->inputs()[0], KnownNumber(*known));
    } else {
      e.Bind(*body.graph->inputs()[0], step);
    }
    e.BindKnown(*body.graph->inputs()[1], KnownTrue());
    for (std::size_t i = 0; i < now.size(); ++i) {
      const Value& value = *body.graph->inputs()[i + 2];
      now[i].known != nullptr ? e.BindKnown(value, *now[i].known) : e.Bind(value, now[i].tensor);
    }
  };
  Steps(e, node, body, *steps, enter).Run(std::move(state));
}

// --- Scan -----------------------------------------------------------------------------------------------------------

std::vector<Track> Tracks(Emitter& e, const Node& node, std::string_view axes, std::string_view directions,
                          std::size_t count) {
  std::vector<Track> tracks(count);
  const auto* axis = node.IntsAttribute(axes);
  const auto* direction = node.IntsAttribute(directions);
  if ((axis != nullptr && axis->size() != count) || (direction != nullptr && direction->size() != count))
    e.Refuse(node, "its axes or directions do not fit what it reads and collects");
  for (std::size_t i = 0; i < count; ++i) {
    if (axis != nullptr) tracks[i].axis = (*axis)[i];
    if (direction != nullptr) tracks[i].backward = (*direction)[i] != 0;
  }
  return tracks;
}

void ScanNode(Emitter& e, const Node& node) {
  if (e.opset(node) < 9) e.Refuse(node, "operator sets before 9, whose Scan runs over a batch");
  Body body;
  body.graph = BodyOf(e, node);
  const std::int64_t reads = node.IntAttribute("num_scan_inputs", 0);
  if (reads < 1 || static_cast<std::size_t>(reads) > node.inputs().size())
    e.Refuse(node, "its num_scan_inputs does not fit its inputs");
  body.states = node.inputs().size() - static_cast<std::size_t>(reads);
  const std::size_t results = body.graph->outputs().size();
  if (body.graph->inputs().size() != node.inputs().size() || results < body.states || node.outputs().size() > results)
    e.Refuse(node, "its body does not fit its inputs and results");

  std::vector<Carried> state;
  for (std::size_t i = 0; i < body.states; ++i) state.push_back({e.In(node, i), IfSmall(e.ConstantIn(node, i))});
  std::vector<Tensor> sequences;
  const std::vector<Track> tracks =
      Tracks(e, node, "scan_input_axes", "scan_input_directions", static_cast<std::size_t>(reads));
  std::int64_t steps = 0;
  for (std::size_t i = 0; i < tracks.size(); ++i) {
    const Tensor all = e.In(node, body.states + i);
    sequences.push_back(AxisFirst(e.b, all, e.Axis(node, tracks[i].axis, all.rank())));
    if (i > 0 && sequences[i].dims[0] != steps) e.Refuse(node, "the sequences that it reads differ in length");
    steps = sequences[i].dims[0];
  }
  if (steps == 0) e.Refuse(node, "its sequence is empty");
  body.collects = Tracks(e, node, "scan_output_axes", "scan_output_directions", results - body.states);

  const auto enter = [&](const Tensor& step, const std::int64_t*, std::span<const Carried> now) {
    for (std::size_t i = 0; i < now.size(); ++i) {
      const Value& value = *body.graph->inputs()[i];
      now[i].known != nullptr ? e.BindKnown(value, *now[i].known) : e.Bind(value, now[i].tensor);
    }
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      const Tensor last = e.b.Splat(DType::kS64, {}, static_cast<double>(steps - 1));
      const Tensor row = e.b.Row(sequences[i], tracks[i].backward ? e.b.Sub(last, step) : step);
      e.Bind(*body.graph->inputs()[body.states + i], e.b.Reshape(row, Dims(row.dims.begin() + 1, row.dims.end())));
    }
  };
  Steps(e, node, body, steps, enter).Run(std::move(state));
}

constexpr Lowering kTable[] = {
    {"Loop", "", LoopNode,
     "collected results of a computed number of steps; a state that changes its type in more than 64 steps"},
    {"Scan", "", ScanNode, "operator sets before 9, a sequence of no steps"},
};

}  // namespace

std::span<const Lowering> LoopLowerings() { return kTable; }

}  // namespace octavo::stablehlo
