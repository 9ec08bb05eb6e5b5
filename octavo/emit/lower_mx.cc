#include "octavo/emit/lower_mx.h"

#include <cmath>

#include "octavo/base/error.h"
#include "octavo/numerics/mx.h"

namespace octavo {
namespace {

constexpr std::string_view kOctavo = "octavo";

struct TwinForm {
  DType storage;
  int shift;  // codes are v * 2^shift, scales 2^(E - shift); 8-bit floats hold the element itself
};

TwinForm FormOf(const MxFormat& format) {
  if (format.bits == 8 && !format.integer) return {format.exponent_bits == 4 ? DType::kF8E4M3FN : DType::kF8E5M2, 0};
  if (format.integer) return {DType::kS8, 6};
  if (format.bits == 4) return {DType::kS8, 1};
  return format.exponent_bits == 2 ? TwinForm{DType::kS8, 3} : TwinForm{DType::kS16, 4};
}

void LowerConstant(Value& value) {
  MxTwin twin = MakeMxTwin(*value.data, value.type.quant->mx);
  value.data = std::move(twin.codes);
  value.type.quant = QuantType{};
  value.type.quant->affine = std::move(twin.affine);
}

void SetMxAttributes(Node& node, const Mx& mx, const std::string& rounding) {
  node.SetAttribute("elem_format", mx.format);
  node.SetAttribute("axis", mx.axis);
  node.SetAttribute("block_size", mx.block);
  node.SetAttribute("rounding", rounding);
  node.SetAttribute("shared_exponent", std::string("floor"));
}

bool IsMx(const Value* v) { return v != nullptr && v->type.quant && v->type.quant->kind == QuantType::Kind::kMx; }

}  // namespace

MxShape MxShapeOf(const Dims& dims, const Mx& mx) {
  MxShape shape;
  shape.block = static_cast<std::size_t>(mx.block);
  shape.n = static_cast<std::size_t>(dims[static_cast<std::size_t>(mx.axis)]);
  for (std::size_t i = 0; i < dims.size(); ++i) {
    if (static_cast<std::int64_t>(i) < mx.axis) shape.outer *= static_cast<std::size_t>(dims[i]);
    if (static_cast<std::int64_t>(i) > mx.axis) shape.inner *= static_cast<std::size_t>(dims[i]);
  }
  return shape;
}

MxTwin MakeMxTwin(const TensorRef& numbers, const Mx& mx, MxRounding rounding) {
  const MxFormat* format = FindMxFormat(mx.format);
  if (format == nullptr) ThrowUnsupported("no MX format has this name", mx.format);
  const TwinForm form = FormOf(*format);
  const MxShape shape = MxShapeOf(numbers.dims, mx);
  std::vector<float> storage;
  const std::span<const float> x = FloatView(numbers, storage);
  std::vector<std::uint8_t> codes(shape.elements()), scales(shape.scales());
  const float tensor_scale = MxTensorScale(x, *format);
  MxEncode(x.data(), shape, *format, rounding, codes.data(), scales.data(), tensor_scale);
  MxTwin twin;
  twin.affine.storage = form.storage;
  twin.affine.axis = mx.axis;
  twin.affine.block = mx.block;
  std::vector<float> values(scales.size());
  for (std::size_t i = 0; i < scales.size(); ++i) {
    // nvfp4: the code 1 has the value of one step, a half.
    values[i] = format->e4m3_scale ? MxDecodeOne(1, scales[i], *format, tensor_scale)
                                   : std::ldexp(MxScaleValue(scales[i]), -form.shift);
  }
  Dims blocks = numbers.dims;
  blocks[static_cast<std::size_t>(mx.axis)] = static_cast<std::int64_t>(shape.blocks());
  twin.affine.scale = TensorRef::FromFloats(blocks, values);
  if (IsFloat(form.storage)) {
    std::vector<std::byte> bytes(codes.size());
    for (std::size_t i = 0; i < codes.size(); ++i) bytes[i] = static_cast<std::byte>(codes[i]);
    twin.codes = TensorRef::FromBytes(form.storage, numbers.dims, std::move(bytes));
    return twin;
  }
  // At the scale of 1 an element's value is its code over a power of two.
  const std::uint8_t one =
      format->e4m3_scale ? MxEncodeOne(1, 127, *FindMxFormat("mxfp8_e4m3"), MxRounding::kEven) : 127;
  std::vector<std::int64_t> integers(codes.size());
  for (std::size_t i = 0; i < codes.size(); ++i) {
    integers[i] = static_cast<std::int64_t>(std::ldexp(MxDecodeOne(codes[i], one, *format), form.shift));
  }
  twin.codes = TensorRef::FromInts(form.storage, numbers.dims, integers);
  return twin;
}

std::int64_t LowerMxToStandard(Model& model) {
  std::vector<Graph*> graphs{model.graph.get()};
  VisitNodes(*model.graph, [&](Node& node) {
    for (Graph* sub : node.subgraphs()) graphs.push_back(sub);
  });
  std::int64_t changed = 0;
  for (Graph* graph : graphs) {
    for (Value* value : graph->constants()) {
      if (!IsMx(value)) continue;
      const Mx mx = value->type.quant->mx;
      const MxFormat* format = FindMxFormat(mx.format);
      if (format == nullptr || format->integer || format->bits == 6 || format->e4m3_scale) continue;
      const TensorRef numbers = *value->data;
      const MxShape shape = MxShapeOf(numbers.dims, mx);
      std::vector<float> storage;
      const std::span<const float> x = FloatView(numbers, storage);
      std::vector<std::uint8_t> codes(shape.elements()), scales(shape.scales());
      MxEncode(x.data(), shape, *format, MxRounding::kEven, codes.data(), scales.data());
      DType type = format->exponent_bits == 4 ? DType::kF8E4M3FN : DType::kF8E5M2;
      std::vector<std::byte> bytes(codes.size());
      if (format->bits == 4) {
        type = DType::kF4E2M1;
        bytes.assign((codes.size() + 1) / 2, std::byte{0});
        for (std::size_t i = 0; i < codes.size(); ++i) {
          bytes[i / 2] |= static_cast<std::byte>((codes[i] & 0xF) << (i % 2 == 0 ? 0 : 4));
        }
      } else {
        for (std::size_t i = 0; i < codes.size(); ++i) bytes[i] = static_cast<std::byte>(codes[i]);
      }
      std::vector<std::byte> exponents(scales.size());
      for (std::size_t i = 0; i < scales.size(); ++i) exponents[i] = static_cast<std::byte>(scales[i]);
      Dims blocks = numbers.dims;
      blocks[static_cast<std::size_t>(mx.axis)] = static_cast<std::int64_t>(shape.blocks());
      QuantType quant;
      quant.affine.storage = type;
      quant.affine.axis = mx.axis;
      quant.affine.block = mx.block;
      quant.affine.scale = TensorRef::FromBytes(DType::kF8E8M0, blocks, std::move(exponents));
      value->data = TensorRef::FromBytes(type, numbers.dims, std::move(bytes));
      value->type.quant = std::move(quant);
      ++changed;
    }
  }
  return changed;
}

void LowerMx(Model& model) {
  std::vector<Graph*> graphs{model.graph.get()};
  VisitNodes(*model.graph, [&](Node& node) {
    for (Graph* sub : node.subgraphs()) graphs.push_back(sub);
  });
  bool fakes = false;
  for (Graph* graph : graphs) {
    // The numbers of a Dequantize are the value's own.
    for (Node* node : graph->nodes()) {
      if (!node->Is(kDequantize, kIrDomain) || !IsMx(node->input(0))) continue;
      if (node->output()->is_graph_output()) {
        node->SetOp("Identity");
      } else {
        graph->ReplaceAllUses(node->output(), node->input(0));
        graph->Erase(node);
      }
    }
    for (Value* constant : graph->constants()) {
      if (IsMx(constant)) LowerConstant(*constant);
    }
    for (Node* node : graph->nodes()) {
      for (Value* value : node->outputs()) {
        if (!IsMx(value)) continue;
        const Mx mx = value->type.quant->mx;
        value->type.quant.reset();
        fakes = true;
        if (node->Is(kQuantize, kIrDomain) || node->Is(kRequantize, kIrDomain)) {
          const std::string rounding = node->StringAttribute("rounding", "away");
          node->SetOp("MXFakeQuantize", std::string(kOctavo));
          SetMxAttributes(*node, mx, rounding);
          continue;
        }
        Node* fake = graph->AddNode("MXFakeQuantize", std::string(kOctavo), {value},
                                    {{value->name() + "_mx", value->type}}, node->next());
        SetMxAttributes(*fake, mx, "away");
        graph->ReplaceAllUses(value, fake->output(), fake);
        if (fake->output()->is_graph_output()) graph->SwapNames(value, fake->output());
      }
    }
  }
  if (fakes) model.SetOpsetVersion(kOctavo, 1);
}

}  // namespace octavo
