#include "octavo/validate/perf.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/resources.h"
#include "octavo/import/onnx.h"
#include "octavo/runtime/device_worker.h"
#include "octavo/runtime/session.h"
#include "octavo/validate/json_writer.h"

namespace octavo {
namespace {

double NearestRank(const std::vector<double>& sorted, double percent) {
  const auto n = static_cast<double>(sorted.size());
  const auto rank = static_cast<std::size_t>(std::max(1.0, std::ceil(percent / 100.0 * n)));
  return sorted[std::min(rank, sorted.size()) - 1];
}

struct Runner {
  PerfSide side;
  std::unique_ptr<Session> session;
  std::unique_ptr<DeviceWorker> worker;  // instead of the session
  std::uint64_t worker_rss = 0;
  std::vector<std::size_t> inputs;  // position among the data's tensors

  Runner(const std::filesystem::path& model, const std::vector<InputSpec>& specs, int threads,
         const std::optional<EpSpec>& ep) {
    side.model = model.string();
    std::error_code error;
    side.bytes = std::filesystem::file_size(model, error);
    SessionOptions options;
    options.intra_op_threads = threads;
    if (ep) {
      worker = std::make_unique<DeviceWorker>();
      worker->Open(model, &*ep, GraphOptimization::kAll, threads);
      side.load_seconds = worker->load_seconds();
      side.provider = ep->name;
    } else {
      const Stopwatch load;
      session = std::make_unique<Session>(model, options);
      side.load_seconds = load.Seconds();
    }
    for (const IoSpec& input : ep ? worker->inputs() : session->inputs()) {
      const auto it =
          std::find_if(specs.begin(), specs.end(), [&](const InputSpec& spec) { return spec.name == input.name; });
      if (it == specs.end()) {
        ThrowBadInput("the data have nothing for input '" + input.name + "'", side.model,
                      "measure models with the same inputs");
      }
      inputs.push_back(static_cast<std::size_t>(it - specs.begin()));
    }
  }

  double Run(const Sample& sample) {
    std::vector<TensorRef> tensors;
    for (const std::size_t i : inputs) tensors.push_back(sample.tensors.at(i));
    if (worker) {
      const DeviceWorker::RunResult result = worker->Run(tensors);
      worker_rss = std::max(worker_rss, result.peak_rss_bytes);
      return result.seconds * 1e3;
    }
    const Stopwatch time;
    session->Run(tensors);
    return time.Seconds() * 1e3;
  }
};

void WriteLatency(JsonWriter& json, const PerfSide& side) {
  const LatencyStats& l = side.latency;
  json.Field("provider", side.provider);
  json.Field("model", side.model).Field("bytes", side.bytes).Field("load_seconds", side.load_seconds);
  json.Key("latency_ms").BeginObject();
  json.Field("mean", l.mean).Field("p50", l.p50).Field("p90", l.p90).Field("p95", l.p95).Field("p99", l.p99);
  json.Field("std", l.std).Field("min", l.min).Field("max", l.max).EndObject();
  json.Field("throughput_per_second", l.throughput).Field("runs", l.runs);
  json.Key("raw_ms").BeginArray();
  for (const double ms : side.raw_ms) json.Number(ms);
  json.EndArray();
}

}  // namespace

LatencyStats Summarize(std::vector<double> ms) {
  LatencyStats out;
  out.runs = ms.size();
  if (ms.empty()) return out;
  double sum = 0;
  for (const double v : ms) sum += v;
  out.mean = sum / static_cast<double>(ms.size());
  double squares = 0;
  for (const double v : ms) squares += (v - out.mean) * (v - out.mean);
  // Sample standard deviation (n - 1).
  out.std = ms.size() > 1 ? std::sqrt(squares / static_cast<double>(ms.size() - 1)) : 0;
  out.throughput = sum > 0 ? 1e3 * static_cast<double>(ms.size()) / sum : 0;
  std::sort(ms.begin(), ms.end());
  out.p50 = NearestRank(ms, 50);
  out.p90 = NearestRank(ms, 90);
  out.p95 = NearestRank(ms, 95);
  out.p99 = NearestRank(ms, 99);
  out.min = ms.front();
  out.max = ms.back();
  return out;
}

PerfResult MeasurePerf(const std::filesystem::path& model, const std::optional<std::filesystem::path>& against,
                       const DataSource& data, const PerfOptions& options) {
  if (data.size() == 0) ThrowUsage("no samples to run", data.Describe());
  const std::vector<InputSpec> specs = InputSpecs(*ReadOnnx(model).graph);
  PerfResult result;
  const std::size_t distinct = std::min<std::size_t>(data.size(), 8);
  std::vector<Sample> samples;  // read before anything is timed
  for (std::size_t i = 0; i < distinct; ++i) samples.push_back(data.Read(i));
  OrtVersion();  // the library itself is not the model's memory
  ResetPeakRss();
  result.baseline_rss_bytes = CurrentRssBytes();
  Runner a(model, specs, options.threads, options.ep);
  for (std::int64_t i = 0; i < std::max<std::int64_t>(options.warmup, 1); ++i) {
    CheckInterrupt();
    a.Run(samples[static_cast<std::size_t>(i) % distinct]);
  }
  result.peak_rss_bytes = a.worker ? a.worker_rss : PeakRssBytes();
  std::optional<Runner> b;
  if (against) {
    b.emplace(*against, specs, options.threads, options.against_ep);
    for (std::int64_t i = 0; i < options.warmup; ++i) {
      CheckInterrupt();
      b->Run(samples[static_cast<std::size_t>(i) % distinct]);
    }
  }
  std::vector<double> ratios;
  const Stopwatch total;
  for (std::int64_t i = 0;; ++i) {
    if (options.iterations > 0 ? i >= options.iterations : i >= 10 && total.Seconds() >= options.seconds) break;
    CheckInterrupt();
    const Sample& sample = samples[static_cast<std::size_t>(i) % distinct];
    if (!b) {
      a.side.raw_ms.push_back(a.Run(sample));
      continue;
    }
    double a_ms = 0, b_ms = 0;
    if (i % 2 == 0) {
      a_ms = a.Run(sample);
      b_ms = b->Run(sample);
    } else {
      b_ms = b->Run(sample);
      a_ms = a.Run(sample);
    }
    a.side.raw_ms.push_back(a_ms);
    b->side.raw_ms.push_back(b_ms);
    ratios.push_back(a_ms / b_ms);
  }
  a.side.latency = Summarize(a.side.raw_ms);
  result.model = std::move(a.side);
  if (b) {
    b->side.latency = Summarize(b->side.raw_ms);
    result.against = std::move(b->side);
    std::sort(ratios.begin(), ratios.end());
    result.ratio = PairedRatio{NearestRank(ratios, 50), NearestRank(ratios, 10), NearestRank(ratios, 90)};
  }
  return result;
}

std::string ToJson(const PerfResult& result) {
  JsonWriter json;
  json.BeginObject();
  WriteLatency(json, result.model);
  json.Field("peak_rss_bytes", result.peak_rss_bytes).Field("baseline_rss_bytes", result.baseline_rss_bytes);
  json.Key("runtime").String(OrtVersion());
  if (result.against) {
    json.Key("against").BeginObject();
    WriteLatency(json, *result.against);
    json.Field("ratio", result.ratio->median).Field("ratio_p10", result.ratio->p10);
    json.Field("ratio_p90", result.ratio->p90).EndObject();
  }
  return json.EndObject().Take();
}

std::string ToTable(const PerfResult& result) {
  char line[256];
  std::string out =
      "              runs      mean       p50       p90       p95       p99       std       min       max  per "
      "second\n";
  const auto row = [&](const char* label, const PerfSide& side) {
    const LatencyStats& l = side.latency;
    std::snprintf(line, sizeof line, "%-10s %7llu %9.3f %9.3f %9.3f %9.3f %9.3f %9.3f %9.3f %9.3f %11.1f\n", label,
                  static_cast<unsigned long long>(l.runs), l.mean, l.p50, l.p90, l.p95, l.p99, l.std, l.min, l.max,
                  l.throughput);
    out += line;
  };
  row("this model", result.model);
  if (result.against) row("the other", *result.against);
  out += "(milliseconds a run)\n";
  std::snprintf(line, sizeof line, "loaded in %.3f s; peak memory %.1f MB, %.1f MB before loading\n",
                result.model.load_seconds, static_cast<double>(result.peak_rss_bytes) / 1e6,
                static_cast<double>(result.baseline_rss_bytes) / 1e6);
  out += line;
  if (result.ratio) {
    std::snprintf(line, sizeof line,
                  "this model takes %.2f times the other's time (median of pairs; 10 %% .. 90 %%: %.2f .. %.2f)\n",
                  result.ratio->median, result.ratio->p10, result.ratio->p90);
    out += line;
  }
  return out;
}

}  // namespace octavo
