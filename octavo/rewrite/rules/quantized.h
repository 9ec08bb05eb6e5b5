// What the rules over quantized types share: reading parameters, and the checks that several kernels have in common.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "octavo/device/kernels.h"
#include "octavo/ir/users.h"
#include "octavo/ops/op_table.h"
#include "octavo/rewrite/rule.h"

namespace octavo {

// Affine parameters of a value with f32 scales, or null.
const Affine* AffineOf(const Value* value);

// One scale and zero point for the whole tensor, codes of 8 or 16 bits.
struct ScalarParams {
  DType storage = DType::kU8;
  float scale = 1;
  std::int32_t zero = 0;
};
std::optional<ScalarParams> ScalarOf(const Value* value);
// The same of 8-bit codes only.
std::optional<ScalarParams> Scalar8(const Value* value);
bool SameScalar(const ScalarParams& a, const ScalarParams& b);
QuantType ToQuantType(const ScalarParams& params);

std::vector<float> Scales(const Affine& affine);
std::vector<std::int64_t> Zeros(const Affine& affine);  // as many as scales

bool IsQuantized(const Value* value);
// 8-bit codes in the other sign: u8 for s8 and s8 for u8, code ^ 0x80, so that the zero point moves by 128 with them.
TensorRef InOtherSign(const TensorRef& codes);
// "u8(scale=0.5, zero=3)"
std::string Text(const ScalarParams& params);
std::string Text(double number);

// Products summed for one output element: K of a MatMul or Gemm, C / group * kernel of a Conv; nullopt when not known.
std::optional<std::int64_t> SumLength(const Node& node);

// Whether the int32 sum of `length` products of these codes, plus a bias of at most `bias`, cannot overflow.
bool SumFits(std::int64_t length, const ScalarParams& x, DType w_storage, std::int64_t w_zero, std::int64_t bias);

// The same of a constant weight's own codes, channel by channel: a channel of small weights leaves its bias more room.
// `bias`: s32 codes, or null. `scales`: of the weight, one or one a channel. Intermediate sums may wrap around, in
// whatever order: the last one is the sum again. If that one wraps, the result is 2^32 products' units off; a channel
// of so small a scale that these are less than half a step of the output (`y_scale`; 0: a float output) may do so.
bool ConstantSumsFit(const Value& weight, std::int64_t channel_axis, std::int64_t w_zero, const ScalarParams& x,
                     const Value* bias, std::span<const float> scales, float y_scale);

// Weight of a Conv, MatMul or Gemm as an integer kernel takes it.
struct KernelWeight {
  const Affine* affine = nullptr;
  std::int64_t zero = 0;      // one for all channels
  std::vector<float> scales;  // one, or one a channel
};
// `rule` prefixes the name of the condition: "<rule>/weight-axis". `channel_axis`: where output channels lie in the
// weight; nullopt: only per-tensor parameters will do.
MatchOr<KernelWeight> MatchWeight(std::string_view rule, const Value* weight, std::optional<std::int64_t> channel_axis);

// u8 with u8, s8 with s8; u8 with s8 where that does not saturate. `y`: kUndefined for float.
MatchOr<bool> MatchStorages(std::string_view rule, const DeviceDescriptor& device, DType x, DType w, DType y);

// Bias of an integer kernel: absent, or s32 codes with zero point 0 at the scale x * w of each channel.
MatchOr<std::int64_t> MatchBias(std::string_view rule, const Value* bias, const ScalarParams& x,
                                const KernelWeight& weight);  // gives the largest |code|

// For a node of one quantized output that commutes with quantization: whether the operator in front, of quantized
// inputs, can write the codes instead (nullopt), or why not. `rule` prefixes the condition "<rule>/one-use".
std::optional<Refusal> MatchQuantizeBefore(std::string_view rule, const Node& node);
// Input 0 of the node gets the parameters of its output.
void QuantizeBefore(Node& node, Rewriter& rewriter);

// Attributes of integer layers: numbers, text and lists of integers.
void CopyAttributes(const Node& from, Node& to);
bool SameAttributes(const Node& a, const Node& b);

// The rules of the quantized road, in order of preference, for a model of this operator set.
RuleSet QuantizedRules(const DeviceDescriptor& device, std::int64_t opset);

// One function a file.
std::unique_ptr<Rule> S8ToU8(const DeviceDescriptor& device);
std::unique_ptr<Rule> S8WeightToU8(const DeviceDescriptor& device);
std::unique_ptr<Rule> S8SumsToU8(const DeviceDescriptor& device);
std::unique_ptr<Rule> FloatWeight(const DeviceDescriptor& device);
std::unique_ptr<Rule> DropRequantize();
std::unique_ptr<Rule> SkipFinerRequantize();
std::unique_ptr<Rule> SkipFinerQuantize();
std::unique_ptr<Rule> AbsorbRequantize();
std::unique_ptr<Rule> ScaleIntoWeight();
std::unique_ptr<Rule> AddIntoBias();
std::unique_ptr<Rule> IntegerBias();
std::unique_ptr<Rule> RaiseWeightScale();
std::unique_ptr<Rule> QuantizeBeforeClip();
std::unique_ptr<Rule> DropClip();
std::unique_ptr<Rule> IntegerClip(const DeviceDescriptor& device, std::int64_t opset);
std::unique_ptr<Rule> QuantizeBeforeMove();
std::unique_ptr<Rule> MoveCodes(const DeviceDescriptor& device, std::int64_t opset);
std::unique_ptr<Rule> MoveParameters(const DeviceDescriptor& device, std::int64_t opset);
std::unique_ptr<Rule> PartParameters(const DeviceDescriptor& device, std::int64_t opset);
std::unique_ptr<Rule> JoinCodes(const DeviceDescriptor& device);
std::unique_ptr<Rule> IntegerPad(const DeviceDescriptor& device);
std::unique_ptr<Rule> QLinearConvRule(const DeviceDescriptor& device);
std::unique_ptr<Rule> QLinearMatMulRule(const DeviceDescriptor& device);
std::unique_ptr<Rule> MatMulIntegerToFloatRule(const DeviceDescriptor& device);
std::unique_ptr<Rule> ChooseAtLoad(const DeviceDescriptor& device);
std::unique_ptr<Rule> DynamicMatMul(const DeviceDescriptor& device);
std::unique_ptr<Rule> QGemmRule(const DeviceDescriptor& device);
std::unique_ptr<Rule> QGemmFloatRule(const DeviceDescriptor& device);
std::unique_ptr<Rule> QLinearBinary(const DeviceDescriptor& device);
std::unique_ptr<Rule> QLinearJoin(const DeviceDescriptor& device);
std::unique_ptr<Rule> QLinearTable(const DeviceDescriptor& device);
std::unique_ptr<Rule> QLinearPool(const DeviceDescriptor& device);
std::unique_ptr<Rule> QLinearSoftmaxRule(const DeviceDescriptor& device);
std::unique_ptr<Rule> BlockWeights(const DeviceDescriptor& device);

}  // namespace octavo
