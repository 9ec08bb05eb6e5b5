// Weights from a file: `--weights W.gguf` (or .safetensors) replaces a model's initializers, bits kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "octavo/ir/graph.h"

namespace octavo {

// Between Take and Put the initializers that become blocks are graph inputs, so that no pass folds, renames or reads
// them (the passes before quantization know plain constants only); Put makes them constants again, with the data of the
// file. All others are replaced by Take.
//
// Names: those of the initializers, or what `map` (a JSON object, initializer -> tensor) says. Shapes: GGML order
// reversed is the initializer's shape, leading ones apart; a two-dimensional weight that a MatMul or Gemm sums over its
// first dimension is expected transposed, as GGUF and PyTorch store it (rows along the summed dimension), and taken as
// it is where only that fits. A square one is taken as transposed, unless another weight of the file is not: then it
// cannot be told and is refused.
// Types: blocks become a constant of that block format, with its axis; another float type than the initializer's keeps
// its bits behind a Cast; anything else must be the initializer's type.
class WeightReplacement {
 public:
  // Errors: kBadInput for a file that is neither GGUF nor safetensors, for shapes that do not fit, and when nothing
  // fits at all (nearest names); kUsage for a map whose names are in neither model nor file; kUnsupported for block
  // formats that cannot be decoded.
  static WeightReplacement Take(Model& model, const std::filesystem::path& weights, const std::filesystem::path& map);
  void Put(Model& model) const;

  std::size_t count() const { return replaced_; }
  std::size_t unused() const { return unused_; }  // tensors of the file without an initializer

 private:
  struct Item {
    std::string name;
    Type expressed;  // of the initializer
    Type type;       // of the new constant
    TensorRef data;
  };
  std::vector<Item> items_;  // of blocks
  std::size_t replaced_ = 0;
  std::size_t unused_ = 0;
};

// Which way the rows of a constant f32, f16 or bf16 weight run: along the dimension that its users sum over, or copy
// whole (Gather). No axis when no user does either, or when they disagree.
struct RowsOfWeight {
  std::optional<std::int64_t> axis;
  bool conflict = false;
};
RowsOfWeight WeightRows(Value& constant);

// The file, or all parts of a split GGUF.
std::vector<std::filesystem::path> WeightFiles(const std::filesystem::path& weights);

}  // namespace octavo
