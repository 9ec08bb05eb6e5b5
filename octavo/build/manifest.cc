#include "octavo/build/manifest.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "octavo/base/error.h"
#include "octavo/base/output.h"
#include "octavo/base/sha256.h"
#include "octavo/build/version.h"
#include "octavo/validate/json_writer.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;
constexpr std::size_t kMaxManifestBytes = std::size_t{256} << 20;

void WriteFile(JsonWriter& json, const FileRecord& file) {
  json.Field("path", file.path).Field("sha256", file.sha256).Field("bytes", file.bytes);
}

void WriteFiles(JsonWriter& json, const char* key, const std::vector<FileRecord>& files) {
  json.Key(key).BeginArray();
  for (const FileRecord& file : files) {
    json.BeginObject();
    WriteFile(json, file);
    json.EndObject();
  }
  json.EndArray();
}

void WriteQuantize(JsonWriter& json, const QuantizeResult& q) {
  json.BeginObject();
  json.Field("nodes_total", q.nodes_total).Field("nodes_quantized", q.nodes_quantized);
  json.Key("nodes_skipped").BeginArray();
  for (const SkippedNode& s : q.nodes_skipped) {
    json.BeginObject().Field("node", s.node).Field("op", s.op).Field("reason", s.reason).EndObject();
  }
  json.EndArray();
  json.Field("calibration_time_seconds", q.calibration_seconds);
  json.Field("qdq_insertion_time_seconds", q.insertion_seconds);
  if (q.predicted_sqnr_db != 0) json.Field("predicted_sqnr_db", q.predicted_sqnr_db);
  if (!q.nodes_16bit.empty()) {
    json.Key("nodes_16bit").BeginArray();
    for (const std::string& node : q.nodes_16bit) json.String(node);
    json.EndArray();
    json.Key("tensors_16bit").BeginArray();
    for (const auto& [tensor, reason] : q.tensors_16bit) {
      json.BeginObject().Field("tensor", tensor).Field("reason", reason).EndObject();
    }
    json.EndArray();
  }
  if (q.fp16_overflows > 0) json.Field("fp16_overflows", q.fp16_overflows);
  json.EndObject();
}

void WriteRewrites(JsonWriter& json, const QuantizeResult& q, const std::vector<RuleCount>& rules) {
  json.BeginArray();
  for (const auto& [rule, applied] : q.rewrites) {
    // The passes over the float model change results by float rounding only; they do not count what they refuse.
    json.BeginObject().Field("rule", rule).Field("class", "improves").Field("applied", applied);
    json.Key("refused").Null().EndObject();
  }
  for (const RuleCount& rule : rules) {
    if (rule.applied == 0 && rule.refused == 0) continue;
    json.BeginObject().Field("rule", rule.rule).Field("class", Name(rule.rule_class));
    json.Field("applied", rule.applied).Field("refused", rule.refused).EndObject();
  }
  json.EndArray();
}

}  // namespace

FileRecord RecordFile(const fs::path& file, std::string shown_as) {
  FileRecord out;
  out.path = std::move(shown_as);
  std::error_code error;
  out.bytes = fs::file_size(file, error);
  if (error) ThrowBadInput("cannot read file (" + error.message() + ")", file.string());
  out.sha256 = Sha256::OfFile(file);
  return out;
}

std::string ToJson(const Manifest& m) {
  JsonWriter json;
  json.BeginObject().Field("schema_version", kManifestSchemaVersion).Field("octavo_version", Version());
  json.Field("inputs_sha256", m.inputs_sha256);
  json.Key("source").BeginObject();
  WriteFile(json, m.source);
  if (!m.source_external.empty()) WriteFiles(json, "external", m.source_external);
  json.EndObject();
  json.Key("device").BeginObject().Field("name", m.device).Field("ep", m.ep).Field("ep_version", m.ep_version);
  json.Key("options").BeginObject();
  for (const auto& [name, value] : m.device_options) json.Field(name, value);
  json.EndObject().EndObject();
  json.Field("precision", m.precision);
  json.Key("effective_types").BeginObject();
  json.Field("weights", m.quantize.effective_weights).Field("activations", m.quantize.effective_activations);
  json.EndObject();
  json.Key("quantization_config").Raw(m.quantization_config);
  json.Key("calibration").BeginObject().Field("source", m.calibration_source);
  json.Field("samples", m.quantize.calibration_samples).Field("method", m.calibration_method);
  json.Field("sha256", m.calibration_sha256).EndObject();
  json.Key("stages").BeginArray();
  for (const StageRecord& s : m.stages) {
    json.BeginObject().Field("name", s.name).Field("status", s.status).Field("seconds", s.seconds);
    json.Field("peak_rss_bytes", s.peak_rss_bytes);
    if (!s.note.empty()) json.Field("note", s.note);
    json.EndObject();
  }
  json.EndArray();
  json.Key("quantize");
  WriteQuantize(json, m.quantize);
  json.Key("rewrite");
  WriteRewrites(json, m.quantize, m.rewrite);
  if (m.layers > 0) {
    json.Key("integer_layers").BeginObject().Field("integer", m.integer_layers).Field("total", m.layers).EndObject();
  }
  json.Key("compile").BeginObject().Field("ep_context_nodes", m.ep_context_nodes);
  json.Field("boundary_nodes", m.boundary_nodes);
  if (!m.not_compiled_here.empty()) json.Field("not_compiled_here", m.not_compiled_here);
  if (!m.in_parts.empty()) json.Field("in_parts", m.in_parts);
  json.Key("cpu_fallback_nodes").BeginArray();
  for (const FallbackNode& f : m.cpu_fallback_nodes) {
    json.BeginObject().Field("node", f.node).Field("op", f.op).Field("reason", f.reason);
    json.Field("remedy", f.remedy).EndObject();
  }
  json.EndArray().Field("seconds", m.compile_seconds).EndObject();
  json.Key("validate").BeginObject().Field("samples", static_cast<std::uint64_t>(m.validate.samples));
  json.Key("outputs").BeginArray();
  for (const OutputError& o : m.validate.outputs) WriteOutputError(json, o);
  json.EndArray().Field("validated_on", m.validated_on).Field("accuracy_validated", m.accuracy_validated);
  json.Field("pooled_sqnr_db", PooledSqnrDb(m.validate.outputs));
  json.Field("reference_session", "optimizations off").Field("artifact_session", m.artifact_session);
  if (m.quantized_on_cpu_db) {
    json.Field("quantized_on_cpu_pooled_sqnr_db", *m.quantized_on_cpu_db);
    json.Key("quantized_on_cpu_sqnr_db").BeginArray();
    for (const double db : m.quantized_on_cpu_dbs) json.Number(db);
    json.EndArray();
  }
  if (m.float_seconds) json.Field("source_latency_seconds", *m.float_seconds);
  if (m.artifact_seconds) json.Field("artifact_latency_seconds", *m.artifact_seconds);
  json.EndObject();
  WriteFiles(json, "artifacts", m.artifacts);
  json.Key("warnings").BeginArray();
  for (const std::string& w : m.warnings) json.String(w);
  json.EndArray();
  return json.EndObject().Take();
}

std::string ToJson(const QuantizeResult& q) {
  JsonWriter json;
  json.BeginObject().Field("skipped", q.skipped);
  json.Key("effective_types").BeginObject();
  json.Field("weights", q.effective_weights).Field("activations", q.effective_activations).EndObject();
  json.Field("calibration_source", q.calibration_source).Field("calibration_samples", q.calibration_samples);
  json.Key("quantize");
  WriteQuantize(json, q);
  json.Key("rewrite");
  WriteRewrites(json, q, {});
  return json.EndObject().Take();
}

std::string ReusedManifest(const std::string& kept, const Manifest& now) {
  try {
    nlohmann::ordered_json j = nlohmann::ordered_json::parse(kept);
    j.at("source")["path"] = now.source.path;
    if (!now.source_external.empty()) {
      nlohmann::ordered_json& external = j.at("source")["external"];
      external = nlohmann::ordered_json::array();
      for (const FileRecord& file : now.source_external) {
        external.push_back({{"path", file.path}, {"sha256", file.sha256}, {"bytes", file.bytes}});
      }
    }
    for (auto& stage : j.at("stages")) {
      const auto mine = std::find_if(now.stages.begin(), now.stages.end(),
                                     [&](const StageRecord& s) { return s.name == stage.at("name"); });
      if (mine != now.stages.end()) {
        stage["seconds"] = mine->seconds;
        stage["peak_rss_bytes"] = mine->peak_rss_bytes;
        continue;
      }
      stage["seconds"] = 0;
      stage["peak_rss_bytes"] = 0;
      if (stage.at("status") == "skipped" || stage.at("name") == "publish") continue;
      stage["status"] = "reused";
      stage["note"] = "from the cache, where a build of the same inputs left it (--no-cache does it again)";
    }
    for (auto& artifact : j.at("artifacts")) {
      for (const FileRecord& file : now.artifacts) {
        if (artifact.at("path") != file.path) continue;
        artifact["sha256"] = file.sha256;
        artifact["bytes"] = file.bytes;
      }
    }
    return j.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  } catch (const nlohmann::ordered_json::exception& error) {
    ThrowInternal(std::string("a manifest of the cache has another form: ") + error.what(), now.inputs_sha256);
  }
}

std::vector<std::string> WarningsOf(const std::string& manifest_json) {
  const nlohmann::json j = nlohmann::json::parse(manifest_json, nullptr, false);
  if (!j.is_object() || !j.contains("warnings")) return {};
  return j["warnings"].get<std::vector<std::string>>();
}

std::optional<EarlierBuild> EarlierBuildFromJson(const std::string& text) {
  try {
    const nlohmann::json j = nlohmann::json::parse(text);
    if (j.at("schema_version").get<int>() != kManifestSchemaVersion) return std::nullopt;
    EarlierBuild build;
    build.inputs_sha256 = j.at("inputs_sha256").get<std::string>();
    for (const auto& a : j.at("artifacts")) {
      build.artifacts.push_back(
          {a.at("path").get<std::string>(), a.at("sha256").get<std::string>(), a.at("bytes").get<std::uint64_t>()});
    }
    return build;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
}

std::optional<EarlierBuild> ReadEarlierBuild(const fs::path& out) {
  std::error_code ignored;
  if (!fs::is_regular_file(out / kManifestName, ignored)) return std::nullopt;
  try {
    return EarlierBuildFromJson(ReadTextFile(out / kManifestName, kMaxManifestBytes));
  } catch (const Error&) {
    return std::nullopt;  // one that cannot be read is none
  }
}

}  // namespace octavo
