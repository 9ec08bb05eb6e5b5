#include "octavo/ir/type.h"

#include <algorithm>
#include <charconv>
#include <cstring>

namespace octavo {
namespace {

bool AllZero(const TensorRef& t) {
  return std::all_of(t.bytes.begin(), t.bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

bool SameParamTensor(const TensorRef& a, const TensorRef& b, bool per_tensor) {
  if (a.dtype != b.dtype || a.bytes.size() != b.bytes.size()) return false;
  const auto scalar = [](const Dims& d) { return d.empty() || (d.size() == 1 && d[0] == 1); };
  if (a.dims != b.dims && !(per_tensor && scalar(a.dims) && scalar(b.dims))) return false;
  return a.bytes.empty() || std::memcmp(a.bytes.data(), b.bytes.data(), a.bytes.size()) == 0;
}

std::string Shortest(float x) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, x).ptr;
  return {buffer, end};
}

bool SameOptional(const std::optional<TensorRef>& a, const std::optional<TensorRef>& b) {
  return a.has_value() == b.has_value() && (!a || SameContent(*a, *b));
}

bool SameDim(const Dim& a, const Dim& b) { return a.known() || b.known() ? a.value == b.value : a.symbol == b.symbol; }

bool Identical(const QuantType& a, const QuantType& b) {
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case QuantType::Kind::kAffine:
      return a.affine.storage == b.affine.storage && a.affine.axis == b.affine.axis &&
             a.affine.block == b.affine.block && SameContent(a.affine.scale, b.affine.scale) &&
             SameOptional(a.affine.zero_point, b.affine.zero_point);
    case QuantType::Kind::kGgml:
      return a.ggml.format == b.ggml.format && a.ggml.axis == b.ggml.axis;
    case QuantType::Kind::kMx:
      return a.mx.format == b.mx.format && a.mx.axis == b.mx.axis && a.mx.block == b.mx.block;
  }
  return false;
}

}  // namespace

bool SameParams(const Affine& a, const Affine& b) {
  if (a.storage != b.storage || a.axis != b.axis || a.block != b.block) return false;
  if (!SameParamTensor(a.scale, b.scale, a.per_tensor())) return false;
  if (a.zero_point && b.zero_point) return SameParamTensor(*a.zero_point, *b.zero_point, a.per_tensor());
  if (a.zero_point) return AllZero(*a.zero_point);
  return !b.zero_point || AllZero(*b.zero_point);
}

bool SameParams(const QuantType& a, const QuantType& b) {
  if (a.kind != b.kind) return false;
  return a.kind == QuantType::Kind::kAffine ? SameParams(a.affine, b.affine) : Identical(a, b);
}

bool SameType(const Type& a, const Type& b) {
  if (a.dtype != b.dtype || a.opaque != b.opaque) return false;
  if (a.shape.has_value() != b.shape.has_value() || a.quant.has_value() != b.quant.has_value()) return false;
  if (a.shape && !std::equal(a.shape->begin(), a.shape->end(), b.shape->begin(), b.shape->end(), SameDim)) return false;
  return !a.quant || Identical(*a.quant, *b.quant);
}

Type TypeOf(const TensorRef& data) {
  Type out;
  out.dtype = data.dtype;
  out.shape.emplace();
  for (const std::int64_t d : data.dims) out.shape->push_back({d, {}});
  return out;
}

std::string ToString(const Type& type) {
  std::string out(Name(type.dtype));
  if (!type.shape) {
    out += "[*]";
  } else {
    out += '[';
    for (const Dim& d : *type.shape) {
      if (out.back() != '[') out += ',';
      out += d.known() ? std::to_string(d.value) : d.symbol.empty() ? "?" : d.symbol;
    }
    out += ']';
  }
  if (type.quant) {
    const QuantType& q = *type.quant;
    out += " # ";
    if (q.kind == QuantType::Kind::kGgml) {
      out += q.ggml.format + "(axis=" + std::to_string(q.ggml.axis) + ")";
    } else if (q.kind == QuantType::Kind::kMx) {
      out += q.mx.format + "(axis=" + std::to_string(q.mx.axis) + ", block=" + std::to_string(q.mx.block) + ")";
    } else {
      out += Name(q.affine.storage);
      const auto four = ByteSize(q.affine.scale.dtype, 1);
      if (q.affine.axis) {
        out += "(axis=" + std::to_string(*q.affine.axis);
        if (q.affine.block > 0) out += ", block=" + std::to_string(q.affine.block);
        out += ")";
      } else if (four && *four <= 4 && IsFloat(q.affine.scale.dtype) && q.affine.scale.bytes.size() == *four) {
        const auto bits = static_cast<std::uint32_t>(ElementBits(q.affine.scale, 0));
        out += "(scale=" + Shortest(BitsToFloat(q.affine.scale.dtype, bits));
        const auto& zp = q.affine.zero_point;
        if (zp && IsInteger(zp->dtype) && zp->scalar_like() && zp->bytes.size() == ByteSize(zp->dtype, 1)) {
          out += ", zero=" + std::to_string(zp->ToInts()[0]);
        }
        out += ")";
      }
    }
  }
  if (!type.opaque.empty()) out += " (not a tensor)";
  return out;
}

std::optional<Dims> StaticShape(const Type& type) {
  if (!type.shape) return std::nullopt;
  Dims out;
  for (const Dim& d : *type.shape) {
    if (!d.known()) return std::nullopt;
    out.push_back(d.value);
  }
  return out;
}

}  // namespace octavo
