// LSTM, GRU and RNN (onnx.ai, operators of these names) and DynamicQuantizeLSTM (ONNX Runtime's): what the steps share
// is computed for all of them at once, the rest in a loop over the sequence.
#include <algorithm>
#include <cctype>
#include <cstdint>

#include "octavo/emit/stablehlo_lowering.h"

namespace octavo::stablehlo {
namespace {

// One of the three operators: how many gates it has, and which activations where none are named.
struct Kind {
  std::int64_t gates;
  std::vector<std::string> activations;  // of one direction
  bool cell = false;                     // carries a cell state too
  // The weights are codes, inputs last ([directions, inputs, gates]); what they are multiplied with is quantized to the
  // range that it has, the input once and the state in every step.
  bool quantizes = false;
};

// A node's attributes and sizes, checked.
struct Recurrence {
  const Kind* kind;
  std::int64_t steps, batch, hidden, directions;
  bool batch_first = false;
  Tensor x;                       // [steps, batch, inputs]
  std::optional<Tensor> lengths;  // [batch, 1] of s64: where a sequence ends before the last step
  std::vector<std::string> activations;
  float clip = 0;  // 0: none
};

std::vector<std::string> ActivationsOf(Emitter& e, const Node& node, const Kind& kind, std::size_t directions) {
  std::vector<std::string> names;
  if (const Attribute* given = node.FindAttribute("activations")) {
    if (const auto* list = std::get_if<std::vector<std::string>>(&given->value)) names = *list;
    if (names.size() != kind.activations.size() * directions) e.Refuse(node, "its activations do not fit its gates");
  } else {
    for (std::size_t d = 0; d < directions; ++d) {
      names.insert(names.end(), kind.activations.begin(), kind.activations.end());
    }
  }
  for (std::string& name : names) {
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    constexpr std::string_view kKnown[] = {"sigmoid", "tanh", "relu", "softsign", "softplus"};
    if (std::find(std::begin(kKnown), std::end(kKnown), name) == std::end(kKnown)) {
      e.Refuse(node, "the activation '" + name + "'; Sigmoid, Tanh, Relu, Softsign and Softplus have lowerings");
    }
  }
  return names;
}

Tensor Activate(Builder& b, const std::string& name, const Tensor& x) {
  if (name == "sigmoid") return b.Unary("logistic", x);
  if (name == "tanh") return b.Unary("tanh", x);
  if (name == "relu") return b.Max(x, 0.0);
  if (name == "softsign") return b.Div(x, b.Add(b.Unary("abs", x), 1));
  // softplus: log(1 + e^x), without overflow
  const Tensor small = b.Unary("exponential", b.Unary("negate", b.Unary("abs", x)));
  return b.Add(b.Max(x, 0.0), b.Unary("log_plus_one", small));
}

Recurrence ReadNode(Emitter& e, const Node& node, const Kind& kind) {
  Recurrence r;
  r.kind = &kind;
  const std::string direction = node.StringAttribute("direction", "forward");
  if (direction != "forward" && direction != "reverse" && direction != "bidirectional") {
    e.Refuse(node, "its direction '" + direction + "'");
  }
  r.directions = direction == "bidirectional" ? 2 : 1;
  r.batch_first = node.IntAttribute("layout", 0) != 0;
  r.clip = node.FloatAttribute("clip", 0);
  r.x = e.In(node, 0);
  const Tensor w = e.In(node, 1), recurrent = e.In(node, 2);
  if (r.x.rank() != 3 || w.rank() != 3 || recurrent.rank() != 3)
    e.Misfit(node, "its inputs are not of three dimensions");
  const std::int64_t swap[] = {1, 0, 2};
  if (r.batch_first) r.x = e.b.Transpose(r.x, swap);
  r.steps = r.x.dims[0];
  r.batch = r.x.dims[1];
  r.hidden = recurrent.dims[kind.quantizes ? 1 : 2];
  if (r.hidden < 1 || r.hidden > INT32_MAX) e.Refuse(node, "its weights do not fit its input");
  Dims want_w = {r.directions, kind.gates * r.hidden, r.x.dims[2]};
  Dims want_r = {r.directions, kind.gates * r.hidden, r.hidden};
  if (kind.quantizes) {
    std::swap(want_w[1], want_w[2]);
    std::swap(want_r[1], want_r[2]);
  }
  const bool typed = kind.quantizes ? r.x.dtype == DType::kF32 && IsInteger(w.dtype) && IsInteger(recurrent.dtype) &&
                                          BitWidth(w.dtype) == 8 && BitWidth(recurrent.dtype) == 8
                                    : w.dtype == r.x.dtype && recurrent.dtype == r.x.dtype;
  if (w.dims != want_w || recurrent.dims != want_r || !typed ||
      node.IntAttribute("hidden_size", r.hidden) != r.hidden) {
    e.Misfit(node, "its weights do not fit its input: " + w.type() + " and " + recurrent.type() + " for " + r.x.type());
  }
  if (r.steps == 0) e.Refuse(node, "its sequence is empty");
  if (e.Has(node, 4)) {
    const TensorRef* known = e.ConstantIn(node, 4);
    std::vector<std::int64_t> ends;
    if (known != nullptr && IsInteger(known->dtype)) ends = known->ToInts();
    const bool whole =
        !ends.empty() && std::all_of(ends.begin(), ends.end(), [&](std::int64_t n) { return n == r.steps; });
    const Tensor lengths = e.In(node, 4);
    if (lengths.dims != Dims{r.batch}) e.Refuse(node, "its sequence_lens do not fit the batch");
    if (!whole && kind.quantizes) e.Refuse(node, "sequences of several lengths, of which the range would depend");
    if (!whole) r.lengths = e.b.Convert(e.b.Reshape(lengths, {r.batch, 1}), DType::kS64);
  }
  r.activations = ActivationsOf(e, node, kind, static_cast<std::size_t>(r.directions));
  return r;
}

// One direction: its tensors, and its step.
class Cell {
 public:
  Cell(Emitter& e, const Node& node, const Recurrence& r, std::int64_t direction)
      : e_(e),
        b_(e.b),
        node_(node),
        r_(r),
        direction_(direction),
        backward_(direction == 1 || node.StringAttribute("direction", "forward") == "reverse"),
        gates_(r.kind->gates * r.hidden) {
    const std::size_t per = r.kind->activations.size();
    activations_.assign(
        r.activations.begin() + static_cast<std::ptrdiff_t>(per * static_cast<std::size_t>(direction)),
        r.activations.begin() + static_cast<std::ptrdiff_t>(per * static_cast<std::size_t>(direction + 1)));
  }

  // y: [steps, batch, hidden] where it is wanted; the last states: [batch, hidden].
  struct Result {
    std::optional<Tensor> y;
    std::vector<Tensor> last;
  };

  Result Run(bool wants_y) {
    Tensor shared =
        Multiply(r_.x, r_.kind->quantizes ? Codes(1, r_.x.dims[2]) : Kernel{Part(1, {gates_, r_.x.dims[2]})});
    recurrent_ = r_.kind->quantizes ? Codes(2, r_.hidden) : Kernel{Part(2, {gates_, r_.hidden})};
    if (e_.Has(node_, 3)) {
      const Tensor both = Part(3, {2 * gates_});
      const Tensor of_x = b_.SliceAxis(both, 0, 0, gates_), of_h = b_.SliceAxis(both, 0, gates_, 2 * gates_);
      if (IsGru()) {  // the bias of the hidden gate stands inside the product with the reset gate, or beside it
        reset_bias_ = b_.SliceAxis(of_h, 0, 2 * r_.hidden, gates_);
        const Tensor none = b_.Splat(of_h.dtype, {r_.hidden}, 0);
        const Tensor parts[] = {b_.SliceAxis(of_h, 0, 0, 2 * r_.hidden), AfterReset() ? none : *reset_bias_};
        shared = b_.Add(shared, b_.Add(of_x, b_.Concat(parts, 0)));
      } else {
        shared = b_.Add(shared, b_.Add(of_x, of_h));
      }
    }
    if (IsGru() && !AfterReset()) {
      recurrent_hidden_ = {b_.SliceAxis(recurrent_.rows, 0, 2 * r_.hidden, gates_)};
      recurrent_ = {b_.SliceAxis(recurrent_.rows, 0, 0, 2 * r_.hidden)};
    }
    if (r_.kind->cell && e_.Has(node_, 7)) {
      const Tensor peep = Part(7, {3 * r_.hidden});
      for (std::int64_t i = 0; i < 3; ++i)
        peephole_.push_back(b_.SliceAxis(peep, 0, i * r_.hidden, (i + 1) * r_.hidden));
    }
    std::vector<Tensor> state = {Initial(5)};
    if (r_.kind->cell) state.push_back(Initial(6));
    const std::size_t states = state.size();
    if (wants_y) state.push_back(b_.Splat(r_.x.dtype, {r_.steps, r_.batch, r_.hidden}, 0));
    if (wants_y) state.back().splat.reset();

    const auto body = [&](const Tensor& step, std::span<const Tensor> old) {
      const Tensor last = b_.Splat(DType::kS64, {}, static_cast<double>(r_.steps - 1));
      const Tensor at = backward_ ? b_.Sub(last, step) : step;
      std::vector<Tensor> next = Step(b_.Reshape(b_.Row(shared, at), {r_.batch, gates_}), old.first(states));
      Tensor y = next[0];
      if (r_.lengths) {  // past its end a sequence keeps its state and gives zeros
        const Tensor runs = b_.BroadcastTo(b_.CompareTo(Compare::kLt, at, *r_.lengths), {r_.batch, r_.hidden});
        y = b_.Select(runs, y, b_.Splat(y.dtype, {}, 0));
        for (std::size_t i = 0; i < states; ++i) next[i] = b_.Select(runs, next[i], old[i]);
      }
      if (wants_y) next.push_back(b_.WithRow(old[states], b_.Reshape(y, {1, r_.batch, r_.hidden}), at));
      return next;
    };
    std::vector<Tensor> done = b_.Repeat(r_.steps, state, body);
    Result result;
    if (wants_y) {
      result.y = done.back();
      done.pop_back();
    }
    result.last = std::move(done);
    return result;
  }

 private:
  bool IsGru() const { return r_.kind->gates == 3; }
  bool AfterReset() const { return node_.IntAttribute("linear_before_reset", 0) != 0; }

  // One direction's weights: [gates, inputs]; codes less their zero points where there is a scale ([gates] or a
  // scalar).
  struct Kernel {
    Tensor rows;
    std::optional<Tensor> scale = std::nullopt;
  };

  // x: [.., inputs] -> [.., gates].
  Tensor Multiply(const Tensor& x, const Kernel& w) {
    const std::int64_t contract_x[] = {static_cast<std::int64_t>(x.rank()) - 1}, contract_w[] = {1};
    if (!w.scale) return b_.Dot(x, w.rows, {}, {}, contract_x, contract_w);
    const RangeCodes q = QuantizeToRange(b_, x);
    const Tensor centred = b_.Sub(b_.Convert(q.codes, DType::kF32), q.zero);
    return b_.Mul(b_.Dot(centred, w.rows, {}, {}, contract_x, contract_w), b_.Mul(*w.scale, q.scale));
  }

  // Input i (1 or 2) as codes; scale and zero point stand at 8 and 9, or 10 and 11.
  Kernel Codes(std::size_t i, std::int64_t inputs) {
    const auto parameter = [&](std::size_t at) {
      const Tensor all = b_.Convert(e_.In(node_, at), DType::kF32);
      const std::int64_t each = all.rank() == 2 ? gates_ : 1;
      if (ElementCount(all.dims) != static_cast<std::uint64_t>(r_.directions * each) || all.rank() > 2 ||
          (all.rank() == 2 && all.dims[0] != r_.directions)) {
        e_.Misfit(node_, "input " + std::to_string(at) + " does not fit its weights");
      }
      const Tensor own = b_.SliceAxis(b_.Reshape(all, {r_.directions, each}), 0, direction_, direction_ + 1);
      return b_.Reshape(own, each == 1 ? Dims{} : Dims{each});
    };
    const std::size_t scale = 6 + 2 * i;
    const std::int64_t swap[] = {1, 0};
    Tensor codes = b_.Convert(Part(i, {inputs, gates_}, e_.In(node_, i).dtype), DType::kF32);
    if (e_.Has(node_, scale + 1)) codes = b_.Sub(codes, parameter(scale + 1));
    return {b_.Transpose(codes, swap), parameter(scale)};
  }

  Tensor Part(std::size_t i, const Dims& dims) { return Part(i, dims, r_.x.dtype); }

  // This direction's part of input i, which is [directions, dims..].
  Tensor Part(std::size_t i, const Dims& dims, DType dtype) {
    const Tensor all = e_.In(node_, i);
    Dims want = dims;
    want.insert(want.begin(), r_.directions);
    if (all.dims != want || all.dtype != dtype)
      e_.Refuse(node_, "input " + std::to_string(i) + " does not fit its weights");
    return b_.Reshape(b_.SliceAxis(all, 0, direction_, direction_ + 1), dims);
  }

  Tensor Initial(std::size_t i) {
    const Dims dims = {r_.batch, r_.hidden};
    if (!e_.Has(node_, i)) return b_.Splat(r_.x.dtype, dims, 0);
    if (!r_.batch_first) return Part(i, dims);
    const Tensor all = e_.In(node_, i);
    if (all.dims != Dims{r_.batch, r_.directions, r_.hidden})
      e_.Refuse(node_, "an initial state does not fit its weights");
    return b_.Reshape(b_.SliceAxis(all, 1, direction_, direction_ + 1), dims);
  }

  Tensor Gate(const Tensor& all, std::int64_t i) { return b_.SliceAxis(all, 1, i * r_.hidden, (i + 1) * r_.hidden); }
  Tensor Act(std::size_t i, Tensor x) {
    if (r_.clip > 0) x = b_.Min(b_.Max(x, -r_.clip), r_.clip);
    return Activate(b_, activations_[i], x);
  }

  // `x`: what the input gives to the gates, [batch, gates]. The new state.
  std::vector<Tensor> Step(const Tensor& x, std::span<const Tensor> old) {
    if (r_.kind->cell) return LstmStep(x, old[0], old[1]);
    if (IsGru()) return {GruStep(x, old[0])};
    return {Act(0, b_.Add(x, Multiply(old[0], recurrent_)))};
  }

  // Gates in the order i, o, f, c.
  std::vector<Tensor> LstmStep(const Tensor& x, const Tensor& h, const Tensor& c) {
    const Tensor all = b_.Add(x, Multiply(h, recurrent_));
    const auto with = [&](std::int64_t gate, std::size_t peep, const Tensor& cell) {
      const Tensor g = Gate(all, gate);
      return peephole_.empty() ? g : b_.Add(g, b_.Mul(cell, peephole_[peep]));
    };
    const Tensor in = Act(0, with(0, 0, c));
    const bool coupled = node_.IntAttribute("input_forget", 0) != 0;
    const Tensor forget = coupled ? b_.Sub(b_.Splat(in.dtype, {}, 1), in) : Act(0, with(2, 2, c));
    const Tensor cell = b_.Add(b_.Mul(forget, c), b_.Mul(in, Act(1, Gate(all, 3))));
    const Tensor out = Act(0, with(1, 1, cell));
    return {b_.Mul(out, Activate(b_, activations_[2], cell)), cell};
  }

  // Gates in the order z, r, h.
  Tensor GruStep(const Tensor& x, const Tensor& h) {
    const Tensor product = Multiply(h, recurrent_);
    const Tensor z = Act(0, b_.Add(Gate(x, 0), Gate(product, 0))), r = Act(0, b_.Add(Gate(x, 1), Gate(product, 1)));
    Tensor hidden;
    if (AfterReset()) {
      const Tensor plain = Gate(product, 2);
      hidden = b_.Mul(r, reset_bias_ ? b_.Add(plain, *reset_bias_) : plain);
    } else {
      hidden = Multiply(b_.Mul(r, h), recurrent_hidden_);
    }
    const Tensor fresh = Act(1, b_.Add(Gate(x, 2), hidden));
    return b_.Add(b_.Mul(b_.Sub(b_.Splat(z.dtype, {}, 1), z), fresh), b_.Mul(z, h));
  }

  Emitter& e_;
  Builder& b_;
  const Node& node_;
  const Recurrence& r_;
  std::int64_t direction_;
  bool backward_;
  std::int64_t gates_;  // rows of the weights
  std::vector<std::string> activations_;
  Kernel recurrent_, recurrent_hidden_;  // the second of the GRU's hidden gate where it has its own product
  std::optional<Tensor> reset_bias_;
  std::vector<Tensor> peephole_;  // i, o, f
};

void Recurrent(Emitter& e, const Node& node, const Kind& kind) {
  const Recurrence r = ReadNode(e, node, kind);
  const bool wants_y = e.Wanted(node, 0);
  const std::size_t states = kind.cell ? 2 : 1;
  std::vector<Tensor> y;
  std::vector<std::vector<Tensor>> last(states);
  for (std::int64_t d = 0; d < r.directions; ++d) {
    Cell::Result result = Cell(e, node, r, d).Run(wants_y);
    if (wants_y) y.push_back(e.b.Reshape(*result.y, {r.steps, 1, r.batch, r.hidden}));
    for (std::size_t i = 0; i < states; ++i) last[i].push_back(e.b.Reshape(result.last[i], {1, r.batch, r.hidden}));
  }
  const std::int64_t whole[] = {2, 0, 1, 3}, state[] = {1, 0, 2};
  if (wants_y) {
    const Tensor all = e.b.Concat(y, 1);
    e.Out(node, 0, r.batch_first ? e.b.Transpose(all, whole) : all);
  }
  for (std::size_t i = 0; i < states; ++i) {
    if (!e.Wanted(node, i + 1)) continue;
    const Tensor all = e.b.Concat(last[i], 0);
    e.Out(node, i + 1, r.batch_first ? e.b.Transpose(all, state) : all);
  }
}

void Lstm(Emitter& e, const Node& node) { Recurrent(e, node, {4, {"Sigmoid", "Tanh", "Tanh"}, true}); }
void DynamicQuantizeLstm(Emitter& e, const Node& node) {
  Recurrent(e, node, {4, {"Sigmoid", "Tanh", "Tanh"}, true, true});
}
void Gru(Emitter& e, const Node& node) { Recurrent(e, node, {3, {"Sigmoid", "Tanh"}, false}); }
void Rnn(Emitter& e, const Node& node) { Recurrent(e, node, {1, {"Tanh"}, false}); }

constexpr std::string_view kRefused = "activations with parameters, a sequence of no steps";
constexpr Lowering kTable[] = {
    {"LSTM", "", Lstm, kRefused},
    {"GRU", "", Gru, kRefused},
    {"RNN", "", Rnn, kRefused},
    {"DynamicQuantizeLSTM", "com.microsoft", DynamicQuantizeLstm, "activations with parameters, several lengths"},
};

}  // namespace

std::span<const Lowering> RecurrentLowerings() { return kTable; }

}  // namespace octavo::stablehlo
