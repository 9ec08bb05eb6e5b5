#include "octavo/build/compile_stage.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/base/sha256.h"
#include "octavo/build/stage_cache.h"
#include "octavo/validate/compare_device.h"
#include "octavo/validate/json_writer.h"

namespace octavo {
namespace {

// An emulator may take a minute for a sample: a build that has spent this long on at least so many is done.
constexpr double kEmulatorSeconds = 20;
constexpr std::size_t kLeastOnDevice = 4;

}  // namespace

CompileContext ContextOf(const BuildConfig& config, const DeviceDescriptor& device) {
  CompileContext context;
  context.device = &device;
  if (config.quantize) context.quantization = EffectiveQuantization(config);
  context.options = config.compile.options;
  context.embed = config.compile.embed_context;
  return context;
}

void CheckCompile(const BuildConfig& config, const DeviceDescriptor& device) {
  if (config.compile.embed_context && !device.compiles) {
    ThrowUnsupported("an embedded context needs a device that compiles", "--embed-context",
                     "device '" + std::string(device.name) + "' has no compiler");
  }
  EffectiveOptions(ContextOf(config, device));
  if (config.compile.enabled && device.compiles) RequirePlugin(device);
}

bool GoesToCompiler(const BuildConfig& config, const DeviceDescriptor& device) {
  return config.compile.enabled && (device.compiles || !device.system.empty());
}

std::string Describe(const CompileReport& report) {
  if (!report.compiled) return "not compiled here: " + report.not_compiled_here;
  return std::to_string(report.ep_context_nodes) + " EPContext, " + std::to_string(report.cpu_nodes.size()) +
         " nodes on the CPU, " + std::to_string(report.boundary_nodes) + " Q/DQ at inputs and outputs";
}

void Record(const CompileReport& report, Manifest& manifest) {
  manifest.ep_context_nodes = report.ep_context_nodes;
  manifest.boundary_nodes = report.boundary_nodes;
  manifest.in_parts = report.in_parts;
  for (const CpuNode& node : report.cpu_nodes) {
    manifest.cpu_fallback_nodes.push_back({node.node, node.op, node.reason, node.remedy});
  }
  manifest.not_compiled_here = report.not_compiled_here;
  manifest.compile_seconds = report.seconds;
  if (!report.ep) return;
  manifest.ep_version = report.ep_version;
  manifest.device_options.clear();
  for (const auto& [name, value] : report.ep->options) {
    // A path of this machine says nothing about the artifact.
    manifest.device_options.emplace_back(name, std::filesystem::path(value).filename().string());
  }
}

namespace {

CompileReport ReportFromJson(const std::string& text, const std::filesystem::path& folder) {
  const nlohmann::json j = nlohmann::json::parse(text);
  CompileReport report;
  report.compiled = true;
  report.ep_context_nodes = j.at("ep_context_nodes").get<std::int64_t>();
  report.boundary_nodes = j.at("boundary_nodes").get<std::int64_t>();
  report.in_parts = j.value("in_parts", "");
  for (const auto& node : j.at("cpu_fallback_nodes")) {
    report.cpu_nodes.push_back({node.at("node").get<std::string>(), node.at("op").get<std::string>(),
                                node.at("reason").get<std::string>(), node.at("remedy").get<std::string>()});
  }
  report.seconds = j.at("seconds").get<double>();
  report.ep_version = j.at("ep_version").get<std::string>();
  for (const auto& file : j.at("files")) report.files.push_back(folder / file.get<std::string>());
  return report;
}

std::string ToJson(const CompileReport& report) {
  JsonWriter json;
  json.BeginObject().Field("ep_context_nodes", report.ep_context_nodes).Field("boundary_nodes", report.boundary_nodes);
  json.Field("in_parts", report.in_parts);
  json.Key("cpu_fallback_nodes").BeginArray();
  for (const CpuNode& node : report.cpu_nodes) {
    json.BeginObject().Field("node", node.node).Field("op", node.op).Field("reason", node.reason);
    json.Field("remedy", node.remedy).EndObject();
  }
  json.EndArray().Field("seconds", report.seconds).Field("ep_version", report.ep_version).Key("files").BeginArray();
  for (const std::filesystem::path& file : report.files) json.String(file.filename().string());
  return json.EndArray().EndObject().Take();
}

}  // namespace

CompileReport CompileOrReuse(const OnnxFiles& source, const std::filesystem::path& out, const CompileContext& context,
                             const std::string& versions, bool cache, bool& reused) {
  const DeviceDescriptor& device = *context.device;
  reused = false;
  if (!cache || !device.compiles || device.plugin == nullptr) return CompileModelFor(source.model, out, context);
  Sha256 key;
  key.Update(versions + "device " + std::string(device.name) + "\nprovider " + ProviderIdentity(device) + "\n");
  for (const auto& [name, value] : EffectiveOptions(context)) key.Update("option " + name + "=" + value + "\n");
  key.Update(context.embed ? "embedded\n" : "beside\n");
  key.Update("model " + Sha256::OfFile(source.model) + "\n");
  for (const std::filesystem::path& file : source.data) {
    key.Update("data " + file.filename().string() + " " + Sha256::OfFile(file) + "\n");
  }
  const StageCache kept("compile", key.HexDigest());
  const std::filesystem::path folder = out.parent_path();
  if (const std::optional<std::string> text = kept.Take(folder)) {
    CompileReport report = ReportFromJson(*text, folder);
    report.ep = ProviderFor(out, device, context);
    reused = true;
    return report;
  }
  CompileReport report = CompileModelFor(source.model, out, context);
  if (!report.compiled) return report;
  std::vector<std::string> names;
  for (const std::filesystem::path& file : report.files) names.push_back(file.filename().string());
  kept.Keep(folder, names, ToJson(report));
  return report;
}

namespace {

// ONNX Runtime's optimizer has little practice with 16-bit codes: what it loses against the model as written is no
// property of the model. The same loss above 40 dB may be the order of float sums.
void CheckDefaultSession(const std::filesystem::path& source, const std::filesystem::path& portable,
                         const DataSource& data, const CompareOptions& options, const Manifest& manifest) {
  constexpr std::size_t kSamples = 8;
  constexpr double kLossDb = 6, kHarmlessDb = 40;
  const std::string types = manifest.quantize.effective_weights + manifest.quantize.effective_activations;
  if (manifest.quantize.nodes_quantized == 0 || types.find("16") == std::string::npos) return;
  if (PooledSqnrDb(manifest.validate.outputs) >= kHarmlessDb) return;
  CompareOptions few = options;
  few.count = std::min(kSamples, manifest.validate.samples);
  const double fused = PooledSqnrDb(CompareModels(source, portable, data, few).outputs);
  few.candidate_optimization = GraphOptimization::kNone;
  const double written = PooledSqnrDb(CompareModels(source, portable, data, few).outputs);
  if (written - fused <= kLossDb) return;
  char text[240];
  std::snprintf(text, sizeof text,
                "ONNX Runtime's graph optimizations change what the model computes: %.1f dB with them, %.1f dB without "
                "(%zu samples): run it with optimizations off, or choose another precision",
                fused, written, few.count);
  LogWarning(text);
}

// Above 45 dB it is the device's own arithmetic (fp16, its Softmax) that one sees.
void WarnOfLossOnDevice(double on_device, double on_cpu, const CompileReport& report) {
  constexpr double kLossDb = 6, kHarmlessDb = 45;
  if (on_device >= std::min(on_cpu, kHarmlessDb) - kLossDb) return;
  char text[240];
  std::snprintf(text, sizeof text,
                "%s computes the compiled model at %.1f dB, what was compiled has %.1f dB on the CPU: try another "
                "precision, or other types for some operators (--override, --exclude)",
                report.ep->name.c_str(), on_device, on_cpu);
  LogWarning(text);
}

}  // namespace

void ValidateArtifact(const std::filesystem::path& source, const std::filesystem::path& portable,
                      const CompileReport& report, const DataSource& data, const CompareOptions& options,
                      Manifest& manifest) {
  if (!report.compiled) {
    manifest.validate = CompareModels(source, portable, data, options);
    CheckDefaultSession(source, portable, data, options, manifest);
    return;
  }
  try {
    manifest.validate =
        CompareOnDevice(source, report.files.front(), *report.ep, data, options, kEmulatorSeconds, kLeastOnDevice);
  } catch (const Error& error) {
    // Our own artifact is no bad input: the compile has failed, and is only seen now.
    if (error.code() != ExitCode::kBadInput || error.where() != report.files.front().string()) throw;
    ThrowUnsupported(report.ep->name + " does not load what it compiled (" + std::to_string(report.ep_context_nodes) +
                         " contexts, " + std::to_string(report.cpu_nodes.size()) + " nodes on the CPU)",
                     error.how(), "quantize for this device (octavo build --device), or stop before it (--no-compile)");
  }
  manifest.artifact_session = report.ep->name;
  CompareOptions same = options;
  same.count = manifest.validate.samples;
  same.candidate_optimization = GraphOptimization::kNone;
  const CompareResult on_cpu = CompareModels(source, portable, data, same);
  manifest.quantized_on_cpu_db = PooledSqnrDb(on_cpu.outputs);
  for (const OutputError& output : on_cpu.outputs) manifest.quantized_on_cpu_dbs.push_back(output.SqnrDb());
  // No rounding does that: the provider computes something else than what it was given.
  constexpr double kNothingDb = 3, kFarDb = 20;
  const double on_device = PooledSqnrDb(manifest.validate.outputs);
  WarnOfLossOnDevice(on_device, *manifest.quantized_on_cpu_db, report);
  if (on_device >= kNothingDb || *manifest.quantized_on_cpu_db < on_device + kFarDb) return;
  char text[200];
  std::snprintf(text, sizeof text,
                "the compiled model gives other results than what was compiled: %.1f dB, %.1f dB on the CPU", on_device,
                *manifest.quantized_on_cpu_db);
  throw Error(ExitCode::kGate, text, report.ep->name, "choose another precision, or stop before it (--no-compile)");
}

}  // namespace octavo
