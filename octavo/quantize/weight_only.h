// Weight-only precisions: int4 and the block formats. Activations stay float; each big weight is stored in blocks along
// the dimension that its users sum over (for Gather: along the rows that it copies).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "octavo/ir/graph.h"
#include "octavo/quantize/config.h"
#include "octavo/quantize/quantize.h"

namespace octavo {

// A weight in another format: what goes to Value::data and Value::type.quant.
struct EncodedWeight {
  QuantType type;  // Affine with a block, GgmlBlock or Mx; its axis is the one that was asked for
  TensorRef data;  // codes or blocks, as the type wants them
};

// Encodes a finite f32 tensor of at least two dimensions in blocks along `axis`, or says in one sentence why this
// weight cannot be ("its rows of 100 numbers are no whole blocks of 32"). `importance`: empty, or one number for each
// index along `axis`. Deterministic; called from several threads.
using WeightEncoder = std::function<std::variant<EncodedWeight, std::string>(const TensorRef& weight, std::int64_t axis,
                                                                             std::span<const float> importance)>;

// How much each index along a weight's axis matters (the mean square of what it is multiplied by), by the weight's name
// and axis. See quantize/importance.h.
using WeightImportance = std::map<std::pair<std::string, std::int64_t>, std::vector<float>>;

// A weight-only precision: one row for each name of the interface.
struct WeightOnlyFormat {
  std::string name;         // of the precision
  std::string weight_text;  // for people and the manifest: "s4 symmetric, blocks of 32"
  double bits_per_weight;   // scales included: 4.5 for s4 codes and an f16 scale for each block of 32
  WeightEncoder encode;
  bool takes_importance = false;   // an importance changes the codes
  bool short_blocks = false;       // a block may be shorter than its size, and stand at each position of a window
  std::uint64_t least_window = 0;  // convolutions with windows of fewer numbers stay float
  // What the format does not suit, but is as large as that (windows over few channels, tables that are added or
  // reshaped), is stored as s8: a scale for each output channel, or for each block of a row.
  bool large_as_s8 = false;
};

// The format that a precision name means, with the config's block size; nullopt when the name is no weight-only
// precision. New formats are one line in the table of weight_only.cc.
std::optional<WeightOnlyFormat> FindWeightOnlyFormat(const QuantizationConfig& config);

// Symmetric blocks of a signed integer type along an axis: ONNX's blocked DequantizeLinear. The scale of a block is the
// one of several near max|x| / qmax with the least squared error; a block of zeros has scale 1. Zero point 0. Scales of
// less than 8 bits are f16 numbers, except where f16 has not all its digits.
EncodedWeight EncodeAffineBlocks(const TensorRef& weight, std::int64_t axis, std::int64_t block, DType storage);

// Where a node reads a weight that can be stored in blocks.
struct WeightSite {
  Node* node = nullptr;
  std::size_t input = 0;      // of the node; the weight may lie behind Transposes of this input
  Value* weight = nullptr;    // the f32 constant itself
  std::int64_t axis = 0;      // of the constant: the dimension that the node sums over, or copies whole
  Node* last_view = nullptr;  // the Transpose next to the constant, or null: the use that is replaced
};
// The site of a node, or why it has none; an empty reason: it has no constant weight at all. `block`: weights whose
// dimension is shorter stay float; with `short_blocks` those of one number only, and convolutions with windows have a
// site too: their blocks run along the channels.
std::variant<WeightSite, std::string> FindWeightSite(Node& node, std::int64_t block, bool short_blocks = false);

// Stores every weight of the main graph that the format takes; fills nodes_*. A weight that is read along two
// dimensions is stored for each of them; one that also has other users keeps its float form for those. exclude,
// op_types and overrides are respected: an override to f32 keeps a weight float, one to s8 or s16 stores it in blocks
// of that type. Errors: kUsage for selectors that match nothing and for overrides to types without symmetric blocks.
void QuantizeWeightsOnly(Model& model, const QuantizationConfig& config, const WeightOnlyFormat& format, int threads,
                         QuantizeResult& result, const WeightImportance& importance = {});

}  // namespace octavo
