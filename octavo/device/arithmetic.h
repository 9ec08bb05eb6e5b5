// Where a device computes something else than what Q/DQ operators mean, as data (measured): read by what makes up for
// it on the way into the device's compiler (compile/device_form.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "octavo/device/descriptor.h"
#include "octavo/ir/graph.h"

namespace octavo {

// An input that goes in as u16 where it is computed as u8: else the results are rounded twice, or wrong. What comes out
// is u16 then too.
struct WidenedInput {
  std::string_view op;
  std::size_t input;
};

// A float operator whose input, clipped to [-bound, bound], gives the same in fp16.
struct BoundedInput {
  std::string_view op;
  float bound;
  int bits = 0;  // of the codes that it reads; 0: any
};

// A float operator that the device has not, or in few bits, and that becomes others (rewrite/spell_float.h).
struct LackedOp {
  std::string_view op;
  bool (*when)(const Node&) = nullptr;  // null: always
};

// A Softmax of u16 codes computes with floor(step / unit) units for the step of its logits, and of less than `least`
// units with nothing. Of more than `most` what is rounded down is lost in other errors.
struct SoftmaxSteps {
  double unit = 0;  // 0: with any step
  std::int64_t least = 0, most = 0;
};

struct DeviceArithmetic {
  std::string_view device;  // the descriptor's name
  // Convolutions of 16-bit activations and 8-bit weights. Their sums of products lose this many low bits, rounded down;
  // so does their bias, rounded towards zero, and the products of the input's zero point, rounded to nearest. 0:
  // nothing is lost.
  int conv16_lost_bits = 0;
  bool conv16_pads_5x5_wrongly = false;  // depthwise 5x5 of stride 2: padding is not the input's zero
  // Convolutions of one tap and a stride, in one dimension, of a sum that nobody else reads: the stride counts twice.
  bool conv16_strides_twice = false;
  // Products of what a Tanh gives in 16 bits, moved or in parts, are wrong in some graphs; of a float Tanh they are
  // right.
  bool multiplies_tanh16_wrongly = false;
  // x Sigmoid(x) in 16 bits becomes one operator, which is wrong in maps of 9 to 12 rows and in parts of larger ones.
  bool fuses_silu16_wrongly = false;
  std::span<const WidenedInput> widened = {};
  std::span<const LackedOp> lacked = {};
  bool casts_bool_wrongly = false;  // rows of what a Cast makes of bool are permuted in some graphs
  // LSTM, GRU and RNN of up to so many steps are better as operators of their own; 0: none is.
  std::int64_t unrolled_steps = 0;
  // Products of a Softmax in 16 bits, whose codes are rounded down, with so many rows or more are centered; 0: none is.
  std::int64_t centered_rows = 0;
  SoftmaxSteps softmax16;
  // Depthwise convolutions of one tap from u16 to u16 of more channels crash the compiler; 0: of none.
  std::int64_t depthwise16_channels = 0;
  // In those the scales of channels are to differ by no more than so many times; 0: by any.
  double depthwise16_ratio = 0;
  // A HardSwish whose output's codes have a range below this is fused with the convolution or Gemm before it, and wraps
  // around for what lies below -3; 0: none does.
  double hardswish_range = 0;
  // Averages over tiles of even sizes, in two dimensions, are wrong.
  bool averages_tiles_wrongly = false;
  // In float (x + c) s, c a constant of several numbers and s one number, comes out as another function; (c + x) s is
  // right.
  bool scales_sums_wrongly = false;
  // Constants of 16 bits in a Where or Concat whose step is 2^13 times that of the result and more.
  bool overflows_constants16 = false;
  // From 8 bits to 16 and back where the step of 16 bits is the bigger one: what comes out is something else.
  bool converts_coarse16_wrongly = false;
  // A GatherND of planes, by 31 indices and more.
  bool gathers_planes_wrongly = false;
  // Codes that a Gather moves in rows of 8, 16 and 32 bytes, by 32 indices and more.
  bool gathers_rows_wrongly = false;
  // A Pad at the end of the last axis, and not at its beginning, is filled with what lies in memory.
  bool pads_right_wrongly = false;
  // A Concat of volumes in 8 bits copies the codes of some operands, a LeakyRelu's above all, that have other
  // parameters than its result.
  bool concat_copies_volumes = false;
  // A Concat in 8 bits of what another Concat gives in other codes: what that one converted of a table is not converted
  // again.
  bool converts_concats_once = false;
  bool floors_moved_floats = false;  // float numbers that were only moved are rounded down to 8 bits
  // Float operators that are coarse where they read a sum of products or of two tensors: what fuses them.
  std::span<const BoundedInput> coarse_after_sums = {};
  // Float operators that are taken for operators on codes where they read these, and refused or coarse then.
  std::span<const BoundedInput> taken_for_codes = {};
};

// Whether `node` is one of the lacked operators.
bool Lacks(const DeviceArithmetic& arithmetic, const Node& node);

// Of this device; one without entries for a device that computes what is meant.
const DeviceArithmetic& ArithmeticOf(const DeviceDescriptor& device);

}  // namespace octavo
