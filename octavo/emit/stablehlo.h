// IR -> StableHLO text. One function @main; static shapes; weights in the form that is asked for.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/ir/graph.h"

namespace octavo {

// How quantized weights are written.
enum class ConstantForm : std::uint8_t {
  kFloats,      // f32, faithfully dequantized
  kCodes,       // integer codes with a dictionary that says what they mean, dequantized in plain operations
  kQuant,       // !quant.uniform types: signed, per tensor or along the last axis
  kPacked,      // codes and scales, dequantized inside a stablehlo.composite; storage stays small
  kParameters,  // as packed, with codes and scales outside the text, in a parameter archive
};
// "dequantize", ...; Error(kUsage) naming --constants for any other name.
ConstantForm ParseConstantForm(const std::string& name);

struct StablehloOptions {
  ConstantForm constants = ConstantForm::kPacked;
  // With kParameters: a file that holds weights already (a GGUF), and the names of its tensors by their offsets in it.
  // Weights that lie there are read out of it at run time, as they are; no archive is written, and other constants
  // stand in the text.
  std::filesystem::path archive;
  std::map<std::uint64_t, std::string> archive_tensors;
};

struct StablehloResult {
  std::uint64_t bytes = 0;  // of the text
  std::int64_t operators = 0;
  std::int64_t quantized_weights = 0;
  std::filesystem::path archive;   // "<path>.irpa", where one was written
  std::int64_t archive_reads = 0;  // weights that the module reads out of an archive
  std::vector<std::string> trace;  // "weight 'w' (q8_0): reaches MatMul 'fc' through Transpose", or where it is lost
  std::vector<std::string> notes;  // where the model says wrong things that change nothing, or cannot run everywhere
};

// Writes `path`, whole or not at all. `model` is simplified, with quantized types, not lowered. Errors: kUnsupported,
// naming node, operator and reason, for an operator or a form of it that has no lowering, for a dimension that is not
// fixed (--dim) and for a weight that the form of constants cannot carry; kBadInput for shapes that contradict each
// other.
StablehloResult WriteStablehlo(const Model& model, const std::filesystem::path& path,
                               const StablehloOptions& options = {});

// The operators that WriteStablehlo takes: name, domain, what is refused of it. For the documentation and its test.
struct StablehloOperator {
  std::string_view op, domain, refused;
};
std::vector<StablehloOperator> StablehloOperators();

}  // namespace octavo
