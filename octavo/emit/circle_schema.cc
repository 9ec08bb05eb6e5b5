#include "octavo/emit/circle_schema.h"

#include <string>

namespace octavo::internal {

const CircleOp* FindCircleOp(std::string_view name) {
  for (const CircleOp& op : kCircleOps) {
    if (op.name == name) return &op;
  }
  return nullptr;
}

std::optional<std::int64_t> SchemaValue(const flatbuffers::TypeTable& table, std::string_view name) {
  for (std::size_t i = 0; i < table.num_elems; ++i) {
    if (name == table.names[i]) return table.values != nullptr ? table.values[i] : static_cast<std::int64_t>(i);
  }
  return std::nullopt;
}

std::string_view SchemaName(const flatbuffers::TypeTable& table, std::int64_t value) {
  for (std::size_t i = 0; i < table.num_elems; ++i) {
    if ((table.values != nullptr ? table.values[i] : static_cast<std::int64_t>(i)) == value) return table.names[i];
  }
  return {};
}

const flatbuffers::TypeTable* OptionsTable(std::int64_t number) {
  const flatbuffers::TypeTable& all = *fbs::BuiltinOptionsTypeTable();
  for (std::size_t i = 0; i < all.num_elems; ++i) {
    const std::int64_t value = all.values != nullptr ? all.values[i] : static_cast<std::int64_t>(i);
    if (value == number && all.type_codes[i].sequence_ref >= 0) return all.type_refs[all.type_codes[i].sequence_ref]();
  }
  return nullptr;
}

std::optional<fbs::TensorType> CircleTypeOf(const Type& type) {
  using T = fbs::TensorType;
  DType dtype = type.dtype;
  if (type.quant) {
    switch (type.quant->kind) {
      case QuantType::Kind::kAffine:
        dtype = type.quant->affine.storage;
        break;
      case QuantType::Kind::kMx:
        if (type.quant->mx.block != 32) return std::nullopt;  // a tensor has no field for it
        if (type.quant->mx.format == "mxint8") return T::MXINT8;
        if (type.quant->mx.format == "mxfp4") return T::MXFP4;
        return std::nullopt;
      case QuantType::Kind::kGgml:
        return std::nullopt;
    }
  }
  switch (dtype) {
    case DType::kF32:
      return T::FLOAT32;
    case DType::kF16:
      return T::FLOAT16;
    case DType::kBF16:
      return T::BFLOAT16;
    case DType::kF64:
      return T::FLOAT64;
    case DType::kS4:
      return T::INT4;
    case DType::kU4:
      return T::UINT4;
    case DType::kS8:
      return T::INT8;
    case DType::kU8:
      return T::UINT8;
    case DType::kS16:
      return T::INT16;
    case DType::kU16:
      return T::UINT16;
    case DType::kS32:
      return T::INT32;
    case DType::kU32:
      return T::UINT32;
    case DType::kS64:
      return T::INT64;
    case DType::kU64:
      return T::UINT64;
    case DType::kBool:
      return T::BOOL;
    default:
      return std::nullopt;
  }
}

int BitsOf(fbs::TensorType type) {
  using T = fbs::TensorType;
  switch (type) {
    case T::UINT4:
    case T::INT4:
      return 4;
    case T::UINT8:
    case T::INT8:
    case T::BOOL:
      return 8;
    case T::FLOAT16:
    case T::BFLOAT16:
    case T::INT16:
    case T::UINT16:
      return 16;
    case T::FLOAT32:
    case T::INT32:
    case T::UINT32:
      return 32;
    case T::INT64:
    case T::UINT64:
    case T::FLOAT64:
    case T::COMPLEX64:
      return 64;
    default:
      return 0;
  }
}

}  // namespace octavo::internal
