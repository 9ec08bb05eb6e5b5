// `octavo export --to stablehlo`.
#include "octavo/base/error.h"
#include "octavo/build/export.h"
#include "octavo/emit/stablehlo.h"
#include "octavo/import/gguf.h"

namespace octavo {
namespace {

// The GGUF that --parameters names: where its weights lie, and that IREE can open it.
void ReadArchive(const std::string& path, StablehloOptions& options) {
  if (options.constants != ConstantForm::kParameters) {
    ThrowUsage("weights stay in a file with --constants parameters alone", "--parameters",
               "give --constants parameters");
  }
  const Gguf gguf = Gguf::Open(path);
  if (gguf.files.size() > 1) {
    ThrowUnsupported("a split GGUF as parameter archive", path, "leave --parameters out: an archive is written");
  }
  options.archive = gguf.files[0]->path();
  for (const GgufTensor& tensor : gguf.tensors) {
    // IREE's reader refuses the whole file for one tensor of these types.
    for (const std::uint32_t type : {20u, 23u, 24u, 28u, 30u, 34u, 35u, 39u, 40u}) {
      if (tensor.type->id == type) {
        ThrowUnsupported("IREE does not open a GGUF that holds a tensor of type " + std::string(tensor.type->name),
                         path + ", tensor '" + tensor.name + "'",
                         "leave --parameters out and give --weights: an archive is written");
      }
    }
    const std::byte* data = gguf.Data(tensor).data();
    options.archive_tensors[static_cast<std::uint64_t>(data - gguf.files[0]->bytes().data())] = tensor.name;
  }
}

}  // namespace

ExportReport ExportStablehlo(const ExportRequest& given) {
  ExportRequest request = given;
  StablehloOptions options;
  options.constants = ParseConstantForm(request.Option("constants", "packed"));
  if (const std::string file = request.Option("parameters"); !file.empty()) {
    ReadArchive(file, options);
    if (!request.config.weights.empty() && request.config.weights != file) {
      ThrowUsage("--parameters and --weights name different files", "octavo export", "keep one of the two");
    }
    request.config.weights = file;
  }
  const Model model = PrepareExport(request);
  const StablehloResult result = WriteStablehlo(model, request.out, options);
  ExportReport report;
  report.files.push_back(request.out);
  if (!result.archive.empty()) report.files.push_back(result.archive);
  report.facts.emplace_back("operators", std::to_string(result.operators));
  report.facts.emplace_back("constants", request.Option("constants", "packed"));
  if (options.constants == ConstantForm::kParameters) {
    report.facts.emplace_back("read from the archive", std::to_string(result.archive_reads));
  }
  report.facts.emplace_back("quantized weights", std::to_string(result.quantized_weights));
  for (const std::string& line : result.trace) {
    report.details.emplace_back("trace", line);
    if (line.find(" is dequantized at ") != std::string::npos) report.facts.emplace_back("trace", line);
  }
  constexpr std::size_t kShown = 8;
  for (std::size_t i = 0; i < result.notes.size(); ++i) {
    report.details.emplace_back("trace", result.notes[i]);
    if (i < kShown) report.facts.emplace_back("note", result.notes[i]);
  }
  if (result.notes.size() > kShown) {
    report.facts.emplace_back("note", std::to_string(result.notes.size() - kShown) + " more are in the JSON report");
  }
  return report;
}

std::string StablehloOperatorRows() {
  std::string rows;
  for (const StablehloOperator& row : StablehloOperators()) {
    rows += "| " + (row.domain.empty() ? "" : std::string(row.domain) + ".") + std::string(row.op) + " | " +
            std::string(row.refused) + " |\n";
  }
  return rows;
}

}  // namespace octavo
