#include "octavo/build/summary.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "octavo/validate/compare.h"

namespace octavo {
namespace {

std::string Milliseconds(double seconds) {
  char text[32];
  std::snprintf(text, sizeof text, "%.2f ms", seconds * 1e3);
  return text;
}

}  // namespace

std::string BytesText(double bytes) {
  char text[32];
  if (bytes < 1e6) {
    std::snprintf(text, sizeof text, "%.1f kB", bytes / 1e3);
  } else if (bytes < 1e9) {
    std::snprintf(text, sizeof text, "%.1f MB", bytes / 1e6);
  } else {
    std::snprintf(text, sizeof text, "%.2f GB", bytes / 1e9);
  }
  return text;
}

std::string Summary(const QuantizeFileResult& r) {
  std::string text = r.out.string() + ": " + (r.quantize.skipped ? "quantized already, kept as it is" : r.precision);
  if (!r.quantize.effective_weights.empty()) text += ", weights " + r.quantize.effective_weights;
  if (!r.quantize.effective_activations.empty()) text += ", activations " + r.quantize.effective_activations;
  text +=
      "\n  " + BytesText(static_cast<double>(r.bytes_before)) + " -> " + BytesText(static_cast<double>(r.bytes_after));
  if (!r.quantize.skipped) {
    text += ", " + std::to_string(r.quantize.nodes_quantized) + " of " + std::to_string(r.quantize.nodes_total) +
            " nodes quantized";
    if (const std::size_t left = r.quantize.nodes_skipped.size(); left > 0) {
      text += ", " + std::to_string(left) + " left in float (--json F says why)";
    }
  }
  char line[96];
  if (r.quantize.calibration_samples > 0) {
    text += ", " + std::to_string(r.quantize.calibration_samples) + (r.synthetic ? " SYNTHETIC" : "") + " samples";
  }
  std::snprintf(line, sizeof line, ", %.2f s (calibration %.2f s)\n", r.seconds, r.quantize.calibration_seconds);
  return text + line;
}

std::string Summary(const BuildResult& result, const std::filesystem::path& out) {
  const Manifest& m = result.manifest;
  char line[512];
  std::string text;
  const auto add = [&](const char* label, const std::string& before, const std::string& after,
                       const std::string& note) {
    std::snprintf(line, sizeof line, "  %-16s %12s %12s   %s\n", label, before.c_str(), after.c_str(), note.c_str());
    text += line;
  };
  double before = static_cast<double>(m.source.bytes), after = 0;
  for (const FileRecord& f : m.source_external) before += static_cast<double>(f.bytes);
  for (const FileRecord& f : m.artifacts) {
    if (f.path.starts_with("model")) after += static_cast<double>(f.bytes);
  }
  text += "built " + out.string() + ": " +
          (m.quantize.skipped ? "the quantization that the model has, kept," : m.precision) + " for " + m.device + "\n";
  if (!m.quantize.effective_weights.empty()) text += "  weights      " + m.quantize.effective_weights + "\n";
  if (!m.quantize.effective_activations.empty()) text += "  activations  " + m.quantize.effective_activations + "\n";
  if (m.quantize.calibration_samples > 0) {
    text += "  calibration  " + m.calibration_method + " on " + std::to_string(m.quantize.calibration_samples) +
            (m.calibration_source == "synthetic" ? " SYNTHETIC" : "") + " samples\n";
  }
  if (m.ep_context_nodes > 0) {
    text += "  compiled     " + std::to_string(m.ep_context_nodes) + " EPContext" +
            (m.in_parts.empty() ? "" : " (see in_parts in manifest.json)") + ", " +
            std::to_string(m.cpu_fallback_nodes.size()) + " nodes on the CPU" +
            (m.cpu_fallback_nodes.empty() ? "" : ": see cpu_fallback_nodes in manifest.json") + "\n";
  } else if (!m.not_compiled_here.empty()) {
    text += "  NOT COMPILED " + m.not_compiled_here + "\n";
  }
  add("", "before", "after", "");
  std::snprintf(line, sizeof line, "%.2f times smaller", before / std::max(after, 1.0));
  add("size", BytesText(before), BytesText(after), line);
  if (!m.quantize.skipped) {
    add("nodes quantized", "",
        std::to_string(m.quantize.nodes_quantized) + " of " + std::to_string(m.quantize.nodes_total),
        m.quantize.nodes_skipped.empty()
            ? ""
            : std::to_string(m.quantize.nodes_skipped.size()) + " left in float: see nodes_skipped in manifest.json");
  }
  if (m.float_seconds && m.artifact_seconds) {
    std::snprintf(line, sizeof line, "%.2f times as fast (median of a run)", *m.float_seconds / *m.artifact_seconds);
    add("latency", Milliseconds(*m.float_seconds), Milliseconds(*m.artifact_seconds), line);
  }
  text +=
      "accuracy against the source model, " + std::to_string(m.validate.samples) +
      (m.validated_on == "held_out"      ? " held-out samples:\n"
       : m.validated_on == "calibration" ? " samples that also calibrated it (no held-out ones):\n"
                                         : " SYNTHETIC samples: this says nothing about accuracy on real inputs:\n");
  std::string table = ToTable(m.validate.outputs, false);
  while (!table.empty()) {
    const std::size_t end = table.find('\n');
    text += "  " + table.substr(0, end) + "\n";
    table = end == std::string::npos ? "" : table.substr(end + 1);
  }
  return text;
}

std::string ReusedSummary(const BuildResult& result, const std::filesystem::path& out) {
  const nlohmann::json m = nlohmann::json::parse(result.manifest_json);
  std::string text =
      "built " + out.string() + ": " + m["precision"].get<std::string>() + " for " +
      m["device"]["name"].get<std::string>() +
      ", all of it from the cache, where a build of the same inputs left it (--no-cache does it again)\n";
  for (const char* side : {"weights", "activations"}) {
    const std::string types = m["effective_types"][side].get<std::string>();
    if (!types.empty()) text += "  " + std::string(side) + std::string(13 - std::strlen(side), ' ') + types + "\n";
  }
  const auto& validate = m["validate"];
  text += "  accuracy     ";
  for (const auto& output : validate["outputs"]) {
    char db[48];
    std::snprintf(db, sizeof db, " %.2f dB, ", output["sqnr_db"].get<double>());
    text += output["name"].get<std::string>() + db;
  }
  return text + std::to_string(validate["samples"].get<std::uint64_t>()) + " samples (" +
         validate["validated_on"].get<std::string>() + ")\n";
}

}  // namespace octavo
