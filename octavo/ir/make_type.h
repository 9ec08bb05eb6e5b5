// Types of tensors that passes make.
#pragma once

#include "octavo/ir/type.h"

namespace octavo {

// A type without a shape.
inline Type TypeOf(DType dtype) {
  Type type;
  type.dtype = dtype;
  return type;
}

inline Type TypeOf(DType dtype, const Dims& dims) {
  Type type = TypeOf(dtype);
  type.shape.emplace();
  for (const std::int64_t d : dims) type.shape->push_back(Dim{d, {}});
  return type;
}

}  // namespace octavo
