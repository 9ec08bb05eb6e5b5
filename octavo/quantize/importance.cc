#include "octavo/quantize/importance.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <variant>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/base/names.h"
#include "octavo/import/gguf_imatrix.h"
#include "octavo/numerics/exact_sum.h"
#include "octavo/quantize/channel_axes.h"

namespace octavo {
namespace {

using Key = std::pair<std::string, std::int64_t>;  // weight, axis

struct Reader {
  std::string input;  // the value that is multiplied with the weight
  int axis = 0;       // of it
};
struct Weight {
  std::int64_t columns = 0;
  std::vector<Reader> readers;
  bool complete = true;  // every user is a reader
};

// The input that a site multiplies its weight with, and its contracted axis; no value where there is none.
std::optional<Reader> ReaderOf(const WeightSite& site) {
  const Node& node = *site.node;
  const Value* x = nullptr;
  int axis = -1;
  if (node.Is("MatMul")) {
    x = node.input(1 - site.input);
    axis = site.input == 1 ? -1 : -2;
  } else if (node.Is("Gemm")) {
    x = node.input(0);
    axis = node.IntAttribute("transA", 0) != 0 ? 0 : 1;
  } else if (node.Is("Conv") || node.Is("ConvTranspose")) {
    if (node.IntAttribute("group", 1) != 1) return std::nullopt;  // groups sum over channels of their own
    x = node.input(0);
    axis = 1;
  }
  if (x == nullptr || x->is_constant() || !IsFloat(x->type.dtype) || x->type.quant) return std::nullopt;
  if (x->type.shape && x->type.shape->size() < 2) axis = -1;
  return Reader{x->name(), axis};
}

std::map<Key, Weight> WeightsOf(const Model& model, const QuantizationConfig& config) {
  std::map<Key, Weight> weights;
  VisitNodes(*model.graph, [&](Node& node) {
    if (node.graph() != model.graph.get()) return;
    const std::variant<WeightSite, std::string> found = FindWeightSite(node, config.block);
    const auto* site = std::get_if<WeightSite>(&found);
    if (site == nullptr) return;
    Weight& weight = weights[{site->weight->name(), site->axis}];
    weight.columns = site->weight->data->dims[static_cast<std::size_t>(site->axis)];
    if (std::optional<Reader> reader = ReaderOf(*site)) {
      weight.readers.push_back(std::move(*reader));
    } else {
      weight.complete = false;
    }
  });
  return weights;
}

bool TakesImportance(const QuantizationConfig& config) {
  const std::optional<WeightOnlyFormat> format = FindWeightOnlyFormat(config);
  return format && format->takes_importance;
}

double Seconds(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void RequireModel(const Statistics& statistics, const Model& model, const std::string& path) {
  if (statistics.model_sha256 != ModelFingerprint(model)) {
    ThrowUsage("the statistics belong to another model, or to the same one prepared for another precision", path,
               "calibrate this model");
  }
}

}  // namespace

std::vector<ObserveSpec> ImportanceSpecs(const Model& prepared, const QuantizationConfig& config) {
  if (!TakesImportance(config)) return {};
  ChannelAxes axes;
  for (const auto& [key, weight] : WeightsOf(prepared, config)) {
    if (!weight.complete) continue;
    for (const Reader& reader : weight.readers) axes.Add(reader.input, reader.axis);
  }
  return axes.Specs();
}

WeightImportance ImportanceFrom(const Model& prepared, const QuantizationConfig& config, const Statistics& statistics) {
  std::set<std::string> observed;
  for (const ObserveSpec& spec : ImportanceSpecs(prepared, config)) observed.insert(spec.value);
  WeightImportance out;
  for (const auto& [key, weight] : WeightsOf(prepared, config)) {
    if (!weight.complete || weight.readers.empty()) continue;
    const auto columns = static_cast<std::size_t>(weight.columns);
    std::vector<ExactSum> sums(columns);
    double count = 0;  // of squares in each sum
    const bool known = std::all_of(weight.readers.begin(), weight.readers.end(), [&](const Reader& reader) {
      const TensorStatistics* t = statistics.Find(reader.input);
      if (!observed.contains(reader.input) || t == nullptr || !t->channels || !t->channels->finite ||
          t->channels->squares.size() != columns) {
        return false;
      }
      for (std::size_t c = 0; c < columns; ++c) sums[c].Merge(t->channels->squares[c]);
      count += static_cast<double>(t->range.elements) / static_cast<double>(columns);
      return true;
    });
    if (!known || !(count > 0)) continue;
    std::vector<float> importance(columns);
    for (std::size_t c = 0; c < columns; ++c) importance[c] = static_cast<float>(sums[c].ToDouble() / count);
    // Squares beyond f32 would be no weights; zeros only would leave nothing of the weight.
    const bool usable =
        std::all_of(importance.begin(), importance.end(), [](float v) { return std::isfinite(v) && v >= 0; }) &&
        std::any_of(importance.begin(), importance.end(), [](float v) { return v > 0; });
    if (usable) out[key] = std::move(importance);
  }
  return out;
}

WeightImportance ReadImportance(const Model& prepared, const QuantizationConfig& config,
                                const std::filesystem::path& file) {
  const Imatrix matrix = ReadImatrix(file);
  WeightImportance out;
  std::vector<std::string> names;
  for (const auto& [key, weight] : WeightsOf(prepared, config)) {
    names.push_back(key.first);
    const auto found = matrix.find(key.first);
    if (found == matrix.end()) continue;
    if (found->second.size() != static_cast<std::size_t>(weight.columns)) {
      ThrowBadInput("importance of " + std::to_string(found->second.size()) + " columns for a weight with rows of " +
                        std::to_string(weight.columns),
                    file.string() + ", " + key.first, "it was made with another model");
    }
    out[key] = found->second;
  }
  if (out.empty()) {
    ThrowBadInput("no entry of the importance matrix belongs to a weight that is stored in blocks", file.string(),
                  matrix.empty() ? "it is empty" : DidYouMean(matrix.begin()->first, names));
  }
  return out;
}

WeightImportance FindImportance(const Model& prepared, const QuantizationConfig& config, const DataSource* data,
                                int threads, StatisticsCache* cache, QuantizeResult& result) {
  if (!TakesImportance(config)) return {};
  WeightImportance importance;
  if (!config.imatrix.empty()) {
    importance = ReadImportance(prepared, config, config.imatrix);
    result.calibration_source = "loaded";
  } else {
    Statistics statistics;
    if (!config.load_path.empty()) {
      statistics = LoadStatistics(config.load_path);
      RequireModel(statistics, prepared, config.load_path);
      result.calibration_source = "loaded";
    } else if (data == nullptr) {
      if (!config.save_path.empty()) {
        ThrowUsage("there are no statistics to save without data", "--save-statistics", "give --data D");
      }
      return {};
    } else if (cache != nullptr && cache->found && cache->found->model_sha256 == ModelFingerprint(prepared)) {
      statistics = *std::move(cache->found);
      cache->found.reset();
      cache->used = true;
      result.calibration_source = "data";
    } else {
      const std::vector<ObserveSpec> specs = ImportanceSpecs(prepared, config);
      if (specs.empty()) return {};
      const auto start = std::chrono::steady_clock::now();
      CalibrateOptions options;
      options.threads = threads;
      options.method = MethodName(config.calibration);
      const std::size_t count = std::min<std::size_t>(data->size(), static_cast<std::size_t>(config.samples));
      statistics = Calibrate(prepared, *data, 0, count, specs, options);
      result.calibration_seconds = Seconds(start);
      result.calibration_source = "data";
      if (cache != nullptr && cache->keep) cache->keep(statistics);
    }
    result.calibration_samples = static_cast<std::int64_t>(statistics.samples.size());
    if (!config.save_path.empty()) SaveStatistics(statistics, config.save_path);
    importance = ImportanceFrom(prepared, config, statistics);
  }
  LogInfo("importance of the columns of " + std::to_string(importance.size()) + " weights");
  return importance;
}

}  // namespace octavo
