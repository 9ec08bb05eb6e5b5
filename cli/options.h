// The commands as data: a name, options bound to variables, a function to run. Only main.cc sees the parser.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "octavo/build/config.h"

namespace octavo {
struct BuildPlan;
}  // namespace octavo

namespace octavo::cli {

using Target = std::variant<bool*, std::string*, std::optional<std::string>*, std::optional<std::int64_t>*,
                            std::optional<double>*, std::vector<std::string>*>;

struct Option {
  std::string names;  // "-o,--output FILE": what its value is called in --help; "model" for a positional
  Target target;      // a bool* is a flag
  std::string help;
  std::string group;  // heading in --help
};

struct Command {
  std::string name, summary, examples;
  std::vector<Option> options;
  std::function<int()> run;
  bool any_arguments = false;  // whatever else is given is not looked at: the command ends in one answer
};

// Each command file makes one. What the options are bound to lives in the command's `run`.
Command BuildCommand();
Command QuantizeCommand();
Command CalibrateCommand();
Command CompareCommand();
Command PerfCommand();
Command InspectCommand();
Command DevicesCommand();
Command CompileCommand();
Command ExportCommand();
Command RewriteCommand();

// The options that several commands share. A command takes the groups it needs; each option has one effect everywhere
// and stands in --help with one text.
struct DataFlags {
  std::optional<std::string> data, layout, size, mean, std, scale, color;
  std::optional<std::string> distribution;
  std::optional<std::int64_t> samples, seed;
  bool require_data = false;
};
struct QuantizationFlags {
  std::optional<std::string> precision, calibration, weight_type, activation_type, keep_float, load_path, save_path,
      imatrix;
  std::optional<double> percentile;
  std::optional<std::int64_t> block;
  bool per_channel = false, per_tensor = false, symmetric = false, asymmetric = false, requantize = false;
  std::vector<std::string> op_types, exclude, overrides;
};
struct CommonFlags {
  std::optional<std::string> config, device, json;
  std::optional<std::string> weights, weight_map;
  std::vector<std::string> dims;
  std::optional<std::int64_t> threads;
  bool quiet = false, force = false, dry_run = false;
};

// What a configuration is made from; groups that a command does not take stay as they are.
struct ConfigFlags {
  DataFlags data;
  QuantizationFlags quantization;
  CommonFlags common;
};
enum OptionGroup : unsigned {
  kData = 1,           // --data and how images are read
  kSamples = 2,        // --samples, with the meaning of calibration
  kSynthetic = 4,      // --seed --distribution
  kRequireData = 8,    // --require-data
  kQuantization = 16,  // the precision and all that goes with it
  kStatistics = 32,    // --load-statistics --save-statistics --imatrix
  kConfig = 64,
  kDevice = 128,
  kWeights = 256,  // --weights --weight-map
  kDims = 512,
  kThreads = 1024,
  kForce = 2048,
  kDryRun = 4096,
  kEveryGroup = 8191,
};
// Adds the options of these groups; --json and --quiet always.
void AddOptions(std::vector<Option>& options, ConfigFlags& flags, unsigned groups);

// The configuration file, if any, and the flags over it. Errors: kUsage naming the option.
BuildConfig MakeConfig(const std::string& model, const ConfigFlags& flags);
// The same without the checks of what a model of operators can take: a file of weights has rules of its own.
BuildConfig CollectConfig(const std::string& model, const ConfigFlags& flags);
// Errors: kUsage when neither the command line nor the configuration file names a model; `how` is what to write.
void RequireModel(const BuildConfig& config, const std::string& how);
// --dim NAME=VALUE. Errors: kUsage for another form, and for a dimension that is set twice.
std::vector<std::pair<std::string, std::int64_t>> ParseDims(const std::vector<std::string>& dims);

// The parts of A,B in all of the texts; empty ones are left out.
std::vector<std::string> SplitCommas(const std::vector<std::string>& given);
std::string ModelFile(const std::string& path);  // a build's output directory stands for the model in it
int ThreadCount(const CommonFlags& common);      // 0: all cores
void ApplyQuiet(const CommonFlags& common);
void WriteJson(const CommonFlags& common, const std::string& text);  // to --json F, if given
// The end of a command: its result as JSON to --json F, if given, and as text to stdout. Returns exit code 0.
int Finish(const CommonFlags& common, const std::string& json, const std::string& text);
void Print(const std::string& text);  // to stdout; Error(kBadInput) when it cannot be written
// An output FILE that exists is left alone unless --force was given, and one whose name says another format than
// `format` ("onnx", "gguf", "circle", "stablehlo", "json") is none.
void CheckOutputFile(const std::string& file, const CommonFlags& common, std::string_view format);
// --dry-run: the plan to stdout and to --json.
int PrintPlan(const BuildPlan& plan, const CommonFlags& common);
// What `build` and `compile` share: an output directory, the device's compiler, validation.
struct BuildFlags : ConfigFlags {
  std::string out;
  std::vector<std::string> epoptions;
  bool embed_context = false, no_cache = false;
  std::optional<std::int64_t> validate_samples;
};
void AddBuildOptions(std::vector<Option>& options, BuildFlags& flags, const std::string& group);
// The end of both: the plan for --dry-run, else the build, its manifest as JSON and its summary.
int RunBuild(BuildConfig config, const BuildFlags& flags);
void RequireArgument(const std::string& value, const std::string& name, const std::string& how);

}  // namespace octavo::cli
