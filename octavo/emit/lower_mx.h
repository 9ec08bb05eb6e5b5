// MX types -> ONNX.
#pragma once

#include "octavo/ir/graph.h"
#include "octavo/numerics/mx.h"

namespace octavo {

// A tensor of these dimensions as the codecs see it.
MxShape MxShapeOf(const Dims& dims, const Mx& mx);

// The executable twin of an MX constant: integer (or 8-bit float) codes and one f32 scale a block, the product of both
// bit-equal to the constant's numbers.
//   mxint8      s8 codes,            scale 2^(E - 6)     mxfp6_e2m3  s8 codes 8 v,        scale 2^(E - 3)
//   mxfp4       s8 codes 2 v,        scale 2^(E - 1)     mxfp6_e3m2  s16 codes 16 v,      scale 2^(E - 4)
//   mxfp8_e4m3  f8e4m3fn codes,      scale 2^E           mxfp8_e5m2  f8e5m2 codes,        scale 2^E
// (E: the block's shared exponent, v: an element's value.) `numbers`: f32, on the format's grid. The sign of a zero is
// not kept by integer codes. A block that holds NaN has the scale NaN.
//   nvfp4       s8 codes 2 v,        scale S / 2, S the block's E4M3 number times the tensor's f32 scale
// nvfp4 takes numbers of any kind and rounds them, by `rounding`: its scales cannot be found again from rounded ones,
// so no constant of the IR has this type (FoldQuantOps makes the twin at once).
struct MxTwin {
  Affine affine;
  TensorRef codes;
};
MxTwin MakeMxTwin(const TensorRef& numbers, const Mx& mx, MxRounding rounding = MxRounding::kEven);

// Every MX constant of a format that ONNX has types for (mxfp4, mxfp8_e4m3, mxfp8_e5m2) becomes codes of that type with
// one float8e8m0 scale a block: DequantizeLinear of operator set 24. The other formats are left to LowerMx. Returns how
// many constants changed.
std::int64_t LowerMxToStandard(Model& model);

// Every MX constant becomes a blocked affine one (its twin); every computed MX value an octavo.MXFakeQuantize behind
// its producer. What LowerToQdq starts with.
void LowerMx(Model& model);

}  // namespace octavo
