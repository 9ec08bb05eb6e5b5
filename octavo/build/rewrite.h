// `octavo rewrite`: a quantized ONNX model in, the form that the device's kernels want out.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "octavo/device/descriptor.h"
#include "octavo/import/data.h"
#include "octavo/ir/graph.h"
#include "octavo/rewrite/quantized.h"

namespace octavo {

struct RewriteFileOptions {
  std::filesystem::path model;
  std::vector<std::pair<std::string, std::int64_t>> dims;
  const DeviceDescriptor* device = nullptr;
  QuantizedRewriteOptions rules;
};

struct RewriteFileResult {
  QuantizedRewriteResult rewrite;
  std::size_t nodes_before = 0, nodes_after = 0;  // of the file
  std::size_t nodes_loaded = 0;                   // by the check of the result; 0 where nothing is written
  std::uint64_t bytes_before = 0, bytes_after = 0;
  double seconds = 0;  // reading, rewriting and writing; the check of the result is not counted
};

// Rewrites a plain ONNX model in place (as ReadOnnx or LowerToQdq leaves it); the result is plain ONNX again.
// Error(kUnsupported) for a model that is compiled for a device already; a float model comes out as it is.
QuantizedRewriteResult RewriteOnnx(Model& model, const DeviceDescriptor& device, const QuantizedRewriteOptions& rules);

// Rewrites a file. An empty `out`: nothing is written (--dry-run). A result that the runtime refuses is an error, and
// is not written.
RewriteFileResult RewriteFile(const RewriteFileOptions& options, const std::filesystem::path& out);

// Which application of a rule changed the model's outputs most. The first n applications of a run are always the same,
// so the one at which the outputs' error first passes half of what all of them make is found by bisection.
struct BisectResult {
  std::uint64_t applications = 0;  // in all
  double error_db = 0;             // SQNR of the rewritten model against the one given, optimizations off
  std::uint64_t first = 0;         // number of the application that was found, from 1; 0: the outputs are equal
  std::string rule, node;
  double before_db = 0, after_db = 0;  // SQNR without it and with it
  int runs = 0;                        // models that were compared
};
BisectResult BisectRewrite(const RewriteFileOptions& options, const DataSource& data, std::size_t samples, int threads);

std::string Summary(const RewriteFileResult& result);
std::string Trace(const RewriteResult& result);  // a line for each application and each refusal
std::string Summary(const BisectResult& result);
std::string ToJson(const RewriteFileResult& result);

}  // namespace octavo
