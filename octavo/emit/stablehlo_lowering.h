// What the lowerings of single operators see. An operator is one row in the table of its topic's file.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "octavo/emit/stablehlo.h"
#include "octavo/emit/stablehlo_builder.h"
#include "octavo/ir/graph.h"

namespace octavo::stablehlo {

class Emitter {
 public:
  Emitter(const Model& model, TextWriter& text, const StablehloOptions& options)
      : b(text), model_(model), options_(options) {}

  Builder b;

  const Model& model() const { return model_; }
  ConstantForm form() const { return options_.constants; }
  std::int64_t opset(const Node& node) const { return model_.OpsetVersion(node.domain()); }

  // --- inputs: what a value means (a quantized one is dequantized)
  bool Has(const Node& node, std::size_t i) const { return node.input(i) != nullptr; }
  Tensor In(const Node& node, std::size_t i);  // refuses an absent input
  Tensor Use(const Value& value);
  Dims DimsOf(const Value& value) const;
  // Data of a plain constant input, or of one that follows from shapes; null where it is absent or computed.
  const TensorRef* ConstantIn(const Node& node, std::size_t i) const;
  // Integers that must be known: refuses, naming `what`, where they are computed. nullopt: absent.
  std::optional<std::vector<std::int64_t>> IntsIn(const Node& node, std::size_t i, std::string_view what) const;
  std::vector<std::int64_t> NeedInts(const Node& node, std::size_t i, std::string_view what) const;
  // From the attribute, or (newer operator sets) from input i.
  std::optional<std::vector<std::int64_t>> IntsAttributeOrIn(const Node& node, std::string_view attribute,
                                                             std::size_t i) const;
  std::int64_t Axis(const Node& node, std::int64_t axis, std::size_t rank) const;  // non-negative; refuses others

  // --- codes of a quantized value, as integers of 8, 16 or 32 bits
  std::optional<Tensor> Codes(const Value& value);
  // With ConstantForm::kQuant: both values in !quant.uniform types, where their product is exact in integers (s8, per
  // tensor). What is multiplied then is dequantized with Builder::UniformDequantize.
  std::optional<std::pair<Tensor, Tensor>> UniformOperands(const Value& x, const Value& w);

  // --- outputs
  void Out(const Node& node, std::size_t i, Tensor tensor);  // quantizes where the value is quantized
  void OutCodes(const Node& node, std::size_t i, Tensor codes);
  bool Wanted(const Node& node, std::size_t i) const;

  [[noreturn]] void Refuse(const Node& node, const std::string& reason) const;
  // As Refuse, where no runtime computes the node: the shapes contradict each other (kBadInput).
  [[noreturn]] void Misfit(const Node& node, const std::string& reason) const;

  // --- the whole function
  void Bind(const Value& value, Tensor tensor) { values_[&value] = std::move(tensor); }
  void Lower(const Node& node);
  void LowerNodes(const Graph& graph);
  // The results of a branch in a region of its own: what it defines is forgotten afterwards. `enter` binds its inputs.
  std::vector<Tensor> InRegion(const Graph& branch, const std::function<void()>& enter = {});
  // What InRegion would give, and nothing of it stays but names: `why` where no runtime computes the branch with the
  // shapes there are. Errors of every other kind are thrown.
  struct Trial {
    std::vector<Tensor> results;
    std::optional<std::string> why;
  };
  Trial Try(const Graph& branch);
  bool trying() const { return trying_; }
  void Note(std::string note) { notes_.push_back(std::move(note)); }
  // Result i of the node is `value` of a branch that was lowered in place.
  void OutAlias(const Node& node, std::size_t i, const Value& value);
  // --- bodies that are lowered more than once
  // What follows from shapes and constants: null where a value is computed.
  const TensorRef* Known(const Value& value) const;
  void BindKnown(const Value& value, TensorRef data) { known_[&value] = std::move(data); }
  // Finds out what is known of the graph's values; lowers nothing.
  void FoldNodes(const Graph& graph);
  // Its inputs and all that its nodes define; constants stay.
  void Forget(const Graph& graph);
  const std::string& functions() const { return functions_.text(); }
  const std::map<std::string, TensorRef>& parameters() const { return parameters_; }
  std::int64_t operators() const { return operators_; }
  // Where the model says wrong things that change nothing, or cannot run everywhere.
  const std::vector<std::string>& notes() const { return notes_; }

  // --- quantization (stablehlo_quant.cc)
  Tensor QuantizeTo(const Tensor& x, const Affine& affine);
  Tensor DequantizeFrom(const Tensor& codes, const Affine& affine, DType expressed);

  // --- weights (stablehlo_constants.cc)
  Tensor Weight(const Value& value);
  // A weight in blocks along axis 0 of [K, N], as the rows [N, K] that it is stored in; nullopt for any other value.
  std::optional<Tensor> WeightRows(const Value& value);

 private:
  using Body = std::function<Tensor(Builder&, std::span<const Tensor>)>;
  // Computes the node here if it is small and all it reads is known (stablehlo_fold.cc).
  bool Fold(const Node& node);
  Tensor PlainConstant(const Value& value);
  Tensor AffineWeight(const Value& value);
  Tensor BlockRows(const Value& value);
  Tensor MxWeight(const Value& value);  // stablehlo_mx.cc
  // Codes or scales of a weight where the consumer keeps them: behind a barrier, or in the parameter archive.
  Tensor Stored(const Value& value, const std::string& part, const TensorRef& data);
  // The name under which the archive of the options holds these very bytes.
  const std::string* ArchiveName(const TensorRef& data) const;
  // A tensor outside the text, which the module loads by name.
  Tensor Parameter(const std::string& name, const TensorRef& data);
  Tensor Global(const std::string& name, const TensorRef& data);
  // A private function; one that does the same for the same types is made once.
  std::string Decomposition(const std::string& key, std::span<const Tensor> arguments, const Body& body);
  Tensor Composite(const std::string& key, const std::string& attributes, std::span<const Tensor> arguments,
                   DType dtype, const Dims& dims, const Body& body);

  const Model& model_;
  StablehloOptions options_;
  std::unordered_map<const Value*, Tensor> values_;  // meaning
  std::unordered_map<const Value*, Tensor> codes_;
  std::unordered_map<const Value*, TensorRef> known_;  // folded
  std::unordered_map<const Value*, Tensor> block_rows_;
  std::map<std::string, std::string> made_;      // key and types -> function name
  TextWriter functions_;                         // and globals
  std::map<std::string, TensorRef> parameters_;  // with ConstantForm::kParameters
  std::int64_t operators_ = 0;
  std::vector<std::string> notes_;
  bool trying_ = false;
};

struct Lowering {
  std::string_view op, domain;
  void (*lower)(Emitter& e, const Node& node);
  std::string_view refused;  // forms that are refused, for the documentation
};
std::span<const Lowering> ElementwiseLowerings();
std::span<const Lowering> ShapeLowerings();
std::span<const Lowering> ConvLowerings();
std::span<const Lowering> MatMulLowerings();
std::span<const Lowering> NormLowerings();
std::span<const Lowering> QuantLowerings();
std::span<const Lowering> RecurrentLowerings();
std::span<const Lowering> ControlLowerings();
std::span<const Lowering> LoopLowerings();
std::span<const Lowering> ScatterLowerings();

// Scales or zero points of an affine type, ready to be combined with a tensor of `dims`.
Tensor SpreadParameters(Builder& b, const Tensor& values, const Affine& affine, const Dims& dims);
// x in 8 bits of a range found as it runs (operator DynamicQuantizeLinear): u8 codes, scale, and zero point in f32.
struct RangeCodes {
  Tensor codes, scale, zero;
};
RangeCodes QuantizeToRange(Builder& b, const Tensor& x);
// The convolution that a Conv-like node describes by its attributes.
Tensor Convolve(Emitter& e, const Node& node, const Tensor& x, const Tensor& w, KernelFrom from = KernelFrom::kStored);

// "Conv 'conv0'" for messages.
std::string NodeText(const Node& node);

}  // namespace octavo::stablehlo
