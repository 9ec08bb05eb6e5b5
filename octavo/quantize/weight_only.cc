#include "octavo/quantize/weight_only.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/names.h"
#include "octavo/base/thread_pool.h"
#include "octavo/numerics/affine.h"
#include "octavo/numerics/half.h"
#include "octavo/ops/op_table.h"
#include "octavo/quantize/placement.h"
#include "octavo/quantize/recurrent.h"
#include "octavo/quantize/weight_ggml.h"
#include "octavo/quantize/weight_mx.h"
#include "octavo/quantize/weights.h"

namespace octavo {
namespace {

using Provider = std::optional<WeightOnlyFormat> (*)(const QuantizationConfig&);

// Convolutions with windows run in float behind a DequantizeLinear: 4 bits make only the file smaller.
constexpr std::uint64_t kLeastWindow = 65536;

std::optional<WeightOnlyFormat> Int4(const QuantizationConfig& config) {
  if (config.precision != "int4") return std::nullopt;
  WeightOnlyFormat format;
  format.name = config.precision;
  format.weight_text = "s4 symmetric, blocks of " + std::to_string(config.block) +
                       "; large tables, windows over few channels and recurrent weights s8 symmetric";
  format.bits_per_weight = 4 + 4.0 / static_cast<double>(config.block);
  format.short_blocks = true;
  format.least_window = kLeastWindow;
  format.large_as_s8 = true;
  format.encode = [block = config.block](const TensorRef& weight, std::int64_t axis,
                                         std::span<const float>) -> std::variant<EncodedWeight, std::string> {
    const std::int64_t length = weight.dims[static_cast<std::size_t>(axis)];
    if (length < block) {
      return "the dimension that it sums over has " + std::to_string(length) + " numbers, less than a block of " +
             std::to_string(block);
    }
    return EncodeAffineBlocks(weight, axis, block, DType::kS4);
  };
  return format;
}

// Every weight-only family of formats: a function that knows its names.
constexpr Provider kProviders[] = {Int4, MxWeights, GgmlWeights};

// Whether a node slides a window of more than one position over its input.
bool HasWindow(const Node& node, const TensorRef& weight) {
  return (node.Is("Conv") || node.Is("ConvTranspose")) &&
         std::any_of(weight.dims.begin() + 2, weight.dims.end(), [](std::int64_t d) { return d != 1; });
}

// A number of 11 digits in base 2, as f16 has them: times a code of 4 bits it is exact in f32.
float ElevenDigits(float x) {
  int exponent = 0;
  const float mantissa = std::frexp(x, &exponent);
  return std::ldexp(std::nearbyint(std::ldexp(mantissa, 11)), exponent - 11);
}

// The squared error of a block at a scale; what the least-squares scale of its codes is made of.
struct Fit {
  double error = 0, xq = 0, qq = 0;
};
Fit FitOf(std::span<const float> x, float scale, DType storage) {
  const auto qmin = static_cast<float>(IntegerMin(storage)), qmax = static_cast<float>(IntegerMax(storage));
  const float inverse = 1.0f / scale;
  Fit fit;
  for (const float v : x) {
    const float q = std::clamp(std::nearbyint(v * inverse), qmin, qmax);
    const double d = static_cast<double>(q) * scale - v;
    fit.error += d * d;
    fit.xq += static_cast<double>(v) * q;
    fit.qq += static_cast<double>(q) * q;
  }
  return fit;
}

constexpr float kLeastScale = std::numeric_limits<float>::min();

// The scale of a block; 0 for zeros and for what is too small to have a normal scale.
float BlockScale(std::span<const float> x, DType storage) {
  float most = 0;
  for (const float v : x) most = std::max(most, std::fabs(v));
  const float first = most / static_cast<float>(IntegerMax(storage));
  if (!(first >= kLeastScale)) return 0;
  if (BitWidth(storage) >= 8) return first;
  // A few bits: clipping the largest value a little, or using the lowest code as well, often costs less than it
  // gives. From each first scale, the scale that fits its codes best (least squares: sum x q / sum q^2).
  float best = first;
  double least = std::numeric_limits<double>::infinity();
  for (int step = 0; step <= 16; ++step) {
    float scale = first * (1.04f - 0.025f * static_cast<float>(step));
    for (int fitted = 0; fitted < 2 && scale >= kLeastScale; ++fitted) {
      const Fit fit = FitOf(x, scale, storage);
      if (fit.error < least) {
        least = fit.error;
        best = scale;
      }
      scale = fit.qq > 0 ? static_cast<float>(fit.xq / fit.qq) : 0.0f;
    }
  }
  return best;
}

constexpr int kMostScaleCode = 15;

// Scales of a line of blocks as multiples 1 .. 15 of one step, of which the largest is 15 steps: the file holds the
// step and 4 bits a block (emit/scales.h). The largest scales matter most for the error, and have the most digits.
void ScalesInSteps(std::span<const float> x, std::size_t block, DType storage, std::span<float> scales) {
  if (scales.size() == 1) {  // nothing to share: an f16 number
    scales[0] = scales[0] >= kLeastScale ? ElevenDigits(scales[0]) : 1.0f;
    return;
  }
  const float most = *std::max_element(scales.begin(), scales.end());
  if (!(most / kMostScaleCode >= kLeastScale)) {
    std::fill(scales.begin(), scales.end(), static_cast<float>(kMostScaleCode));
    return;
  }
  const std::vector<float> wanted(scales.begin(), scales.end());
  std::vector<float> trial(scales.size());
  double least = std::numeric_limits<double>::infinity();
  for (int tenth = 10; tenth >= 0; --tenth) {
    const float unit = ElevenDigits(most * (0.85f + 0.02f * static_cast<float>(tenth)) / kMostScaleCode);
    double error = 0;
    for (std::size_t b = 0; b < trial.size(); ++b) {
      const std::span<const float> part = x.subspan(b * block, std::min(block, x.size() - b * block));
      double best = std::numeric_limits<double>::infinity();
      const int below = static_cast<int>(wanted[b] / unit);
      const int from = wanted[b] == most ? kMostScaleCode : std::clamp(below, 1, kMostScaleCode);
      for (int code = from; code <= std::min(from + 1, kMostScaleCode); ++code) {
        const double e = FitOf(part, unit * static_cast<float>(code), storage).error;
        if (e < best) {
          best = e;
          trial[b] = unit * static_cast<float>(code);
        }
      }
      error += best;
    }
    if (error < least) {
      least = error;
      std::copy(trial.begin(), trial.end(), scales.begin());
    }
  }
}

bool FloatWeight(const Value* v) {
  return v != nullptr && v->is_constant() && v->data && v->data->dtype == DType::kF32 && !v->type.quant;
}

}  // namespace

std::optional<WeightOnlyFormat> FindWeightOnlyFormat(const QuantizationConfig& config) {
  for (const Provider provider : kProviders) {
    if (std::optional<WeightOnlyFormat> format = provider(config)) return format;
  }
  return std::nullopt;
}

EncodedWeight EncodeAffineBlocks(const TensorRef& weight, std::int64_t axis, std::int64_t block, DType storage) {
  const Dims& dims = weight.dims;
  if (axis < 0 || axis >= static_cast<std::int64_t>(dims.size()) || block < 1 || !IsSignedInteger(storage)) {
    ThrowInternal("blocks along an axis that the weight does not have");
  }
  std::vector<float> converted;
  const std::span<const float> w = FloatView(weight, converted);
  const std::int64_t length = dims[static_cast<std::size_t>(axis)];
  const std::int64_t blocks = (length + block - 1) / block;
  std::int64_t outer = 1, inner = 1;
  for (std::int64_t i = 0; i < axis; ++i) outer *= dims[static_cast<std::size_t>(i)];
  for (std::size_t i = static_cast<std::size_t>(axis) + 1; i < dims.size(); ++i) inner *= dims[i];

  Dims scale_dims = dims;
  scale_dims[static_cast<std::size_t>(axis)] = blocks;
  std::vector<float> scales(static_cast<std::size_t>(outer * blocks * inner));
  const std::optional<std::uint64_t> bytes = ByteSize(storage, w.size());
  if (!bytes) ThrowInternal("weight too large");
  SpillBuffer codes(static_cast<std::size_t>(*bytes));
  const int bits = BitWidth(storage);
  const auto put = [&](std::int64_t at, std::int64_t code) {
    if (bits == 4) {
      auto& byte = codes.data()[at / 2];
      const auto nibble = static_cast<unsigned>(code) & 0xFu;
      byte = at % 2 == 0 ? (byte & std::byte{0xF0}) | static_cast<std::byte>(nibble)
                         : (byte & std::byte{0x0F}) | static_cast<std::byte>(nibble << 4);
    } else {
      for (int b = 0; b < bits / 8; ++b) {
        codes.data()[at * (bits / 8) + b] =
            static_cast<std::byte>((static_cast<std::uint64_t>(code) >> (8 * b)) & 0xFF);
      }
    }
  };
  std::vector<float> line(static_cast<std::size_t>(length)), line_scales(static_cast<std::size_t>(blocks));
  for (std::int64_t o = 0; o < outer; ++o) {
    CheckInterrupt();
    for (std::int64_t i = 0; i < inner; ++i) {
      const std::int64_t from = o * length * inner + i;
      for (std::int64_t k = 0; k < length; ++k) line[static_cast<std::size_t>(k)] = w[from + k * inner];
      for (std::int64_t b = 0; b < blocks; ++b) {
        const auto n = static_cast<std::size_t>(std::min(block, length - b * block));
        line_scales[static_cast<std::size_t>(b)] =
            BlockScale(std::span(line).subspan(static_cast<std::size_t>(b * block), n), storage);
      }
      if (bits < 8) ScalesInSteps(line, static_cast<std::size_t>(block), storage, line_scales);
      for (std::int64_t b = 0; b < blocks; ++b) {
        float& scale = line_scales[static_cast<std::size_t>(b)];
        if (!(scale >= kLeastScale)) scale = 1;
        scales[static_cast<std::size_t>((o * blocks + b) * inner + i)] = scale;
      }
      for (std::int64_t k = 0; k < length; ++k) {
        put(from + k * inner, QuantizeOne(line[static_cast<std::size_t>(k)],
                                          line_scales[static_cast<std::size_t>(k / block)], 0, storage));
      }
    }
  }
  codes.Release();
  EncodedWeight out;
  out.type.affine.storage = storage;
  out.type.affine.axis = axis;
  out.type.affine.block = block;
  out.type.affine.scale = TensorRef::FromFloats(scale_dims, scales);
  out.data = TensorRef::FromBuffer(storage, dims, std::move(codes));
  return out;
}

std::variant<WeightSite, std::string> FindWeightSite(Node& node, std::int64_t block, bool short_blocks) {
  const OpInfo& info = FindOp(node);
  const bool gather = node.Is("Gather");
  const bool matmul = node.Is("MatMul");
  if (!gather && info.category != OpCategory::kWeighted && info.category != OpCategory::kMatMul) return std::string();
  WeightSite site;
  site.node = &node;
  site.input = gather ? 0 : 1;
  if (info.weight_input < 0 && !gather) return std::string();
  // The constant, seen through Transposes: order[i] is the constant's dimension that stands at i.
  const auto look = [&](Value* v) -> std::optional<std::vector<std::int64_t>> {
    std::vector<std::vector<std::int64_t>> perms;
    site.last_view = nullptr;
    while (v != nullptr && v->producer() != nullptr && v->producer()->Is("Transpose") && perms.size() < 8) {
      const std::vector<std::int64_t>* perm = v->producer()->IntsAttribute("perm");
      perms.push_back(perm == nullptr ? std::vector<std::int64_t>() : *perm);
      site.last_view = v->producer();
      v = v->producer()->input(0);
    }
    if (!FloatWeight(v)) return std::nullopt;
    site.weight = v;
    const std::size_t rank = v->data->dims.size();
    std::vector<std::int64_t> order(rank);
    for (std::size_t i = 0; i < rank; ++i) order[i] = static_cast<std::int64_t>(i);
    for (auto it = perms.rbegin(); it != perms.rend(); ++it) {
      std::vector<std::int64_t> next(rank);
      if (!it->empty() && it->size() != rank) return std::nullopt;
      for (std::size_t i = 0; i < rank; ++i) {
        const std::int64_t from = it->empty() ? static_cast<std::int64_t>(rank - 1 - i) : (*it)[i];
        if (from < 0 || from >= static_cast<std::int64_t>(rank)) return std::nullopt;
        next[i] = order[static_cast<std::size_t>(from)];
      }
      order = next;
    }
    return order;
  };
  std::optional<std::vector<std::int64_t>> order = look(node.input(site.input));
  if (!order && matmul) {
    site.input = 0;
    order = look(node.input(0));
  }
  if (!order) {
    return gather ? std::string() : std::string(matmul ? "both operands are computed" : "its weight is computed");
  }
  const std::size_t rank = order->size();
  if (rank < 2) return gather ? std::string() : "its weight has " + std::to_string(rank) + " dimensions";
  if (site.weight->graph() != node.graph()) return std::string("its weight comes from an enclosing graph");
  std::optional<std::int64_t> axis;
  if (gather) {
    if (node.IntAttribute("axis", 0) != 0) return std::string("it does not gather whole rows");
    axis = static_cast<std::int64_t>(rank) - 1;
  } else if (matmul) {
    axis = static_cast<std::int64_t>(site.input == 1 ? rank - 2 : rank - 1);
  } else {
    axis = ResolveAxis(info.contracted_axis, node, rank);
    if (!short_blocks && (node.Is("Conv") || node.Is("ConvTranspose"))) {
      for (std::size_t i = 2; i < rank; ++i) {
        if (site.weight->data->dims[static_cast<std::size_t>((*order)[i])] != 1) {
          return std::string("it sums over a window as well as over channels: blocks have one dimension");
        }
      }
    }
  }
  if (!axis) return std::string("the dimension that it sums over is not known");
  site.axis = (*order)[static_cast<std::size_t>(*axis)];
  const std::int64_t length = site.weight->data->dims[static_cast<std::size_t>(site.axis)];
  if (short_blocks) {
    if (length < 2)
      return std::string("the dimension that it sums over has one number: there is nothing to share a scale");
  } else if (length < block) {
    return "the dimension that it sums over has " + std::to_string(length) + " numbers, less than a block of " +
           std::to_string(block);
  }
  return site;
}

namespace {

// A weight as s8 with a scale for each index along `axis`.
EncodedWeight EncodeChannels(const TensorRef& weight, std::int64_t axis) {
  QuantizedWeight quantized =
      QuantizeWeight(weight, axis, {.storage = DType::kS8, .per_channel = true, .symmetric = true});
  EncodedWeight out;
  out.type.affine.storage = DType::kS8;
  out.type.affine.axis = axis;
  std::vector<float> scales;
  for (const AffineParams& p : quantized.params) scales.push_back(p.scale);
  out.type.affine.scale = TensorRef::FromFloats({static_cast<std::int64_t>(scales.size())}, scales);
  quantized.codes.Release();
  out.data = TensorRef::FromBuffer(DType::kS8, weight.dims, std::move(quantized.codes));
  return out;
}

// Tables of at least `least` numbers, which operators of the main graph move or add up, and none reads as its weight:
// codes of s8 with a scale for each row, cast and multiplied. The runtime computes them when it loads the model, and
// then has the constant again: a DequantizeLinear would run each time, and ONNX Runtime 1.31 moves Transposes through
// one and a cubic Resize behind it into a form that the Resize refuses.
void StoreTables(Graph& graph, const QuantizationConfig& config, std::uint64_t least,
                 const std::set<std::string>& weights, QuantizeResult& result) {
  std::vector<Value*> tables;
  std::set<const Value*> seen;
  VisitNodes(graph, [&](Node& node) {
    if (node.graph() != &graph) return;
    for (Value* v : node.inputs()) {
      if (!FloatWeight(v) || v->graph() != &graph || !seen.insert(v).second) continue;
      const Dims& dims = v->data->dims;
      if (dims.size() < 2 || dims.back() < config.block || v->data->elements() < least || !v->output_uses().empty() ||
          weights.contains(v->name()) || OverrideOf(config, v->name()) != DType::kUndefined) {
        continue;
      }
      static constexpr std::string_view kReaders[] = {"Add",    "Concat",  "Expand",    "Mul",       "Pad",
                                                      "Resize", "Reshape", "Slice",     "Squeeze",   "Split",
                                                      "Sub",    "Tile",    "Transpose", "Unsqueeze", "Where"};
      const bool moved = std::all_of(v->uses().begin(), v->uses().end(), [&](const Use& use) {
        const Node& user = *use.node;
        return user.graph() == &graph && user.domain().empty() && KeptByUser(user, config).empty() &&
               std::find(std::begin(kReaders), std::end(kReaders), user.op()) != std::end(kReaders);
      });
      const std::vector<float> values = v->data->ToFloats();
      if (moved && std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); })) {
        tables.push_back(v);
      }
    }
  });
  for (Value* table : tables) {
    const Dims dims = table->data->dims;
    const std::int64_t row = dims.back(), rows = static_cast<std::int64_t>(table->data->elements()) / row;
    const EncodedWeight encoded = EncodeChannels(TensorRef::FromFloats({rows, row}, table->data->ToFloats()), 0);
    result.nodes_quantized += static_cast<std::int64_t>(table->uses().size());
    Dims scale_dims = dims;
    scale_dims.back() = 1;
    const std::string name = table->name();
    Node* before = graph.first();
    Value* codes = graph.AddConstant(
        name + "_s8", TensorRef::FromBytes(DType::kS8, dims, {encoded.data.bytes.begin(), encoded.data.bytes.end()}));
    Value* scales =
        graph.AddConstant(name + "_row_scale", TensorRef::FromFloats(scale_dims, encoded.type.affine.scale.ToFloats()));
    Type type = table->type;
    Node* cast = graph.AddNode("Cast", "", {codes}, {{name + "_wide", type}}, before);
    cast->SetAttribute("to", std::int64_t{1});
    Node* product = graph.AddNode("Mul", "", {cast->output(), scales}, {{name + "_table", type}}, before);
    graph.ReplaceAllUses(table, product->output());
    graph.Erase(table);
  }
}

}  // namespace

void QuantizeWeightsOnly(Model& model, const QuantizationConfig& config, const WeightOnlyFormat& format, int threads,
                         QuantizeResult& result, const WeightImportance& importance) {
  CheckSelectors(model, config);
  Graph& graph = *model.graph;
  struct Job {
    Value* weight = nullptr;
    std::int64_t axis = 0;
    DType storage = DType::kUndefined;  // of an override; undefined: the format
    bool channels = false;              // a scale for each index of the axis
    std::vector<WeightSite> sites;
    std::variant<EncodedWeight, std::string> encoded;
  };
  std::vector<Job> jobs;
  std::set<std::string> weights;                                       // that could be stored in blocks
  std::map<std::pair<std::string, std::int64_t>, std::size_t> job_of;  // by name: the same order in every build
  const auto skip = [&result](const Node& node, std::string reason) {
    result.nodes_skipped.push_back({NodeName(node), node.op(), std::move(reason)});
  };
  VisitNodes(graph, [&](Node& node) {
    ++result.nodes_total;
    std::variant<WeightSite, std::string> found = FindWeightSite(node, config.block, format.short_blocks);
    if (const auto* reason = std::get_if<std::string>(&found)) {
      if (!reason->empty()) skip(node, *reason);
      return;
    }
    const WeightSite& site = std::get<WeightSite>(found);
    weights.insert(site.weight->name());
    if (node.graph() != &graph) return skip(node, "it stands in a subgraph");
    if (std::string asked = KeptByUser(node, config); !asked.empty()) return skip(node, std::move(asked));
    const DType type = OverrideOf(config, site.weight->name());
    if (type == DType::kF32) return skip(node, "its weight is overridden to f32");
    if (type != DType::kUndefined && !IsSignedInteger(type)) {
      ThrowUsage(
          "weight '" + site.weight->name() + "' cannot be stored in symmetric blocks of " + std::string(Name(type)),
          "--override", "use s8, s16 or f32");
    }
    const std::uint64_t numbers = site.weight->data->elements();
    if (type == DType::kUndefined && numbers < format.least_window && HasWindow(node, *site.weight->data)) {
      return skip(node, "its windows have " + std::to_string(numbers) + " numbers: less than the " +
                            std::to_string(format.least_window) + " from which on " + format.name +
                            " is worth its error");
    }
    std::int64_t axis = site.axis;
    bool channels = false;
    if (type == DType::kUndefined && format.large_as_s8 && site.last_view == nullptr &&
        HasWindow(node, *site.weight->data) && site.weight->data->dims[static_cast<std::size_t>(axis)] < config.block) {
      const std::optional<std::int64_t> channel =
          ResolveAxis(FindOp(node).channel_axis, node, site.weight->data->dims.size());
      channels = channel.has_value();
      if (channels) axis = *channel;
    }
    const auto [at, fresh] = job_of.emplace(std::pair(site.weight->name(), axis), jobs.size());
    if (fresh) jobs.push_back({site.weight, axis, type, channels, {}, {}});
    jobs[at->second].sites.push_back(site);
  });
  for (const auto& [pattern, type] : config.overrides) {
    const auto matches = [&p = pattern](const std::string& name) { return p == name || GlobMatch(p, name); };
    if (std::none_of(weights.begin(), weights.end(), matches)) {
      ThrowUsage("the override of '" + pattern + "' has no effect with precision '" + config.precision +
                     "': it is no weight that is stored in blocks",
                 "--override", DidYouMean(pattern, std::vector<std::string>(weights.begin(), weights.end())));
    }
  }
  ParallelFor(jobs.size(), threads, [&](std::size_t i) {
    Job& job = jobs[i];
    CheckInterrupt();
    std::vector<float> converted;
    const std::span<const float> values = FloatView(*job.weight->data, converted);
    if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) {
      job.encoded = std::string("its weight holds NaN or infinity");
    } else if (job.channels) {
      job.encoded = EncodeChannels(*job.weight->data, job.axis);
    } else if (job.storage != DType::kUndefined) {
      job.encoded = EncodeAffineBlocks(*job.weight->data, job.axis, config.block, job.storage);
    } else {
      const auto found = importance.find({job.weight->name(), job.axis});
      job.encoded = format.encode(*job.weight->data, job.axis,
                                  found == importance.end() ? std::span<const float>() : found->second);
    }
  });
  for (Job& job : jobs) {
    if (const auto* reason = std::get_if<std::string>(&job.encoded)) {
      for (const WeightSite& site : job.sites) skip(*site.node, *reason);
      continue;
    }
    auto& encoded = std::get<EncodedWeight>(job.encoded);
    Value* old = job.weight;
    Type type = TypeOf(*old->data);
    type.quant = std::move(encoded.type);
    Value* fresh = graph.AddConstant(old->name(), std::move(encoded.data), std::move(type));
    for (const WeightSite& site : job.sites) {
      ++result.nodes_quantized;
      if (site.last_view != nullptr) {
        // Other readers of the same view see the same numbers: the view itself is what the next node reads.
        if (site.last_view->input(0) == old) site.last_view->SetInput(0, fresh);
      } else {
        site.node->SetInput(site.input, fresh);
      }
    }
    if (old->dead()) {
      const std::string name = old->name();
      graph.Erase(old);
      graph.Rename(fresh, name);
    }
  }
  if (format.large_as_s8) {
    StoreTables(graph, config, format.least_window, weights, result);
    // As faithful as 8 bits a row are without far outliers: 38 dB.
    result.nodes_quantized +=
        static_cast<std::int64_t>(StoreRecurrentWeights(model, config, DType::kS8, 1.6e-4, threads).size());
  }
}

}  // namespace octavo
