// The catalogue of rules; each is one file beside this one.
#pragma once

#include <memory>

#include "octavo/rewrite/rule.h"

namespace octavo {

std::unique_ptr<Rule> RemoveIdentity();   // Identity, Dropout, Cast to the same type
std::unique_ptr<Rule> RemoveNeutral();    // x * 1, x / 1, x - 0
std::unique_ptr<Rule> RemoveAddZero();    // x + 0
std::unique_ptr<Rule> ReverseToGather();  // ReverseSequence of known lengths -> Gather
std::unique_ptr<Rule> FillToNumber();     // x * ConstantOfShape(1) -> x * 1
std::unique_ptr<Rule> TopKOfOne();        // the greatest of one element
std::unique_ptr<Rule> FoldShape();        // Shape and Size of a value with a static shape
std::unique_ptr<Rule> FoldBatchNorm();    // BatchNormalization into the layer before it
std::unique_ptr<Rule> SplitBatchNorm();   // BatchNormalization into Mul and Add
std::unique_ptr<Rule> CeilToPads();       // AveragePool with ceil_mode -> with pads
std::unique_ptr<Rule> FoldScale();        // Mul, Div, Add, Sub by constants into the layer before it
std::unique_ptr<Rule> EinsumToMatMul();   // Einsum of two tensors -> MatMul between Transposes and Reshapes

// For devices that take a function as one operator (FusePatterns).
std::unique_ptr<Rule> FuseFastLayerNorm();    // the same with a variance of means of squares, over any axis
std::unique_ptr<Rule> FuseLayerNorm();        // mean, variance, division, scale, bias -> LayerNormalization
std::unique_ptr<Rule> FuseGelu();             // x (1 + erf(x / sqrt(2))) / 2 -> Gelu; with tanh of a cubic too
std::unique_ptr<Rule> FuseSoftmax();          // exp(x) / sum(exp(x)) -> Softmax
std::unique_ptr<Rule> FuseHardSwish();        // x clip(x + 3, 0, 6) / 6 -> HardSwish
std::unique_ptr<Rule> OneHotProduct();        // one-hot rows times a matrix -> Gather of its rows
std::unique_ptr<Rule> FuseLinear();           // MatMul, Add (, Mul) with constants -> Gemm between Reshapes
std::unique_ptr<Rule> ScaleOfProduct();       // Mul, Div of a MatMul by one number -> into the layer of a factor
std::unique_ptr<Rule> ReciprocalToDiv();      // Reciprocal(x) -> 1 / x
std::unique_ptr<Rule> MaxToRelu();            // max(x, 0)
std::unique_ptr<Rule> AverageToGlobal();      // AveragePool over all of an image -> GlobalAveragePool
std::unique_ptr<Rule> FarTapsToSlices();      // a Conv of taps far apart -> one of single taps over their slices
std::unique_ptr<Rule> RemoveInfiniteBound();  // max(x, -inf), min(x, inf) -> x
std::unique_ptr<Rule> GatherNdToGather();     // GatherND at known places -> Gather of a Reshape
std::unique_ptr<Rule> FewerDimsTranspose();   // Transpose of more than 5 dimensions -> of fewer, between Reshapes
std::unique_ptr<Rule> ReshapeTwice();         // a Reshape to more than 5 dimensions and back -> one
std::unique_ptr<Rule> OneAxisLayerNorm();     // LayerNormalization over several axes -> over one, between Reshapes
std::unique_ptr<Rule> GatherAll();            // Gather of all there is, in order -> Reshape
std::unique_ptr<Rule> GatherByMatrix();       // Gather to more than 5 dimensions -> of a row, and a Reshape
std::unique_ptr<Rule> Col2ImToTiles();        // Col2Im -> a sum of images put together of tiles
std::unique_ptr<Rule> MaxPoolOfVolume();      // MaxPool over a volume -> over its planes, then its lines
std::unique_ptr<Rule> GlobalMaxOfVolume();    // GlobalMaxPool of a volume -> of an image
std::unique_ptr<Rule> PadsThatCount();        // AveragePool over a volume, counting its padding -> of a Pad
std::unique_ptr<Rule> PadRight();  // Pad at the right and below -> with a column more at the left, or the Conv
std::unique_ptr<Rule> FewerDimsElementwise();  // elementwise over many dimensions -> over fewer, between Reshapes
std::unique_ptr<Rule> FewerDimsProduct();      // MatMul of two tensors of more than 5 dimensions -> of 5
std::unique_ptr<Rule> FewerDimsNorm();         // LayerNormalization and its like -> the same
std::unique_ptr<Rule> ScaleLog();              // log(a x + b), a big -> log(a x / 2^k + b / 2^k) + k log(2)
std::unique_ptr<Rule> TriluToWhere();          // Trilu -> Where with a constant mask
std::unique_ptr<Rule> PlainPad();              // Pad of some axes, that takes off or wraps around -> Pad, Slice, Concat
// Resizes; `opset`: the model's. To the nearest, not each as often as the others -> Gather along each axis; linear of a
// volume -> of its planes, then its lines; linear by a scale that makes no whole length -> of a longer axis, cut.
std::unique_ptr<Rule> NearestToGather(std::int64_t opset);
std::unique_ptr<Rule> LinearResizeOfVolume(std::int64_t opset);
std::unique_ptr<Rule> ResizeByFraction(std::int64_t opset);
std::unique_ptr<Rule> FewOperands();    // Mean of several -> Add, Mul; Max, Min, Sum, Mean of one -> nothing
std::unique_ptr<Rule> FloatExponent();  // Pow to a constant integer -> to the same float
std::unique_ptr<Rule> FlatMatMul();     // MatMul by a vector, or of five dimensions and more by a matrix -> of two
std::unique_ptr<Rule> PlainGemm();      // alpha, beta and the shape of a bias -> into the constants

// Operators of ONNX Runtime's own (com.microsoft) that its optimizer makes -> standard ones: Gelu, BiasGelu, FastGelu,
// QuickGelu, FusedMatMul, FusedGemm, FusedConv, SkipLayerNormalization, EmbedLayerNormalization, Attention,
// MultiHeadAttention. Operator set 20.
RuleSet ContribRules();

// The rules of SimplifyFloat, in order of preference.
RuleSet FloatRules();

// Runs every node of the main graph that depends on constants only, all in one session of the runtime, and puts the
// results in their place. What is not folded: control flow, random and stateful operators, unknown domains, Q/DQ,
// producers of graph outputs (they keep their name), results above 64 MiB, results above 64 KiB that are over 4 times
// their inputs, and more than 256 MiB in all (weights stay mapped instead of becoming anonymous memory). Returns the
// number of nodes that went. Results: Exact, as the runtime's own kernels made them.
std::int64_t FoldConstants(Model& model);

}  // namespace octavo
