// `octavo quantize in.gguf -o out.gguf`: weights in one block format become weights in another, file to file, in memory
// that does not depend on the size of the model.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "octavo/import/gguf.h"
#include "octavo/quantize/config.h"

namespace octavo {

struct GgufQuantizeOptions {
  std::filesystem::path source;
  // precision, exclude, overrides and requantize are read: the rest says nothing about a file of weights.
  QuantizationConfig config;
  std::filesystem::path imatrix;  // empty: none
  int threads = 0;                // 0: all cores
  std::uint64_t max_memory = 0;   // bytes of resident memory of this process; 0: 1 GiB
};

// The type that a tensor of weights takes, by the rules of PlanGgufQuantize; also for weights that come from elsewhere.
struct GgufTypeChoice {
  const GgufType* to = nullptr;
  std::string note;       // why it is not the one that was asked for; empty if it is
  bool fallback = false;  // the type that was asked for cannot store it
};
class GgufTypeChooser {
 public:
  // `names`: all tensors, for selectors. Errors: kUsage as PlanGgufQuantize's.
  GgufTypeChooser(const QuantizationConfig& config, const std::vector<std::string>& names);
  // `keep`: why the precision does not apply to this tensor (an override still does); empty: it does.
  GgufTypeChoice Choose(const std::string& name, const GgufType& from, std::span<const std::uint64_t> ne,
                        const std::string& keep = {}) const;
  const GgufType& precision() const { return *precision_; }

 private:
  const QuantizationConfig& config_;
  const GgufType* precision_;
  std::vector<const GgufType*> overrides_;  // one for each of config_.overrides
};

// general.file_type and general.quantization_version, as the types ask for them.
std::vector<GgufField> GgufTypeFields(const GgufType& precision, bool any_quantized);

// What becomes of a tensor.
struct GgufTensorPlan {
  std::size_t tensor = 0;  // of Gguf::tensors
  const GgufType* to = nullptr;
  std::uint64_t bytes = 0;  // in the new file
  std::string note;         // why its type is not the one that was asked for; empty if it is
  bool fallback = false;    // the type that was asked for cannot store it
};

struct GgufQuantizePlan {
  std::vector<GgufTensorPlan> tensors;  // in the order of the file
  std::uint64_t file_bytes = 0;         // exact
  std::size_t without_importance = 0;   // tensors to be encoded that the importance matrix does not know
};

// Decides the type of every tensor. The rules look at structure and at what the user asked for, never at names:
//  - float tensors (f32, f16, bf16) of two dimensions or more, and block-quantized ones, take the precision;
//  - other types (integers, f64) and tensors of one dimension stay as they are; `exclude` keeps a tensor as it is;
//    `overrides` (the last that matches) sets the type of any float or quantized tensor;
//  - a row that is not a whole number of blocks falls back: q4_k to q5_0, q5_k to q5_1, q6_k to q8_0, q2_k, q3_k and
//    iq4_xs to iq4_nl, tq1_0, tq2_0 and nvfp4 to q4_0; where 32 does not divide the row either, a 16-bit float stays
//    and f32 becomes f16.
// Errors: kUsage for a precision or type that is no GGML format, selectors that match nothing (nearest names), and
// settings that do not apply to a GGUF; kUnsupported for a quantized source without `requantize` (unless its type does
// not change, or it becomes f32, which is exact) and for source types that cannot be decoded.
GgufQuantizePlan PlanGgufQuantize(const Gguf& source, const GgufQuantizeOptions& options);

struct GgufQuantizeResult {
  GgufQuantizePlan plan;
  std::uint64_t bytes_before = 0, bytes_after = 0;
  double seconds = 0;
  std::uint64_t peak_rss_bytes = 0;
};

// Writes `out`, whole or not at all. The bytes depend neither on threads nor on max_memory. Errors: as above; kBadInput
// for NaN or infinity in a weight that is quantized, for an importance matrix that does not fit; kUsage for a
// max_memory too small for one row.
GgufQuantizeResult QuantizeGguf(const Gguf& source, const GgufQuantizeOptions& options,
                                const std::filesystem::path& out);

std::string PlanText(const Gguf& source, const GgufQuantizePlan& plan, const std::filesystem::path& out);
std::string PlanJson(const Gguf& source, const GgufQuantizePlan& plan, const std::filesystem::path& out);
std::string Summary(const Gguf& source, const GgufQuantizeResult& result, const std::filesystem::path& out);

// "512M", "2G", "65536" -> bytes. Errors: kUsage naming `option`.
std::uint64_t ParseBytes(const std::string& text, const std::string& option);

}  // namespace octavo
