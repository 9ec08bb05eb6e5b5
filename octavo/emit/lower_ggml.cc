#include "octavo/emit/lower_ggml.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/emit/stablehlo_blocks.h"
#include "octavo/numerics/ggml.h"

namespace octavo {
namespace {

using stablehlo::BlockForm;
using stablehlo::BlockParts;

// The codes of a format as unsigned numbers of so many bits above `lowest`.
struct CodeRange {
  int lowest, bits;
};
CodeRange RangeOf(const BlockForm& form) {
  if (form.codes == DType::kS4) {
    if (form.format == "q2_k") return {0, 2};
    if (form.format == "q3_k") return {-4, 3};
    if (form.format == "tq1_0" || form.format == "tq2_0") return {-1, 2};
    return {-8, 4};
  }
  if (form.format == "q5_0") return {-16, 5};
  if (form.format == "q5_1" || form.format == "q5_k") return {0, 5};
  if (form.format == "q6_k") return {-32, 6};
  return {-128, 8};
}

// One weight: a tensor [before, K, after], K in blocks.
class WeightLowering {
 public:
  WeightLowering(Value* value, const BlockForm& form, const Dims& dims)
      : value_(value), graph_(*value->graph()), anchor_(graph_.first()), form_(form), dims_(dims) {
    axis_ = value->type.quant->ggml.axis;
    k_ = dims_[static_cast<std::size_t>(axis_)];
    for (std::int64_t i = 0; i < axis_; ++i) before_ *= dims_[static_cast<std::size_t>(i)];
    for (std::size_t i = static_cast<std::size_t>(axis_) + 1; i < dims_.size(); ++i) after_ *= dims_[i];
  }

  // The float value.
  Value* Run() {
    base_ = value_->name();
    BlockParts parts = stablehlo::TakeApart(form_, value_->data->bytes);
    const bool output = !value_->output_uses().empty();
    graph_.Rename(value_, graph_.UniqueName(base_ + "_blocks"));
    const std::string name = output ? base_ : graph_.UniqueName(base_ + "_dequantized");
    const std::int64_t subs = k_ / form_.sub;
    const Dims grouped = {before_, subs, form_.sub, after_}, per_group = {before_, subs, 1, after_};
    const CodeRange range = RangeOf(form_);
    Value* factor = Factor(parts, per_group);
    Value* y = nullptr;
    if (!form_.table && (range.bits == 8 || range.bits == 4)) {
      y = Dequantize(parts, range, factor, grouped);
    } else {
      Value* codes = form_.table ? Points(parts, grouped) : Planes(parts, range, grouped);
      y = Node("Mul", {codes, factor}, "scaled", DType::kF32, grouped);
    }
    if (form_.adds_m) {
      Value* m = AsFloat(Half("minimum", std::move(parts.second), per_group), per_group);
      y = Node("Add", {y, m}, "sum", DType::kF32, grouped);
    } else if (form_.mins) {
      y = Node("Sub", {y, Offset(parts, per_group)}, "difference", DType::kF32, grouped);
    }
    // Also where nothing was added: ONNX Runtime would turn a DequantizeLinear that a MatMul reads into its own
    // operator, which by default rounds the activations to 8 bits.
    y = Reshape(y, dims_);
    if (value_->type.dtype != DType::kF32) {
      y = Node("Cast", {y}, "cast", value_->type.dtype, dims_);
      y->producer()->SetAttribute("to", static_cast<std::int64_t>(value_->type.dtype));
    }
    graph_.Rename(y, name);
    return y;
  }

 private:
  // Parts come row by row, `n` entries of `size` bytes each; they shall lie as [before, n, after].
  std::vector<std::byte> Arrange(std::vector<std::byte> in, std::int64_t n, std::size_t size) const {
    if (after_ == 1) return in;
    std::vector<std::byte> out(in.size());
    constexpr std::int64_t kTile = 32;
    for (std::int64_t b = 0; b < before_; ++b) {
      for (std::int64_t r0 = 0; r0 < after_; r0 += kTile) {
        for (std::int64_t i0 = 0; i0 < n; i0 += kTile) {
          for (std::int64_t r = r0; r < std::min(after_, r0 + kTile); ++r) {
            for (std::int64_t i = i0; i < std::min(n, i0 + kTile); ++i) {
              std::memcpy(out.data() + static_cast<std::size_t>((b * n + i) * after_ + r) * size,
                          in.data() + static_cast<std::size_t>((b * after_ + r) * n + i) * size, size);
            }
          }
        }
      }
    }
    return out;
  }

  Value* Node(const char* op, std::vector<Value*> inputs, const char* what, DType dtype, const Dims& dims) {
    Type type{.dtype = dtype, .shape = std::vector<Dim>(), .quant = {}, .opaque = {}};
    for (const std::int64_t d : dims) type.shape->push_back({d, {}});
    octavo::Node* node =
        graph_.AddNode(op, "", std::move(inputs), {{graph_.UniqueName(base_ + "_" + what), type}}, anchor_);
    node->name = node->output()->name();
    return node->output();
  }
  Value* Constant(const char* what, TensorRef data) { return graph_.AddConstant(base_ + "_" + what, std::move(data)); }

  Value* AsFloat(Value* x, const Dims& dims) {
    Value* y = Node("Cast", {x}, "float", DType::kF32, dims);
    y->producer()->SetAttribute("to", static_cast<std::int64_t>(DType::kF32));
    return y;
  }
  Value* Reshape(Value* x, const Dims& dims) {
    Value* shape = Constant("shape", TensorRef::FromInts(DType::kS64, {static_cast<std::int64_t>(dims.size())}, dims));
    return Node("Reshape", {x, shape}, "reshaped", x->type.dtype, dims);
  }

  // 16-bit floats, one a block, in the given dimensions.
  Value* Half(const char* what, std::vector<std::byte> data, const Dims& dims) {
    return Constant(what, TensorRef::FromBytes(form_.d, dims, Arrange(std::move(data), k_ / form_.block, 2)));
  }

  // f32: the scale of each sub-block, or its minimum: a 16-bit float, times an integer where there are sub-blocks.
  Value* Product(const char* half, const char* integer, std::vector<std::byte> d, std::vector<std::byte> s,
                 const Dims& dims) {
    const std::int64_t blocks = k_ / form_.block, subs = form_.block / form_.sub;
    const Dims coarse = {before_, blocks, 1, after_}, fine = {before_, blocks, subs, after_};
    Value* whole = AsFloat(Half(half, std::move(d), coarse), coarse);
    Value* part = AsFloat(
        Constant(integer, TensorRef::FromBytes(DType::kS8, fine, Arrange(std::move(s), blocks * subs, 1))), fine);
    return Reshape(Node("Mul", {whole, part}, "product", DType::kF32, fine), dims);
  }
  Value* Factor(BlockParts& parts, const Dims& dims) {
    if (form_.scales) return Product("scale", "sub_scales", std::move(parts.d), std::move(parts.scales), dims);
    return AsFloat(Half("scale", std::move(parts.d), dims), dims);
  }
  Value* Offset(BlockParts& parts, const Dims& dims) {
    return Product("minimum", "sub_minima", std::move(parts.second), std::move(parts.mins), dims);
  }

  // Two nibbles a byte; `shift` is added first.
  static std::vector<std::byte> Nibbles(const std::vector<std::byte>& codes, std::int64_t shift) {
    std::vector<std::byte> out((codes.size() + 1) / 2);
    for (std::size_t i = 0; i < codes.size(); ++i) {
      const auto code = static_cast<unsigned>(static_cast<std::int8_t>(codes[i]) + shift) & 15u;
      out[i / 2] |= static_cast<std::byte>(code << (4 * (i % 2)));
    }
    return out;
  }

  Value* Dequantize(BlockParts& parts, CodeRange range, Value* scale, const Dims& grouped) {
    std::vector<std::byte> codes = Arrange(std::move(parts.codes), k_, 1);
    DType storage = DType::kS8;
    if (range.bits == 4) {
      storage = form_.code_shift != 0 ? DType::kU4 : DType::kS4;  // 8 more than s4: the numbers of u4
      codes = Nibbles(codes, form_.code_shift);
    }
    Value* q = Constant("quantized", TensorRef::FromBytes(storage, grouped, std::move(codes)));
    Value* y = Node("DequantizeLinear", {q, scale}, "linear", DType::kF32, grouped);
    y->producer()->SetAttribute("axis", std::int64_t{2});
    y->producer()->SetAttribute("block_size", form_.sub);
    return y;
  }

  // Bytes of several codes -> the codes, [n / per, per] in the order of the tensor.
  Value* Unpack(Value* packed, int bits, std::int64_t n) {
    const std::int64_t per = 8 / bits;
    std::vector<std::int64_t> shifts;
    for (std::int64_t i = 0; i < per; ++i) shifts.push_back(i * bits);
    const Dims dims = {n / per, per};
    Value* by = Constant("shifts", TensorRef::FromInts(DType::kU8, {per}, shifts));
    Value* shifted = Node("BitShift", {packed, by}, "shifted", DType::kU8, dims);
    shifted->producer()->SetAttribute("direction", std::string("RIGHT"));
    const std::int64_t mask = (1 << bits) - 1;
    return Node("BitwiseAnd", {shifted, Constant("mask", TensorRef::FromInts(DType::kU8, {}, {&mask, 1}))}, "bits",
                DType::kU8, dims);
  }

  // Codes of 2, 3, 5 or 6 bits: the low 2 or 4 bits packed in one plane, those above in another.
  Value* Planes(BlockParts& parts, CodeRange range, const Dims& grouped) {
    std::vector<std::byte> codes = Arrange(std::move(parts.codes), k_, 1);
    const auto n = static_cast<std::int64_t>(codes.size());
    for (std::byte& c : codes) c = static_cast<std::byte>(static_cast<std::int8_t>(c) - range.lowest);
    const int low_bits = range.bits >= 4 ? 4 : 2;
    const auto plane = [&](const char* what, int first, int bits) {
      const std::int64_t per = 8 / bits;
      std::vector<std::byte> packed(static_cast<std::size_t>(n / per));
      const unsigned mask = (1u << bits) - 1;
      for (std::size_t i = 0; i < codes.size(); ++i) {
        const unsigned code = static_cast<unsigned>(codes[i]) >> first & mask;
        packed[i / static_cast<std::size_t>(per)] |=
            static_cast<std::byte>(code << (static_cast<int>(i % static_cast<std::size_t>(per)) * bits));
      }
      Value* constant = Constant(what, TensorRef::FromBytes(DType::kU8, {n / per, 1}, std::move(packed)));
      return Reshape(Unpack(constant, bits, n), grouped);
    };
    Value* all = plane("low_bits", 0, low_bits);
    if (range.bits > low_bits) {
      Value* high = plane("high_bits", low_bits, range.bits - low_bits);
      const std::int64_t up = low_bits;
      high = Node("BitShift", {high, Constant("shift", TensorRef::FromInts(DType::kU8, {}, {&up, 1}))}, "raised",
                  DType::kU8, grouped);
      high->producer()->SetAttribute("direction", std::string("LEFT"));
      all = Node("BitwiseOr", {all, high}, "codes", DType::kU8, grouped);
    }
    Value* number = AsFloat(all, grouped);
    const float lowest = static_cast<float>(range.lowest + form_.code_shift);
    if (lowest == 0) return number;
    return Node("Add", {number, Constant("lowest", TensorRef::Scalar(lowest))}, "number", DType::kF32, grouped);
  }

  // Codes that are indices of points.
  Value* Points(BlockParts& parts, const Dims& grouped) {
    std::vector<std::byte> codes = Arrange(std::move(parts.codes), k_, 1);
    Value* packed = Constant("indices", TensorRef::FromBytes(DType::kU4, grouped, Nibbles(codes, form_.code_shift)));
    Value* index = Node("Cast", {packed}, "index", DType::kS32, grouped);
    index->producer()->SetAttribute("to", static_cast<std::int64_t>(DType::kS32));
    Value* points = Constant("points", TensorRef::FromFloats({16}, form_.values));
    return Node("Gather", {points, index}, "point", DType::kF32, grouped);
  }

  Value* value_;
  Graph& graph_;
  octavo::Node* anchor_;
  const BlockForm& form_;
  Dims dims_;
  std::string base_;
  std::int64_t axis_ = 0, k_ = 0, before_ = 1, after_ = 1;
};

std::string Place(const Value& value) { return "value '" + value.name() + "', " + ToString(value.type); }

void LowerConstant(Value* value) {
  const GgmlBlock& ggml = value->type.quant->ggml;
  const GgmlFormat* format = FindGgmlFormat(ggml.format);
  const BlockForm* form = stablehlo::FindBlockForm(ggml.format);
  const std::optional<Dims> dims = StaticShape(value->type);
  if (format == nullptr || form == nullptr) {
    ThrowUnsupported("unknown block format '" + ggml.format + "'", Place(*value));
  }
  if (!dims || ggml.axis < 0 || ggml.axis >= static_cast<std::int64_t>(dims->size()) || !value->data) {
    ThrowInternal("blocks without a shape, an axis or data", Place(*value));
  }
  const auto k = static_cast<std::uint64_t>(dims->at(static_cast<std::size_t>(ggml.axis)));
  const std::uint64_t elements = ElementCount(*dims, Place(*value));
  const std::uint64_t rows = k == 0 ? 0 : elements / k;
  if (elements == 0 || GgmlBytes(*format, rows, k, Place(*value)) != value->data->bytes.size()) {
    ThrowBadInput("blocks of " + std::to_string(value->data->bytes.size()) + " bytes do not fill the tensor",
                  Place(*value));
  }
  Value* floats = WeightLowering(value, *form, *dims).Run();
  // A Dequantize of the blocks is the float value itself.
  const std::vector<Use> uses(value->uses().begin(), value->uses().end());
  for (const Use& use : uses) {
    if (use.node->Is(kStorageCast, kIrDomain)) {
      ThrowUnsupported("raw storage of a block format in ONNX", Place(*value), "no operator of ONNX reads it");
    }
    if (!use.node->Is(kDequantize, kIrDomain)) continue;
    Value* old = use.node->output();
    const std::string name = old->name();
    Graph* graph = use.node->graph();
    if (old->is_graph_output()) {
      use.node->SetOp("Identity");
      use.node->SetInput(0, floats);
      continue;
    }
    graph->ReplaceAllUses(old, floats);
    graph->Erase(use.node);
  }
  value->graph()->ReplaceAllUses(value, floats);
  value->graph()->Erase(value);
}

void Collect(Graph& graph, std::vector<Value*>& out) {
  const auto blocks = [](const Value* v) {
    return v && v->type.quant && v->type.quant->kind == QuantType::Kind::kGgml;
  };
  for (const Value* value : graph.inputs()) {
    if (blocks(value)) ThrowUnsupported("a graph input in blocks", Place(*value), "only weights are stored in blocks");
  }
  for (Value* value : graph.constants()) {
    if (blocks(value)) out.push_back(value);
  }
  for (Node* node = graph.first(); node; node = node->next()) {
    for (const Value* value : node->outputs()) {
      if (blocks(value)) {
        ThrowUnsupported("a computed value in blocks", Place(*value), "only weights are stored in blocks");
      }
    }
    for (Graph* sub : node->subgraphs()) Collect(*sub, out);
  }
}

}  // namespace

void LowerGgmlBlocks(Model& model) {
  std::vector<Value*> values;
  Collect(*model.graph, values);
  for (Value* value : values) LowerConstant(value);
}

}  // namespace octavo
