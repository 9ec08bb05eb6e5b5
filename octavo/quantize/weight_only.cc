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
#include "octavo/quantize/weight_ggml.h"
#include "octavo/quantize/weight_mx.h"

namespace octavo {
namespace {

using Provider = std::optional<WeightOnlyFormat> (*)(const QuantizationConfig&);

// Convolutions with windows run in float behind a DequantizeLinear: 4 bits make only the file smaller.
constexpr std::uint64_t kLeastWindow = 65536;

std::optional<WeightOnlyFormat> Int4(const QuantizationConfig& config) {
  if (config.precision != "int4") return std::nullopt;
  WeightOnlyFormat format;
  format.name = config.precision;
  format.weight_text = "s4 symmetric, blocks of " + std::to_string(config.block);
  format.bits_per_weight = 4 + 16.0 / static_cast<double>(config.block);
  format.short_blocks = true;
  format.least_window = kLeastWindow;
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

// The f16 number next to a scale, where f16 has its full 11 digits: such scales take two bytes in the file.
float HalfScale(float scale) {
  const float half = HalfToFloat(FloatToHalf(scale));
  return half >= 6.103515625e-5f && half <= 65504.0f ? half : scale;
}

// Scale and codes of one block, of which element i is x[i * stride].
float EncodeBlock(const float* x, std::int64_t n, std::int64_t stride, DType storage, std::int64_t* codes) {
  const auto qmin = static_cast<float>(IntegerMin(storage)), qmax = static_cast<float>(IntegerMax(storage));
  float most = 0;
  for (std::int64_t i = 0; i < n; ++i) most = std::max(most, std::fabs(x[i * stride]));
  float best = most / qmax;
  if (!(best >= std::numeric_limits<float>::min())) {  // zeros, or too small to have a normal scale
    std::fill_n(codes, n, 0);
    return 1.0f;
  }
  if (BitWidth(storage) < 8) {
    // A few bits: clipping the largest value a little, or using the lowest code as well, often costs less than it
    // gives. From each first scale, the scale that fits its codes best (least squares: sum x q / sum q^2).
    double least = std::numeric_limits<double>::infinity();
    const float first = best;
    const auto measure = [&](float scale, double& xq, double& qq) {
      double error = 0;
      const float inverse = 1.0f / scale;
      for (std::int64_t i = 0; i < n; ++i) {
        const float v = x[i * stride];
        const float q = std::clamp(std::nearbyint(v * inverse), qmin, qmax);
        const double d = static_cast<double>(q) * scale - v;
        error += d * d;
        xq += static_cast<double>(v) * q;
        qq += static_cast<double>(q) * q;
      }
      if (error < least) {
        least = error;
        best = scale;
      }
    };
    for (int step = 0; step <= 16; ++step) {
      const float scale = HalfScale(first * (1.04f - 0.025f * static_cast<float>(step)));
      if (!(scale >= std::numeric_limits<float>::min())) break;
      double xq = 0, qq = 0;
      measure(scale, xq, qq);
      const auto fitted = qq > 0 ? HalfScale(static_cast<float>(xq / qq)) : 0.0f;
      if (fitted >= std::numeric_limits<float>::min()) measure(fitted, xq, qq);
    }
  }
  for (std::int64_t i = 0; i < n; ++i) codes[i] = QuantizeOne(x[i * stride], best, 0, storage);
  return best;
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
  std::vector<std::int64_t> block_codes(static_cast<std::size_t>(block));
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
  for (std::int64_t o = 0; o < outer; ++o) {
    CheckInterrupt();
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t n = std::min(block, length - b * block);
      for (std::int64_t i = 0; i < inner; ++i) {
        const std::int64_t from = (o * length + b * block) * inner + i;
        scales[static_cast<std::size_t>((o * blocks + b) * inner + i)] =
            EncodeBlock(w.data() + from, n, inner, storage, block_codes.data());
        for (std::int64_t k = 0; k < n; ++k) put(from + k * inner, block_codes[static_cast<std::size_t>(k)]);
      }
    }
  }
  EncodedWeight out;
  out.type.affine.storage = storage;
  out.type.affine.axis = axis;
  out.type.affine.block = block;
  out.type.affine.scale = TensorRef::FromFloats(scale_dims, scales);
  codes.Release();
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

void QuantizeWeightsOnly(Model& model, const QuantizationConfig& config, const WeightOnlyFormat& format, int threads,
                         QuantizeResult& result, const WeightImportance& importance) {
  CheckSelectors(model, config);
  Graph& graph = *model.graph;
  struct Job {
    Value* weight = nullptr;
    std::int64_t axis = 0;
    DType storage = DType::kUndefined;  // of an override; undefined: the format
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
    const auto [at, fresh] = job_of.emplace(std::pair(site.weight->name(), site.axis), jobs.size());
    if (fresh) jobs.push_back({site.weight, site.axis, type, {}, {}});
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
}

}  // namespace octavo
