// Calibration and evaluation data: samples for a model's inputs, from files or made up.
//
// Forms of a data path (see docs; file names sort naturally, "2" before "10"; hidden files are skipped):
//   - a directory of .npz files, one sample each, keys = input names (further keys are ignored);
//   - one .npz whose arrays have the samples stacked along a new first axis;
//   - a directory with one sub-directory an input, each with .npy files: the i-th files make the i-th sample;
//   - a directory of .npy files, or one .npy (a model with one input);
//   - ONNX test data: input_0.pb, input_1.pb, ... in the directory itself (one sample) or in its sub-directories (one
//     sample each). A tensor's name picks its input where it is one, else the file's number does;
//   - a directory of images (png, jpeg, bmp), or one image (a model with one input).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/ir/graph.h"
#include "octavo/ir/tensor.h"
#include "octavo/ir/type.h"

namespace octavo {

// What the model takes. A symbolic or unknown dimension accepts every size; a symbol has one size within a sample.
struct InputSpec {
  std::string name;
  DType dtype = DType::kUndefined;
  std::vector<Dim> dims;
  bool any_rank = false;  // the model leaves the rank open; dims is empty
};

// The graph's inputs in order, without those that have a default (overridable initializers).
std::vector<InputSpec> InputSpecs(const Graph& graph);

struct Sample {
  std::string name;                // file, and entry within it, for messages
  std::vector<TensorRef> tensors;  // in InputSpec order
};

enum class ImageLayout : std::uint8_t { kNchw, kNhwc };
enum class ImageColor : std::uint8_t { kRgb, kBgr };

// value = (pixel * scale - mean[c]) / std[c] in f32, c counted in the order of `color`. A model whose input is u8 gets
// the pixels themselves. One channel: gray as ITU-R 601 weighs it (Pillow's "L").
struct ImageOptions {
  std::optional<ImageLayout> layout;  // unset: from the input's static channel dimension (3 or 1), NCHW first
  int width = 0, height = 0;          // 0: the input's static width and height
  std::array<float, 3> mean = {0, 0, 0};
  std::array<float, 3> std = {1, 1, 1};
  float scale = 1.0f / 255.0f;
  ImageColor color = ImageColor::kRgb;
};

struct DataOptions {
  std::filesystem::path path;
  ImageOptions image;
  bool image_options_given = false;  // then data of any other form are a usage error
};

// A sequence of samples that is read as it is used: nothing of a sample is kept when the caller drops it. All members
// are thread safe; index order is best for speed.
class DataSource {
 public:
  virtual ~DataSource() = default;
  virtual std::size_t size() const = 0;
  // Sample i < size(). Errors: kBadInput naming file, input, what was expected and what was found: wrong shape or
  // element type (nothing is converted silently), NaN or infinity, damaged files.
  virtual Sample Read(std::size_t i) const = 0;
  // SHA-256 (hex) over the form, the names below the path, all bytes in order, and what else decides the values (image
  // options, seed). Reads all the data; equal hashes mean equal samples for the same inputs.
  virtual std::string ContentHash() const = 0;
  // One line for people: "32 samples (.npz files in data/calib)".
  virtual std::string Describe() const = 0;
};

// Finds out the form and checks what can be checked without reading data: every sample has a file for every input.
// Errors: kBadInput for a missing path, an empty directory, mixed forms, incomplete samples; kUsage for options that do
// not fit; kUnsupported for formats that are not read.
std::unique_ptr<DataSource> OpenData(const DataOptions& options, std::span<const InputSpec> inputs);

enum class Distribution : std::uint8_t { kUniform, kNormal };
// "uniform" | "normal"; kUsage otherwise.
Distribution ParseDistribution(std::string_view name);

// Made-up samples, the same on every machine: value k of input j of sample i depends on (seed, i, j, k) only.
//   uniform - floats evenly from [0, 1), in steps of 2^-24
//   normal  - floats with mean 0 and variance 1: the sum of twelve uniform numbers less 6 (Irwin-Hall), within +-6
//   integers are 0 or 1 and bool is false or true, evenly, whatever the distribution: valid as token ids, indices,
//   masks
// f16, bf16 and f64 inputs get the f32 value, rounded. Errors: kUsage naming input and dimension when one is not known,
// and how to give it: `--dim SYMBOL=VALUE`, or `--dim INPUT:AXIS=VALUE` for a dimension without a name; kUnsupported
// for strings and other element types.
std::unique_ptr<DataSource> SyntheticData(std::span<const InputSpec> inputs, Distribution distribution,
                                          std::uint64_t seed, std::size_t samples);

// What `--dim` calls a dimension: its symbol, or INPUT:AXIS ("x:2", axes from 0) for one without.
std::string DimName(const InputSpec& input, std::size_t axis);

}  // namespace octavo
