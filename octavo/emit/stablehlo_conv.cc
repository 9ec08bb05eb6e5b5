// Convolutions and pools: everything with a window.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "octavo/emit/stablehlo_lowering.h"

namespace octavo::stablehlo {
namespace {

// strides, dilations, pads and auto_pad of a node whose kernel and input are known; `ceil`: the last window may begin
// inside the input and end outside.
std::vector<WindowDim> Window(Emitter& e, const Node& node, std::span<const std::int64_t> input,
                              std::span<const std::int64_t> kernel, bool ceil) {
  const std::size_t n = kernel.size();
  std::vector<WindowDim> window(n);
  const auto list = [&](const char* name, std::size_t size) {
    const auto* given = node.IntsAttribute(name);
    if (given != nullptr && given->size() != size) e.Refuse(node, std::string(name) + " do not fit its kernel");
    return given;
  };
  const auto* strides = list("strides", n);
  const auto* dilations = list("dilations", n);
  const auto* pads = list("pads", 2 * n);
  const std::string automatic = node.StringAttribute("auto_pad", "NOTSET");
  if (automatic != "NOTSET" && automatic != "VALID" && automatic != "SAME_UPPER" && automatic != "SAME_LOWER") {
    e.Refuse(node, "auto_pad '" + automatic + "'");
  }
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  for (std::size_t i = 0; i < n; ++i) {
    WindowDim& w = window[i];
    w.size = kernel[i];
    if (strides != nullptr) w.stride = (*strides)[i];
    if (dilations != nullptr) w.dilation = (*dilations)[i];
    if (pads != nullptr && automatic == "NOTSET") {
      w.pad_low = (*pads)[i];
      w.pad_high = (*pads)[i + n];
    }
    for (const std::int64_t v : {w.size, w.stride, w.dilation}) {
      if (v < 1 || v > kMost) e.Refuse(node, "a kernel, stride or dilation of " + std::to_string(v));
    }
    if (w.size > kMost / w.dilation || std::abs(w.pad_low) > kMost || std::abs(w.pad_high) > kMost) {
      e.Refuse(node, "a window of that size");
    }
    if (automatic.starts_with("SAME")) {
      const std::int64_t out = (input[i] + w.stride - 1) / w.stride;
      const std::int64_t total = std::max<std::int64_t>(0, (out - 1) * w.stride + w.extent() - input[i]);
      w.pad_low = automatic == "SAME_UPPER" ? total / 2 : total - total / 2;
      w.pad_high = total - w.pad_low;
    }
    const std::int64_t room = input[i] + w.pad_low + w.pad_high - w.extent();
    if (room < 0) e.Refuse(node, "the window is larger than its padded input");
    if (ceil && !automatic.starts_with("SAME")) {
      std::int64_t out = (room + w.stride - 1) / w.stride + 1;
      if ((out - 1) * w.stride >= input[i] + w.pad_low) --out;  // it would see nothing but padding
      w.pad_high += (out - 1) * w.stride - room;
    }
  }
  return window;
}

// What is added behind the product: a bias of one number a channel.
Tensor AddBias(Emitter& e, const Node& node, const Tensor& y, std::size_t input) {
  if (!e.Has(node, input)) return y;
  const Tensor bias = e.In(node, input);
  if (bias.rank() != 1 || bias.dims[0] != y.dims[1]) e.Refuse(node, "the bias does not have one number a channel");
  const std::int64_t map[] = {1};
  return e.b.Add(y, e.b.BroadcastInDim(bias, y.dims, map));
}

}  // namespace

Tensor Convolve(Emitter& e, const Node& node, const Tensor& x, const Tensor& w, KernelFrom from) {
  const std::int64_t groups = node.IntAttribute("group", 1);
  if (x.rank() < 3 || x.rank() > 5 || w.rank() != x.rank()) e.Refuse(node, "its input is not of 3, 4 or 5 dimensions");
  if (groups < 1 || x.dims[1] != w.dims[1] * groups || w.dims[0] % groups != 0) {
    e.Misfit(node, "the weight does not fit the channels and groups");
  }
  if (x.dtype != w.dtype) e.Refuse(node, "input and weight differ in type");
  const std::span<const std::int64_t> kernel(w.dims), input(x.dims);
  return e.b.Convolution(x, w, Window(e, node, input.subspan(2), kernel.subspan(2), false), groups, from);
}

namespace {

// `codes` leaves a weight next to its consumer, where a pass of the reader's looks for it.
KernelFrom WeightFrom(const Emitter& e, const Value& w) {
  const bool stored = w.type.quant ? e.form() == ConstantForm::kFloats || e.form() == ConstantForm::kCodes
                                   : w.is_constant() || e.Known(w) != nullptr;
  return stored ? KernelFrom::kStored : KernelFrom::kComputed;
}

void Conv(Emitter& e, const Node& node) {
  if (!e.Has(node, 0) || !e.Has(node, 1)) e.Refuse(node, "input or weight is missing");
  const auto pair = e.UniformOperands(*node.input(0), *node.input(1));
  const Tensor y = pair ? e.b.UniformDequantize(Convolve(e, node, pair->first, pair->second))
                        : Convolve(e, node, e.In(node, 0), e.In(node, 1), WeightFrom(e, *node.input(1)));
  e.Out(node, 0, AddBias(e, node, y, 2));
}

// A convolution of the input with zeros between its elements and the kernel turned around.
void ConvTranspose(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  Tensor w = e.In(node, 1);
  const std::int64_t groups = node.IntAttribute("group", 1);
  if (x.rank() < 3 || x.rank() > 5 || w.rank() != x.rank() || x.dtype != w.dtype) {
    e.Refuse(node, "input and weight do not go together");
  }
  if (groups < 1 || w.dims[0] != x.dims[1] || w.dims[0] % groups != 0) {
    e.Misfit(node, "the weight does not fit the channels and groups");
  }
  const std::size_t n = x.rank() - 2;
  const auto list = [&](const char* name, std::size_t size, std::int64_t fallback) {
    const auto* given = node.IntsAttribute(name);
    if (given == nullptr) return Dims(size, fallback);
    if (given->size() != size) e.Refuse(node, std::string(name) + " do not fit its kernel");
    for (const std::int64_t v : *given) {
      if (v < 0 || v > (std::int64_t{1} << 31)) e.Refuse(node, std::string(name) + " of " + std::to_string(v));
    }
    return *given;
  };
  const Dims strides = list("strides", n, 1), dilations = list("dilations", n, 1);
  const Dims extra = list("output_padding", n, 0), pads = list("pads", 2 * n, 0);
  const auto* shape = node.IntsAttribute("output_shape");
  const std::string automatic = node.StringAttribute("auto_pad", "NOTSET");
  if (shape != nullptr && shape->size() != n && shape->size() != n + 2) e.Refuse(node, "output_shape does not fit");
  std::vector<WindowDim> window(n);
  for (std::size_t i = 0; i < n; ++i) {
    WindowDim& d = window[i];
    if (strides[i] < 1 || dilations[i] < 1) e.Refuse(node, "a stride or dilation of 0");
    d.size = w.dims[i + 2];
    d.dilation = dilations[i];
    d.input_dilation = strides[i];
    std::int64_t low = pads[i], high = pads[i + n];
    const std::int64_t full = (x.dims[i + 2] - 1) * strides[i] + extra[i] + d.extent();
    if (shape != nullptr || automatic.starts_with("SAME")) {
      const std::int64_t wanted = shape != nullptr ? (*shape)[shape->size() - n + i] : x.dims[i + 2] * strides[i];
      const std::int64_t total = std::max<std::int64_t>(0, full - wanted);
      low = automatic == "SAME_UPPER" ? total / 2 : total - total / 2;
      high = total - low;
      if (wanted > full) e.Refuse(node, "an output larger than what its input reaches");
    } else if (automatic == "VALID") {
      low = high = 0;
    }
    d.pad_low = d.extent() - 1 - low;
    d.pad_high = d.extent() - 1 - high + extra[i];
  }
  // [C, M/g, k..] -> [M, C/g, k..], turned around.
  const std::int64_t c = w.dims[0] / groups, m = w.dims[1];
  Dims grouped = {groups, c, m}, permutation = {0, 2, 1}, result = {groups * m, c}, spatial;
  for (std::size_t i = 0; i < n; ++i) {
    grouped.push_back(w.dims[i + 2]);
    result.push_back(w.dims[i + 2]);
    permutation.push_back(static_cast<std::int64_t>(i) + 3);
    spatial.push_back(static_cast<std::int64_t>(i) + 2);
  }
  w = e.b.Reshape(e.b.Transpose(e.b.Reshape(w, std::move(grouped)), permutation), std::move(result));
  w = e.b.Reverse(w, spatial);
  e.Out(node, 0, AddBias(e, node, e.b.Convolution(x, w, window, groups, WeightFrom(e, *node.input(1))), 2));
}

// --- pools

std::vector<WindowDim> PoolWindow(Emitter& e, const Node& node, const Tensor& x) {
  const auto* kernel = node.IntsAttribute("kernel_shape");
  if (x.rank() < 3 || kernel == nullptr || kernel->size() != x.rank() - 2) e.Refuse(node, "the kernel does not fit");
  const std::span<const std::int64_t> input(x.dims);
  std::vector<WindowDim> window = Window(e, node, input.subspan(2), *kernel, node.IntAttribute("ceil_mode", 0) != 0);
  window.insert(window.begin(), 2, WindowDim{});
  return window;
}

// Windows run over channels-last data: IREE (3.13) has pools of its own only there, and makes of others, behind a
// Concat or a normalization, functions that exceed its stack limit.
Tensor PoolOver(Emitter& e, const Tensor& x, std::span<const WindowDim> window, Reduction how) {
  const auto rank = static_cast<std::int64_t>(x.rank());
  Dims last = {0}, first = {0, rank - 1};
  std::vector<WindowDim> moved = {window[0]};
  for (std::int64_t d = 2; d < rank; ++d) {
    last.push_back(d);
    first.push_back(d - 1);
    moved.push_back(window[static_cast<std::size_t>(d)]);
  }
  last.push_back(1);
  moved.push_back(window[1]);
  return e.b.Transpose(e.b.ReduceWindow(e.b.Transpose(x, last), moved, how), first);
}

void MaxPool(Emitter& e, const Node& node) {
  if (e.Wanted(node, 1)) e.Refuse(node, "its indices are used");
  const Tensor x = e.In(node, 0);
  e.Out(node, 0, PoolOver(e, x, PoolWindow(e, node, x), Reduction::kMax));
}

void AveragePool(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  const std::vector<WindowDim> window = PoolWindow(e, node, x);
  const bool include_pads = node.IntAttribute("count_include_pad", 0) != 0;
  // pads as the node gives them; what ceil_mode adds behind is never counted
  const auto* pads = node.IntsAttribute("pads");
  const Tensor sum = PoolOver(e, x, window, Reduction::kAdd);
  // How many elements each window sees: a product over dimensions.
  Tensor counts = e.b.Splat(x.dtype, {}, 1);
  for (std::size_t d = 2; d < x.rank(); ++d) {
    const WindowDim& w = window[d];
    std::int64_t begin = 0, end = x.dims[d];
    if (include_pads) {
      begin = -w.pad_low;
      const bool automatic = node.StringAttribute("auto_pad", "NOTSET") != "NOTSET";
      end += automatic ? w.pad_high : pads != nullptr ? (*pads)[pads->size() / 2 + d - 2] : 0;
    }
    std::vector<float> seen;
    for (std::int64_t i = 0; i < sum.dims[d]; ++i) {
      std::int64_t count = 0;
      for (std::int64_t k = 0; k < w.size; ++k) {
        const std::int64_t at = i * w.stride - w.pad_low + k * w.dilation;
        count += at >= begin && at < end ? 1 : 0;
      }
      seen.push_back(static_cast<float>(std::max<std::int64_t>(count, 1)));
    }
    Dims along(x.rank(), 1);
    along[d] = sum.dims[d];
    const Tensor factor = e.b.Convert(e.b.Reshape(e.b.Floats({sum.dims[d]}, seen), along), x.dtype);
    counts = e.b.Mul(counts, factor);
  }
  e.Out(node, 0, e.b.Div(sum, counts));
}

template <bool kMean>
void GlobalPool(Emitter& e, const Node& node) {
  const Tensor x = e.In(node, 0);
  if (x.rank() < 3) e.Refuse(node, "it has no spatial dimensions");
  Dims axes(x.rank() - 2);
  std::iota(axes.begin(), axes.end(), 2);
  const Tensor y = e.b.ReduceKeep(x, axes, kMean ? Reduction::kAdd : Reduction::kMax);
  if (!kMean) return e.Out(node, 0, y);
  const std::span<const std::int64_t> dims(x.dims);
  e.Out(node, 0, e.b.Div(y, static_cast<double>(ElementCount(dims.subspan(2)))));
}

constexpr Lowering kTable[] = {
    {"Conv", "", Conv, "more than three spatial dimensions"},
    {"ConvTranspose", "", ConvTranspose,
     "more than three spatial dimensions, an output_shape beyond the input's reach"},
    {"MaxPool", "", MaxPool, "the indices"},
    {"AveragePool", "", AveragePool, ""},
    {"GlobalAveragePool", "", GlobalPool<true>, ""},
    {"GlobalMaxPool", "", GlobalPool<false>, ""},
};

}  // namespace

std::span<const Lowering> ConvLowerings() { return kTable; }

}  // namespace octavo::stablehlo
