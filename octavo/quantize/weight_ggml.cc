#include "octavo/quantize/weight_ggml.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/spill.h"
#include "octavo/numerics/ggml.h"

namespace octavo {
namespace {

std::variant<EncodedWeight, std::string> Encode(const GgmlFormat& format, const TensorRef& weight, std::int64_t axis,
                                                std::span<const float> importance) {
  const Dims& dims = weight.dims;
  if (axis < 0 || axis >= static_cast<std::int64_t>(dims.size())) ThrowInternal("no such axis");
  const std::int64_t k = dims[static_cast<std::size_t>(axis)];
  if (k == 0 || k % format.block != 0) {
    return "its rows of " + std::to_string(k) + " numbers are no whole blocks of " + std::to_string(format.block);
  }
  std::vector<float> converted;
  const std::span<const float> w = FloatView(weight, converted);
  std::int64_t after = 1;
  for (std::size_t i = static_cast<std::size_t>(axis) + 1; i < dims.size(); ++i) after *= dims[i];
  const std::int64_t rows = static_cast<std::int64_t>(w.size()) / k;
  const std::uint64_t row_bytes = GgmlBytes(format, 1, static_cast<std::uint64_t>(k), "weight");
  SpillBuffer blocks(static_cast<std::size_t>(
      GgmlBytes(format, static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(k), "weight")));
  // Several rows at a time: gathered where they do not lie as rows, encoded, and read back.
  const std::int64_t step = std::clamp<std::int64_t>((1 << 18) / k, 1, 64);
  std::vector<float> gathered(after == 1 ? 0 : static_cast<std::size_t>(step * k));
  std::vector<float> back(static_cast<std::size_t>(step * k));
  for (std::int64_t first = 0; first < rows; first += step) {
    CheckInterrupt();
    const std::int64_t count = std::min(step, rows - first);
    const auto n = static_cast<std::size_t>(count * k);
    std::span<const float> x;
    if (after == 1) {
      x = w.subspan(static_cast<std::size_t>(first * k), n);
    } else {
      for (std::int64_t i = 0; i < k; ++i) {
        for (std::int64_t r = 0; r < count; ++r) {
          const std::int64_t row = first + r;
          gathered[static_cast<std::size_t>(r * k + i)] =
              w[static_cast<std::size_t>((row / after * k + i) * after + row % after)];
        }
      }
      x = std::span(gathered).first(n);
    }
    const std::span<std::byte> out = blocks.bytes().subspan(static_cast<std::size_t>(first) * row_bytes,
                                                            static_cast<std::size_t>(count) * row_bytes);
    EncodeGgml(format, x, static_cast<std::uint64_t>(k), importance, out, 1, "weight");
    DecodeGgml(format, out, std::span(back).first(n), 1, "weight");
    if (!std::all_of(back.begin(), back.begin() + static_cast<std::ptrdiff_t>(n),
                     [](float v) { return std::isfinite(v); })) {
      return std::string("its largest values are beyond the scales of ") + std::string(format.ggml_name);
    }
  }
  EncodedWeight encoded;
  encoded.type.kind = QuantType::Kind::kGgml;
  encoded.type.ggml = {std::string(format.name), axis};
  blocks.Release();
  encoded.data = TensorRef::FromBuffer(DType::kU8, {rows, static_cast<std::int64_t>(row_bytes)}, std::move(blocks));
  return encoded;
}

}  // namespace

std::optional<WeightOnlyFormat> GgmlWeights(const QuantizationConfig& config) {
  const GgmlFormat* format = FindGgmlFormat(config.precision);
  // By its precision's name only: "mxfp4" and "f16" are no GGML formats here.
  if (format == nullptr || !format->is_block() || format->name != config.precision) return std::nullopt;
  WeightOnlyFormat out;
  out.name = config.precision;
  out.weight_text = std::string(format->ggml_name) + ", blocks of " + std::to_string(format->block);
  out.bits_per_weight = 8.0 * format->block_bytes / format->block;
  out.takes_importance = format->takes_importance;
  out.encode = [format](const TensorRef& weight, std::int64_t axis, std::span<const float> importance) {
    return Encode(*format, weight, axis, importance);
  };
  return out;
}

}  // namespace octavo
