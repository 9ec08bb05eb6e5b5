// `octavo export`: one model in, one file of another format out. A target is one function in a file of its own and one
// row in the table of export.cc.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/build/config.h"
#include "octavo/build/plan.h"
#include "octavo/ir/graph.h"

namespace octavo {

struct ExportRequest {
  std::string to;                                           // a target's name
  std::filesystem::path out;                                // FILE
  BuildConfig config;                                       // model, data, dims, quantization
  bool quantize = false;                                    // a precision was asked for, by flag or configuration file
  std::map<std::string, std::string, std::less<>> options;  // those of ExportOptions() that were given
  int threads = 0;
  bool require_data = false;

  // The option's value; `fallback` when it was not given.
  std::string Option(std::string_view name, std::string_view fallback = {}) const;
};

struct ExportReport {
  std::vector<std::filesystem::path> files;                  // written, FILE first
  std::vector<std::pair<std::string, std::string>> facts;    // for people and --json: "operators" -> "210"
  std::vector<std::pair<std::string, std::string>> details;  // for --json alone; a name may come many times
  double seconds = 0;
};

struct ExportTarget {
  std::string_view name, summary;
  ExportReport (*run)(const ExportRequest& request);
  std::string (*operators)() = nullptr;  // the operators it takes, as rows of a table; null: it has no such list
};
std::span<const ExportTarget> ExportTargets();

// An option that belongs to one or several targets; given for another one it is an error.
struct ExportOption {
  std::string_view name;     // without the dashes
  std::string_view targets;  // "stablehlo,gguf"
  std::string_view help;
};
std::span<const ExportOption> ExportOptions();

// Errors: kUsage for a target that is none or an option that is not the target's.
void CheckExport(const ExportRequest& request);

// Runs the target. Errors: kUsage for a target that is none (nearest names) or an option that is not the target's;
// what the target throws.
ExportReport Export(const ExportRequest& request);

// The operators that a target takes. Errors: kUsage for a target that is none or has no such list.
std::string ListOperators(const std::string& to);

// For targets. Reads the model, replaces weights as asked (--weights), quantizes it as asked (request.quantize) and
// gives the IR with its quantized types, not lowered; a float model comes simplified (shapes folded, types inferred).
Model PrepareExport(const ExportRequest& request);

// --dry-run of a file that --precision does not decide: the precision that Circle's --profile stands for (fp32 without
// one), and the profile's types instead of the CPU's. Errors: kUsage for an unknown profile, and for one beside a
// precision.
QuantizationConfig ProfilePrecision(const ExportRequest& request);
void PlanProfile(const ExportRequest& request, BuildPlan& plan);

std::string Summary(const ExportReport& report);
std::string ToJson(const ExportReport& report);

// The targets, each in export_<name>.cc.
ExportReport ExportCircle(const ExportRequest& request);
ExportReport ExportGguf(const ExportRequest& request);
ExportReport ExportOnnx(const ExportRequest& request);
ExportReport ExportStablehlo(const ExportRequest& request);
std::string StablehloOperatorRows();

}  // namespace octavo
