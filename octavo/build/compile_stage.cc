#include "octavo/build/compile_stage.h"

#include "octavo/base/error.h"
#include "octavo/base/log.h"
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
  for (const CpuNode& node : report.cpu_nodes) {
    manifest.cpu_fallback_nodes.push_back({node.node, node.op, node.reason});
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

void ValidateArtifact(const std::filesystem::path& source, const std::filesystem::path& portable,
                      const CompileReport& report, const DataSource& data, const CompareOptions& options,
                      Manifest& manifest) {
  if (!report.compiled) {
    manifest.validate = CompareModels(source, portable, data, options);
    return;
  }
  manifest.validate =
      CompareOnDevice(source, report.files.front(), *report.ep, data, options, kEmulatorSeconds, kLeastOnDevice);
  manifest.artifact_session = report.ep->name;
  CompareOptions same = options;
  same.count = manifest.validate.samples;
  same.candidate_optimization = GraphOptimization::kNone;
  const CompareResult on_cpu = CompareModels(source, portable, data, same);
  manifest.quantized_on_cpu_db = PooledSqnrDb(on_cpu.outputs);
  for (const OutputError& output : on_cpu.outputs) manifest.quantized_on_cpu_dbs.push_back(output.SqnrDb());
}

std::string ToJson(const CompileReport& report) {
  JsonWriter json;
  json.BeginObject().Field("compiled", report.compiled);
  if (!report.not_compiled_here.empty()) json.Field("not_compiled_here", report.not_compiled_here);
  json.Field("ep_context_nodes", report.ep_context_nodes).Field("boundary_nodes", report.boundary_nodes);
  json.Key("cpu_fallback_nodes").BeginArray();
  for (const CpuNode& node : report.cpu_nodes) {
    json.BeginObject().Field("node", node.node).Field("op", node.op).Field("reason", node.reason).EndObject();
  }
  return json.EndArray().Field("seconds", report.seconds).EndObject().Take();
}

}  // namespace octavo
