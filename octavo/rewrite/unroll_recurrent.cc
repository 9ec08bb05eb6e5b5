#include "octavo/rewrite/unroll_recurrent.h"

#include <algorithm>
#include <cctype>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/rewrite/add_constant.h"

namespace octavo {
namespace {

constexpr std::int64_t kLstmGates = 4, kGruGates = 3;
constexpr std::int64_t kMostWeights = std::int64_t{1} << 24;  // of one matrix, zeros beside the diagonal included

// A node that can be unrolled.
struct Recurrence {
  Node* node;
  std::int64_t gates;  // LSTM: 4, GRU: 3, RNN: 1
  std::int64_t steps, batch, inputs, hidden, directions;
  bool backward;          // one direction, from the last step to the first
  bool reset_after;       // GRU: the reset is applied to the product, not to what goes into it
  DType dtype;            // f32 or f16
  Value* lengths;         // of the sequences [batch], s32; null: all of them have `steps`
  std::vector<float> w;   // [directions, gates * hidden, inputs]
  std::vector<float> r;   // [directions, gates * hidden, hidden]
  std::vector<float> wb;  // [directions, gates * hidden]
  std::vector<float> rb;
  std::int64_t width() const { return directions * hidden; }  // of the state of all directions
};

bool HasUsualActivations(const Node& node, std::int64_t gates, std::int64_t directions) {
  const Attribute* given = node.FindAttribute("activations");
  if (given == nullptr) return true;
  const auto* names = std::get_if<std::vector<std::string>>(&given->value);
  std::vector<std::string> usual;
  if (gates > 1) usual.emplace_back("sigmoid");
  usual.emplace_back("tanh");
  if (gates == kLstmGates) usual.emplace_back("tanh");
  if (names == nullptr || names->size() != usual.size() * static_cast<std::size_t>(directions)) return false;
  for (std::size_t i = 0; i < names->size(); ++i) {
    const std::string& name = (*names)[i];
    const std::string& want = usual[i % usual.size()];
    if (!std::equal(name.begin(), name.end(), want.begin(), want.end(),
                    [](unsigned char a, unsigned char b) { return std::tolower(a) == b; })) {
      return false;
    }
  }
  return true;
}

std::optional<std::vector<float>> Floats(const Value* v, const Dims& dims, DType dtype) {
  if (v == nullptr || !v->is_constant() || !v->data || v->type.quant) return std::nullopt;
  if (v->data->dims != dims || v->data->dtype != dtype) return std::nullopt;
  return v->data->ToFloats();
}

// Absent or of these dimensions.
bool FitsState(const Value* v, const Dims& dims) { return v == nullptr || StaticShape(v->type) == dims; }

std::optional<Recurrence> ReadRecurrence(Node* node, std::int64_t most_steps) {
  const std::int64_t gates = node->Is("LSTM") ? kLstmGates : node->Is("GRU") ? kGruGates : node->Is("RNN") ? 1 : 0;
  if (gates == 0) return std::nullopt;
  const Value *x = node->input(0), *w = node->input(1), *r = node->input(2);
  if (x == nullptr || w == nullptr || r == nullptr || !w->data || !r->data) return std::nullopt;
  if (x->type.dtype != DType::kF32 && x->type.dtype != DType::kF16) return std::nullopt;
  const std::optional<Dims> dims = StaticShape(x->type);
  if (!dims || dims->size() != 3 || w->data->dims.size() != 3 || r->data->dims.size() != 3) return std::nullopt;
  const std::string direction = node->StringAttribute("direction", "forward");
  Recurrence out{};
  out.node = node;
  out.gates = gates;
  out.dtype = x->type.dtype;
  out.steps = (*dims)[0];
  out.batch = (*dims)[1];
  out.inputs = (*dims)[2];
  out.hidden = r->data->dims[2];
  out.directions = direction == "bidirectional" ? 2 : 1;
  out.backward = direction == "reverse";
  out.reset_after = node->IntAttribute("linear_before_reset", 0) != 0;
  if (out.steps < 1 || out.steps > most_steps || out.batch < 1 || out.inputs < 1 || out.hidden < 1) return std::nullopt;
  if (std::max(out.hidden, out.inputs) > kMostWeights ||
      out.gates * out.width() > kMostWeights / (std::max(out.hidden, out.inputs) * out.directions)) {
    return std::nullopt;
  }
  const std::int64_t rows = out.gates * out.hidden;
  const std::optional<std::vector<float>> ws = Floats(w, {out.directions, rows, out.inputs}, out.dtype);
  const std::optional<std::vector<float>> rs = Floats(r, {out.directions, rows, out.hidden}, out.dtype);
  if (!ws || !rs) return std::nullopt;
  out.w = *ws;
  out.r = *rs;
  out.wb.assign(static_cast<std::size_t>(out.directions * rows), 0.0f);
  out.rb = out.wb;
  if (node->input(3) != nullptr) {
    const std::optional<std::vector<float>> b = Floats(node->input(3), {out.directions, 2 * rows}, out.dtype);
    if (!b) return std::nullopt;
    for (std::int64_t d = 0; d < out.directions; ++d) {
      const auto from = b->begin() + d * 2 * rows;
      std::copy_n(from, rows, out.wb.begin() + d * rows);
      std::copy_n(from + rows, rows, out.rb.begin() + d * rows);
    }
  }
  if (Value* lengths = node->input(4)) {
    if (lengths->type.dtype != DType::kS32 || StaticShape(lengths->type) != Dims{out.batch}) return std::nullopt;
    const bool known = lengths->is_constant() && lengths->data.has_value();
    const std::vector<std::int64_t> ends = known ? lengths->data->ToInts() : std::vector<std::int64_t>{};
    const bool whole = std::all_of(ends.begin(), ends.end(), [&](std::int64_t n) { return n == out.steps; });
    if (!known || !whole) out.lengths = lengths;
  }
  const Dims state = {out.directions, out.batch, out.hidden};
  if (!FitsState(node->input(5), state) || !FitsState(node->input(6), state) || node->input(7) != nullptr) {
    return std::nullopt;
  }
  if (node->FindAttribute("clip") != nullptr || node->IntAttribute("layout", 0) != 0 ||
      node->IntAttribute("input_forget", 0) != 0 || !HasUsualActivations(*node, gates, out.directions)) {
    return std::nullopt;
  }
  return out;
}

// Writes the operators of one recurrence before its node.
class Unroller {
 public:
  Unroller(Graph& graph, Recurrence r) : graph_(graph), r_(std::move(r)), base_(r_.node->name) {
    if (base_.empty()) base_ = r_.node->op();
  }

  void Run() {
    std::vector<Value*> inputs = InputProducts();
    Value* h = State(5);
    Value* c = State(6);
    std::vector<Value*> hs = {h}, cs = {c};  // before the first step and behind each
    for (std::int64_t t = 0; t < r_.steps; ++t) {
      if (r_.gates == kLstmGates) {
        LstmStep(inputs[static_cast<std::size_t>(t)], h, c);
      } else if (r_.gates == kGruGates) {
        GruStep(inputs[static_cast<std::size_t>(t)], h);
      } else {
        RnnStep(inputs[static_cast<std::size_t>(t)], h);
      }
      hs.push_back(h);
      cs.push_back(c);
    }
    if (Wants(0)) Replace(0, AllStates({hs.begin() + 1, hs.end()}));
    if (Wants(1)) Replace(1, LastState(hs));
    if (r_.gates == kLstmGates && Wants(2)) Replace(2, LastState(cs));
    graph_.Erase(r_.node);
  }

 private:
  bool Wants(std::size_t output) const {
    return r_.node->output(output) != nullptr && !r_.node->output(output)->dead();
  }
  std::vector<Value*> Add(const char* op, std::vector<Value*> inputs, const std::vector<Dims>& dims) {
    std::vector<Graph::OutputSpec> outputs;
    for (const Dims& d : dims) {
      Type type;
      type.dtype = r_.dtype;
      type.shape.emplace();
      for (const std::int64_t n : d) type.shape->push_back(Dim{n, {}});
      outputs.push_back({graph_.UniqueName(base_ + "_" + op), type});
    }
    last_ = graph_.AddNode(op, "", std::move(inputs), std::move(outputs), r_.node);
    return {last_->outputs().begin(), last_->outputs().end()};
  }
  Value* One(const char* op, std::vector<Value*> inputs, Dims dims) {
    return Add(op, std::move(inputs), {std::move(dims)})[0];
  }
  // Element-wise, of [batch, columns].
  Value* Each(const char* op, std::vector<Value*> inputs, std::int64_t columns) {
    return One(op, std::move(inputs), {r_.batch, columns});
  }
  Value* Ints(const char* what, const Dims& values) {
    return graph_.AddConstant(graph_.UniqueName(base_ + what),
                              TensorRef::FromInts(DType::kS64, {static_cast<std::int64_t>(values.size())}, values));
  }
  Value* Constant(const char* what, Dims dims, const std::vector<float>& values) {
    return AddFloatConstant(graph_, base_ + what, r_.dtype, std::move(dims), values);
  }
  Value* Reshape(Value* v, const Dims& dims) { return One("Reshape", {v, Ints("_dims", dims)}, dims); }
  Value* Concat(const std::vector<Value*>& parts, std::int64_t axis, Dims dims) {
    if (parts.size() == 1) return parts[0];
    Value* out = One("Concat", parts, std::move(dims));
    last_->SetAttribute("axis", axis);
    return out;
  }
  // Columns of [rows, columns].
  std::vector<Value*> Columns(Value* v, std::int64_t rows, const Dims& widths) {
    if (widths.size() == 1) return {v};
    std::vector<Dims> dims;
    for (const std::int64_t width : widths) dims.push_back({rows, width});
    std::vector<Value*> out = Add("Split", {v, Ints("_widths", widths)}, dims);
    last_->SetAttribute("axis", std::int64_t{1});
    return out;
  }

  // [directions, gates * hidden, n] -> [directions * n, gates * directions * hidden]: a gate has all directions beside
  // each other, and each direction reads what is its own.
  Value* Diagonal(const char* what, const std::vector<float>& from, std::int64_t n, std::int64_t first,
                  std::int64_t count) {
    const std::int64_t columns = count * r_.width();
    std::vector<float> to(static_cast<std::size_t>(r_.directions * n * columns), 0.0f);
    for (std::int64_t d = 0; d < r_.directions; ++d) {
      for (std::int64_t row = 0; row < count * r_.hidden; ++row) {
        const std::int64_t column = row / r_.hidden * r_.width() + d * r_.hidden + row % r_.hidden;
        const std::int64_t source = (d * r_.gates + first) * r_.hidden + row;
        for (std::int64_t i = 0; i < n; ++i) {
          to[static_cast<std::size_t>((d * n + i) * columns + column)] = from[static_cast<std::size_t>(source * n + i)];
        }
      }
    }
    return Constant(what, {r_.directions * n, columns}, to);
  }
  // [directions, gates * hidden] -> [gates * directions * hidden]
  std::vector<float> InGates(const std::vector<float>& from) const {
    std::vector<float> to(from.size());
    for (std::int64_t d = 0; d < r_.directions; ++d) {
      for (std::int64_t row = 0; row < r_.gates * r_.hidden; ++row) {
        to[static_cast<std::size_t>(row / r_.hidden * r_.width() + d * r_.hidden + row % r_.hidden)] =
            from[static_cast<std::size_t>(d * r_.gates * r_.hidden + row)];
      }
    }
    return to;
  }

  Value* Backwards(Value* x) {
    if (r_.lengths != nullptr) return SequencesBackwards(x, r_.inputs);
    Dims order;
    for (std::int64_t t = r_.steps - 1; t >= 0; --t) order.push_back(t);
    Value* out = One("Gather", {x, Ints("_backwards", order)}, {r_.steps, r_.batch, r_.inputs});
    last_->SetAttribute("axis", std::int64_t{0});
    return out;
  }

  // 1 where the numbers in `places` (of these dimensions) are the lengths of the sequences, else 0. Precondition: they
  // are computed.
  Value* WhereLength(const Dims& places, Dims dims) {
    Value* is = Compared("Equal", places, dims);
    return One("Where", {is, Constant("_one", {}, {1.0f}), Zero()}, Broadcast(std::move(dims)));
  }
  // Of places [rows, columns] and the lengths [batch, 1, 1]: [batch, rows, columns].
  Value* Compared(const char* op, const Dims& places, const Dims& dims) {
    Type type = r_.lengths->type;
    const auto shape = [&type](const Dims& to) {
      type.shape.emplace();
      for (const std::int64_t n : to) type.shape->push_back(Dim{n, {}});
    };
    if (lengths_ == nullptr) {
      shape({r_.batch, 1, 1});
      lengths_ = graph_
                     .AddNode("Reshape", "", {r_.lengths, Ints("_lengths_dims", {r_.batch, 1, 1})},
                              {{graph_.UniqueName(base_ + "_lengths"), type}}, r_.node)
                     ->output();
    }
    Value* place =
        graph_.AddConstant(graph_.UniqueName(base_ + "_place"), TensorRef::FromInts(DType::kS32, dims, places));
    type.dtype = DType::kBool;
    shape(Broadcast(dims));
    return graph_.AddNode(op, "", {place, lengths_}, {{graph_.UniqueName(base_ + "_compared"), type}}, r_.node)
        ->output();
  }
  Dims Broadcast(Dims dims) const {
    dims.insert(dims.begin(), r_.batch);
    return dims;
  }
  Value* Zero() {
    if (zero_ == nullptr) zero_ = Constant("_zero", {}, {0.0f});
    return zero_;
  }
  // [rows, batch, columns] and [batch, rows, columns], one to the other.
  Value* BatchAside(Value* v, const Dims& to) { return r_.batch == 1 ? Reshape(v, to) : FirstTwoSwapped(v, to); }

  // The steps of each sequence from its last one to its first one, zeros behind: of and to [steps, batch, columns].
  // Before:  x: a b c 0        (a sequence of three)
  // After:   MatMul [[0 0 1 0] [0 1 0 0] [1 0 0 0] [0 0 0 0]], x:    c b a 0
  Value* SequencesBackwards(Value* x, std::int64_t columns) {
    if (backwards_ == nullptr) {
      Dims places;
      for (std::int64_t t = 0; t < r_.steps; ++t) {
        for (std::int64_t u = 0; u < r_.steps; ++u) places.push_back(t + u + 1);
      }
      backwards_ = WhereLength(places, {r_.steps, r_.steps});
    }
    const Dims aside = {r_.batch, r_.steps, columns};
    return BatchAside(One("MatMul", {backwards_, BatchAside(x, aside)}, aside), {r_.steps, r_.batch, columns});
  }
  // Zeros behind the end of each sequence: of and to [steps, batch, columns].
  Value* UpToTheirEnds(Value* y, std::int64_t columns) {
    Dims places;
    for (std::int64_t t = 0; t < r_.steps; ++t) places.push_back(t);
    const Dims aside = {r_.batch, r_.steps, columns};
    Value* out = One("Where", {Compared("Less", places, {r_.steps, 1}), BatchAside(y, aside), Zero()}, aside);
    return BatchAside(out, {r_.steps, r_.batch, columns});
  }
  // The state behind as many steps as each sequence has: [batch, width]. No step chooses: those behind the end are
  // computed and not taken.
  Value* AtTheirEnds(std::vector<Value*> states) {
    if (states[0] == nullptr) {
      states[0] = Constant("_nothing", {r_.batch, r_.width()},
                           std::vector<float>(static_cast<std::size_t>(r_.batch * r_.width()), 0.0f));
    }
    const std::int64_t count = r_.steps + 1;
    Dims places;
    for (std::int64_t t = 0; t < count; ++t) places.push_back(t);
    if (ends_ == nullptr) ends_ = WhereLength(places, {1, count});
    Value* all = Reshape(Concat(states, 0, {count * r_.batch, r_.width()}), {count, r_.batch, r_.width()});
    all = BatchAside(all, {r_.batch, count, r_.width()});
    return Reshape(One("MatMul", {ends_, all}, {r_.batch, 1, r_.width()}), {r_.batch, r_.width()});
  }

  // What the input adds to the gates, with the biases that are added to it as they are: of each step
  // [batch, gates * directions * hidden].
  std::vector<Value*> InputProducts() {
    Value* x = r_.node->input(0);
    if (r_.directions == 2) {
      x = Concat({x, Backwards(x)}, 2, {r_.steps, r_.batch, 2 * r_.inputs});
    } else if (r_.backward) {
      x = Backwards(x);
    }
    const std::int64_t rows = r_.steps * r_.batch, columns = r_.gates * r_.width();
    x = Reshape(x, {rows, r_.directions * r_.inputs});
    x = One("MatMul", {x, Diagonal("_w", r_.w, r_.inputs, 0, r_.gates)}, {rows, columns});
    std::vector<float> bias = InGates(r_.wb);
    const std::vector<float> recurrent = InGates(r_.rb);
    const std::int64_t both = r_.gates == kGruGates && r_.reset_after ? 2 * r_.width() : columns;
    for (std::size_t i = 0; i < static_cast<std::size_t>(both); ++i) bias[i] += recurrent[i];
    x = One("Add", {x, Constant("_b", {columns}, bias)}, {rows, columns});
    if (r_.steps == 1) return {x};
    const std::vector<Dims> dims(static_cast<std::size_t>(r_.steps), Dims{r_.batch, columns});
    std::vector<Value*> out =
        Add("Split", {x, Ints("_rows", Dims(static_cast<std::size_t>(r_.steps), r_.batch))}, dims);
    last_->SetAttribute("axis", std::int64_t{0});
    return out;
  }

  // The initial state as [batch, directions * hidden]; null: zeros.
  Value* State(std::size_t input) {
    Value* v = r_.node->input(input);
    if (v == nullptr) return nullptr;
    if (v->is_constant() && v->data) {
      const std::vector<float> values = v->data->ToFloats();
      if (std::all_of(values.begin(), values.end(), [](float f) { return f == 0; })) return nullptr;
    }
    if (r_.directions == 2) v = FirstTwoSwapped(v, {r_.batch, 2, r_.hidden});
    return Reshape(v, {r_.batch, r_.width()});
  }
  Value* FirstTwoSwapped(Value* v, Dims dims) {
    Value* out = One("Transpose", {v}, std::move(dims));
    last_->SetAttribute("perm", Dims{1, 0, 2});
    return out;
  }

  void LstmStep(Value* gates, Value*& h, Value*& c) {
    const std::int64_t n = r_.width();
    if (h != nullptr) gates = Each("Add", {gates, Each("MatMul", {h, RecurrentWeights(0, 4)}, 4 * n)}, 4 * n);
    const std::vector<Value*> parts = Columns(gates, r_.batch, {3 * n, n});  // input, output, forget; cell
    const std::vector<Value*> open = Columns(Each("Sigmoid", {parts[0]}, 3 * n), r_.batch, {n, n, n});
    Value* enters = Each("Mul", {open[0], Each("Tanh", {parts[1]}, n)}, n);
    c = c == nullptr ? enters : Each("Add", {Each("Mul", {open[2], c}, n), enters}, n);
    h = Each("Mul", {open[1], Each("Tanh", {c}, n)}, n);
  }

  // Gates in the order update, reset, hidden.
  void GruStep(Value* gates, Value*& h) {
    const std::int64_t n = r_.width();
    std::vector<Value*> parts = Columns(gates, r_.batch, {2 * n, n});
    Value* product = nullptr;  // of the hidden gate
    if (h != nullptr && r_.reset_after) {
      const std::vector<Value*> more =
          Columns(Each("MatMul", {h, RecurrentWeights(0, 3)}, 3 * n), r_.batch, {2 * n, n});
      parts[0] = Each("Add", {parts[0], more[0]}, 2 * n);
      product = more[1];
    } else if (h != nullptr) {
      parts[0] = Each("Add", {parts[0], Each("MatMul", {h, RecurrentWeights(0, 2)}, 2 * n)}, 2 * n);
    }
    const std::vector<Value*> open = Columns(Each("Sigmoid", {parts[0]}, 2 * n), r_.batch, {n, n});
    if (r_.reset_after) {
      Value* bias = HiddenBias();
      product = product == nullptr ? bias : Each("Add", {product, bias}, n);
      product = Each("Mul", {open[1], product}, n);
    } else if (h != nullptr) {
      product = Each("MatMul", {Each("Mul", {open[1], h}, n), RecurrentWeights(2, 1)}, n);
    }
    Value* fresh = product == nullptr ? parts[1] : Each("Add", {parts[1], product}, n);
    fresh = Each("Tanh", {fresh}, n);
    if (h == nullptr) {
      h = Each("Sub", {fresh, Each("Mul", {open[0], fresh}, n)}, n);
    } else {
      h = Each("Add", {fresh, Each("Mul", {open[0], Each("Sub", {h, fresh}, n)}, n)}, n);
    }
  }

  void RnnStep(Value* gate, Value*& h) {
    const std::int64_t n = r_.width();
    if (h != nullptr) gate = Each("Add", {gate, Each("MatMul", {h, RecurrentWeights(0, 1)}, n)}, n);
    h = Each("Tanh", {gate}, n);
  }

  // Of `count` gates from `first`; made once.
  Value* RecurrentWeights(std::int64_t first, std::int64_t count) {
    Value*& made = first == 0 ? weights_ : hidden_weights_;
    if (made == nullptr) made = Diagonal("_r", r_.r, r_.hidden, first, count);
    return made;
  }
  Value* HiddenBias() {
    if (hidden_bias_ == nullptr) {
      const std::vector<float> all = InGates(r_.rb);
      hidden_bias_ = Constant("_rb", {r_.width()}, {all.begin() + 2 * r_.width(), all.end()});
    }
    return hidden_bias_;
  }

  // [steps, directions, batch, hidden]
  Value* AllStates(const std::vector<Value*>& states) {
    const std::int64_t rows = r_.steps * r_.batch;
    const auto one = [&](Value* v, bool backward) {  // of [steps * batch, hidden], in the order of the steps taken
      if (r_.lengths != nullptr) {
        v = Reshape(v, {r_.steps, r_.batch, r_.hidden});
        v = backward ? SequencesBackwards(v, r_.hidden) : UpToTheirEnds(v, r_.hidden);
      }
      return Reshape(v, {r_.steps, 1, r_.batch, r_.hidden});
    };
    const std::vector<Value*> reversed(states.rbegin(), states.rend());
    // Where lengths are computed, turning back is a matrix's work.
    const std::vector<Value*>& turned = r_.lengths == nullptr ? reversed : states;
    if (r_.directions == 1) return one(Concat(r_.backward ? turned : states, 0, {rows, r_.hidden}), r_.backward);
    const Dims halves = {r_.hidden, r_.hidden};
    Value* forward = Columns(Concat(states, 0, {rows, r_.width()}), rows, halves)[0];
    Value* backward = Columns(Concat(turned, 0, {rows, r_.width()}), rows, halves)[1];
    return Concat({one(forward, false), one(backward, true)}, 1, {r_.steps, 2, r_.batch, r_.hidden});
  }
  // Of the states before the first step and behind each: [directions, batch, hidden]
  Value* LastState(const std::vector<Value*>& states) {
    Value* last = r_.lengths == nullptr ? states.back() : AtTheirEnds(states);
    if (r_.directions == 1) return Reshape(last, {1, r_.batch, r_.hidden});
    return FirstTwoSwapped(Reshape(last, {r_.batch, 2, r_.hidden}), {2, r_.batch, r_.hidden});
  }

  void Replace(std::size_t output, Value* by) {
    Value* old = r_.node->output(output);
    if (old == nullptr || old->dead()) return;
    graph_.ReplaceAllUses(old, by);
    graph_.SwapNames(old, by);
  }

  Graph& graph_;
  Recurrence r_;
  std::string base_;
  Node* last_ = nullptr;
  Value *weights_ = nullptr, *hidden_weights_ = nullptr, *hidden_bias_ = nullptr, *lengths_ = nullptr, *zero_ = nullptr,
        *backwards_ = nullptr, *ends_ = nullptr;
};

}  // namespace

std::int64_t UnrollRecurrent(Model& model, std::int64_t most_steps) {
  std::int64_t unrolled = 0;
  if (model.OpsetVersion() < 13) return 0;  // Split has its lengths as an input from there on
  for (Node* node : model.graph->nodes()) {
    std::optional<Recurrence> r = ReadRecurrence(node, most_steps);
    if (!r) continue;
    Unroller(*model.graph, std::move(*r)).Run();
    ++unrolled;
  }
  if (unrolled > 0) model.graph->EraseDead();
  return unrolled;
}

}  // namespace octavo
