#include "octavo/build/pipeline.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/base/names.h"
#include "octavo/base/output.h"
#include "octavo/base/resources.h"
#include "octavo/base/sha256.h"
#include "octavo/base/thread_pool.h"
#include "octavo/build/compile_stage.h"
#include "octavo/build/read_model.h"
#include "octavo/build/rewrite.h"
#include "octavo/build/stage_cache.h"
#include "octavo/build/version.h"
#include "octavo/build/weights.h"
#include "octavo/build/write_checked.h"
#include "octavo/calibrate/calibrate.h"
#include "octavo/calibrate/statistics.h"
#include "octavo/compile/device_form.h"
#include "octavo/compile/quantize_stage.h"
#include "octavo/device/kernels.h"
#include "octavo/emit/onnx.h"
#include "octavo/import/onnx.h"
#include "octavo/quantize/precision.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/quantized.h"
#include "octavo/runtime/session.h"
#include "octavo/validate/json_writer.h"
#include "octavo/validate/perf.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kLeastHeldOut = 8;

int Threads(int threads) { return threads > 0 ? threads : HardwareThreads(); }

bool EnvironmentRequiresData() {
  const char* value = std::getenv("OCTAVO_REQUIRE_DATA");
  return value != nullptr && *value != '\0' && std::string_view(value) != "0";
}

void CollectFiles(const TensorRef& tensor, std::set<fs::path>& files) {
  if (tensor.file) files.insert(tensor.file->path());
}

void CollectFiles(const Graph& graph, std::set<fs::path>& files) {
  for (const Value* value : graph.constants()) {
    if (value->data) CollectFiles(*value->data, files);
  }
  VisitNodes(graph, [&files](const Node& node) {
    for (const Attribute& attribute : node.attributes()) {
      if (const auto* tensor = std::get_if<TensorRef>(&attribute.value)) CollectFiles(*tensor, files);
      if (const auto* inner = std::get_if<std::unique_ptr<Graph>>(&attribute.value); inner != nullptr && *inner) {
        for (const Value* value : (*inner)->constants()) {
          if (value->data) CollectFiles(*value->data, files);
        }
      }
    }
  });
}

// One stage of a build: wall time and peak memory from here to Finish.
class Stage {
 public:
  Stage(Manifest& manifest, std::string name) : manifest_(manifest) {
    CheckInterrupt();
    record_.name = std::move(name);
    record_.status = "done";
    LogInfo(record_.name + " ...");
    ResetPeakRss();
  }
  void Skip(std::string why) {
    record_.status = "skipped";
    record_.note = std::move(why);
  }
  void Note(std::string note) { record_.note = std::move(note); }
  void Reused(std::string what) {
    record_.status = "reused";
    record_.note = std::move(what);
  }
  double Seconds() const { return time_.Seconds(); }
  void Finish() {
    record_.seconds = time_.Seconds();
    record_.peak_rss_bytes = PeakRssBytes();
    manifest_.stages.push_back(record_);
  }

 private:
  Manifest& manifest_;
  StageRecord record_;
  Stopwatch time_;
};

void WriteText(const fs::path& path, const std::string& text) {
  OutputFile file(path);
  file.Write(text);
  file.Commit();
}

// The configuration without the names of files: content decides, not where it lies.
std::string ConfigIdentity(const BuildConfig& config) {
  BuildConfig c = config;
  c.model = "/";
  c.data.reset();
  c.validate_data.reset();
  std::string loaded;
  if (!c.weights.empty()) {
    for (const fs::path& file : WeightFiles(c.weights)) loaded += Sha256::OfFile(file) + " ";
    if (!c.weight_map.empty()) loaded += "map " + Sha256::OfFile(c.weight_map) + " ";
    c.weights.clear();
    c.weight_map.clear();
  }
  QuantizationConfig q = EffectiveQuantization(config);
  if (!q.load_path.empty()) loaded += Sha256::OfFile(q.load_path);
  if (!q.imatrix.empty()) loaded += "imatrix " + Sha256::OfFile(q.imatrix);
  q.imatrix.clear();
  q.load_path.clear();
  q.save_path.clear();
  c.quantization = std::move(q);
  c.compile.quantization.reset();
  return ToJson(c) + "loaded " + loaded + "\n";
}

const std::string& RuntimeIdentity() {
  static const std::string identity = OrtVersion() + " " + Sha256::OfFile(OrtLibraryPath());
  return identity;
}

// Of the configuration what decides the calibration statistics.
std::string CalibrationIdentity(const BuildConfig& config) {
  BuildConfig c = config;
  c.quantization = EffectiveQuantization(config);
  c.compile = {};
  c.validate_samples = BuildConfig{}.validate_samples;
  c.min_sqnr.reset();
  return ConfigIdentity(c);
}

// What a build of the same inputs made, with this run's stages, paths and configuration file. `out` has the files.
BuildResult Reused(Manifest& now, const std::string& kept, const BuildConfig& config, const fs::path& out) {
  WriteText(out / "config.json", ToJson(config));
  now.artifacts = {RecordFile(out / "config.json", "config.json")};
  BuildResult result;
  result.reused = true;
  result.manifest_json = ReusedManifest(kept, now);
  const std::vector<std::string> said = TakeWarnings();
  for (const std::string& warning : WarningsOf(result.manifest_json)) {
    if (std::find(said.begin(), said.end(), warning) == said.end()) LogWarning(warning);
  }
  WriteText(out / kManifestName, result.manifest_json);
  return result;
}

bool SameFiles(const fs::path& out, const std::vector<FileRecord>& artifacts) {
  for (const FileRecord& a : artifacts) {
    if (a.path.find('/') != std::string::npos) return false;
    std::error_code error;
    if (fs::file_size(out / a.path, error) != a.bytes || error || Sha256::OfFile(out / a.path) != a.sha256)
      return false;
  }
  return !artifacts.empty();
}

// Whether `out` holds, undamaged, what a build of these inputs wrote.
bool IsBuiltFrom(const std::string& inputs_sha256, const fs::path& out) {
  const std::optional<EarlierBuild> earlier = ReadEarlierBuild(out);
  return earlier && earlier->inputs_sha256 == inputs_sha256 && SameFiles(out, earlier->artifacts);
}

bool IsEmptyDirectory(const fs::path& path) {
  std::error_code error;
  return fs::is_directory(path, error) && fs::is_empty(path, error) && !error;
}

// Whether `inner` is `outer` or lies in it.
bool Within(const fs::path& inner, const fs::path& outer) {
  const auto resolved = [](const fs::path& path) {
    std::error_code error;
    fs::path out = fs::weakly_canonical(fs::absolute(path), error);
    if (error) out = fs::absolute(path).lexically_normal();
    return out.has_filename() ? out : out.parent_path();
  };
  const fs::path a = resolved(inner), b = resolved(outer);
  return std::mismatch(b.begin(), b.end(), a.begin(), a.end()).first == b.end();
}

// Replacing a directory removes what is in it: never what the build is made from, nor the place one stands in.
void RefuseToReplaceInputs(const fs::path& out, const BuildConfig& config) {
  std::error_code error;
  const auto keep = [&out](const fs::path& path, const char* what) {
    if (path.empty() || !Within(path, out)) return;
    ThrowUsage(std::string("the output directory holds ") + what + ", which replacing it would remove", out.string(),
               "choose another output directory");
  };
  keep(config.model, "the model");
  if (config.data) keep(config.data->path, "the data");
  if (config.validate_data) keep(config.validate_data->path, "the validation data");
  const QuantizationConfig& quantization = EffectiveQuantization(config);
  keep(quantization.load_path, "the statistics");
  keep(quantization.save_path, "the statistics that are to be saved");
  keep(fs::current_path(error), "the present directory");
}

// A later build would read OUT as a sample, or refuse the folder.
void RefuseToSpoilData(const fs::path& out, const std::optional<DataOptions>& data) {
  std::error_code error;
  if (!data || !fs::is_directory(data->path, error) || !Within(out, data->path) || Within(data->path, out)) return;
  ThrowUsage("the output directory lies in the folder of the data, which could not be read any more", out.string(),
             "choose another output directory");
}

void RefuseExisting(const fs::path& out) {
  ThrowUsage("output directory exists and is not what these inputs give", out.string(), "pass --force to replace it");
}

// Paired latency of source and artifact, about a second's worth; not for models that fill the memory twice.
void MeasureLatency(const fs::path& source, const fs::path& artifact, const DataSource& data, int threads,
                    Manifest& manifest) {
  if (manifest.source.bytes > (std::uint64_t{1} << 30)) return;
  const double pair = (manifest.validate.reference_seconds + manifest.validate.candidate_seconds) /
                      static_cast<double>(std::max<std::size_t>(manifest.validate.samples, 1));
  PerfOptions options;
  options.threads = threads;
  options.warmup = 1;
  options.iterations = static_cast<std::int64_t>(std::clamp(1.0 / std::max(pair, 1e-6), 3.0, 50.0));
  const PerfResult perf = MeasurePerf(artifact, source, data, options);
  manifest.artifact_seconds = perf.model.latency.p50 / 1e3;
  manifest.float_seconds = perf.against->latency.p50 / 1e3;
}

// Publishes the portable form: the same bytes as the device's artifact where the device takes QDQ as it is.
void LinkOrCopy(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::create_hard_link(from, to, error);
  if (!error) return;
  fs::copy_file(from, to, error);  // a file system without hard links
  if (error) ThrowBadInput("cannot write file (" + error.message() + ")", to.string());
}

}  // namespace

std::vector<fs::path> ExternalFiles(const Model& model, const fs::path& source) {
  std::set<fs::path> files;
  CollectFiles(*model.graph, files);
  std::vector<fs::path> out;
  std::error_code error;
  for (const fs::path& file : files) {
    if (!fs::equivalent(file, source, error)) out.push_back(file);
  }
  return out;
}

const DeviceDescriptor& RequireDevice(const std::string& name) {
  if (const DeviceDescriptor* device = FindDevice(name)) return *device;
  std::vector<std::string> known;
  for (const DeviceDescriptor& device : Devices()) known.emplace_back(device.name);
  ThrowUsage("unknown device '" + name + "'", "--device", DidYouMean(name, known));
}

Model ReadSource(const BuildConfig& config, std::optional<WeightReplacement>& weights) {
  Model model = ReadModelFile(config.model);
  if (HasEpContext(model)) {
    ThrowUnsupported("the model holds an EPContext node: it is compiled for a device already", config.model.string(),
                     "start from the model that it was compiled from");
  }
  if (!config.weights.empty()) {
    weights = WeightReplacement::Take(model, config.weights, config.weight_map);
    LogInfo("weights: " + std::to_string(weights->count()) + " initializers are replaced from " +
            config.weights.string() +
            (weights->unused() > 0 ? ", " + std::to_string(weights->unused()) + " of its tensors have none" : ""));
  }
  if (!config.dims.empty()) FixDims(model, config.dims);
  return model;
}

Model ImportModel(const BuildConfig& config) {
  std::optional<WeightReplacement> weights;
  Model model = ReadSource(config, weights);
  FoldQdq(model);
  FoldQLinear(model);
  if (weights) weights->Put(model);
  return model;
}

DataPlan OpenSamples(const Model& model, const BuildConfig& config, bool require_data, std::size_t extra) {
  const QuantizationConfig& quantization = EffectiveQuantization(config);
  const std::vector<InputSpec> inputs = InputSpecs(*model.graph);
  const auto wanted = static_cast<std::size_t>(quantization.samples);
  DataPlan plan;
  if (config.data) {
    const QuantizationConfig unset;
    if (quantization.seed != unset.seed || quantization.distribution != unset.distribution) {
      LogWarning("the seed and the distribution are those of synthetic samples: with data they have no effect");
    }
    plan.source = OpenData(*config.data, inputs);
    plan.calibration = std::min(wanted, plan.source->size());
    return plan;
  }
  if (require_data || EnvironmentRequiresData()) {
    ThrowUsage("no calibration data were given, and they are required",
               require_data ? "--require-data" : "OCTAVO_REQUIRE_DATA", "give --data D with real samples");
  }
  constexpr std::size_t kMostSynthetic = 1'000'000;
  if (wanted > kMostSynthetic) {
    ThrowUsage("at most " + std::to_string(kMostSynthetic) + " samples can be made up", "--samples",
               "lower it, or give --data D");
  }
  plan.source = SyntheticData(inputs, ParseDistribution(quantization.distribution), quantization.seed, wanted + extra);
  plan.synthetic = true;
  plan.calibration = wanted;
  return plan;
}

BuildResult Build(const BuildOptions& options) {
  const RuntimePreload preload;
  const BuildConfig& config = options.config;
  Validate(config);
  if (config.model.empty()) ThrowUsage("no model", "--onnx", "give --onnx M.onnx");
  if (options.out.empty()) ThrowUsage("no output directory", "-o", "give -o OUT/");
  RefuseToSpoilData(options.out, config.data);
  RefuseToSpoilData(options.out, config.validate_data);
  const DeviceDescriptor& device = RequireDevice(config.device);
  CheckCompile(config, device);
  const CompileContext context = ContextOf(config, device);
  const QuantizeStage quantizer(context);
  const QuantizationConfig& quantization = quantizer.config();
  const ResolvedPrecision precision = quantizer.Precision();

  BuildResult result;
  Manifest& manifest = result.manifest;
  TakeWarnings();  // those of an earlier build in this process are not ours

  // --- import
  Stage import(manifest, "import");
  Model model = ImportModel(config);
  RequireStaticInputs(*model.graph, device);
  const bool quantized_already = quantizer.Keeps(model);
  DataPlan data = OpenSamples(model, config, options.require_data, kSyntheticChecks);
  std::unique_ptr<DataSource> held_out;
  if (config.validate_data) held_out = OpenData(*config.validate_data, InputSpecs(*model.graph));

  manifest.source = RecordFile(config.model, fs::absolute(config.model).lexically_normal().string());
  for (const fs::path& file : ExternalFiles(model, config.model)) {
    manifest.source_external.push_back(RecordFile(file, file.filename().string()));
  }
  const std::string data_hash = data.synthetic ? "synthetic" : data.source->ContentHash();
  Sha256 identity;
  const std::string versions =
      std::string("octavo ") + Version() + " " + BuildId() + "\nruntime " + RuntimeIdentity() + "\n";
  identity.Update(versions);
  identity.Update("model " + manifest.source.sha256 + "\n");
  for (const FileRecord& file : manifest.source_external) identity.Update("external " + file.sha256 + "\n");
  Sha256 calibration_identity = identity;  // what decides the calibration statistics
  if (GoesToCompiler(config, device)) identity.Update("provider " + ProviderIdentity(device) + "\n");
  identity.Update("data " + data_hash + "\n");
  if (held_out) identity.Update("validate " + held_out->ContentHash() + "\n");
  identity.Update(ConfigIdentity(config));
  manifest.inputs_sha256 = identity.HexDigest();

  std::error_code error;
  const bool exists = fs::exists(fs::symlink_status(options.out, error));
  if (exists) {
    const bool statistics_there = quantization.save_path.empty() || fs::exists(quantization.save_path, error);
    if (statistics_there && !options.force && IsBuiltFrom(manifest.inputs_sha256, options.out)) {
      result.up_to_date = true;
      return result;
    }
    if (fs::exists(options.out, error) && !fs::is_directory(options.out, error)) {
      ThrowUsage("the output is a file and must be a directory", options.out.string(), "choose another output");
    }
    if (!options.force && !IsEmptyDirectory(options.out)) RefuseExisting(options.out);
  }
  if (options.force) RefuseToReplaceInputs(options.out, config);
  if (data.synthetic && quantizer.NeedsSamples(model)) {
    LogWarning("calibrating on synthetic samples: ranges are synthetic and accuracy is NOT validated; give --data D");
  } else if (data.synthetic) {
    LogWarning("no data: the model is checked on synthetic samples and accuracy is NOT validated; give --data D");
  }
  OutputDirectory out(options.out);
  import.Finish();

  const auto publish_out = [&] {
    CheckInterrupt();
    try {
      out.Commit(options.force || IsEmptyDirectory(options.out));
    } catch (const Error& taken) {
      // Another build of the same inputs was faster.
      if (taken.code() != ExitCode::kUsage || !IsBuiltFrom(manifest.inputs_sha256, options.out)) throw;
      result.up_to_date = true;
    }
  };
  const bool cached = options.cache && quantization.save_path.empty();  // statistics that are asked for must be made
  const StageCache kept("builds", manifest.inputs_sha256);
  if (cached) {
    if (const std::optional<std::string> text = kept.Take(out.path())) {
      result = Reused(manifest, *text, config, out.path());
      publish_out();
      return result;
    }
  }

  manifest.device = device.name;
  manifest.ep = device.ep;
  manifest.ep_version = OrtVersion();
  manifest.device_options = config.compile.options;
  manifest.precision = quantized_already ? "as in the input" : quantization.precision;
  manifest.quantization_config = ToJson(quantization);

  // --- quantize
  Stage quantize(manifest, "quantize");
  const bool calibrates = quantizer.NeedsSamples(model);
  StatisticsCache cache;
  if (calibrates && cached) {
    calibration_identity.Update("data " + (data.synthetic ? data_hash : data.source->ContentHash()) + "\n");
    calibration_identity.Update(CalibrationIdentity(config));
    cache = OpenStatisticsCache(calibration_identity.HexDigest());
  }
  manifest.quantize = quantizer.Run(model, {data.source.get(), data.synthetic, options.threads, &cache});
  manifest.calibration_source = manifest.quantize.calibration_source;
  // 16-bit floats take what data there are and need none.
  const bool rounds = precision.kind == ResolvedPrecision::Kind::kHalf && manifest.quantize.calibration_samples > 0;
  manifest.calibration_method = calibrates || !quantization.load_path.empty()    ? MethodName(quantization.calibration)
                                : rounds                                         ? "means"
                                : manifest.quantize.calibration_source != "none" ? "importance"
                                                                                 : "none";
  manifest.calibration_sha256 =
      manifest.calibration_source == "loaded"
          ? Sha256::OfFile(quantization.load_path.empty() ? quantization.imatrix : quantization.load_path)
      : manifest.calibration_source == "none"  ? ""
      : !manifest.quantize.data_sha256.empty() ? manifest.quantize.data_sha256
                                               : data.source->ContentHash();
  if (manifest.quantize.skipped || quantized_already) {
    quantize.Skip("the model is quantized already: its quantization is kept (--requantize drops it)");
  } else if (cache.used) {
    quantize.Reused("calibration statistics from the cache (--no-cache makes them again)");
  }
  quantize.Finish();

  // --- rewrite: integer operators for a device that has them; the portable form stays beside the artifact
  Stage rewrite(manifest, "rewrite");
  const bool to_compiler = GoesToCompiler(config, device);
  std::optional<OnnxFiles> portable;
  if (to_compiler || FindIntegerKernel(device, "Conv", KernelKind::kQLinear) == nullptr) {
    rewrite.Skip("device " + std::string(device.name) +
                 " takes the QDQ form as it is; what was applied before quantization is under \"rewrite\"");
  } else if (!IsQuantized(model)) {
    rewrite.Skip("the model holds no quantized operators");
  } else {
    portable = WriteOnnx(model, out.path() / "quantized.onnx");
    model = ReadOnnx(portable->model);  // as `octavo rewrite` does: the same bytes come out
    QuantizedRewriteResult rewritten = RewriteOnnx(model, device, {});
    manifest.rewrite = std::move(rewritten.rules.rules);
    manifest.integer_layers = rewritten.integer_layers;
    manifest.layers = rewritten.layers;
  }
  rewrite.Finish();

  // --- compile: the artifact of a device without a compiler is the optimized model itself
  Stage compile(manifest, "compile");
  const OnnxFiles files = WriteOnnx(model, out.path() / (to_compiler ? "quantized.onnx" : "model.onnx"));
  const bool weight_only = precision.kind == ResolvedPrecision::Kind::kWeightOnly && !quantized_already;
  bool packed = weight_only;
  for (const Node* node : model.graph->nodes()) {
    const Value* x = node->input(0);
    packed = packed || HasBlocks(*node) ||
             (node->Is("Cast") && x != nullptr && x->is_constant() && x->type.dtype == DType::kBF16);
  }
  model = Model{};  // validation has the memory to itself
  CompileReport compiled;
  compiled.files = {files.model};
  if (to_compiler) {
    OnnxFiles source = files;
    if (device.whole_graph) {
      Model form = ReadOnnx(files.model);
      const bool unpacked = packed && UnpackWeights(form, weight_only) > 0;
      InferMissingTypes(form, true);  // a model that others quantized need not say its shapes
      if (ToDeviceForm(form, device).changed() || unpacked) {
        source = WriteOnnx(form, out.path() / "device_form.onnx");
      }
      if (unpacked) {
        LogWarning("device " + std::string(device.name) +
                   " has no operators that unpack weights: the artifact holds the numbers that they stand for, and is "
                   "as big as that of fp16; quantized.onnx holds them packed");
      }
    }
    bool reused = false;
    compiled = CompileOrReuse(source, out.path() / "model.onnx", context, versions, options.cache, reused);
    if (source.model != files.model) {
      fs::remove(source.model, error);
      for (const fs::path& file : source.data) fs::remove(file, error);
    }
    if (reused) {
      compile.Reused(Describe(compiled) + ": from the cache (--no-cache compiles again)");
    } else {
      compile.Note(Describe(compiled));
    }
    if (!compiled.compiled) LogWarning(Describe(compiled));
    Record(compiled, manifest);
  } else if (!config.compile.enabled) {
    compile.Skip("--no-compile");
  } else {
    compile.Note("device cpu has no compiler: the artifact is the optimized model");
  }
  manifest.compile_seconds = compile.Seconds();
  compile.Finish();

  // --- validate
  Stage validate(manifest, "validate");
  CompareOptions compare;
  compare.threads = Threads(options.threads);
  const DataSource* samples = data.source.get();
  const auto wanted = static_cast<std::size_t>(config.validate_samples);
  if (held_out) {
    samples = held_out.get();
    compare.count = std::min(wanted, held_out->size());
    manifest.validated_on = "held_out";
    if (held_out->size() < kLeastHeldOut) {
      LogWarning("validated on only " + std::to_string(held_out->size()) + " held-out samples");
    }
  } else {
    const std::size_t used =
        rounds ? static_cast<std::size_t>(manifest.quantize.calibration_samples)
               : std::min(data.source->size(),
                          calibrates || !quantization.load_path.empty() ? data.calibration : std::size_t{0});
    const std::size_t left = data.source->size() - used;
    if (left >= kLeastHeldOut) {
      compare.first = used;
      compare.count = std::min(wanted, left);
      manifest.validated_on = "held_out";
    } else {
      compare.count = std::min(wanted, data.source->size());
      manifest.validated_on = "calibration";
      LogWarning("too few samples to hold any out (" + std::to_string(left) + " left of " +
                 std::to_string(data.source->size()) +
                 ", 8 are needed): validated on calibration samples; lower --samples or give more data");
    }
    if (data.synthetic) manifest.validated_on = "synthetic";
  }
  manifest.accuracy_validated = manifest.validated_on == "held_out";
  ValidateArtifact(config.model, files.model, compiled, *samples, compare, manifest);
  if (HasNonFinite(manifest.validate.outputs)) {
    std::string names;
    for (const OutputError& o : manifest.validate.outputs) {
      if (o.stats.non_finite > 0) names += (names.empty() ? "" : ", ") + o.name;
    }
    throw Error(ExitCode::kGate, "the built model gives NaN or infinity where the source model does not",
                "output " + names, "choose another precision or exclude the nodes that overflow");
  }
  if (config.min_sqnr) {
    for (const OutputError& o : manifest.validate.outputs) {
      if (o.SqnrDb() >= *config.min_sqnr) continue;
      char text[160];
      std::snprintf(text, sizeof text, "SQNR %.2f dB on %zu %s samples is below --min-sqnr %g", o.SqnrDb(),
                    manifest.validate.samples,
                    manifest.validated_on == "held_out" ? "held-out" : manifest.validated_on.c_str(), *config.min_sqnr);
      throw Error(ExitCode::kGate, text, "output " + o.name, "nothing was written");
    }
  }
  if (!compiled.compiled) MeasureLatency(config.model, files.model, *samples, compare.threads, manifest);
  validate.Finish();

  // --- publish
  Stage publish(manifest, "publish");
  const bool portable_form = precision.kind != ResolvedPrecision::Kind::kFloat || quantized_already;
  if (portable_form && !to_compiler && !portable) LinkOrCopy(files.model, out.path() / "quantized.onnx");
  WriteText(out.path() / "config.json", ToJson(config));
  for (const fs::path& file : compiled.files) {
    manifest.artifacts.push_back(
        RecordFile(file, file == compiled.files.front() ? "model.onnx" : file.filename().string()));
  }
  // Float models that were compiled need not be delivered once more; their weights' files go with them.
  const bool keep_source = portable_form || !compiled.compiled;
  for (const fs::path& file : files.data) {
    if (keep_source) {
      manifest.artifacts.push_back(RecordFile(file, file.filename().string()));
    } else {
      fs::remove(file, error);
    }
  }
  if (to_compiler) {
    if (portable_form) {
      manifest.artifacts.push_back(RecordFile(files.model, "quantized.onnx"));
    } else {
      fs::remove(files.model, error);
    }
  } else if (portable) {
    manifest.artifacts.push_back(RecordFile(portable->model, "quantized.onnx"));
    for (const fs::path& file : portable->data) {
      manifest.artifacts.push_back(RecordFile(file, file.filename().string()));
    }
  } else if (portable_form) {
    FileRecord same = manifest.artifacts.front();
    same.path = "quantized.onnx";
    manifest.artifacts.push_back(std::move(same));
  }
  manifest.artifacts.push_back(RecordFile(out.path() / "config.json", "config.json"));
  manifest.warnings = TakeWarnings();
  publish.Finish();
  result.manifest_json = ToJson(manifest);
  WriteText(out.path() / kManifestName, result.manifest_json);
  publish_out();
  if (cached && !result.up_to_date) {
    std::vector<std::string> names;
    for (const FileRecord& file : manifest.artifacts) {
      if (file.path != "config.json") names.push_back(file.path);
    }
    kept.Keep(out.path(), names, result.manifest_json);
  }
  return result;
}

QuantizeFileResult QuantizeFile(const BuildConfig& config, const fs::path& out, int threads, bool require_data) {
  const Stopwatch time;
  const RuntimePreload preload;
  Validate(config);
  const DeviceDescriptor& device = RequireDevice(config.device);
  const QuantizeStage quantizer(ContextOf(config, device));
  quantizer.Precision();  // a wrong precision is said before a big model is read
  QuantizeFileResult result;
  result.source = config.model;
  result.precision = quantizer.config().precision;
  Model model = ImportModel(config);
  DataPlan data;
  if (quantizer.NeedsSamples(model)) {
    data = OpenSamples(model, config, require_data, 0);
    result.synthetic = data.synthetic;
    if (data.synthetic) {
      LogWarning("calibrating on synthetic samples: ranges are synthetic and accuracy is NOT validated; give --data D");
    }
  } else if (config.data) {
    data = OpenSamples(model, config, require_data, 0);
  }
  std::error_code error;
  result.bytes_before = fs::file_size(config.model, error);
  for (const fs::path& file : ExternalFiles(model, config.model)) result.bytes_before += fs::file_size(file, error);
  LogDebug("model and data are open");
  LogInfo("quantizing " + config.model.string() + " ...");
  result.quantize = quantizer.Run(model, {data.source.get(), data.synthetic, threads, nullptr});
  LogDebug("lowered");
  const OnnxFiles files = WriteChecked(std::make_unique<Model>(std::move(model)), out, data.source.get(), threads);
  result.out = files.model;
  result.bytes_after = fs::file_size(files.model, error);
  for (const fs::path& file : files.data) result.bytes_after += fs::file_size(file, error);
  result.seconds = time.Seconds();
  return result;
}

CalibrateFileResult CalibrateFile(const BuildConfig& config, const fs::path& out, int threads, bool require_data) {
  const Stopwatch time;
  const RuntimePreload preload;
  BuildConfig stage = config;
  QuantizationConfig quantization = EffectiveQuantization(config);
  if (!quantization.load_path.empty()) {
    ThrowUsage("statistics are made here, not loaded", "--load-statistics",
               "use octavo calibrate merge to add some up");
  }
  quantization.save_path.clear();
  stage.quantization = quantization;
  stage.compile.quantization.reset();
  Validate(stage);
  const DeviceDescriptor& device = RequireDevice(stage.device);
  if (!quantization.imatrix.empty()) {
    ThrowUsage("statistics are made here, not loaded", "--imatrix", "leave it out");
  }
  const QuantizeStage quantizer(ContextOf(stage, device));
  const bool importance = quantizer.Precision().kind == ResolvedPrecision::Kind::kWeightOnly;
  if (!importance && quantizer.Precision().kind != ResolvedPrecision::Kind::kStatic) {
    ThrowUsage("precision '" + quantization.precision + "' needs no statistics", "--precision",
               "name a static precision, or a GGML format that takes an importance matrix");
  }
  Model model = ImportModel(stage);
  if (!importance && !quantizer.NeedsSamples(model)) {
    ThrowUsage("the model is quantized already: there is nothing to calibrate", stage.model.string(),
               "quantize it with --requantize --save-statistics S.json");
  }
  if (IsQuantized(model)) {
    ThrowUnsupported("the model is quantized already: its float values cannot be calibrated", stage.model.string(),
                     "quantize it with --requantize --save-statistics S.json");
  }
  const DataPlan data = OpenSamples(model, stage, require_data, 0);
  if (data.synthetic) LogWarning("calibrating on synthetic samples: ranges are synthetic; give --data D");
  const QuantizationConfig& config_now = quantizer.config();
  PrepareFloat(model, config_now, device);
  const std::vector<ObserveSpec> observe = CalibrationSpecs(model, config_now, device);
  if (importance && observe.empty()) {
    ThrowUsage("precision '" + quantization.precision + "' needs no statistics of this model", "--precision",
               "its weights have no columns whose importance could be measured");
  }
  CalibrateOptions options;
  options.threads = Threads(threads);
  options.method = MethodName(config_now.calibration);
  const Statistics statistics = Calibrate(model, *data.source, 0, data.calibration, observe, options);
  SaveStatistics(statistics, out);
  return {statistics.samples.size(), statistics.tensors.size(), statistics.method, time.Seconds()};
}

CalibrateFileResult MergeStatistics(const std::vector<std::string>& shards, const fs::path& out) {
  const Stopwatch time;
  if (shards.size() < 2) {
    ThrowUsage("nothing to merge", "octavo calibrate merge", "name at least two statistics files");
  }
  Statistics all = LoadStatistics(shards[0]);
  for (std::size_t i = 1; i < shards.size(); ++i) {
    CheckInterrupt();
    all.Merge(LoadStatistics(shards[i]));
  }
  if (!out.empty()) SaveStatistics(all, out);
  return {all.samples.size(), all.tensors.size(), all.method, time.Seconds()};
}

std::string ToJson(const CalibrateFileResult& result) {
  JsonWriter json;
  json.BeginObject().Field("samples", static_cast<std::uint64_t>(result.samples));
  json.Field("tensors", static_cast<std::uint64_t>(result.tensors)).Field("method", result.method);
  return json.Field("seconds", result.seconds).EndObject().Take();
}

std::string ReadManifest(const fs::path& out) { return ReadTextFile(out / kManifestName, std::size_t{256} << 20); }

}  // namespace octavo
