// `octavo export --to stablehlo`.
#include "octavo/build/export.h"
#include "octavo/emit/stablehlo.h"

namespace octavo {

ExportReport ExportStablehlo(const ExportRequest& request) {
  StablehloOptions options;
  options.constants = ParseConstantForm(request.Option("constants", "packed"));
  const Model model = PrepareExport(request);
  const StablehloResult result = WriteStablehlo(model, request.out, options);
  ExportReport report;
  report.files.push_back(request.out);
  if (!result.archive.empty()) report.files.push_back(result.archive);
  report.facts.emplace_back("operators", std::to_string(result.operators));
  report.facts.emplace_back("constants", request.Option("constants", "packed"));
  report.facts.emplace_back("quantized weights", std::to_string(result.quantized_weights));
  for (const std::string& line : result.trace) {
    report.details.emplace_back("trace", line);
    if (line.find(" is dequantized at ") != std::string::npos) report.facts.emplace_back("trace", line);
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
