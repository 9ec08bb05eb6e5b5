// Before:  %a = Conv %x, %w1, %b1           After:  %a = Conv %x, %w1 / s, %b1 / s
//          %r = Relu %a                             %r = Relu %a
//          %y = Conv %r, %w2                        %y = Conv %r, %w2 * s
// s is a power of two a channel, so every product and sum is scaled exactly: the function is the same bit for bit.
// Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1:
// s_c = sqrt(r1_c / r2_c) for the ranges r of the channel's weights.
#include <algorithm>
#include <cmath>

#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/rules/linear.h"

namespace octavo {
namespace {

constexpr int kMaxSweeps = 20;
constexpr int kMaxExponent = 20;  // of s: far from where f32 would lose bits

// A weight as [outer, channels, inner] around the dimension that is scaled, `groups` runs of outer having own channels.
struct Side {
  Node* node = nullptr;
  std::vector<float> weight;
  std::int64_t outer = 1, channels = 1, inner = 1, groups = 1;
  std::size_t total = 0;  // channels of all groups

  template <class F>
  void ForEach(F&& fn) {
    std::size_t e = 0;
    for (std::int64_t o = 0; o < outer; ++o) {
      const std::int64_t base = o / (outer / groups) * channels;
      for (std::int64_t c = 0; c < channels; ++c) {
        for (std::int64_t i = 0; i < inner; ++i, ++e) fn(weight[e], static_cast<std::size_t>(base + c));
      }
    }
  }
};

// Signal to quantization noise of a weight with one scale for all of it, up to a constant: energy over squared range.
double Precision(std::span<const float> weight) {
  double energy = 0.0, range = 0.0;
  for (float w : weight) {
    energy += static_cast<double>(w) * w;
    range = std::max(range, std::abs(static_cast<double>(w)));
  }
  return range == 0.0 ? 0.0 : energy / (range * range);
}

bool ReadSide(Node* node, bool output_side, Side& side) {
  const bool conv = node->Is("Conv"), gemm = node->Is("Gemm");
  const Value* weight = node->input(1);
  if ((!conv && !gemm) || !IsFloatConstant(weight) || weight->uses().size() != 1) return false;
  const Dims& dims = weight->data->dims;
  if (weight->data->elements() == 0 || (conv ? dims.size() < 3 : dims.size() != 2)) return false;
  side.node = node;
  std::size_t axis = 0;
  if (conv) {
    const std::int64_t group = node->IntAttribute("group", 1);
    if (group < 1 || dims[0] % group != 0) return false;
    axis = output_side ? 0 : 1;
    side.groups = output_side ? 1 : group;
  } else {
    if (node->IntAttribute("transA", 0) != 0) return false;
    axis = (node->IntAttribute("transB", 0) != 0) == output_side ? 0 : 1;
  }
  for (std::size_t i = 0; i < axis; ++i) side.outer *= dims[i];
  side.channels = dims[axis];
  for (std::size_t i = axis + 1; i < dims.size(); ++i) side.inner *= dims[i];
  side.total = static_cast<std::size_t>(side.channels * side.groups);
  side.weight = weight->data->ToFloats();
  for (float w : side.weight) {
    if (!std::isfinite(w)) return false;
  }
  return true;
}

struct Pair {
  Side first, second;
  bool has_bias = false;
};

// The layer behind `first`, through Relu, LeakyRelu or nothing: f(s * x) = s * f(x) for s > 0.
bool MatchPair(Node* node, Pair& pair) {
  if (!ReadSide(node, true, pair.first)) return false;
  const auto single = [](const Value* v) {
    return v != nullptr && v->uses().size() == 1 && !v->is_graph_output() && !v->type.quant.has_value() &&
           v->uses()[0].node->graph() == v->graph();
  };
  const Value* value = node->output();
  if (!single(value)) return false;
  Node* next = value->uses()[0].node;
  if (next->Is("Relu") || next->Is("LeakyRelu")) {
    value = next->output();
    if (!single(value)) return false;
    next = value->uses()[0].node;
  }
  if (value->uses()[0].index != 0 || next == node) return false;
  if (!ReadSide(next, false, pair.second) || pair.first.total != pair.second.total) return false;
  if (const Value* bias = node->input(2)) {
    if (!IsFloatConstant(bias) || bias->uses().size() != 1 || bias->data->dims.empty() ||
        bias->data->elements() != pair.first.total ||
        bias->data->dims.back() != static_cast<std::int64_t>(pair.first.total)) {
      return false;
    }
    pair.has_bias = true;
  }
  return true;
}

// One equalization of a pair; false when nothing moves or a weight would lose.
bool Equalize(Pair& pair, Rewriter& rewriter) {
  const std::size_t n = pair.first.total;
  std::vector<float> r1(n, 0.0f), r2(n, 0.0f), s(n, 1.0f);
  pair.first.ForEach([&](float& w, std::size_t c) { r1[c] = std::max(r1[c], std::abs(w)); });
  pair.second.ForEach([&](float& w, std::size_t c) { r2[c] = std::max(r2[c], std::abs(w)); });
  bool moves = false;
  for (std::size_t c = 0; c < n; ++c) {
    if (r1[c] == 0.0f || r2[c] == 0.0f) continue;
    const double exact = 0.5 * (std::log2(static_cast<double>(r1[c])) - std::log2(static_cast<double>(r2[c])));
    const int exponent = static_cast<int>(std::clamp(std::round(exact), -1.0 * kMaxExponent, 1.0 * kMaxExponent));
    s[c] = std::ldexp(1.0f, exponent);
    moves = moves || exponent != 0;
  }
  if (!moves) return false;
  const double before1 = Precision(pair.first.weight), before2 = Precision(pair.second.weight);
  bool exact = true;
  const auto scale = [&](float& w, float factor) {
    const float scaled = w * factor;
    exact = exact && std::isfinite(scaled) && scaled / factor == w;
    w = scaled;
  };
  pair.first.ForEach([&](float& w, std::size_t c) { scale(w, 1.0f / s[c]); });
  pair.second.ForEach([&](float& w, std::size_t c) { scale(w, s[c]); });
  std::vector<float> bias;
  if (pair.has_bias) {
    bias = pair.first.node->input(2)->data->ToFloats();
    for (std::size_t c = 0; c < n; ++c) scale(bias[c], 1.0f / s[c]);
  }
  const double after1 = Precision(pair.first.weight), after2 = Precision(pair.second.weight);
  // Neither weight may get worse and the two together must gain something.
  if (!exact || after1 < before1 || after2 < before2 || after1 * after2 <= before1 * before2 * 1.001) return false;
  Node& a = *pair.first.node;
  Node& b = *pair.second.node;
  rewriter.ReplaceConstant(a, 1, TensorRef::FromFloats(a.input(1)->data->dims, pair.first.weight));
  rewriter.ReplaceConstant(b, 1, TensorRef::FromFloats(b.input(1)->data->dims, pair.second.weight));
  if (pair.has_bias) rewriter.ReplaceConstant(a, 2, TensorRef::FromFloats(a.input(2)->data->dims, bias));
  return true;
}

}  // namespace

std::int64_t EqualizeLayers(Model& model) {
  Rewriter rewriter(model);
  std::vector<Node*> candidates;
  std::vector<Node*> equalized;
  VisitNodes(*model.graph, [&](Node& node) {
    Pair pair;
    if (MatchPair(&node, pair)) candidates.push_back(&node);
  });
  for (int sweep = 0; sweep < kMaxSweeps; ++sweep) {
    bool changed = false;
    for (Node* node : candidates) {
      Pair pair;
      if (!MatchPair(node, pair) || !Equalize(pair, rewriter)) continue;
      changed = true;
      if (std::find(equalized.begin(), equalized.end(), node) == equalized.end()) equalized.push_back(node);
    }
    if (!changed) break;
  }
  return static_cast<std::int64_t>(equalized.size());
}

}  // namespace octavo
