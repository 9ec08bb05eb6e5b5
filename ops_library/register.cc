// liboctavo_ops.so: the operators of domain `octavo` for any program that uses ONNX Runtime by itself. In Python:
//   options = onnxruntime.SessionOptions(); options.register_custom_ops_library("liboctavo_ops.so")
#include "octavo/runtime/mx_op.h"

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL
RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(octavo::internal::kOpsApi);
  // A runtime that is too old cannot make a status of this API level; version 1 has had this function ever since.
  if (api == nullptr) {
    return base->GetApi(1)->CreateStatus(ORT_NOT_IMPLEMENTED, "Octavo's operators need ONNX Runtime 1.23 or newer");
  }
  return octavo::internal::AddProjectOps(*api, options);
}
