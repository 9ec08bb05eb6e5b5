// Running IR models in the tests, optimizations off.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "octavo/emit/onnx.h"
#include "octavo/ir/graph.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/runtime/library_test_util.h"
#include "octavo/runtime/session.h"

namespace octavo::testing {

inline Model ParseModel(const std::string& text, int opset = 17) {
  Model model = Parse("opset \"\" = " + std::to_string(opset) + "\n" + text);
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << text;
  return model;
}

inline std::vector<TensorRef> RunModel(const Model& model, const std::vector<TensorRef>& inputs) {
  OnnxSkeleton skeleton = SerializeSkeleton(model);
  SessionOptions options;
  options.optimization = GraphOptimization::kNone;
  options.intra_op_threads = 1;
  const Session session(skeleton.bytes, std::move(skeleton.externals), options);
  return session.Run(inputs);
}

// Numbers for every input of the graph; dimensions that are not known become `unknown`. Floats in [-2, 2]; integers in
// 0..1 for 64 bits (ids, masks), else anything of the type.
inline std::vector<TensorRef> RandomInputs(const Model& model, std::uint64_t seed, std::int64_t unknown = 2) {
  std::mt19937_64 rng(seed);
  std::vector<TensorRef> inputs;
  for (const Value* input : model.graph->inputs()) {
    Dims dims;
    for (const Dim& dim : *input->type.shape) dims.push_back(dim.known() ? dim.value : unknown);
    const std::uint64_t n = ElementCount(dims);
    if (input->type.dtype == DType::kBool) {
      inputs.push_back(TensorRef::FromBytes(DType::kBool, dims, std::vector<std::byte>(n, std::byte{1})));
    } else if (input->type.dtype == DType::kF32) {
      std::vector<float> values(n);
      for (float& v : values) v = std::uniform_real_distribution<float>(-2.0f, 2.0f)(rng);
      inputs.push_back(TensorRef::FromFloats(dims, values));
    } else {
      std::vector<std::int64_t> values(n);
      for (std::int64_t& v : values)
        v = BitWidth(input->type.dtype) == 64 ? static_cast<std::int64_t>(rng() % 2)
                                              : IntegerMin(input->type.dtype) + static_cast<std::int64_t>(rng() % 200);
      inputs.push_back(TensorRef::FromInts(input->type.dtype, dims, values));
    }
  }
  return inputs;
}

inline bool SameBits(const std::vector<TensorRef>& a, const std::vector<TensorRef>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (!SameContent(a[i], b[i])) return false;
  }
  return true;
}

// The first outputs of both on the same random inputs.
inline void ExpectSameNumbers(const Model& before, const Model& after, float tolerance, const std::string& where) {
  const std::vector<TensorRef> inputs = RandomInputs(before, 3);
  const TensorRef want = RunModel(before, inputs)[0], got = RunModel(after, inputs)[0];
  EXPECT_EQ(want.dims, got.dims) << where;
  const std::vector<float> x = want.ToFloats(), y = got.ToFloats();
  EXPECT_EQ(x.size(), y.size()) << where;
  for (std::size_t i = 0; i < std::min(x.size(), y.size()); ++i) EXPECT_NEAR(x[i], y[i], tolerance) << where << i;
}

}  // namespace octavo::testing
