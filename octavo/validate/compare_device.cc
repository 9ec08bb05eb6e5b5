#include "octavo/validate/compare_device.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/base/resources.h"
#include "octavo/base/thread_pool.h"
#include "octavo/import/onnx.h"
#include "octavo/runtime/device_worker.h"

namespace octavo {
namespace {

std::vector<std::size_t> PlaceInputs(const std::vector<IoSpec>& inputs, const std::vector<InputSpec>& data,
                                     const std::string& model) {
  std::vector<std::size_t> index;
  for (const IoSpec& input : inputs) {
    const auto it = std::find_if(data.begin(), data.end(), [&](const InputSpec& s) { return s.name == input.name; });
    if (it == data.end()) ThrowBadInput("the data have nothing for input '" + input.name + "'", model);
    index.push_back(static_cast<std::size_t>(it - data.begin()));
  }
  return index;
}

std::vector<TensorRef> Pick(const Sample& sample, const std::vector<std::size_t>& index) {
  std::vector<TensorRef> out;
  for (const std::size_t i : index) {
    if (i >= sample.tensors.size()) ThrowBadInput("the data do not fit the model", sample.name);
    out.push_back(sample.tensors[i]);
  }
  return out;
}

}  // namespace

CompareResult CompareOnDevice(const std::filesystem::path& reference, const std::filesystem::path& candidate,
                              const EpSpec& ep, const DataSource& data, const CompareOptions& options, double seconds,
                              std::size_t least) {
  const Stopwatch total;
  CompareResult result;
  const std::size_t size = data.size();
  if (options.first >= size) ThrowUsage("no samples to compare on", data.Describe(), "give more data");
  const std::size_t count = options.count == 0 ? size - options.first : std::min(options.count, size - options.first);
  const std::vector<InputSpec> inputs = InputSpecs(*ReadOnnx(reference).graph);
  SessionOptions session_options;
  session_options.optimization = options.reference_optimization;
  session_options.intra_op_threads = 1;
  const Session a(reference, session_options);
  const int threads = options.threads > 0 ? options.threads : HardwareThreads();
  std::vector<std::unique_ptr<DeviceWorker>> workers(
      std::clamp<std::size_t>(static_cast<std::size_t>(threads), 1, std::min<std::size_t>(count, 4)));
  ParallelFor(workers.size(), static_cast<int>(workers.size()), [&](std::size_t i) {
    workers[i] = std::make_unique<DeviceWorker>();
    workers[i]->Open(candidate, &ep, GraphOptimization::kAll, 1);
  });
  const DeviceWorker& b = *workers[0];
  if (a.outputs().size() != b.outputs().size()) {
    ThrowBadInput("the models have " + std::to_string(a.outputs().size()) + " and " +
                      std::to_string(b.outputs().size()) + " outputs",
                  candidate.string());
  }
  std::vector<std::size_t> match;
  for (std::size_t i = 0; i < a.outputs().size(); ++i) {
    const auto it = std::find_if(b.outputs().begin(), b.outputs().end(),
                                 [&](const IoSpec& o) { return o.name == a.outputs()[i].name; });
    match.push_back(it == b.outputs().end() ? i : static_cast<std::size_t>(it - b.outputs().begin()));
    OutputError error;
    error.name = a.outputs()[i].name;
    result.outputs.push_back(std::move(error));
  }
  const std::vector<std::size_t> a_inputs = PlaceInputs(a.inputs(), inputs, reference.string());
  const std::vector<std::size_t> b_inputs = PlaceInputs(b.inputs(), inputs, candidate.string());
  Progress progress("comparing on the device", count);
  struct Share {
    std::vector<OutputError> errors;
    double reference_seconds = 0, candidate_seconds = 0;
  };
  for (std::size_t at = 0; at < count; at += workers.size()) {
    if (at >= least && total.Seconds() > seconds) break;
    std::vector<Share> shares(std::min(workers.size(), count - at));
    ParallelFor(shares.size(), static_cast<int>(shares.size()), [&](std::size_t i) {
      CheckInterrupt();
      const Sample sample = data.Read(options.first + at + i);
      const Stopwatch time;
      const std::vector<TensorRef> want = a.Run(Pick(sample, a_inputs));
      shares[i].reference_seconds = time.Seconds();
      const DeviceWorker::RunResult got = workers[i]->Run(Pick(sample, b_inputs));
      shares[i].candidate_seconds = got.seconds;
      shares[i].errors.resize(result.outputs.size());
      for (std::size_t o = 0; o < result.outputs.size(); ++o) {
        AddError(shares[i].errors[o], want[o], got.outputs.at(match[o]),
                 "output '" + result.outputs[o].name + "' on " + sample.name);
      }
      progress.Advance();
    });
    for (const Share& share : shares) {
      ++result.samples;
      result.reference_seconds += share.reference_seconds;
      result.candidate_seconds += share.candidate_seconds;
      for (std::size_t o = 0; o < result.outputs.size(); ++o) {
        result.outputs[o].Merge(share.errors[o]);
      }
    }
  }
  result.seconds = total.Seconds();
  return result;
}

}  // namespace octavo
