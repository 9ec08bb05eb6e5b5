#include "octavo/validate/compare.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string_view>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/base/resources.h"
#include "octavo/base/thread_pool.h"
#include "octavo/emit/onnx.h"
#include "octavo/import/onnx.h"
#include "octavo/validate/json_writer.h"

namespace octavo {
namespace {

std::string DimsText(const Dims& dims) {
  std::string out = "[";
  for (std::size_t i = 0; i < dims.size(); ++i) out += (i ? "," : "") + std::to_string(dims[i]);
  return out + "]";
}

std::size_t ArgMax(std::span<const float> row) {
  return static_cast<std::size_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

// Where each output of the reference is among the candidate's.
std::vector<std::size_t> MatchOutputs(const Session& reference, const Session& candidate, const std::string& where) {
  const auto& a = reference.outputs();
  const auto& b = candidate.outputs();
  if (a.size() != b.size()) {
    ThrowBadInput("the models have " + std::to_string(a.size()) + " and " + std::to_string(b.size()) + " outputs",
                  where, "compare models with the same outputs");
  }
  std::vector<std::size_t> by_name;
  for (const IoSpec& output : a) {
    const auto it = std::find_if(b.begin(), b.end(), [&](const IoSpec& other) { return other.name == output.name; });
    if (it == b.end()) break;
    by_name.push_back(static_cast<std::size_t>(it - b.begin()));
  }
  if (by_name.size() == a.size()) return by_name;
  std::vector<std::size_t> in_order(a.size());
  for (std::size_t i = 0; i < in_order.size(); ++i) in_order[i] = i;
  return in_order;
}

// Samples come in the order of the data's inputs, a session may want them in another or may have dropped one.
class InputMap {
 public:
  InputMap(const std::vector<InputSpec>& data_inputs, const Session& session, const std::string& model) {
    for (const IoSpec& input : session.inputs()) {
      const auto it = std::find_if(data_inputs.begin(), data_inputs.end(),
                                   [&](const InputSpec& spec) { return spec.name == input.name; });
      if (it == data_inputs.end()) {
        ThrowBadInput("the data have nothing for input '" + input.name + "'", model,
                      "compare models with the same inputs");
      }
      index_.push_back(static_cast<std::size_t>(it - data_inputs.begin()));
    }
  }
  std::vector<TensorRef> Pick(const Sample& sample) const {
    std::vector<TensorRef> out;
    out.reserve(index_.size());
    for (const std::size_t i : index_) {
      if (i >= sample.tensors.size()) ThrowBadInput("the data do not fit the model", sample.name);
      out.push_back(sample.tensors[i]);
    }
    return out;
  }

 private:
  std::vector<std::size_t> index_;
};

std::size_t SampleCount(const DataSource& data, const CompareOptions& options) {
  const std::size_t size = data.size();
  if (options.first >= size) ThrowUsage("no samples to compare on", data.Describe(), "give more data");
  return options.count == 0 ? size - options.first : std::min(options.count, size - options.first);
}

SessionOptions Options(GraphOptimization optimization, int threads, const std::filesystem::path& model) {
  SessionOptions out;
  out.optimization = optimization;
  out.intra_op_threads = threads;
  std::error_code error;
  // Prepacking copies every weight once more; on a model of this size that costs more than it gains here.
  out.disable_prepacking = std::filesystem::file_size(model, error) > (std::uintmax_t{1} << 30) && !error;
  return out;
}

struct Pair {
  const Session& reference;
  const Session& candidate;
  const InputMap& reference_inputs;
  const InputMap& candidate_inputs;
};

// One sample's share of the result. Shares are added up in the order of the samples, whatever thread made them.
struct Share {
  std::vector<OutputError> errors;
  double reference_seconds = 0, candidate_seconds = 0;
};

Share RunSample(const Pair& pair, const DataSource& data, std::size_t index, const std::vector<std::size_t>& match,
                const std::vector<OutputError>& names) {
  CheckInterrupt();
  Share share;
  const Sample sample = data.Read(index);
  const Stopwatch reference_time;
  const std::vector<TensorRef> want = pair.reference.Run(pair.reference_inputs.Pick(sample));
  share.reference_seconds = reference_time.Seconds();
  const Stopwatch candidate_time;
  const std::vector<TensorRef> got = pair.candidate.Run(pair.candidate_inputs.Pick(sample));
  share.candidate_seconds = candidate_time.Seconds();
  share.errors.resize(names.size());
  for (std::size_t i = 0; i < names.size(); ++i) {
    AddError(share.errors[i], want[i], got[match[i]], "output '" + names[i].name + "' on " + sample.name);
  }
  return share;
}

// Samples run in parallel, one thread inside an operator each, as in calibration.
void RunSamples(const Pair& pair, const DataSource& data, std::size_t first, std::size_t count, int threads,
                const std::vector<std::size_t>& match, CompareResult& result, Progress& progress) {
  const auto lanes = static_cast<std::size_t>(std::max(threads, 1));
  for (std::size_t at = 0; at < count; at += 4 * lanes) {
    std::vector<Share> shares(std::min(4 * lanes, count - at));
    ParallelFor(shares.size(), threads, [&](std::size_t i) {
      shares[i] = RunSample(pair, data, first + at + i, match, result.outputs);
      progress.Advance();
    });
    for (const Share& share : shares) {
      result.reference_seconds += share.reference_seconds;
      result.candidate_seconds += share.candidate_seconds;
      for (std::size_t i = 0; i < result.outputs.size(); ++i) {
        result.outputs[i].Merge(share.errors[i]);
      }
    }
  }
}

// The value of `graph` that users of `value` really read: behind Q and DQ where it is quantized right away.
Value* AsSeenByUsers(Value* value) {
  if (value->is_graph_output()) return value;
  for (const Use& use : value->uses()) {
    if (use.index != 0 || !use.node->Is("QuantizeLinear") || use.node->graph() != value->graph()) continue;
    for (const Use& code_use : use.node->output()->uses()) {
      if (code_use.index == 0 && code_use.node->Is("DequantizeLinear") && code_use.node->graph() == value->graph()) {
        return code_use.node->output();
      }
    }
  }
  return value;
}

// What the candidate's value of this name stands for: a node that folds what follows it (BatchNormalization into Conv,
// Relu into a quantized value) keeps its own output's name. So the reference's chain of single uses is followed as far
// as the candidate has lost its values.
Value* WithWhatWasFolded(Value* value, const Graph& candidate) {
  while (!value->is_graph_output() && value->uses().size() == 1) {
    const Use& use = value->uses()[0];
    if (use.index != 0 || use.node->graph() != value->graph() || use.node->outputs().size() != 1) break;
    Value* next = use.node->output();
    if (next == nullptr || candidate.FindValue(next->name()) != nullptr) break;
    // Only what works element by element or channel by channel can have been folded.
    static const std::set<std::string_view> kFolds = {
        "BatchNormalization", "Relu",     "Clip", "Mul",     "Add",        "Sub", "Div",
        "LeakyRelu",          "Identity", "Cast", "Dropout", "HardSigmoid"};
    if (!use.node->domain().empty() || !kFolds.contains(use.node->op())) break;
    bool constants = true;
    for (std::size_t i = 1; i < use.node->inputs().size(); ++i) {
      constants = constants && (use.node->input(i) == nullptr || use.node->input(i)->is_constant());
    }
    if (!constants) break;
    value = next;
  }
  return value;
}

bool MayBeFloat(const Value& value) {
  return value.type.opaque.empty() && (value.type.dtype == DType::kUndefined || IsFloat(value.type.dtype));
}

// A session of the model with `values` (of the model's main graph) as its only outputs.
Session ExposedSession(const Model& model, const std::vector<std::string>& values, int threads) {
  Model exposed = Clone(model);
  Graph& graph = *exposed.graph;
  std::set<std::string> present;
  for (const Value* output : graph.outputs()) present.insert(output->name());
  for (const std::string& name : values) {
    if (!present.insert(name).second) continue;
    graph.AddOutput(graph.FindValue(name));
  }
  OnnxSkeleton skeleton = SerializeSkeleton(exposed);
  SessionOptions options;
  options.optimization = GraphOptimization::kNone;
  options.intra_op_threads = threads;
  options.disable_prepacking = true;
  return Session(skeleton.bytes, std::move(skeleton.externals), options);
}

}  // namespace

double OutputError::SqnrDb() const {
  const double db = stats.SqnrDb();
  if (std::isnan(db)) return -kSqnrLimitDb;
  return std::clamp(db, -kSqnrLimitDb, kSqnrLimitDb);
}

std::optional<double> OutputError::Top1Agreement() const {
  if (!class_scores || rows == 0) return std::nullopt;
  return static_cast<double>(same_top1) / static_cast<double>(rows);
}

void OutputError::Merge(const OutputError& other) {
  stats.Merge(other.stats);
  rows += other.rows;
  same_top1 += other.same_top1;
  class_scores = class_scores || other.class_scores;
}

void AddError(OutputError& error, const TensorRef& reference, const TensorRef& candidate, const std::string& where) {
  if (reference.dims != candidate.dims) {
    ThrowBadInput("shapes differ: " + DimsText(reference.dims) + " and " + DimsText(candidate.dims), where);
  }
  std::vector<float> a_storage, b_storage;
  std::span<const float> a, b;
  if (reference.dtype == DType::kString || candidate.dtype == DType::kString) {
    if (reference.dtype != candidate.dtype || !reference.strings || !candidate.strings) {
      ThrowBadInput("one is text, the other is not", where);
    }
    a_storage.assign(reference.strings->size(), 1.0f);
    for (std::size_t i = 0; i < a_storage.size(); ++i) {
      b_storage.push_back((*reference.strings)[i] == (*candidate.strings)[i] ? 1.0f : 0.0f);
    }
    a = a_storage;
    b = b_storage;
  } else {
    a = FloatView(reference, a_storage);
    b = FloatView(candidate, b_storage);
  }
  error.stats.Add(a, b);
  const Dims& dims = reference.dims;
  if (dims.size() != 2 || dims[1] < 2 || !IsFloat(reference.dtype)) return;
  error.class_scores = true;
  const auto columns = static_cast<std::size_t>(dims[1]);
  for (std::size_t i = 0; i + columns <= a.size(); i += columns) {
    ++error.rows;
    error.same_top1 += ArgMax(a.subspan(i, columns)) == ArgMax(b.subspan(i, columns)) ? 1 : 0;
  }
}

CompareResult CompareModels(const std::filesystem::path& reference, const std::filesystem::path& candidate,
                            const DataSource& data, const CompareOptions& options) {
  const Stopwatch total;
  CompareResult result;
  result.samples = SampleCount(data, options);
  const std::vector<InputSpec> inputs = InputSpecs(*ReadOnnx(reference).graph);
  const int threads = options.threads > 0 ? options.threads : HardwareThreads();
  const Session a(reference, Options(options.reference_optimization, 1, reference));
  const Session b(candidate, Options(options.candidate_optimization, 1, candidate));
  const std::vector<std::size_t> match = MatchOutputs(a, b, candidate.string());
  const InputMap a_inputs(inputs, a, reference.string()), b_inputs(inputs, b, candidate.string());
  for (const IoSpec& output : a.outputs()) {
    OutputError error;
    error.name = output.name;
    result.outputs.push_back(std::move(error));
  }
  Progress progress("comparing", result.samples);
  RunSamples({a, b, a_inputs, b_inputs}, data, options.first, result.samples, threads, match, result, progress);
  result.seconds = total.Seconds();
  return result;
}

CompareResult CompareLayers(const std::filesystem::path& reference, const std::filesystem::path& candidate,
                            const DataSource& data, const CompareOptions& options) {
  const Stopwatch total;
  CompareResult result;
  result.samples = SampleCount(data, options);
  const Model a = ReadOnnx(reference), b = ReadOnnx(candidate);
  const std::vector<InputSpec> inputs = InputSpecs(*a.graph);

  struct Layer {
    std::string name, reference, candidate, op;
  };
  std::vector<Layer> layers;
  for (const Node* node : a.graph->nodes()) {
    for (const Value* value : node->outputs()) {
      if (value == nullptr || !MayBeFloat(*value)) continue;
      Value* other = b.graph->FindValue(value->name());
      if (other == nullptr || other->kind() != ValueKind::kResult) continue;
      Value* const stands_for = WithWhatWasFolded(a.graph->FindValue(value->name()), *b.graph);
      layers.push_back({value->name(), stands_for->name(), AsSeenByUsers(other)->name(), node->op()});
    }
  }
  const std::size_t batch = std::max<std::size_t>(options.batch, 1);
  const std::size_t batches = (layers.size() + batch - 1) / batch;
  Progress progress("comparing layers", batches * result.samples);
  for (std::size_t k = 0; k < batches; ++k) {
    CheckInterrupt();
    const std::span<const Layer> part(layers.data() + k * batch, std::min(batch, layers.size() - k * batch));
    std::vector<std::string> a_names, b_names;
    for (const Layer& layer : part) {
      a_names.push_back(layer.reference);
      b_names.push_back(layer.candidate);
    }
    const Session a_session = ExposedSession(a, a_names, options.threads);
    const Session b_session = ExposedSession(b, b_names, options.threads);
    const InputMap a_inputs(inputs, a_session, reference.string()), b_inputs(inputs, b_session, candidate.string());
    std::vector<OutputError> errors(part.size());
    for (std::size_t i = 0; i < part.size(); ++i) {
      errors[i].name = part[i].name;
      errors[i].op = part[i].op;
    }
    for (std::size_t s = options.first; s < options.first + result.samples; ++s) {
      CheckInterrupt();
      const Sample sample = data.Read(s);
      const Stopwatch reference_time;
      const std::vector<TensorRef> want = a_session.Run(a_inputs.Pick(sample), a_names);
      result.reference_seconds += reference_time.Seconds();
      const Stopwatch candidate_time;
      const std::vector<TensorRef> got = b_session.Run(b_inputs.Pick(sample), b_names);
      result.candidate_seconds += candidate_time.Seconds();
      for (std::size_t i = 0; i < errors.size(); ++i) {
        if (!IsFloat(want[i].dtype) || !IsFloat(got[i].dtype)) continue;
        if (want[i].dims != got[i].dims) continue;  // the same name, but not the same value: another layout
        AddError(errors[i], want[i], got[i], "value '" + errors[i].name + "' on " + sample.name);
      }
      progress.Advance();
    }
    for (OutputError& error : errors) {
      if (error.stats.elements > 0) result.outputs.push_back(std::move(error));
    }
  }
  result.seconds = total.Seconds();
  return result;
}

double PooledSqnrDb(const std::vector<OutputError>& outputs) {
  OutputError pooled;
  for (const OutputError& output : outputs) pooled.stats.Merge(output.stats);
  return pooled.SqnrDb();
}

bool HasNonFinite(const std::vector<OutputError>& outputs) {
  return std::any_of(outputs.begin(), outputs.end(), [](const OutputError& o) { return o.stats.non_finite > 0; });
}

void WriteOutputError(JsonWriter& json, const OutputError& error) {
  json.BeginObject().Field("name", error.name);
  if (!error.op.empty()) json.Field("op", error.op);
  json.Field("sqnr_db", error.SqnrDb()).Field("cosine", error.stats.Cosine()).Field("max_abs", error.stats.max_abs);
  json.Field("mse", error.stats.Mse()).Field("elements", error.stats.elements);
  if (error.stats.non_finite > 0) json.Field("non_finite", error.stats.non_finite);
  if (const std::optional<double> top1 = error.Top1Agreement()) json.Field("top1_agreement", *top1);
  json.EndObject();
}

std::string ToJson(const CompareResult& result, const CompareResult* layers) {
  JsonWriter json;
  json.BeginObject();
  json.Field("samples", static_cast<std::uint64_t>(result.samples)).Field("seconds", result.seconds);
  json.Field("reference_run_seconds", result.reference_seconds);
  json.Field("candidate_run_seconds", result.candidate_seconds);
  json.Field("pooled_sqnr_db", PooledSqnrDb(result.outputs));
  json.Key("outputs").BeginArray();
  for (const OutputError& error : result.outputs) WriteOutputError(json, error);
  json.EndArray();
  if (layers != nullptr) {
    json.Key("layers").BeginArray();
    for (const OutputError& error : layers->outputs) WriteOutputError(json, error);
    json.EndArray();
  }
  return json.EndObject().Take();
}

std::string ToTable(const std::vector<OutputError>& outputs, bool layers) {
  std::size_t name_width = 6, op_width = 8;
  for (const OutputError& o : outputs) {
    name_width = std::clamp(o.name.size(), name_width, std::size_t{48});
    op_width = std::clamp(o.op.size(), op_width, std::size_t{24});
  }
  const auto cut = [](const std::string& text, std::size_t width) {
    return text.size() <= width ? text : "..." + text.substr(text.size() - width + 3);
  };
  char line[256];
  std::string out;
  std::snprintf(line, sizeof line, "%-*s ", static_cast<int>(name_width), layers ? "value" : "output");
  out += line;
  if (layers) {
    std::snprintf(line, sizeof line, "%-*s ", static_cast<int>(op_width), "operator");
    out += line;
  }
  out += "  SQNR dB     cosine    max |diff|          mse";
  const bool top1 = std::any_of(outputs.begin(), outputs.end(), [](const OutputError& o) { return o.class_scores; });
  if (top1 && !layers) out += "   top-1 same";
  out += "\n";
  for (const OutputError& o : outputs) {
    std::snprintf(line, sizeof line, "%-*s ", static_cast<int>(name_width), cut(o.name, name_width).c_str());
    out += line;
    if (layers) {
      std::snprintf(line, sizeof line, "%-*s ", static_cast<int>(op_width), cut(o.op, op_width).c_str());
      out += line;
    }
    if (o.stats.non_finite > 0) {
      out += " NaN/Inf ";
    } else if (o.SqnrDb() >= kSqnrLimitDb) {
      out += "   equal ";
    } else {
      std::snprintf(line, sizeof line, "%8.2f ", o.SqnrDb());
      out += line;
    }
    std::snprintf(line, sizeof line, "%10.6f %13.6g %12.5g", o.stats.Cosine(), o.stats.max_abs, o.stats.Mse());
    out += line;
    if (const std::optional<double> same = o.Top1Agreement(); same && !layers) {
      std::snprintf(line, sizeof line, "   %8.2f %%", 100 * *same);
      out += line;
    }
    out += "\n";
  }
  return out;
}

}  // namespace octavo
