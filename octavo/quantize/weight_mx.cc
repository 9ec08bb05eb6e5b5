#include "octavo/quantize/weight_mx.h"

#include <string>

#include "octavo/numerics/mx.h"

namespace octavo {

std::optional<WeightOnlyFormat> MxWeights(const QuantizationConfig& config) {
  const MxFormat* format = FindMxFormat(config.precision);
  if (format == nullptr || format->e4m3_scale) return std::nullopt;
  WeightOnlyFormat out;
  out.name = config.precision;
  out.weight_text = config.precision + ", blocks of " + std::to_string(config.block);
  out.bits_per_weight = format->bits + 8.0 / static_cast<double>(config.block);
  out.encode = [format, block = config.block](const TensorRef& weight, std::int64_t axis,
                                              std::span<const float>) -> std::variant<EncodedWeight, std::string> {
    EncodedWeight encoded;
    encoded.type.kind = QuantType::Kind::kMx;
    encoded.type.mx = {std::string(format->name), axis, block};
    MxShape shape;
    shape.block = static_cast<std::size_t>(block);
    for (std::size_t i = 0; i < weight.dims.size(); ++i) {
      const auto d = static_cast<std::size_t>(weight.dims[i]);
      if (static_cast<std::int64_t>(i) < axis)
        shape.outer *= d;
      else if (static_cast<std::int64_t>(i) > axis)
        shape.inner *= d;
      else
        shape.n = d;
    }
    std::vector<float> storage;
    const std::span<const float> x = FloatView(weight, storage);
    std::vector<float> values(x.size());
    MxFakeQuantize(x.data(), shape, *format, MxRounding::kEven, values.data());
    encoded.data = TensorRef::FromFloats(weight.dims, values);
    return encoded;
  };
  return out;
}

}  // namespace octavo
