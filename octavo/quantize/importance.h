// Importance matrices: how much each column of a weight matters, as the mean square of the input that it is multiplied
// with (what ggml's encoders take as their weights). Gathered inside the calibration run from the exact channel sums of
// the statistics, so that shards and threads leave no trace; or read from a file.
#pragma once

#include <filesystem>
#include <vector>

#include "octavo/calibrate/calibrate.h"
#include "octavo/calibrate/statistics.h"
#include "octavo/import/data.h"
#include "octavo/ir/graph.h"
#include "octavo/quantize/config.h"
#include "octavo/quantize/quantize.h"
#include "octavo/quantize/weight_only.h"

namespace octavo {

// What must be observed of a prepared model: the inputs of the nodes whose weights a weight-only precision stores,
// along the axis that they sum over. An input that is read along two axes has no sums and is left out. Empty for a
// precision that takes no importance.
std::vector<ObserveSpec> ImportanceSpecs(const Model& prepared, const QuantizationConfig& config);

// The importance of every weight whose inputs were all observed along its axis and held no infinity. A weight with
// several users counts all of them. Zeros only (an input that is always 0) count as no importance.
WeightImportance ImportanceFrom(const Model& prepared, const QuantizationConfig& config, const Statistics& statistics);

// From llama.cpp's importance matrix files (import/gguf_imatrix.h), entries named like the initializers. Errors:
// kBadInput for an entry of another length than the rows of its weight, or when no entry belongs to a weight.
WeightImportance ReadImportance(const Model& prepared, const QuantizationConfig& config,
                                const std::filesystem::path& file);

// The one place that decides where a weight-only quantization's importance comes from: config.imatrix,
// config.load_path, the cache's or a new calibration on `data`, or nowhere (null data). Fills the calibration part of
// `result`, writes config.save_path. Errors: as above, and as Quantize for statistics of another model.
WeightImportance FindImportance(const Model& prepared, const QuantizationConfig& config, const DataSource* data,
                                int threads, StatisticsCache* cache, QuantizeResult& result);

}  // namespace octavo
