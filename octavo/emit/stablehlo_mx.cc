// Weights in MX blocks: element codes and one scale byte a block, both indices of tables of what they mean. One product
// of two f32 numbers an element, as the format's own decoder makes it.
#include <algorithm>
#include <string>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/emit/lower_mx.h"
#include "octavo/emit/stablehlo_lowering.h"
#include "octavo/numerics/affine.h"
#include "octavo/numerics/mx.h"

namespace octavo::stablehlo {
namespace {

// What the 256 bytes of a scale mean, in the order of the stored (signed) byte: index = byte + 128.
std::vector<float> ScaleTable() {
  std::vector<float> table(256);
  for (unsigned i = 0; i < 256; ++i) table[i] = MxScaleValue(static_cast<std::uint8_t>(i - 128));
  return table;
}

// What the codes mean, in the order of the stored number; see StoredCodes for `shift`.
std::vector<float> ElementTable(const MxFormat& format, int shift) {
  constexpr std::uint8_t kOne = 127;  // the scale 1
  std::vector<float> table(std::size_t{1} << format.bits);
  for (std::size_t i = 0; i < table.size(); ++i) {
    const int code = static_cast<int>(i) - (format.bits == 8 ? shift : 0);
    table[i] = MxDecodeOne(static_cast<std::uint8_t>(code), kOne, format);
  }
  return table;
}

struct Parts {
  TensorRef codes;   // s4 (code - 8) for four bits, s8 else; dims of the weight
  TensorRef scales;  // s8, one a block
  int shift = 0;     // stored code + shift = index of the table
};

}  // namespace

Tensor Emitter::MxWeight(const Value& value) {
  const Mx& mx = value.type.quant->mx;
  const std::string place = "weight '" + value.name() + "', export to StableHLO";
  const MxFormat* format = FindMxFormat(mx.format);
  if (format == nullptr) ThrowUnsupported("no MX format has this name: " + mx.format, place);
  const TensorRef& numbers = *value.data;
  if (form() == ConstantForm::kFloats) return b.Constant(numbers);
  if (format->e4m3_scale) {  // FoldQuantOps makes blocked affine weights of it
    ThrowUnsupported("the scales of " + mx.format + " cannot be found again from its numbers", place,
                     "use --constants dequantize");
  }
  const DType expressed = value.type.dtype;
  if (form() == ConstantForm::kQuant) {
    ThrowUnsupported("!quant.uniform cannot say " + mx.format +
                         ": its scales belong to blocks, and no operation takes "
                         "sub-channel types",
                     place, "use --constants packed");
  }

  const MxShape shape = MxShapeOf(numbers.dims, mx);
  std::vector<float> storage;
  const std::span<const float> x = FloatView(numbers, storage);
  std::vector<std::uint8_t> codes(shape.elements()), scales(shape.scales());
  MxEncode(x.data(), shape, *format, MxRounding::kEven, codes.data(), scales.data());
  std::vector<float> back(x.size());
  MxDecode(codes.data(), scales.data(), shape, *format, back.data());
  for (std::size_t i = 0; i < back.size(); ++i) {
    if (back[i] != x[i] && !(back[i] != back[i] && x[i] != x[i])) {
      ThrowUnsupported("its numbers are not those of " + mx.format + " blocks of " + std::to_string(mx.block), place,
                       "use --constants dequantize");
    }
  }

  Parts parts;
  parts.shift = format->integer ? 0 : format->bits == 8 ? 128 : format->bits == 4 ? 8 : 0;
  const auto bytes = [](const std::vector<std::uint8_t>& from, int less) {
    std::vector<std::byte> out(from.size());
    std::transform(from.begin(), from.end(), out.begin(),
                   [&](std::uint8_t v) { return static_cast<std::byte>(static_cast<std::uint8_t>(v - less)); });
    return out;
  };
  Dims scale_dims = numbers.dims;
  scale_dims[static_cast<std::size_t>(mx.axis)] = static_cast<std::int64_t>(shape.blocks());
  if (format->bits == 4) {
    parts.codes = TensorRef::FromBytes(DType::kS4, numbers.dims, PackNibbles(bytes(codes, 8)));
  } else {
    parts.codes = TensorRef::FromBytes(DType::kS8, numbers.dims, bytes(codes, 0));
  }
  parts.scales = TensorRef::FromBytes(DType::kS8, scale_dims, bytes(scales, 0));

  Affine blocks;  // where the scales belong
  blocks.axis = mx.axis;
  blocks.block = mx.block;
  std::vector<Tensor> arguments;
  if (form() == ConstantForm::kCodes) {
    const auto attributes = [&](const char* part) {
      return "{octavo.quant_params = {encoding = " + Quoted(mx.format) + ", part = \"" + part +
             "\", axis = " + std::to_string(mx.axis) + " : i64, block = " + std::to_string(mx.block) +
             " : i64, code_shift = " + std::to_string(format->bits == 4 ? 8 : 0) + " : i64}}";
    };
    // Behind barriers: IREE's own evaluation of constants fails on indices of tables.
    arguments = {b.Barrier(b.Constant(parts.codes, attributes("codes"))),
                 b.Barrier(b.Constant(parts.scales, attributes("scales")))};
  } else {
    arguments = {Stored(value, "codes", parts.codes), Stored(value, "scales", parts.scales)};
  }
  const auto body = [&](Builder& f, std::span<const Tensor> a) {
    Tensor element;
    if (format->integer) {
      element = f.Mul(f.Convert(a[0], DType::kF32), 0x1p-6);
    } else {
      const std::vector<float> table = ElementTable(*format, parts.shift);
      const Tensor index = f.Add(f.Convert(a[0], DType::kS32), static_cast<double>(parts.shift));
      element = f.Gather(f.Floats({static_cast<std::int64_t>(table.size())}, table), index, 0);
    }
    const std::vector<float> table = ScaleTable();
    const Tensor index = f.Add(f.Convert(a[1], DType::kS32), 128.0);
    const Tensor scale = f.Gather(f.Floats({256}, table), index, 0);
    return f.Convert(f.Mul(element, SpreadParameters(f, scale, blocks, a[0].dims)), expressed);
  };
  if (form() == ConstantForm::kCodes) return body(b, arguments);
  const std::string attributes = "encoding = " + Quoted(mx.format) + ", axis = " + std::to_string(mx.axis) +
                                 " : i64, block = " + std::to_string(mx.block) + " : i64";
  const std::string key = attributes + " " + std::string(Name(expressed));
  return Composite(key, attributes, arguments, expressed, numbers.dims, body);
}

}  // namespace octavo::stablehlo
