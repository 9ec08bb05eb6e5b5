#include "octavo/import/data_images.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/import/data_check.h"

namespace octavo {

ImageConverter::ImageConverter(const ImageOptions& options, const InputSpec& input)
    : options_(options), dtype_(input.dtype), batched_(input.dims.size() == 4), channels_(3) {
  const std::string where = "input '" + input.name + "' " + ToString(input);
  const std::size_t rank = input.dims.size();
  if (input.any_rank || (rank != 3 && rank != 4)) {
    ThrowUnsupported("images for an input that is neither one image nor a batch", where, "give .npz files instead");
  }
  if (dtype_ != DType::kF32 && dtype_ != DType::kU8) {
    ThrowUnsupported("images for an input that is neither f32 nor u8", where, "give .npz files instead");
  }
  if (batched_ && input.dims[0].known() && input.dims[0].value != 1) {
    ThrowUnsupported("images for a batch other than 1", where, "give .npz files of whole batches instead");
  }
  const std::size_t first = batched_ ? 1 : 0;
  const auto image_channels = [](const Dim& dim) { return dim.value == 1 || dim.value == 3; };
  if (!options_.layout) {
    const bool last = !image_channels(input.dims[first]) && image_channels(input.dims[first + 2]);
    options_.layout = last ? ImageLayout::kNhwc : ImageLayout::kNchw;
  }
  const bool nchw = *options_.layout == ImageLayout::kNchw;
  const Dim& channels = input.dims[nchw ? first : first + 2];
  if (channels.known()) {
    if (!image_channels(channels)) {
      ThrowUnsupported("images for an input of " + std::to_string(channels.value) + " channels", where,
                       "check --image-layout, or give .npz files instead");
    }
    channels_ = static_cast<int>(channels.value);
  }
  const auto settle = [&](int& size, const Dim& dim, const char* what) {
    if (size < 0 || size > kMaxImageSide || (dim.known() && dim.value > kMaxImageSide)) {
      ThrowUsage(std::string("image ") + what + " out of range", where, "at most 32768");
    }
    if (dim.known() && size > 0 && dim.value != size) {
      ThrowUsage("--image-size has " + std::string(what) + " " + std::to_string(size) + ", the model takes " +
                     std::to_string(dim.value),
                 where, "leave it out, or check --image-layout");
    }
    if (dim.known()) size = static_cast<int>(dim.value);
    if (size == 0) {
      ThrowUsage(std::string("the image ") + what + " is given neither by the model nor by an option", where,
                 "give --image-size WxH");
    }
  };
  settle(options_.height, input.dims[nchw ? first + 1 : first], "height");
  settle(options_.width, input.dims[nchw ? first + 2 : first + 1], "width");
  if (std::int64_t{options_.width} * options_.height > kMaxImagePixels) {
    ThrowUsage("image size over 64 megapixels", where, "give a smaller --image-size");
  }
  for (int c = 0; c < 3; ++c) {
    const auto i = static_cast<std::size_t>(c);
    if (!std::isfinite(options_.mean[i]) || !std::isfinite(options_.std[i]) || options_.std[i] == 0.0f) {
      ThrowUsage("image mean and std must be finite, std not 0", where, "check --image-mean and --image-std");
    }
  }
  if (!std::isfinite(options_.scale)) ThrowUsage("image scale must be finite", where, "check --image-scale");
  const ImageOptions plain;
  if (dtype_ == DType::kU8 &&
      (options.mean != plain.mean || options.std != plain.std || options.scale != plain.scale)) {
    ThrowUsage("--image-mean, --image-std and --image-scale for an input of integer pixels", where, "leave them out");
  }
}

TensorRef ImageConverter::Convert(std::span<const std::byte> file, const std::string& name) const {
  const Image image = ResizeBilinear(DecodeImage(file, name), options_.width, options_.height);
  const std::size_t pixels = image.rgb.size() / 3;
  const auto channels = static_cast<std::size_t>(channels_);
  const bool nchw = *options_.layout == ImageLayout::kNchw;
  std::vector<std::byte> data(pixels * channels * (dtype_ == DType::kF32 ? sizeof(float) : 1));
  for (std::size_t p = 0; p < pixels; ++p) {
    const std::uint8_t* rgb = image.rgb.data() + 3 * p;
    for (std::size_t c = 0; c < channels; ++c) {
      std::uint32_t value = rgb[options_.color == ImageColor::kBgr ? 2 - c : c];
      // Pillow's convert("L"): ITU-R 601 luma in 16-bit fixed point.
      if (channels == 1) value = (rgb[0] * 19595u + rgb[1] * 38470u + rgb[2] * 7471u + 0x8000u) >> 16;
      const std::size_t at = nchw ? c * pixels + p : p * channels + c;
      if (dtype_ == DType::kU8) {
        data[at] = static_cast<std::byte>(value);
        continue;
      }
      const float x = (static_cast<float>(value) * options_.scale - options_.mean[c]) / options_.std[c];
      std::memcpy(data.data() + at * sizeof x, &x, sizeof x);
    }
  }
  Dims dims;
  if (batched_) dims.push_back(1);
  if (nchw) dims.push_back(channels_);
  dims.push_back(options_.height);
  dims.push_back(options_.width);
  if (!nchw) dims.push_back(channels_);
  return TensorRef::FromBytes(dtype_, std::move(dims), std::move(data));
}

std::string ImageConverter::Text() const {
  std::string out = *options_.layout == ImageLayout::kNchw ? "nchw" : "nhwc";
  out += options_.color == ImageColor::kRgb ? " rgb " : " bgr ";
  out += std::to_string(options_.width) + "x" + std::to_string(options_.height) + " " + std::string(Name(dtype_));
  const auto bits = [&](float x) { out.append(" ").append(std::to_string(std::bit_cast<std::uint32_t>(x))); };
  for (const float x : options_.mean) bits(x);
  for (const float x : options_.std) bits(x);
  bits(options_.scale);
  return out.append(" ").append(std::to_string(channels_)).append("\n");
}

}  // namespace octavo
