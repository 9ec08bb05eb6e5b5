// Passes over float and quantized graphs. Each is one file; each is a function of the structure only, never of names.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "octavo/ir/graph.h"
#include "octavo/rewrite/rule.h"
#include "octavo/runtime/session.h"

namespace octavo {

struct PassCount {
  std::string rule;
  std::int64_t applied = 0;
};

// Q/DQ nodes -> QuantTypes (DESIGN.md "Hard cases"): a Q->DQ pair folds only if scale, zero point, axis, block and
// dtypes are bit-equal; folding makes a new value; DequantizeLinear of a constant makes a quantized constant; anything
// else stays a raw integer with StorageCast, or stays a Q/DQ node where the parameters are not constant. LowerToQdq of
// the result behaves bit for bit like the original with optimizations off. Returns the number of pairs folded.
std::int64_t FoldQdq(Model& model);

// True if the model holds quantized types or quantized operators (QLinear*, *Integer, MatMulNBits, QGemm...).
bool IsQuantized(const Model& model);

// Function-preserving simplification of a float model before calibration: constant folding (nodes of which all inputs
// are constant are run once by the runtime), shape chains with static shapes, Identity/Dropout/no-op Cast removed,
// BatchNormalization and Mul/Add/Div/Sub by per-channel constants folded into Conv/ConvTranspose/Gemm/MatMul weights
// and bias, dead code. Results differ from the input model by float rounding only; not at all with rules up to kExact.
// `quiet`: of InferTypes. Returns what was applied.
std::vector<PassCount> SimplifyFloat(Model& model, RuleClass most = RuleClass::kImproves, bool quiet = false);

// An If of a constant condition becomes the nodes of its branch, and the Ifs in that; the graph's outputs keep name and
// type. Part of SimplifyFloat. Returns how many went.
std::int64_t InlineBranches(Model& model);

// For a device of static shapes that has no If, after SimplifyFloat, and simplifies again. Where the fixed dimensions
// contradict one branch, which then cannot run, the other one is taken, with a warning. Else both are computed and
// Where takes the outputs of one, where inference finds the same shapes for both, and nothing in them loops or is
// random. Returns how many went. Pointers into the model are void then.
std::int64_t SelectBranches(Model& model);

// For any device, after SimplifyFloat: the first half of that, and only where a default session refuses the model.
std::int64_t DropImpossibleBranches(Model& model);

// For a compiler that has no loops, after SimplifyFloat: a Loop or Scan becomes its steps (loop_steps.h: where their
// number is known, up to 256), in the main graph and in branches, and the loops in those; at most 20,000 operators in
// all. What it collects is a Concat. What steps compute from their slices of something outside alone is computed once
// for all of them; the sums of such a MatMul may be added up in another order, everything else is the same bit for bit.
// Nodes that are equal become one then. Types inside are to be inferred again. Returns how many loops went.
std::int64_t UnrollLoops(Model& model);
// Sequences of tensors that are put together and read at known places in the main graph, as the steps of a loop do,
// become those tensors: SequenceAt one of them, ConcatFromSequence a Concat, SequenceLength a number. Returns how many
// nodes that read a sequence went.
std::int64_t ResolveSequences(Model& model);

// UnrollLoops, ResolveSequences, and SimplifyFloat (rules up to `most`) behind it, until no loop goes: those in loops
// may count by shapes that only the steps of the outer one tell. Returns what was applied; nothing for a model without
// loops.
std::vector<PassCount> UnrollAndSimplify(Model& model, RuleClass most = RuleClass::kImproves);
// Why UnrollLoops leaves this one as it is, in words that end a sentence about it; empty: it does not.
std::string WhyLoopStays(const Model& model, const Node& node);

// Nodes of the graph (not of its subgraphs) that compute the same from the same values become one, and constants of up
// to 64 KiB that are equal. Returns how many nodes went.
std::int64_t MergeEqual(Graph& graph);

// For a device of static shapes, after SimplifyFloat, which leaves them alone: the Shape of a graph output becomes a
// constant where the runtime infers it, whatever is declared of the output. Returns how many; SimplifyFloat folds on.
std::int64_t FoldOutputShapes(Model& model);

// For an NPU, after SimplifyFloat: patterns of operators become the one operator that they spell (LayerNormalization,
// Gelu, HardSwish, Softmax, Gemm with its bias), which the device takes whole and whose inside then needs no
// parameters; one-hot rows times a matrix become a Gather of its rows, a Reciprocal a Div, a Max with 0 a Relu, a Conv
// of taps far apart one over slices, a bound at infinity goes, and the logarithm of a number times a big factor is
// scaled to the range of fp16. Where tensors stay float
// (`quantized` false), only what the device cannot do or does wrongly otherwise: spelled out, the HTP has a
// LayerNormalization or a Gelu in 55 dB, as one operator in 44; but squares that are summed up overflow its fp16.
// Raises the model to operator set 20; where that is refused nothing changes, with a warning. Returns what was applied.
std::vector<PassCount> FusePatterns(Model& model, bool quantized = true);

// A DequantizeLinear of blocks.
bool HasBlocks(const Node& node);

// For a compiler that has no operators to unpack weights with: constants behind a DequantizeLinear of blocks, or behind
// every one (`all`), become the numbers that they stand for, as the runtime computes them; all of them are in memory.
// Returns the number of nodes that went.
std::int64_t UnpackWeights(Model& model, bool all);

// Asks the runtime's shape inference for the types of the main graph's values (nothing is run) and takes them over:
// dtype, rank, dimensions. What the model declares of its outputs stands; what it says of values inside (value_info)
// may be stale, so it goes. Returns how many values changed; 0 with a warning when the runtime refuses the model, 0 for
// a graph with quantized types. Error(kUnsupported) when there is no runtime.
// `quiet`: a refusal is no warning (the model is tried only).
std::int64_t InferTypes(Model& model, bool quiet = false);

// Whether the runtime's shape inference finds no contradiction in the model (nothing is run), nor in what
// `optimization` makes of it.
bool RuntimeAccepts(const Model& model, GraphOptimization optimization = GraphOptimization::kNone);

// InferTypes where it can tell something: for a model whose types were inferred before it was edited by rules that keep
// them. Where every value of the main graph has its dtype and its dimensions in numbers, nothing is asked.
void InferMissingTypes(Model& model, bool quiet = false);

// Where some of the main graph's values have no shape, gives all of them their types as they follow from the operators'
// definitions and the inputs' types: in no time, where the runtime takes more than linear time for thousands of values.
// What the model declares of values inside goes then, as with InferTypes. True if every value has a shape; else
// nothing has changed but types of graph outputs that said less.
bool FillTypes(Model& model);

// Gives values whose dimensions are not all known the types that follow from the operators' definitions, where
// FillTypes knows them; nothing is forgotten and nothing asked of the runtime. Returns how many values got all their
// dimensions.
std::int64_t DeriveTypes(Model& model);

// Cross-layer equalization (Nagel et al. 2019, section 4.1) for Conv/Gemm -> [Relu | LeakyRelu] -> Conv/Gemm chains
// with single uses (grouped and depthwise too), data-free. The scales are powers of two, so the function is preserved
// bit for bit. A pair is equalized only where the per-tensor quantization SQNR of neither weight gets worse and that of
// the two together gains. Activations move with the scales: calibrate afterwards. Returns the number of pairs
// equalized.
std::int64_t EqualizeLayers(Model& model);

// f16: converts the main graph's weights and internal values; graph inputs and outputs keep their type behind Casts.
// Kept in f32, between Casts: operators without a 16-bit form, those that need range or sum many terms (normalizations,
// Softmax, reductions, Pow, Sqrt, Exp), layers with few weights or with weights out of range, nodes with subgraphs,
// other domains, elementwise operators with a single number that f16 rounds, and the nodes for which the options give a
// reason. bf16: stores constants of more than 4,096 numbers as
// bf16 behind a Cast to f32; every operator computes in f32, for ONNX Runtime's CPU provider has hardly any bf16 kernel
// and ONNX hardly any bf16 operator before operator set 22. Finite weights that overflow are counted and clamped to the
// largest finite value; infinities stay. Errors: kUsage for another type; kUnsupported for bf16 where the operator set
// cannot be raised to 13. ONNX Runtime's CPU provider runs all of f16 (it casts where it has no kernel).
struct KeptNode {
  std::string node, op, reason;  // node: its name, or that of its first output
};
struct HalfResult {
  std::uint64_t overflows = 0;  // weights, not inputs
  std::vector<KeptNode> kept_float;
};
struct HalfOptions {
  using Reason = std::function<std::string(const Node&)>;  // why the node stays in f32; empty: it need not
  Reason keep;
  Reason store;  // the same, but its constants of more than 4,096 numbers are stored in f16 behind a Cast (f16 only)
  // Gets a constant, its values and what they are rounded to nearest; may move each to its other neighbour. (f16 only)
  std::function<void(const Value& constant, std::span<const float> values, std::span<std::uint16_t> halves)> round;
  bool types_known = false;  // the model went through InferTypes as it is
};
HalfResult ConvertToHalf(Model& model, DType half, const HalfOptions& options = {});

}  // namespace octavo
