// Split and Concat of values with scales along an axis or in blocks.
#include <algorithm>
#include <numeric>

#include "octavo/rewrite/rules/parts.h"
#include "octavo/rewrite/rules/quantized.h"

namespace octavo {
namespace {

std::optional<Dims> ShapeOf(const Value& v) {
  return v.is_constant() && v.data ? std::optional(v.data->dims) : StaticShape(v.type);
}

// Sizes of a Split's outputs.
std::optional<std::vector<std::int64_t>> SizesOf(const Node& node, std::int64_t n) {
  const Value* given = node.input(1);
  std::vector<std::int64_t> sizes;
  if (const std::vector<std::int64_t>* attribute = node.IntsAttribute("split")) {
    sizes = *attribute;
  } else if (given != nullptr) {
    if (!given->is_constant() || !given->data || !IsInteger(given->data->dtype)) return std::nullopt;
    sizes = given->data->ToInts();
  } else {  // equal parts, the last one smaller
    const auto parts = std::ssize(node.outputs());
    const std::int64_t size = (n + parts - 1) / parts;
    for (std::int64_t i = 0, left = n; i < parts; ++i, left -= size) sizes.push_back(std::min(size, left));
  }
  std::int64_t sum = 0;
  for (const std::int64_t s : sizes) {
    if (s < 1 || s > n - sum) return std::nullopt;
    sum += s;
  }
  if (sum != n || sizes.size() != node.outputs().size()) return std::nullopt;
  return sizes;
}

struct Parts {
  Node* node = nullptr;
  std::vector<Affine> affine;  // of each output
  std::size_t axis = 0;
  std::vector<std::int64_t> sizes;  // of a Split's outputs
  bool at_once = false;             // all inputs are constants
};

class PartParametersRule final : public PatternRule<Parts> {
 public:
  PartParametersRule(const DeviceDescriptor& device, std::int64_t opset) : device_(device), opset_(opset) {}
  std::string_view name() const override { return "part-parameters"; }
  RuleClass rule_class() const override { return RuleClass::kExact; }
  std::vector<std::string_view> roots() const override { return {"Split", "Concat"}; }
  RuleDoc doc() const override {
    return {"Scales that run along an axis or in blocks are split and joined with the codes; constants at once.",
            "%a : f32, %b : f32 = Split (%w : s4(axis=0, block=32)) {axis=0}",
            "%a : s4(axis=0, block=32), %b : s4(axis=0, block=32) = Split %w_codes",
            "each code keeps its scale and zero point: compared number by number with the float operator for every "
            "axis of scales, blocks and parts (PartParameters.EveryCodeKeepsItsScale)",
            {"part-parameters/block-borders", "part-parameters/same-parameters"}};
  }
  MatchOr<Parts> Match(Node& node) const override {
    if (!node.domain().empty() || node.form == QuantForm::kQLinear) return Refusal{};
    const bool split = node.Is("Split");
    const std::size_t data = split ? 1 : node.inputs().size();
    Parts parts{&node, {}, 0, {}, true};
    std::vector<Part> inputs;
    for (std::size_t i = 0; i < data; ++i) {
      const Value* x = node.input(i);
      const Affine* affine = AffineOf(x);
      if (affine == nullptr || affine->per_tensor()) return Refusal{};  // move-codes, join-codes
      const std::optional<Dims> dims = ShapeOf(*x);
      if (!dims)
        return Refusal{"the shape of '" + x->name() + "' is not known, so the axis of the scales is not either"};
      parts.at_once = parts.at_once && x->is_constant() && x->data;
      inputs.push_back({*affine, *dims});
    }
    if (inputs.empty()) return Refusal{};
    for (const Value* y : node.outputs()) {
      if (y == nullptr || y->is_graph_output() || y->type.dtype != DType::kF32) return Refusal{};
      parts.at_once = parts.at_once && !y->is_graph_output();
    }
    const Dims& from = inputs[0].dims;
    std::int64_t axis = node.IntAttribute("axis", 0);
    if (axis < 0) axis += std::ssize(from);
    if (axis < 0 || axis >= std::ssize(from)) return Refusal{"its axis is none of " + Text(from)};
    parts.axis = static_cast<std::size_t>(axis);
    const IntegerKernel* kernel = FindIntegerKernel(device_, node.op(), KernelKind::kOnCodes);
    const DType storage = inputs[0].affine.storage;
    if (!parts.at_once && (kernel == nullptr || !TakesCodes(*kernel, storage) || opset_ < kernel->opset)) {
      return Refusal{"the device has no " + node.op() + " for " + std::string(Name(storage))};
    }
    if (split) {
      const std::int64_t n = from[parts.axis];
      constexpr std::int64_t kMostIndices = std::int64_t{1} << 24;  // of an axis: each is written down
      if (std::any_of(from.begin(), from.end(), [](std::int64_t d) { return d > kMostIndices; })) {
        return Refusal{"it splits a tensor of more than " + std::to_string(kMostIndices) + " indices along one axis"};
      }
      const auto sizes = SizesOf(node, n);
      if (!sizes) return Refusal{"the sizes of its parts are computed, or are not those of " + Text(from)};
      parts.sizes = *sizes;
      std::int64_t start = 0;
      for (const std::int64_t size : *sizes) {
        Indices kept(from.size());
        for (std::size_t i = 0; i < from.size(); ++i) {
          kept[i].resize(static_cast<std::size_t>(i == parts.axis ? size : from[i]));
          std::iota(kept[i].begin(), kept[i].end(), i == parts.axis ? start : 0);
        }
        MatchOr<Affine> part = CutParameters(name(), inputs[0].affine, from, kept);
        if (auto* refusal = std::get_if<Refusal>(&part)) return *refusal;
        parts.affine.push_back(std::get<Affine>(std::move(part)));
        start += size;
      }
    } else {
      MatchOr<Affine> all = JoinParameters(name(), inputs, axis);
      if (auto* refusal = std::get_if<Refusal>(&all)) return *refusal;
      parts.affine.push_back(std::get<Affine>(std::move(all)));
    }
    for (std::size_t i = 0; i < node.outputs().size(); ++i) {
      const Value* y = node.output(i);
      const Affine* have = AffineOf(y);
      if (IsQuantized(y) && (have == nullptr || !SameParams(*have, parts.affine[i]))) {
        return Refusal{"its result '" + y->name() + "' is quantized with other parameters than its inputs'"};
      }
    }
    return parts;
  }
  void Apply(const Parts& m, Rewriter& rewriter) const override {
    Node& node = *m.node;
    std::int64_t start = 0;
    const std::vector<Value*> outputs(node.outputs().begin(), node.outputs().end());
    for (std::size_t i = 0; i < outputs.size(); ++i) {
      Value* y = outputs[i];
      QuantType quant;
      quant.affine = m.affine[i];
      if (!m.at_once) {
        y->type.quant = std::move(quant);
        rewriter.Touch(y);
        continue;
      }
      TensorRef data = m.sizes.empty() ? Joined(node, m.axis) : TensorRef{};
      if (!m.sizes.empty()) {
        std::vector<std::int64_t> at(static_cast<std::size_t>(m.sizes[i]));
        std::iota(at.begin(), at.end(), start);
        data = Cut(*node.input(0)->data, m.axis, at);
        start += m.sizes[i];
      }
      Type type = TypeOf(data);
      type.dtype = DType::kF32;
      type.quant = std::move(quant);
      Value* constant = node.graph()->AddConstant(y->name() + "_part", std::move(data), std::move(type));
      node.graph()->ReplaceAllUses(y, constant);
      rewriter.Touch(constant);
    }
    if (m.at_once) {
      rewriter.EraseIfDead(node);
    } else {
      node.form = QuantForm::kQLinear;
    }
  }

 private:
  static TensorRef Joined(const Node& node, std::size_t axis) {
    Dims dims = node.input(0)->data->dims;
    std::size_t outer = 1;
    for (std::size_t i = 0; i < axis; ++i) outer *= static_cast<std::size_t>(dims[i]);
    std::vector<std::vector<std::int64_t>> parts;
    dims[axis] = 0;
    for (const Value* v : node.inputs()) {
      parts.push_back(v->data->ToInts());
      dims[axis] += v->data->dims[axis];
    }
    std::vector<std::int64_t> to;
    for (std::size_t o = 0; o < outer; ++o) {
      for (const std::vector<std::int64_t>& part : parts) {
        const std::size_t run = part.size() / outer;
        to.insert(to.end(), part.begin() + static_cast<std::ptrdiff_t>(o * run),
                  part.begin() + static_cast<std::ptrdiff_t>((o + 1) * run));
      }
    }
    return TensorRef::FromInts(node.input(0)->data->dtype, std::move(dims), to);
  }

  const DeviceDescriptor& device_;
  const std::int64_t opset_;
};

}  // namespace

std::unique_ptr<Rule> PartParameters(const DeviceDescriptor& device, std::int64_t opset) {
  return std::make_unique<PartParametersRule>(device, opset);
}

}  // namespace octavo
