// `octavo export --to onnx`: plain ONNX of what the IR says, in the form that is asked for.
#include <memory>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/build/export.h"
#include "octavo/build/pipeline.h"
#include "octavo/build/write_checked.h"
#include "octavo/emit/lower_mx.h"
#include "octavo/emit/onnx.h"
#include "octavo/rewrite/quantized.h"

namespace octavo {

ExportReport ExportOnnx(const ExportRequest& request) {
  const std::string form = request.Option("form", "qdq");
  if (form != "qdq" && form != "qlinear" && form != "mx") {
    ThrowUsage("unknown form '" + form + "'", "--form", "use qdq, qlinear or mx");
  }
  Model model = PrepareExport(request);
  FoldQLinear(model);
  if (form == "qlinear") {
    RewriteQuantized(model, RequireDevice(request.config.device));
    RaiseOpsetForQuantization(model);
    LowerToQLinear(model);
  } else {
    UseQdqForm(model);
    if (form == "mx" && LowerMxToStandard(model) == 0) {
      ThrowUnsupported(
          "no weight has an MX type of the ONNX standard", request.config.model.string(),
          "start from a model with MXFakeQuantize on weights in mxfp4, mxfp8_e4m3 or mxfp8_e5m2, or from a "
          "float model with such a --precision; codes that a file holds already stay as they are");
    }
    RaiseOpsetForQuantization(model);
    LowerToQdq(model);
  }
  // Today's runtime has no kernel for the MX types of the standard: that form is for other consumers.
  const OnnxFiles files =
      form == "mx" ? WriteOnnx(model, request.out)
                   : WriteChecked(std::make_unique<Model>(std::move(model)), request.out, nullptr, request.threads);
  ExportReport report;
  report.files.push_back(files.model);
  report.files.insert(report.files.end(), files.data.begin(), files.data.end());
  report.facts.emplace_back("form", form);
  return report;
}

}  // namespace octavo
