#include "octavo/emit/stablehlo_builder.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <limits>
#include <numeric>

#include "octavo/base/error.h"
#include "octavo/numerics/affine.h"
#include "octavo/numerics/half.h"

namespace octavo::stablehlo {
namespace {

[[noreturn]] void Wrong(std::string_view operation) {
  ThrowInternal("operands of stablehlo." + std::string(operation) + " do not go together");
}

std::string Types(std::initializer_list<const Tensor*> operands, const std::string& result) {
  std::string text = "(";
  for (const Tensor* t : operands) text += (text.size() > 1 ? ", " : "") + t->type();
  return text + ") -> " + result;
}

std::string_view ReductionName(Reduction how) {
  switch (how) {
    case Reduction::kAdd:
      return "add";
    case Reduction::kMax:
      return "maximum";
    case Reduction::kMin:
      return "minimum";
    case Reduction::kMul:
      return "multiply";
    case Reduction::kAnd:
      return "and";
    case Reduction::kOr:
      return "or";
  }
  ThrowInternal("unknown reduction");
}

// The element that changes nothing.
std::uint64_t NeutralBits(DType dtype, Reduction how) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  switch (how) {
    case Reduction::kAdd:
    case Reduction::kOr:
      return 0;
    case Reduction::kMul:
    case Reduction::kAnd:
      return BitsOf(dtype, 1);
    case Reduction::kMax:
      return BitsOf(dtype, -kInf);
    case Reduction::kMin:
      return BitsOf(dtype, kInf);
  }
  ThrowInternal("unknown reduction");
}

}  // namespace

std::uint64_t BitsOf(DType dtype, double value) {
  switch (dtype) {
    case DType::kF64:
      return std::bit_cast<std::uint64_t>(value);
    case DType::kF32:
      return std::bit_cast<std::uint32_t>(static_cast<float>(value));
    case DType::kF16:
      return FloatToHalf(static_cast<float>(value));
    case DType::kBF16:
      return FloatToBf16(static_cast<float>(value));
    case DType::kBool:
      return value != 0 ? 1 : 0;
    default:
      break;
  }
  if (!IsInteger(dtype)) ThrowInternal("a constant of type " + std::string(Name(dtype)));
  const int width = BitWidth(dtype);
  const bool is_signed = IsSignedInteger(dtype);
  const double low = is_signed ? -std::ldexp(1.0, width - 1) : 0.0;
  const double end = std::ldexp(1.0, is_signed ? width - 1 : width);
  const std::uint64_t mask = width == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << width) - 1;
  if (std::isnan(value)) return 0;
  if (value <= low) return is_signed ? std::uint64_t{1} << (width - 1) : 0;
  if (value >= end) return is_signed ? mask >> 1 : mask;
  return is_signed ? static_cast<std::uint64_t>(static_cast<std::int64_t>(value)) & mask
                   : static_cast<std::uint64_t>(value);
}

std::optional<Dims> BroadcastShape(const Dims& a, const Dims& b) {
  Dims out(std::max(a.size(), b.size()));
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::int64_t x = i + a.size() < out.size() ? 1 : a[i + a.size() - out.size()];
    const std::int64_t y = i + b.size() < out.size() ? 1 : b[i + b.size() - out.size()];
    if (x != y && x != 1 && y != 1) return std::nullopt;
    out[i] = x == 1 ? y : x;
  }
  return out;
}

std::string Tensor::type() const {
  if (!uniform) return TensorType(dtype, dims);
  char text[64];
  std::snprintf(text, sizeof text, "%.17e:%lld", uniform->scale, static_cast<long long>(uniform->zero));
  std::string out = "tensor<";
  for (const std::int64_t d : dims) out += std::to_string(d) + "x";
  return out + "!quant.uniform<" + ElementType(dtype) + ":f32, " + text + ">>";
}

namespace {

// The result of a product: i32 for quantized operands.
Tensor ProductType(const Tensor& a, const Tensor& b, Dims dims) {
  Tensor out{"", a.dtype, std::move(dims), std::nullopt, std::nullopt};
  if (a.uniform && b.uniform) {
    out.dtype = DType::kS32;
    out.uniform = UniformElement{a.uniform->scale * b.uniform->scale, 0};
  }
  return out;
}

}  // namespace

Tensor Builder::Define(std::string_view operation, DType dtype, Dims dims) {
  Tensor out{NewName(), dtype, std::move(dims), std::nullopt, std::nullopt};
  text_.Put("    " + out.ssa + " = ");
  text_.Put(operation);
  text_.Put("\n");
  return out;
}

// --- constants

Tensor Builder::SplatBits(DType dtype, Dims dims, std::uint64_t bits) {
  const std::string type = TensorType(dtype, dims);
  Tensor out = Define("stablehlo.constant dense<" + ScalarLiteral(dtype, bits) + "> : " + type, dtype, std::move(dims));
  out.splat = bits;
  return out;
}

Tensor Builder::Splat(DType dtype, Dims dims, double value) {
  return SplatBits(dtype, std::move(dims), BitsOf(dtype, value));
}

Tensor Builder::Constant(const TensorRef& data, std::string_view attributes) {
  const std::uint64_t n = data.elements();
  const int width = BitWidth(data.dtype);
  if (width < 4) ElementType(data.dtype);  // refuses
  // Equal elements are one literal.
  if (n > 0 && attributes.empty()) {
    const std::uint64_t first = ElementBits(data, 0);
    std::uint64_t i = 1;
    while (i < n && i < 16 && ElementBits(data, i) == first) ++i;
    if (i == std::min<std::uint64_t>(n, 16)) {
      while (i < n && ElementBits(data, i) == first) ++i;
      if (i == n) return SplatBits(data.dtype, data.dims, first);
    }
  }
  if (data.dtype == DType::kBool) {  // their payload is packed in one version of MLIR and not in another
    TensorRef bytes = data;
    bytes.dtype = DType::kU8;
    return CompareTo(Compare::kNe, Constant(bytes), Splat(DType::kU8, {}, 0));
  }
  // 4-bit constants of at most 256 bytes, or of an odd number of elements, are refused by IREE: 8 bits then.
  const bool nibbles = width == 4;
  const DType dtype =
      nibbles && (n <= 512 || n % 2 != 0) ? (data.dtype == DType::kS4 ? DType::kS8 : DType::kU8) : data.dtype;
  Tensor out{NewName(), dtype, data.dims, std::nullopt, std::nullopt};
  text_.Put("    " + out.ssa + " = stablehlo.constant ");
  if (!attributes.empty()) {
    text_.Put(attributes);
    text_.Put(" ");
  }
  text_.Put("dense<");
  if (n > 0) {
    text_.Put("\"0x");
    if (nibbles) {
      const std::vector<std::byte> codes = UnpackNibbles(data.bytes, n, data.dtype == DType::kS4);
      if (dtype == data.dtype) {
        text_.HexNibbles(codes);
      } else {
        text_.Hex(codes);
      }
    } else {
      text_.Hex(data.bytes);
      if (data.file != nullptr) data.file->DropPages(data.bytes);  // written once: it need not stay in memory
    }
    text_.Put("\"");
  }
  text_.Put("> : " + out.type() + "\n");
  return out;
}

Tensor Builder::Ints(DType dtype, Dims dims, std::span<const std::int64_t> values) {
  return Constant(TensorRef::FromInts(dtype, std::move(dims), values));
}

Tensor Builder::Floats(Dims dims, std::span<const float> values) {
  return Constant(TensorRef::FromFloats(std::move(dims), values));
}

// --- element by element

Tensor Builder::Unary(std::string_view op, const Tensor& x) {
  return Define("stablehlo." + std::string(op) + " " + x.ssa + " : " + x.type(), x.dtype, x.dims);
}

Tensor Builder::Binary(std::string_view op, const Tensor& a, const Tensor& b) {
  const std::optional<Dims> dims = BroadcastShape(a.dims, b.dims);
  if (!dims || a.dtype != b.dtype) Wrong(op);
  const Tensor x = BroadcastTo(a, *dims);
  const Tensor y = BroadcastTo(b, *dims);
  return Define("stablehlo." + std::string(op) + " " + x.ssa + ", " + y.ssa + " : " + x.type(), x.dtype, *dims);
}

Tensor Builder::CompareTo(Compare how, const Tensor& a, const Tensor& b) {
  const std::optional<Dims> dims = BroadcastShape(a.dims, b.dims);
  if (!dims || a.dtype != b.dtype) Wrong("compare");
  const Tensor x = BroadcastTo(a, *dims);
  const Tensor y = BroadcastTo(b, *dims);
  constexpr std::string_view kNames[] = {"EQ", "NE", "LT", "LE", "GT", "GE"};
  const std::string kind = IsFloat(a.dtype) ? "FLOAT" : IsSignedInteger(a.dtype) ? "SIGNED" : "UNSIGNED";
  return Define("stablehlo.compare " + std::string(kNames[static_cast<std::size_t>(how)]) + ", " + x.ssa + ", " +
                    y.ssa + ", " + kind + " : " + Types({&x, &y}, TensorType(DType::kBool, *dims)),
                DType::kBool, *dims);
}

Tensor Builder::Select(const Tensor& condition, const Tensor& a, const Tensor& b) {
  std::optional<Dims> dims = BroadcastShape(a.dims, b.dims);
  if (dims) dims = BroadcastShape(*dims, condition.dims);
  if (!dims || a.dtype != b.dtype || condition.dtype != DType::kBool) Wrong("select");
  const Tensor c = BroadcastTo(condition, *dims);
  const Tensor x = BroadcastTo(a, *dims);
  const Tensor y = BroadcastTo(b, *dims);
  return Define("stablehlo.select " + c.ssa + ", " + x.ssa + ", " + y.ssa + " : " + c.type() + ", " + x.type(), x.dtype,
                *dims);
}

Tensor Builder::Convert(const Tensor& x, DType dtype) {
  if (x.dtype == dtype) return x;
  if (dtype == DType::kBool) return CompareTo(Compare::kNe, x, Splat(x.dtype, {}, 0));
  const int width = BitWidth(x.dtype);
  if (IsFloat(dtype) && IsInteger(x.dtype) && !IsSignedInteger(x.dtype) && width < 64) {
    return Convert(Convert(x, width < 32 ? DType::kS32 : DType::kS64), dtype);
  }
  if (IsFloat(x.dtype) && IsInteger(dtype) && !IsSignedInteger(dtype) && BitWidth(dtype) < 64) {
    return Convert(Convert(x, BitWidth(dtype) < 32 ? DType::kS32 : DType::kS64), dtype);
  }
  return Define("stablehlo.convert " + x.ssa + " : " + Types({&x}, TensorType(dtype, x.dims)), dtype, x.dims);
}

Tensor Builder::Bitcast(const Tensor& x, DType dtype) {
  if (x.dtype == dtype) return x;
  if (BitWidth(x.dtype) != BitWidth(dtype)) Wrong("bitcast_convert");
  return Define("stablehlo.bitcast_convert " + x.ssa + " : " + Types({&x}, TensorType(dtype, x.dims)), dtype, x.dims);
}

Tensor Builder::BitcastPairs(const Tensor& x, DType dtype) {
  if (x.dims.empty() || x.dims.back() != 2 || 2 * BitWidth(x.dtype) != BitWidth(dtype)) Wrong("bitcast_convert");
  Dims dims(x.dims.begin(), x.dims.end() - 1);
  const std::string type = TensorType(dtype, dims);
  return Define("stablehlo.bitcast_convert " + x.ssa + " : " + Types({&x}, type), dtype, std::move(dims));
}

Tensor Builder::Barrier(const Tensor& x) {
  return Define("stablehlo.optimization_barrier " + x.ssa + " : " + x.type(), x.dtype, x.dims);
}

Tensor Builder::AsUniform(const Tensor& codes, UniformElement element) {
  Tensor type = codes;
  type.uniform = element;
  Tensor out =
      Define("stablehlo.bitcast_convert " + codes.ssa + " : " + Types({&codes}, type.type()), codes.dtype, codes.dims);
  out.uniform = element;
  return out;
}

Tensor Builder::UniformDequantize(const Tensor& x) {
  if (!x.uniform) return x;
  const std::string type = TensorType(DType::kF32, x.dims);
  return Define("stablehlo.uniform_dequantize " + x.ssa + " : " + Types({&x}, type), DType::kF32, x.dims);
}

// --- shapes

Tensor Builder::Reshape(const Tensor& x, Dims dims) {
  if (x.dims == dims) return x;
  if (ElementCount(x.dims) != ElementCount(dims)) Wrong("reshape");
  if (x.splat) return SplatBits(x.dtype, std::move(dims), *x.splat);
  const std::string type = TensorType(x.dtype, dims);
  const Tensor y = Define("stablehlo.reshape " + x.ssa + " : " + Types({&x}, type), x.dtype, std::move(dims));
  // IREE moves conversions over reshapes, and fails where a reshaped bool is converted more than once.
  return x.dtype == DType::kBool ? Barrier(y) : y;
}

Tensor Builder::Transpose(const Tensor& x, std::span<const std::int64_t> permutation) {
  if (permutation.size() != x.rank()) Wrong("transpose");
  Dims dims;
  bool same = true;
  for (std::size_t i = 0; i < permutation.size(); ++i) {
    dims.push_back(x.dims.at(static_cast<std::size_t>(permutation[i])));
    same = same && permutation[i] == static_cast<std::int64_t>(i);
  }
  if (same) return x;
  const std::string type = TensorType(x.dtype, dims);
  return Define("stablehlo.transpose " + x.ssa + ", dims = " + IntList(permutation) + " : " + Types({&x}, type),
                x.dtype, std::move(dims));
}

Tensor Builder::BroadcastInDim(const Tensor& x, Dims dims, std::span<const std::int64_t> map) {
  if (map.size() != x.rank()) Wrong("broadcast_in_dim");
  if (x.splat) return SplatBits(x.dtype, std::move(dims), *x.splat);
  const std::string type = TensorType(x.dtype, dims);
  return Define("stablehlo.broadcast_in_dim " + x.ssa + ", dims = " + IntList(map) + " : " + Types({&x}, type), x.dtype,
                std::move(dims));
}

Tensor Builder::BroadcastTo(const Tensor& x, const Dims& dims) {
  if (x.dims == dims) return x;
  if (x.rank() > dims.size()) Wrong("broadcast_in_dim");
  Dims map(x.rank());
  std::iota(map.begin(), map.end(), static_cast<std::int64_t>(dims.size() - x.rank()));
  return BroadcastInDim(x, dims, map);
}

Tensor Builder::Slice(const Tensor& x, std::span<const std::int64_t> start, std::span<const std::int64_t> limit,
                      std::span<const std::int64_t> stride) {
  if (start.size() != x.rank() || limit.size() != x.rank() || stride.size() != x.rank()) Wrong("slice");
  Dims dims;
  bool whole = true;
  std::string ranges = "[";
  for (std::size_t i = 0; i < x.rank(); ++i) {
    if (start[i] < 0 || limit[i] > x.dims[i] || start[i] > limit[i] || stride[i] < 1) Wrong("slice");
    dims.push_back((limit[i] - start[i] + stride[i] - 1) / stride[i]);
    whole = whole && start[i] == 0 && limit[i] == x.dims[i] && stride[i] == 1;
    ranges += (i == 0 ? "" : ", ") + std::to_string(start[i]) + ":" + std::to_string(limit[i]);
    if (stride[i] != 1) ranges += ":" + std::to_string(stride[i]);
  }
  if (whole) return x;
  const std::string type = TensorType(x.dtype, dims);
  return Define("stablehlo.slice " + x.ssa + " " + ranges + "] : " + Types({&x}, type), x.dtype, std::move(dims));
}

Tensor Builder::SliceAxis(const Tensor& x, std::size_t axis, std::int64_t start, std::int64_t limit,
                          std::int64_t stride) {
  Dims starts(x.rank(), 0), limits = x.dims, strides(x.rank(), 1);
  starts.at(axis) = start;
  limits[axis] = limit;
  strides[axis] = stride;
  return Slice(x, starts, limits, strides);
}

Tensor Builder::Concat(std::span<const Tensor> parts, std::size_t axis) {
  if (parts.empty()) Wrong("concatenate");
  if (parts.size() == 1) return parts[0];
  Dims dims = parts[0].dims;
  dims.at(axis) = 0;
  std::string names, types;
  for (const Tensor& part : parts) {
    if (part.rank() != dims.size() || part.dtype != parts[0].dtype) Wrong("concatenate");
    for (std::size_t i = 0; i < dims.size(); ++i) {
      if (i != axis && part.dims[i] != dims[i]) Wrong("concatenate");
    }
    dims[axis] += part.dims[axis];
    names += (names.empty() ? "" : ", ") + part.ssa;
    types += (types.empty() ? "" : ", ") + part.type();
  }
  const std::string type = TensorType(parts[0].dtype, dims);
  return Define("stablehlo.concatenate " + names + ", dim = " + std::to_string(axis) + " : (" + types + ") -> " + type,
                parts[0].dtype, std::move(dims));
}

Tensor Builder::Pad(const Tensor& x, const Tensor& value, std::span<const std::int64_t> low,
                    std::span<const std::int64_t> high) {
  if (low.size() != x.rank() || high.size() != x.rank() || !value.dims.empty() || value.dtype != x.dtype) Wrong("pad");
  Dims dims = x.dims;
  bool any = false;
  for (std::size_t i = 0; i < dims.size(); ++i) {
    dims[i] += low[i] + high[i];
    any = any || low[i] != 0 || high[i] != 0;
    if (dims[i] < 0) Wrong("pad");
  }
  if (!any) return x;
  const Dims interior(x.rank(), 0);
  const std::string type = TensorType(x.dtype, dims);
  return Define("stablehlo.pad " + x.ssa + ", " + value.ssa + ", low = " + IntList(low) + ", high = " + IntList(high) +
                    ", interior = " + IntList(interior) + " : " + Types({&x, &value}, type),
                x.dtype, std::move(dims));
}

Tensor Builder::Reverse(const Tensor& x, std::span<const std::int64_t> axes) {
  return Define("stablehlo.reverse " + x.ssa + ", dims = " + IntList(axes) + " : " + x.type(), x.dtype, x.dims);
}

Tensor Builder::Iota(DType dtype, Dims dims, std::size_t axis) {
  const std::string type = TensorType(dtype, dims);
  return Define("stablehlo.iota dim = " + std::to_string(axis) + " : " + type, dtype, std::move(dims));
}

Tensor Builder::Gather(const Tensor& x, const Tensor& indices, std::size_t axis) {
  if (axis >= x.rank()) Wrong("gather");
  Dims dims(x.dims.begin(), x.dims.begin() + static_cast<std::ptrdiff_t>(axis));
  Dims offsets, sizes = x.dims;
  for (std::size_t i = 0; i < axis; ++i) offsets.push_back(static_cast<std::int64_t>(i));
  dims.insert(dims.end(), indices.dims.begin(), indices.dims.end());
  for (std::size_t i = axis + 1; i < x.rank(); ++i) {
    offsets.push_back(static_cast<std::int64_t>(dims.size()));
    dims.push_back(x.dims[i]);
  }
  sizes[axis] = 1;
  std::string list;
  for (const std::int64_t s : sizes) list += (list.empty() ? "" : ", ") + std::to_string(s);
  const std::string type = TensorType(x.dtype, dims);
  return Define("\"stablehlo.gather\"(" + x.ssa + ", " + indices.ssa +
                    ") <{dimension_numbers = #stablehlo.gather<offset_dims = " + IntList(offsets) +
                    ", collapsed_slice_dims = [" + std::to_string(axis) + "], start_index_map = [" +
                    std::to_string(axis) + "], index_vector_dim = " + std::to_string(indices.rank()) +
                    ">, indices_are_sorted = false, slice_sizes = array<i64: " + list +
                    ">}> : " + Types({&x, &indices}, type),
                x.dtype, std::move(dims));
}

Tensor Builder::Scatter(const Tensor& x, const Tensor& indices, const Tensor& updates, std::optional<Reduction> how) {
  if (x.rank() != 2 || indices.rank() != 2 || indices.dims[1] != 1 || updates.rank() != 2 || updates.dtype != x.dtype ||
      updates.dims != Dims{indices.dims[0], x.dims[1]}) {
    Wrong("scatter");
  }
  const std::string scalar = TensorType(x.dtype, {});
  const std::string a = NewName(), b = NewName(), r = how ? NewName() : b;
  std::string body = "    ^bb0(" + a + ": " + scalar + ", " + b + ": " + scalar + "):\n";
  if (how)
    body +=
        "      " + r + " = stablehlo." + std::string(ReductionName(*how)) + " " + a + ", " + b + " : " + scalar + "\n";
  return Define("\"stablehlo.scatter\"(" + x.ssa + ", " + indices.ssa + ", " + updates.ssa +
                    ") <{indices_are_sorted = false, scatter_dimension_numbers = #stablehlo.scatter<update_window_dims "
                    "= [1], inserted_window_dims = [0], scatter_dims_to_operand_dims = [0], index_vector_dim = 1>, "
                    "unique_indices = false}> ({\n" +
                    body + "      stablehlo.return " + r + " : " + scalar +
                    "\n    }) : " + Types({&x, &indices, &updates}, x.type()),
                x.dtype, x.dims);
}

// --- sums and products

Tensor Builder::Reduce(const Tensor& x, std::span<const std::int64_t> axes, Reduction how) {
  Dims sorted(axes.begin(), axes.end());
  std::sort(sorted.begin(), sorted.end());
  if (sorted.empty()) return x;
  Dims dims;
  for (std::size_t i = 0; i < x.rank(); ++i) {
    if (!std::binary_search(sorted.begin(), sorted.end(), static_cast<std::int64_t>(i))) dims.push_back(x.dims[i]);
  }
  const Tensor init = SplatBits(x.dtype, {}, NeutralBits(x.dtype, how));
  const std::string type = TensorType(x.dtype, dims);
  return Define("stablehlo.reduce(" + x.ssa + " init: " + init.ssa + ") applies stablehlo." +
                    std::string(ReductionName(how)) + " across dimensions = " + IntList(sorted) + " : " +
                    Types({&x, &init}, type),
                x.dtype, std::move(dims));
}

Tensor Builder::ReduceKeep(const Tensor& x, std::span<const std::int64_t> axes, Reduction how) {
  Dims dims = x.dims;
  for (const std::int64_t a : axes) dims.at(static_cast<std::size_t>(a)) = 1;
  return Reshape(Reduce(x, axes, how), std::move(dims));
}

Tensor Builder::ReduceWindow(const Tensor& x, std::span<const WindowDim> window, Reduction how) {
  if (window.size() != x.rank()) Wrong("reduce_window");
  Dims dims;
  std::string sizes, strides, dilations, pads;
  for (std::size_t i = 0; i < x.rank(); ++i) {
    const WindowDim& w = window[i];
    const std::int64_t padded = x.dims[i] + w.pad_low + w.pad_high;
    if (padded < w.extent()) Wrong("reduce_window");
    dims.push_back((padded - w.extent()) / w.stride + 1);
    const std::string comma = i == 0 ? "" : ", ";
    sizes += comma + std::to_string(w.size);
    strides += comma + std::to_string(w.stride);
    dilations += comma + std::to_string(w.dilation);
    pads += comma + "[" + std::to_string(w.pad_low) + ", " + std::to_string(w.pad_high) + "]";
  }
  const Tensor init = SplatBits(x.dtype, {}, NeutralBits(x.dtype, how));
  const std::string scalar = TensorType(x.dtype, {});
  const std::string type = TensorType(x.dtype, dims);
  const std::string operation =
      "\"stablehlo.reduce_window\"(" + x.ssa + ", " + init.ssa + ") <{padding = dense<[" + pads + "]> : tensor<" +
      std::to_string(x.rank()) + "x2xi64>, window_dilations = array<i64: " + dilations +
      ">, window_dimensions = array<i64: " + sizes + ">, window_strides = array<i64: " + strides +
      ">}> ({\n    ^bb0(%a: " + scalar + ", %b: " + scalar + "):\n      %r = stablehlo." +
      std::string(ReductionName(how)) + " %a, %b : " + scalar + "\n      stablehlo.return %r : " + scalar +
      "\n    }) : " + Types({&x, &init}, type);
  return Define(operation, x.dtype, std::move(dims));
}

Tensor Builder::Dot(const Tensor& a, const Tensor& b, std::span<const std::int64_t> batch_a,
                    std::span<const std::int64_t> batch_b, std::span<const std::int64_t> contract_a,
                    std::span<const std::int64_t> contract_b) {
  if (a.dtype != b.dtype || batch_a.size() != batch_b.size() || contract_a.size() != contract_b.size()) {
    Wrong("dot_general");
  }
  const auto in = [](std::span<const std::int64_t> list, std::size_t i) {
    return std::find(list.begin(), list.end(), static_cast<std::int64_t>(i)) != list.end();
  };
  Dims dims;
  for (std::size_t i = 0; i < batch_a.size(); ++i) {
    dims.push_back(a.dims.at(static_cast<std::size_t>(batch_a[i])));
    if (dims.back() != b.dims.at(static_cast<std::size_t>(batch_b[i]))) Wrong("dot_general");
  }
  for (std::size_t i = 0; i < contract_a.size(); ++i) {
    if (a.dims.at(static_cast<std::size_t>(contract_a[i])) != b.dims.at(static_cast<std::size_t>(contract_b[i]))) {
      Wrong("dot_general");
    }
  }
  for (std::size_t i = 0; i < a.rank(); ++i) {
    if (!in(batch_a, i) && !in(contract_a, i)) dims.push_back(a.dims[i]);
  }
  for (std::size_t i = 0; i < b.rank(); ++i) {
    if (!in(batch_b, i) && !in(contract_b, i)) dims.push_back(b.dims[i]);
  }
  std::string text = "stablehlo.dot_general " + a.ssa + ", " + b.ssa;
  if (!batch_a.empty()) text += ", batching_dims = " + IntList(batch_a) + " x " + IntList(batch_b);
  text += ", contracting_dims = " + IntList(contract_a) + " x " + IntList(contract_b);
  const Tensor type = ProductType(a, b, dims);
  Tensor out = Define(text + " : " + Types({&a, &b}, type.type()), type.dtype, std::move(dims));
  out.uniform = type.uniform;
  return out;
}

Tensor Builder::Convolution(const Tensor& input, const Tensor& w, std::span<const WindowDim> given, std::int64_t groups,
                            KernelFrom from) {
  Tensor x = input;
  std::vector<WindowDim> window(given.begin(), given.end());
  // A window that stands once reads no further than its end: IREE fails where a dimension of one result has more.
  for (std::size_t i = 0; i < window.size() && i + 2 < x.rank(); ++i) {
    WindowDim& d = window[i];
    const std::int64_t rest = x.dims[i + 2] + d.pad_low + d.pad_high - d.extent();
    if (d.input_dilation != 1 || rest <= 0 || rest >= d.stride) continue;
    const std::int64_t padding = std::clamp<std::int64_t>(rest, 0, std::max<std::int64_t>(d.pad_high, 0));
    d.pad_high -= padding;
    if (rest - padding < x.dims[i + 2] && !x.uniform) x = SliceAxis(x, i + 2, 0, x.dims[i + 2] - (rest - padding));
  }
  if (x.rank() != window.size() + 2 || w.rank() != x.rank() || groups < 1 || x.dims[1] != w.dims[1] * groups ||
      w.dims[0] % groups != 0) {
    Wrong("convolution");
  }
  Dims dims = {x.dims[0], w.dims[0]};
  std::string spatial;
  Dims strides, dilations, input_dilations;
  std::string pads;
  for (std::size_t i = 0; i < window.size(); ++i) {
    const WindowDim& d = window[i];
    const std::int64_t dilated = x.dims[i + 2] == 0 ? 0 : (x.dims[i + 2] - 1) * d.input_dilation + 1;
    const std::int64_t padded = dilated + d.pad_low + d.pad_high;
    if (padded < d.extent() || d.size != w.dims[i + 2]) Wrong("convolution");
    dims.push_back((padded - d.extent()) / d.stride + 1);
    spatial += ", " + std::to_string(i);
    strides.push_back(d.stride);
    dilations.push_back(d.dilation);
    input_dilations.push_back(d.input_dilation);
    pads += (i == 0 ? "[" : ", [") + std::to_string(d.pad_low) + ", " + std::to_string(d.pad_high) + "]";
  }
  Tensor kernel = w;
  std::string layout = "o, i" + spatial;
  if (from == KernelFrom::kComputed) {
    Dims channels_last(w.rank());
    std::iota(channels_last.begin(), channels_last.end() - 2, 2);
    channels_last.end()[-2] = 1;
    channels_last.back() = 0;
    kernel = Barrier(Transpose(w, channels_last));
    layout = spatial.substr(2) + ", i, o";
  }
  const Tensor type = ProductType(x, kernel, dims);
  Tensor out =
      Define("stablehlo.convolution(" + x.ssa + ", " + kernel.ssa + ") dim_numbers = [b, f" + spatial + "]x[" + layout +
                 "]->[b, f" + spatial + "], window = {stride = " + IntList(strides) + ", pad = [" + pads +
                 "], lhs_dilate = " + IntList(input_dilations) + ", rhs_dilate = " + IntList(dilations) +
                 "} {batch_group_count = 1 : i64, feature_group_count = " + std::to_string(groups) +
                 " : i64} : " + Types({&x, &kernel}, type.type()),
             type.dtype, std::move(dims));
  out.uniform = type.uniform;
  return out;
}

}  // namespace octavo::stablehlo
