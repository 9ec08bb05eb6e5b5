// Quantized weights, in the form that was asked for. The traps of the consumers are handled here and in
// Builder::Constant, once each:
//  - unsigned codes are stored signed, their zero points moved with them: exact, and no consumer can lose the sign;
//  - codes stand behind an optimization barrier, so that IREE does not fold them back to floats;
//  - what !quant.uniform cannot say is refused.
#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "octavo/base/error.h"
#include "octavo/base/spill.h"
#include "octavo/emit/stablehlo_blocks.h"
#include "octavo/emit/stablehlo_lowering.h"
#include "octavo/numerics/affine.h"
#include "octavo/numerics/ggml.h"

namespace octavo::stablehlo {
namespace {

// Smaller constants stand in the text, whatever the form.
constexpr std::size_t kParameterBytes = 1024;

// Codes as a consumer can take them: signed, 4 bits or whole bytes, and the zero points that go with them.
struct SignedCodes {
  TensorRef codes;
  std::vector<std::int64_t> zeros;  // one a scale
};

SignedCodes MakeSigned(const TensorRef& data, const Affine& affine) {
  SignedCodes out;
  out.zeros.assign(affine.scale.elements(), 0);
  if (affine.zero_point) out.zeros = affine.zero_point->ToInts();
  const int width = BitWidth(affine.storage);
  const bool is_signed = IsSignedInteger(affine.storage);
  if (is_signed && width >= 4) {
    out.codes = data;
    return out;
  }
  if (width == 32) ThrowUnsupported("weights of unsigned 32-bit codes", "export to StableHLO", "use int32");
  const std::uint64_t n = data.elements();
  const std::int64_t shift = is_signed ? 0 : std::int64_t{1} << (width - 1);
  for (std::int64_t& z : out.zeros) z -= shift;
  std::vector<std::byte> bytes;
  if (width < 4) {  // unpacked into bytes
    bytes.resize(n);
    for (std::uint64_t i = 0; i < n; ++i) {
      auto code = static_cast<std::int64_t>(ElementBits(data, i));
      if (is_signed && code >= (std::int64_t{1} << (width - 1))) code -= std::int64_t{1} << width;
      bytes[i] = static_cast<std::byte>(static_cast<std::uint8_t>(code - shift));
    }
  } else {  // the top bit turns over
    bytes.assign(data.bytes.begin(), data.bytes.end());
    const std::size_t step = width == 16 ? 2 : 1;
    for (std::size_t i = step - 1; i < bytes.size(); i += step)
      bytes[i] ^= width == 4 ? std::byte{0x88} : std::byte{0x80};
  }
  const DType dtype = width == 4 ? DType::kS4 : width == 16 ? DType::kS16 : DType::kS8;
  out.codes = TensorRef::FromBytes(dtype, data.dims, std::move(bytes));
  return out;
}

std::string DenseInts(std::span<const std::int64_t> values) {
  std::string list;
  for (const std::int64_t v : values) list += (list.empty() ? "" : ", ") + std::to_string(v);
  return list.empty() ? "array<i64>" : "array<i64: " + list + ">";
}

std::string DenseFloats(std::span<const float> values) {
  std::string text = "dense<\"0x";
  char digits[12];
  for (const float v : values) {
    const auto bits = std::bit_cast<std::uint32_t>(v);
    std::snprintf(digits, sizeof digits, "%02X%02X%02X%02X", bits & 255, (bits >> 8) & 255, (bits >> 16) & 255,
                  bits >> 24);
    text += digits;
  }
  return text + "\"> : tensor<" + std::to_string(values.size()) + "xf32>";
}

// {octavo.quant_params = {...}} for consumers with a pass of their own.
std::string QuantParams(const Affine& affine, DType stored, std::span<const std::int64_t> zeros) {
  std::string text = "{octavo.quant_params = {encoding = \"affine\", storage = " + Quoted(ElementType(stored));
  if (affine.axis) text += ", axis = " + std::to_string(*affine.axis) + " : i64";
  if (affine.block > 0) text += ", block = " + std::to_string(affine.block) + " : i64";
  text += ", scales = " + DenseFloats(affine.scale.ToFloats());
  text += ", scale_shape = " + DenseInts(affine.scale.dims);
  return text + ", zero_points = " + DenseInts(zeros) + "}}";
}

// The weight's floats.
TensorRef DequantizedData(const Value& value) {
  const TensorRef& data = *value.data;
  const Affine& affine = value.type.quant->affine;
  const std::vector<float> scales = affine.scale.ToFloats();
  std::vector<std::int64_t> zeros(scales.size(), 0);
  if (affine.zero_point) zeros = affine.zero_point->ToInts();
  const int width = BitWidth(affine.storage);
  const bool is_signed = IsSignedInteger(affine.storage);
  std::uint64_t inner = 1, length = 1;
  std::int64_t count = 1, block = 1;  // scales along the axis, elements of one
  if (affine.axis) {
    const auto axis = static_cast<std::size_t>(*affine.axis);
    for (std::size_t i = axis + 1; i < data.dims.size(); ++i) inner *= static_cast<std::uint64_t>(data.dims[i]);
    length = static_cast<std::uint64_t>(data.dims[axis]);
    block = affine.block > 0 ? affine.block : 1;
    count = affine.block > 0 ? affine.scale.dims[axis] : data.dims[axis];
  }
  std::vector<float> out(data.elements());
  for (std::uint64_t i = 0; i < out.size(); ++i) {
    std::uint64_t which = 0;
    if (affine.axis) {
      const std::uint64_t at = (i / inner) % length;
      const std::uint64_t scale_at = at / static_cast<std::uint64_t>(block);
      which = scale_at;
      if (affine.block > 0) {
        which = ((i / inner / length) * static_cast<std::uint64_t>(count) + scale_at) * inner + i % inner;
      }
    }
    auto code = static_cast<std::int64_t>(ElementBits(data, i));
    if (is_signed && code >= (std::int64_t{1} << (width - 1))) code -= std::int64_t{1} << width;
    out[i] = static_cast<float>(code - zeros[which]) * scales[which];
  }
  return TensorRef::FromFloats(data.dims, out);
}

std::string Place(const Value& value) { return "weight '" + value.name() + "', export to StableHLO"; }

}  // namespace

std::string Emitter::Decomposition(const std::string& key, std::span<const Tensor> arguments, const Body& body) {
  std::string signature = key + "(";
  for (const Tensor& t : arguments) signature += t.type() + ",";
  if (const auto found = made_.find(signature); found != made_.end()) return found->second;
  const std::string name = "@octavo.dequantize." + std::to_string(made_.size());
  TextWriter lines;
  Builder inner(lines);
  std::vector<Tensor> inside;
  std::string list;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    Tensor t = arguments[i];
    t.ssa = "%arg" + std::to_string(i);
    t.splat.reset();
    list += (i == 0 ? "" : ", ") + t.ssa + ": " + t.type();
    inside.push_back(std::move(t));
  }
  const Tensor result = body(inner, inside);
  functions_.Put("  func.func private " + name + "(" + list + ") -> " + result.type() + " {\n" + lines.text() +
                 "    return " + result.ssa + " : " + result.type() + "\n  }\n");
  return made_[signature] = name;
}

Tensor Emitter::Composite(const std::string& key, const std::string& attributes, std::span<const Tensor> arguments,
                          DType dtype, const Dims& dims, const Body& body) {
  const std::string function = Decomposition(key, arguments, body);
  std::string names, types;
  for (const Tensor& t : arguments) {
    names += (names.empty() ? "" : ", ") + t.ssa;
    types += (types.empty() ? "" : ", ") + t.type();
  }
  return b.Define("stablehlo.composite \"octavo.dequantize\" " + names + " {composite_attributes = {" + attributes +
                      "}, decomposition = " + function + "} : (" + types + ") -> " + TensorType(dtype, dims),
                  dtype, dims);
}

Tensor Emitter::Stored(const Value& value, const std::string& part, const TensorRef& data) {
  if (form() == ConstantForm::kParameters && options_.archive.empty() && data.bytes.size() >= kParameterBytes) {
    return Parameter(value.name() + "." + part, data);
  }
  return b.Barrier(b.Constant(data));
}

// util.global private @parameter.0 = #flow.parameter.named<"model"::"w.codes"> : tensor<..>
Tensor Emitter::Parameter(const std::string& wanted, const TensorRef& data) {
  TensorRef stored = data;
  const std::uint64_t n = data.elements();
  if (data.dtype == DType::kS4 && n % 2 != 0) {  // 4 bits come in pairs
    stored = TensorRef::FromBytes(DType::kS8, data.dims, UnpackNibbles(data.bytes, n, true));
  } else if (data.file == nullptr && data.bytes.size() >= kSpillBytes) {  // kept until the archive is written
    SpillBuffer buffer(data.bytes.size());
    std::memcpy(buffer.data(), data.bytes.data(), data.bytes.size());
    stored = TensorRef::FromBuffer(data.dtype, data.dims, std::move(buffer));
  }
  std::string name = wanted;
  for (int i = 1; parameters_.contains(name); ++i) name = wanted + "." + std::to_string(i);
  return Global(name, stored);
}

Tensor Emitter::Global(const std::string& name, const TensorRef& stored) {
  const std::string symbol = "@parameter." + std::to_string(parameters_.size());
  const std::string type = TensorType(stored.dtype, stored.dims);
  functions_.Put("  util.global private " + symbol + " = #flow.parameter.named<\"model\"::" + Quoted(name) +
                 "> : " + type + "\n");
  parameters_[name] = stored;
  return b.Define("util.global.load " + symbol + " : " + type, stored.dtype, stored.dims);
}

const std::string* Emitter::ArchiveName(const TensorRef& data) const {
  if (options_.archive.empty() || data.file == nullptr || data.file->path() != options_.archive) return nullptr;
  const auto offset = static_cast<std::uint64_t>(data.bytes.data() - data.file->bytes().data());
  const auto found = options_.archive_tensors.find(offset);
  return found == options_.archive_tensors.end() ? nullptr : &found->second;
}

Tensor Emitter::PlainConstant(const Value& value) {
  const TensorRef& data = *value.data;
  const bool fits = IsFloat(data.dtype) || (IsSignedInteger(data.dtype) && BitWidth(data.dtype) >= 8);
  if (form() == ConstantForm::kParameters && fits && data.bytes.size() >= kParameterBytes) {
    if (const std::string* name = ArchiveName(data)) return Global(*name, data);
    if (options_.archive.empty()) return Parameter(value.name(), data);
  }
  return b.Constant(data);
}

Tensor Emitter::AffineWeight(const Value& value) {
  const Affine& affine = value.type.quant->affine;
  const DType expressed = value.type.dtype;
  const TensorRef& data = *value.data;
  if (!IsInteger(affine.storage)) {
    ThrowUnsupported("codes of " + std::string(Name(affine.storage)), Place(value), "quantize to integers");
  }
  const int width = BitWidth(affine.storage);
  // A bias (int32, whose scale is a product) is no storage to save.
  if (width == 32) return DequantizeFrom(b.Constant(data), affine, expressed);
  switch (form()) {
    case ConstantForm::kFloats:
      return b.Convert(b.Constant(DequantizedData(value)), expressed);
    case ConstantForm::kQuant: {
      const std::string how = "use --constants packed";
      if (affine.storage != DType::kS8) {
        ThrowUnsupported("!quant.uniform with " + std::string(Name(affine.storage)) +
                             " codes: consumers read unsigned storage as signed, and take 8 bits only",
                         Place(value), how);
      }
      if (affine.block > 0) ThrowUnsupported("!quant.uniform in blocks: no operation takes it", Place(value), how);
      if (affine.axis && *affine.axis + 1 != static_cast<std::int64_t>(data.dims.size())) {
        ThrowUnsupported("!quant.uniform along axis " + std::to_string(*affine.axis) + ", which is not the last",
                         Place(value), how);
      }
      if (expressed != DType::kF32 || affine.scale.dtype != DType::kF32) {
        ThrowUnsupported("!quant.uniform that means " + std::string(Name(expressed)), Place(value), how);
      }
      const std::vector<float> scales = affine.scale.ToFloats();
      std::vector<std::int64_t> zeros(scales.size(), 0);
      if (affine.zero_point) zeros = affine.zero_point->ToInts();
      const Tensor codes = b.Constant(data);
      if (!affine.axis) return b.UniformDequantize(b.AsUniform(codes, {scales[0], zeros[0]}));
      // tensor<..x!quant.uniform<i8:f32:1, {s:z, ...}>>
      std::string list;
      char text[64];
      for (std::size_t i = 0; i < scales.size(); ++i) {
        std::snprintf(text, sizeof text, "%s%.17e:%lld", i == 0 ? "" : ", ", static_cast<double>(scales[i]),
                      static_cast<long long>(zeros[i]));
        list += text;
      }
      std::string type = "tensor<";
      for (const std::int64_t d : data.dims) type += std::to_string(d) + "x";
      type += "!quant.uniform<i8:f32:" + std::to_string(*affine.axis) + ", {" + list + "}>>";
      const Tensor quantized = b.Define(
          "stablehlo.bitcast_convert " + codes.ssa + " : (" + codes.type() + ") -> " + type, DType::kS8, data.dims);
      return b.Define("stablehlo.uniform_dequantize " + quantized.ssa + " : (" + type + ") -> " +
                          TensorType(DType::kF32, data.dims),
                      DType::kF32, data.dims);
    }
    case ConstantForm::kCodes:
    case ConstantForm::kPacked:
    case ConstantForm::kParameters:
      break;
  }
  const SignedCodes stored = MakeSigned(data, affine);
  Affine as_signed = affine;
  as_signed.storage = stored.codes.dtype;
  as_signed.zero_point = TensorRef::FromInts(DType::kS32, affine.scale.dims, stored.zeros);
  if (form() == ConstantForm::kCodes) {
    const Tensor codes = b.Constant(stored.codes, QuantParams(affine, stored.codes.dtype, stored.zeros));
    return DequantizeFrom(codes, as_signed, expressed);
  }
  std::vector<Tensor> arguments = {Stored(value, "codes", stored.codes)};
  std::string attributes = "encoding = " + Quoted(std::string(Name(affine.storage)));
  if (affine.axis) attributes += ", axis = " + std::to_string(*affine.axis) + " : i64";
  if (affine.block > 0) attributes += ", block = " + std::to_string(affine.block) + " : i64";
  const std::vector<float> scales = affine.scale.ToFloats();
  // One scale stands in the function; many are an operand, and so are their zero points.
  const bool zero = std::all_of(stored.zeros.begin(), stored.zeros.end(), [](std::int64_t z) { return z == 0; });
  std::string key = attributes;
  if (affine.axis) {
    arguments.push_back(b.Barrier(b.Floats(affine.scale.dims, scales)));
    if (!zero) {
      std::vector<float> floats(stored.zeros.begin(), stored.zeros.end());
      arguments.push_back(b.Barrier(b.Floats(affine.scale.dims, floats)));
    }
  } else {
    key += " " + std::to_string(std::bit_cast<std::uint32_t>(scales[0])) + " " + std::to_string(stored.zeros[0]);
  }
  key += " " + std::string(Name(expressed));
  return Composite(key, attributes, arguments, expressed, data.dims, [&](Builder& f, std::span<const Tensor> a) {
    Tensor x = f.Convert(a[0], DType::kF32);
    if (!affine.axis) {
      if (!zero) x = f.Add(x, -static_cast<double>(stored.zeros[0]));
      return f.Convert(f.Mul(x, static_cast<double>(scales[0])), expressed);
    }
    if (!zero) x = f.Sub(x, SpreadParameters(f, a[2], affine, x.dims));
    return f.Convert(f.Mul(x, SpreadParameters(f, a[1], affine, x.dims)), expressed);
  });
}

// Rows of blocks as a tensor [other dimensions.., K].
Tensor Emitter::BlockRows(const Value& value) {
  if (const auto found = block_rows_.find(&value); found != block_rows_.end()) return found->second;
  const GgmlBlock& ggml = value.type.quant->ggml;
  const std::optional<Dims> shape = StaticShape(value.type);
  const GgmlFormat* format = FindGgmlFormat(ggml.format);
  const BlockForm* block_form = FindBlockForm(ggml.format);
  if (!shape || format == nullptr || block_form == nullptr) {
    ThrowUnsupported("the format " + ggml.format, Place(value), "use another block format");
  }
  if (form() == ConstantForm::kQuant) {
    ThrowUnsupported("!quant.uniform cannot say " + ggml.format +
                         ": its scales belong to blocks, and no operation "
                         "takes sub-channel types",
                     Place(value), "use --constants packed");
  }
  Dims dims;
  for (std::size_t i = 0; i < shape->size(); ++i) {
    if (static_cast<std::int64_t>(i) != ggml.axis) dims.push_back((*shape)[i]);
  }
  const std::uint64_t rows = ElementCount(dims);
  const std::int64_t k = shape->at(static_cast<std::size_t>(ggml.axis));
  dims.push_back(k);
  const std::uint64_t wanted = GgmlBytes(*format, rows, static_cast<std::uint64_t>(k), Place(value));
  if (wanted != value.data->bytes.size()) {
    ThrowBadInput(
        "blocks of " + std::to_string(value.data->bytes.size()) + " bytes instead of " + std::to_string(wanted),
        Place(value));
  }
  const DType expressed = value.type.dtype;
  Tensor out;
  if (form() == ConstantForm::kFloats) {
    std::vector<float> floats(rows * static_cast<std::uint64_t>(k));
    DecodeGgml(*format, value.data->bytes, floats, 1, Place(value));
    out = b.Convert(b.Floats(dims, floats), expressed);
  } else {
    const auto n = static_cast<std::int64_t>(rows);
    const std::int64_t nb = k / block_form->block, subs = block_form->block / block_form->sub;
    const Dims per_block = {n, nb}, per_sub = {n, nb, subs};
    std::vector<Tensor> arguments;
    const auto add = [&](const char* part, DType dtype, const Dims& part_dims, const std::vector<std::byte>& bytes) {
      const TensorRef ref = TensorRef::FromBytes(dtype, part_dims, dtype == DType::kS4 ? PackNibbles(bytes) : bytes);
      if (form() == ConstantForm::kCodes) {
        const Tensor constant =
            b.Constant(ref, "{octavo.quant_params = {encoding = " + Quoted(std::string(format->ggml_name)) +
                                ", part = \"" + part + "\", block = " + std::to_string(block_form->block) +
                                " : i64, sub_block = " + std::to_string(block_form->sub) +
                                " : i64, code_shift = " + std::to_string(block_form->code_shift) + " : i64}}");
        // IREE's own evaluation of constants fails on indices of tables: behind a barrier it leaves them alone.
        arguments.push_back(block_form->table ? b.Barrier(constant) : constant);
      } else {
        arguments.push_back(Stored(value, part, ref));
      }
    };
    const auto values = [&](Builder& f, std::span<const Tensor> a, std::int64_t shift) {
      const Dims full = a[0].dims;
      const std::int64_t block_map[] = {0, 1}, sub_map[] = {0, 1, 2};
      std::size_t next = 1;
      Tensor code;
      if (block_form->table) {
        const Tensor index = f.Add(f.Convert(a[0], DType::kS32), static_cast<double>(shift));
        code = f.Gather(f.Floats({16}, block_form->values), index, 0);
      } else {
        code = f.Convert(a[0], DType::kF32);
        if (shift != 0) code = f.Add(code, static_cast<double>(shift));
      }
      // per block -> per sub-block -> per element, products made where there are few
      Tensor factor = f.Convert(a[next++], DType::kF32);
      if (block_form->scales) {
        factor = f.Mul(f.BroadcastInDim(factor, per_sub, block_map), f.Convert(a[next++], DType::kF32));
        factor = f.BroadcastInDim(factor, full, sub_map);
      } else {
        factor = f.BroadcastInDim(factor, full, block_map);
      }
      Tensor y = f.Mul(factor, code);
      if (block_form->adds_m) {
        y = f.Add(y, f.BroadcastInDim(f.Convert(a[next++], DType::kF32), full, block_map));
      } else if (block_form->mins) {
        const Tensor dmin = f.BroadcastInDim(f.Convert(a[next], DType::kF32), per_sub, block_map);
        const Tensor offset = f.Mul(dmin, f.Convert(a[next + 1], DType::kF32));
        y = f.Sub(y, f.BroadcastInDim(offset, full, sub_map));
      }
      return f.Convert(f.Reshape(y, dims), expressed);
    };
    const std::string encoding = "encoding = " + Quoted(std::string(format->ggml_name));
    const std::string key = std::string(block_form->format) + " " + IntList(dims) + " " + std::string(Name(expressed));
    if (const std::string* name = ArchiveName(*value.data)) {  // the file's own bytes, taken apart at run time
      const Dims raw = {n, nb, static_cast<std::int64_t>(format->block_bytes)};
      arguments.push_back(
          Global(*name, TensorRef{DType::kS8, raw, value.data->bytes, value.data->owner, value.data->file, nullptr}));
      out = Composite("raw " + key, encoding, arguments, expressed, dims, [&](Builder& f, std::span<const Tensor> a) {
        const std::optional<RawParts> raw_parts = TakeApartRaw(f, *block_form, a[0]);
        if (!raw_parts) {
          ThrowUnsupported("raw blocks of " + std::string(format->ggml_name) + " are not read at run time",
                           Place(value), "leave --parameters out: an archive of codes and scales is written");
        }
        return values(f, raw_parts->parts, raw_parts->shift);
      });
    } else {
      const BlockParts parts = TakeApart(*block_form, value.data->bytes);
      add("codes", block_form->codes, {n, nb, subs, block_form->sub}, parts.codes);
      add("d", block_form->d, per_block, parts.d);
      if (!parts.scales.empty()) add("scales", DType::kS8, per_sub, parts.scales);
      if (!parts.second.empty()) add(block_form->adds_m ? "m" : "dmin", block_form->d, per_block, parts.second);
      if (!parts.mins.empty()) add("mins", DType::kS8, per_sub, parts.mins);
      const auto body = [&](Builder& f, std::span<const Tensor> a) { return values(f, a, block_form->code_shift); };
      out = form() == ConstantForm::kCodes ? body(b, arguments)
                                           : Composite(key, encoding, arguments, expressed, dims, body);
    }
  }
  return block_rows_[&value] = out;
}

std::optional<Tensor> Emitter::WeightRows(const Value& value) {
  if (!value.is_constant() || !value.type.quant || value.type.quant->kind != QuantType::Kind::kGgml) return {};
  const std::optional<Dims> shape = StaticShape(value.type);
  if (!shape || shape->size() != 2 || value.type.quant->ggml.axis != 0) return {};
  return BlockRows(value);
}

Tensor Emitter::Weight(const Value& value) {
  switch (value.type.quant->kind) {
    case QuantType::Kind::kAffine:
      return AffineWeight(value);
    case QuantType::Kind::kGgml: {
      const Tensor rows = BlockRows(value);
      // [others.., K] -> K back at its axis
      const std::int64_t axis = value.type.quant->ggml.axis;
      Dims permutation;
      for (std::int64_t i = 0, other = 0; i < static_cast<std::int64_t>(rows.rank()); ++i) {
        permutation.push_back(i == axis ? static_cast<std::int64_t>(rows.rank()) - 1 : other++);
      }
      return b.Transpose(rows, permutation);
    }
    case QuantType::Kind::kMx:
      return MxWeight(value);
  }
  ThrowInternal("unknown kind of quantization");
}

}  // namespace octavo::stablehlo
