// From an image file to a model's input tensor.
#pragma once

#include <span>
#include <string>

#include "octavo/import/data.h"
#include "octavo/import/image.h"

namespace octavo {

class ImageConverter {
 public:
  // Settles layout, size and channels from the options and the input. Errors: kUsage when the size is given nowhere or
  // twice and differently, or an option makes no sense; kUnsupported for inputs that take no image: rank other than 3
  // (one image) or 4 (a batch of one), channels other than 1 or 3, element type other than f32 or u8.
  ImageConverter(const ImageOptions& options, const InputSpec& input);

  TensorRef Convert(std::span<const std::byte> file, const std::string& name) const;
  // Everything that decides the values, for hashing.
  std::string Text() const;

 private:
  ImageOptions options_;  // layout, width and height settled
  DType dtype_;
  bool batched_;
  int channels_;
};

}  // namespace octavo
