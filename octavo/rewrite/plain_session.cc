#include "octavo/rewrite/plain_session.h"

#include <utility>

#include "octavo/emit/onnx.h"

namespace octavo {

Session PlainSession(const Model& model, GraphOptimization optimization) {
  SessionOptions options;
  options.optimization = optimization;
  options.intra_op_threads = 1;
  options.disable_prepacking = true;
  options.arena = false;
  OnnxSkeleton skeleton = SerializeSkeleton(model);
  return Session(skeleton.bytes, std::move(skeleton.externals), options);
}

}  // namespace octavo
