#include "octavo/build/rewrite.h"

#include <algorithm>
#include <cstdio>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/base/resources.h"
#include "octavo/build/load_check.h"
#include "octavo/build/pipeline.h"
#include "octavo/device/kernels.h"
#include "octavo/emit/onnx.h"
#include "octavo/import/onnx.h"
#include "octavo/numerics/error_stats.h"
#include "octavo/rewrite/passes.h"
#include "octavo/runtime/session.h"
#include "octavo/validate/json_writer.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

Model Read(const RewriteFileOptions& options) {
  Model model = ReadOnnx(options.model);
  if (HasEpContext(model)) {
    ThrowUnsupported("the model holds an EPContext node: it is compiled for a device already", options.model.string(),
                     "rewrite the model that it was compiled from");
  }
  if (!options.dims.empty()) FixDims(model, options.dims);
  return model;
}

double SqnrDb(const std::vector<std::vector<TensorRef>>& reference, const Session& candidate, const DataSource& data) {
  ErrorStats stats;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    const std::vector<TensorRef> got = candidate.Run(data.Read(i).tensors, candidate.TensorOutputs());
    for (std::size_t o = 0; o < got.size() && o < reference[i].size(); ++o) {
      if (!IsFloat(got[o].dtype) && !IsInteger(got[o].dtype)) continue;
      stats.Add(reference[i][o].ToFloats(), got[o].ToFloats());
    }
  }
  return std::clamp(stats.SqnrDb(), -300.0, 300.0);
}

std::string Percent(double part, double all) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %%", all > 0 ? 100 * part / all : 0.0);
  return text;
}

// Kernels that take codes came with later operator sets. Where the model has an operator that such a kernel could run
// and every node's meaning survives the raise, it is raised; else the rules say which set they miss.
void RaiseForKernels(Model& model, const DeviceDescriptor& device) {
  std::int64_t need = 0;
  VisitNodes(static_cast<const Graph&>(*model.graph), [&](const Node& node) {
    if (!node.domain().empty() || node.input(0) == nullptr || !node.input(0)->type.quant) return;
    const IntegerKernel* kernel = FindIntegerKernel(device, node.op(), KernelKind::kOnCodes);
    if (kernel != nullptr) need = std::max(need, kernel->opset);
  });
  if (need <= model.OpsetVersion()) return;
  Model raised = Clone(model);
  try {
    RaiseOpset(raised, need, "operators on codes");
  } catch (const Error& error) {
    if (error.code() != ExitCode::kUnsupported) throw;
    LogWarning(std::string("the model keeps its operator set: ") + error.what());
    return;
  }
  model = std::move(raised);
}

}  // namespace

QuantizedRewriteResult RewriteOnnx(Model& model, const DeviceDescriptor& device, const QuantizedRewriteOptions& rules) {
  FoldQuantized(model);
  RaiseForKernels(model, device);
  QuantizedRewriteResult result = RewriteQuantized(model, device, rules);
  RaiseOpsetForQuantization(model);
  LowerToQLinear(model);
  RewriteLowered(model, device, rules, result);
  return result;
}

RewriteFileResult RewriteFile(const RewriteFileOptions& options, const fs::path& out) {
  Stopwatch time;
  RewriteFileResult result;
  Model model = Read(options);
  if (!IsQuantized(model)) {
    LogWarning("the model is not quantized: there is nothing to rewrite; quantize it first (octavo quantize)");
  }
  std::error_code error;
  result.bytes_before = fs::file_size(options.model, error);
  VisitNodes(static_cast<const Graph&>(*model.graph), [&](const Node&) { ++result.nodes_before; });
  result.rewrite = RewriteOnnx(model, *options.device, options.rules);
  VisitNodes(static_cast<const Graph&>(*model.graph), [&](const Node&) { ++result.nodes_after; });
  result.seconds = time.Seconds();
  if (out.empty()) return result;
  result.nodes_loaded = CheckLoads(model);  // no file is handed out that the runtime refuses
  Stopwatch write;
  const OnnxFiles files = WriteOnnx(model, out);
  result.seconds += write.Seconds();
  result.bytes_after = fs::file_size(files.model, error);
  for (const fs::path& file : files.data) result.bytes_after += fs::file_size(file, error);
  return result;
}

BisectResult BisectRewrite(const RewriteFileOptions& options, const DataSource& data, std::size_t samples,
                           int threads) {
  BisectResult result;
  const Model source = Read(options);
  const std::size_t count = std::min(samples, data.size());
  std::vector<std::vector<TensorRef>> reference;
  {
    const Session session = OpenModel(source, GraphOptimization::kNone, threads);
    for (std::size_t i = 0; i < count; ++i) {
      reference.push_back(session.Run(data.Read(i).tensors, session.TensorOutputs()));
    }
  }
  RewriteResult last;
  const auto measure = [&](std::uint64_t limit) {
    Model model = Clone(source);
    QuantizedRewriteOptions rules = options.rules;
    rules.limit = limit;
    last = RewriteOnnx(model, *options.device, rules).rules;
    ++result.runs;
    return SqnrDb(reference, OpenModel(model, GraphOptimization::kNone, threads), data);
  };
  result.error_db = measure(options.rules.limit);
  for (const RuleCount& rule : last.rules) result.applications += static_cast<std::uint64_t>(rule.applied);
  if (result.error_db >= 300 || result.applications == 0) return result;
  const double threshold = result.error_db + 3.0103;  // half of the noise
  std::uint64_t low = 0, high = result.applications;  // below and at least half of the noise
  result.before_db = 300;
  result.after_db = result.error_db;
  while (high - low > 1) {
    const std::uint64_t middle = low + (high - low) / 2;
    const double db = measure(middle);
    (db > threshold ? low : high) = middle;
    (db > threshold ? result.before_db : result.after_db) = db;
  }
  measure(high);
  result.first = high;
  std::uint64_t n = 0;
  for (const TraceEntry& entry : last.trace) {
    if (entry.applied && ++n == high) {
      result.rule = entry.rule;
      result.node = entry.node;
    }
  }
  return result;
}

std::string Summary(const RewriteFileResult& r) {
  std::string text;
  char line[256];
  std::snprintf(line, sizeof line, "%-26s %-9s %8s %8s\n", "rule", "class", "applied", "refused");
  text += line;
  for (const RuleCount& rule : r.rewrite.rules.rules) {
    if (rule.applied == 0 && rule.refused == 0) continue;
    std::snprintf(line, sizeof line, "%-26s %-9s %8lld %8lld\n", rule.rule.c_str(),
                  std::string(Name(rule.rule_class)).c_str(), static_cast<long long>(rule.applied),
                  static_cast<long long>(rule.refused));
    text += line;
  }
  text += "integer kernels: " + std::to_string(r.rewrite.integer_layers) + " of " + std::to_string(r.rewrite.layers) +
          " layers";
  if (r.rewrite.macs > 0) {
    text += ", " + Percent(static_cast<double>(r.rewrite.integer_macs), static_cast<double>(r.rewrite.macs)) +
            " of the multiply-accumulates";
  }
  std::snprintf(line, sizeof line, "\nnodes: %zu -> %zu, %.2f s\n", r.nodes_before, r.nodes_after, r.seconds);
  text += line;
  if (r.nodes_loaded > 0 && r.nodes_loaded < r.nodes_after) {
    text += "loaded by the runtime: " + std::to_string(r.nodes_loaded) + " nodes, one of each kind\n";
  }
  return text;
}

std::string Trace(const RewriteResult& result) {
  std::string text;
  for (const TraceEntry& entry : result.trace) {
    text += entry.rule + "\t" + entry.node + "\t" + (entry.applied ? "applied" : "refused: " + entry.reason) + "\n";
  }
  return text;
}

std::string Summary(const BisectResult& r) {
  char line[512];
  if (r.first == 0) {
    std::snprintf(line, sizeof line, "%llu applications of rules change no output (%d models compared)\n",
                  static_cast<unsigned long long>(r.applications), r.runs);
    return line;
  }
  std::snprintf(line, sizeof line,
                "%llu applications leave %.2f dB; application %llu, rule %s at %s, takes it from %.2f to %.2f dB "
                "(%d models compared)\n",
                static_cast<unsigned long long>(r.applications), r.error_db, static_cast<unsigned long long>(r.first),
                r.rule.c_str(), r.node.c_str(), r.before_db, r.after_db, r.runs);
  return line;
}

std::string ToJson(const RewriteFileResult& r) {
  JsonWriter json;
  json.BeginObject().Key("rewrite").BeginArray();
  for (const RuleCount& rule : r.rewrite.rules.rules) {
    json.BeginObject().Field("rule", rule.rule).Field("class", Name(rule.rule_class));
    json.Field("applied", rule.applied).Field("refused", rule.refused).EndObject();
  }
  json.EndArray().Key("trace").BeginArray();
  for (const TraceEntry& entry : r.rewrite.rules.trace) {
    json.BeginObject().Field("rule", entry.rule).Field("node", entry.node).Field("applied", entry.applied);
    if (!entry.applied) json.Field("reason", entry.reason);
    json.EndObject();
  }
  json.EndArray().Key("layers").BeginObject().Field("total", r.rewrite.layers);
  json.Field("integer", r.rewrite.integer_layers).EndObject();
  json.Key("multiply_accumulates").BeginObject().Field("total", r.rewrite.macs);
  json.Field("integer", r.rewrite.integer_macs).EndObject();
  json.Field("nodes_before", static_cast<std::uint64_t>(r.nodes_before));
  json.Field("nodes_after", static_cast<std::uint64_t>(r.nodes_after));
  json.Field("nodes_loaded", static_cast<std::uint64_t>(r.nodes_loaded));
  json.Field("bytes_before", r.bytes_before).Field("bytes_after", r.bytes_after).Field("seconds", r.seconds);
  return json.EndObject().Take();
}

}  // namespace octavo
