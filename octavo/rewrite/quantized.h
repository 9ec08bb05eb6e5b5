// The rewrite stage: a quantized graph in, the same graph with its integer operators chosen out.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "octavo/device/descriptor.h"
#include "octavo/rewrite/rule.h"

namespace octavo {

struct QuantizedRewriteOptions {
  std::vector<std::string> rules;  // names; empty: all
  RuleClass permitted = RuleClass::kImproves;
  std::uint64_t limit = std::numeric_limits<std::uint64_t>::max();  // applications, for bisecting
};

struct QuantizedRewriteResult {
  RewriteResult rules;
  std::uint64_t macs = 0, integer_macs = 0;     // of nodes with static shapes, in one run
  std::int64_t layers = 0, integer_layers = 0;  // nodes that multiply and add: Conv, Gemm, MatMul, ...
};

// Runs the rules of rules/quantized.h on a model whose quantization are types (FoldQdq). Afterwards a node's form says
// how it is computed: LowerToQLinear writes it. Errors: kUsage for a rule name that is none (nearest names).
QuantizedRewriteResult RewriteQuantized(Model& model, const DeviceDescriptor& device,
                                        const QuantizedRewriteOptions& options = {});

// The rules that look at the operators as they are written: run it on what LowerToQLinear left. What they did is added
// to `result`.
void RewriteLowered(Model& model, const DeviceDescriptor& device, const QuantizedRewriteOptions& options,
                    QuantizedRewriteResult& result);

// MatMulInteger, ConvInteger and MatMulIntegerToFloat whose parameters are computed (DynamicQuantizeLinear) become the
// float operator behind DequantizeLinear nodes. Sums that are used as integers stay. Returns how many changed.
std::int64_t IntegerProductsToQdq(Model& model);

// Takes back every choice of an integer operator: LowerToQdq then writes the portable form.
void UseQdqForm(Model& model);

// QLinear operators, ConvInteger, MatMulInteger and their com.microsoft relatives -> the float operator between
// quantized values, form QLinear. Run it after FoldQdq. What has parameters that are not constant stays. Returns the
// number of nodes folded.
std::int64_t FoldQLinear(Model& model);

// Products whose weights' sign the loading machine chooses (rules/choose_at_load.cc) become one product of u8 codes.
// Returns how many. FoldQLinear begins with it.
std::int64_t FoldChoices(Graph& graph);

// Everything that a file needs before the rules: types inferred where they are missing, Q/DQ and QLinear folded.
void FoldQuantized(Model& model);

// The class of that name. Errors: kUsage (nearest names).
RuleClass ParseRuleClass(const std::string& name);

// The catalogue as text: each rule with its class, picture, proof and conditions.
std::string RuleCatalogue(const DeviceDescriptor& device);

}  // namespace octavo
