#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "octavo/base/error.h"
#include "octavo/emit/onnx.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"

namespace octavo {
namespace {

using testing::HasSubstr;

// The graph's text with one quantized constant that makes the model need `target`.
Model WithNeed(std::int64_t opset, std::int64_t target, std::string_view graph) {
  Model model = Parse("ir_version = 4\nopset \"\" = " + std::to_string(opset) + "\n" + std::string(graph));
  Type type{.dtype = DType::kF32, .shape = {{{1, ""}}}, .quant = QuantType{}, .opaque = {}};
  Affine& affine = type.quant->affine;
  affine.storage = target >= 21 ? DType::kU16 : DType::kU8;
  if (target == 13) affine.axis = 0;
  affine.scale = target == 13 ? TensorRef::FromFloats({1}, std::vector<float>{1.0f}) : TensorRef::Scalar(1.0f);
  const std::vector<std::int64_t> codes = {0};
  model.graph->AddConstant("need", TensorRef::FromInts(affine.storage, {1}, codes), type);
  return model;
}

std::string Raised(std::int64_t opset, std::int64_t target, std::string_view graph) {
  Model model = WithNeed(opset, target, graph);
  RaiseOpsetForQuantization(model);
  EXPECT_EQ(model.OpsetVersion(), target);
  EXPECT_GE(model.ir_version, target >= 21 ? 10 : 5);
  model.graph->Erase(model.graph->FindValue("need"));
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  return Print(*model.graph);
}

std::string Refusal(std::int64_t opset, std::int64_t target, std::string_view graph) {
  Model model = WithNeed(opset, target, graph);
  try {
    RaiseOpsetForQuantization(model);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUnsupported);
    return error.what();
  }
  return "accepted";
}

TEST(RaiseOpset, NothingWhenNothingNeedsIt) {
  Model model = Parse("ir_version = 4\nopset \"\" = 9\ngraph @g(%x: f32[2]) -> (%y) {\n  %y: f32[2] = Foo(%x)\n}\n");
  RaiseOpsetForQuantization(model);
  EXPECT_EQ(model.OpsetVersion(), 9);
  EXPECT_EQ(model.ir_version, 4);
  Model enough = WithNeed(17, 13, "graph @g(%x: f32[2]) -> (%y) {\n  %y: f32[2] = Foo(%x)\n}\n");
  RaiseOpsetForQuantization(enough);
  EXPECT_EQ(enough.OpsetVersion(), 17);
}

TEST(RaiseOpset, AxesBecomeAnInput) {
  EXPECT_EQ(Raised(11, 13, R"(graph @g(%x: f32[1,2]) -> (%y, %z) {
  %y: f32[2] = Squeeze(%x) {axes=[0]}
  %z: f32[1,1] = ReduceMean(%x) {axes=[1], keepdims=1}
}
)"),
            R"(graph @g(%x: f32[1,2]) -> (%y, %z) {
  %y_axes = constant s64[1] [0]
  %y: f32[2] = Squeeze(%x, %y_axes)
  %z: f32[1,1] = ReduceMean(%x) {axes=[1], keepdims=1}
}
)");
  EXPECT_EQ(Raised(13, 21, R"(graph @g(%x: f32[1,2]) -> (%z) {
  %z: f32[1,1] = ReduceMean(%x) {axes=[1], keepdims=1}
}
)"),
            R"(graph @g(%x: f32[1,2]) -> (%z) {
  %z_axes = constant s64[1] [1]
  %z: f32[1,1] = ReduceMean(%x, %z_axes) {keepdims=1}
}
)");
}

TEST(RaiseOpset, SoftmaxOnTheLastAxis) {
  EXPECT_EQ(Raised(11, 13, R"(graph @g(%x: f32[1,2]) -> (%y) {
  %y: f32[1,2] = Softmax(%x)
}
)"),
            R"(graph @g(%x: f32[1,2]) -> (%y) {
  %y: f32[1,2] = Softmax(%x) {axis=1}
}
)");
}

TEST(RaiseOpset, SoftmaxOverSeveralAxesIsFlattened) {
  EXPECT_EQ(Raised(11, 13, R"(graph @g(%x: f32[1,2,3]) -> (%y) {
  %y: f32[1,2,3] = Softmax(%x) {axis=1}
}
)"),
            R"(graph @g(%x: f32[1,2,3]) -> (%y) {
  %y_shape = constant s64[3] [1, 2, 3]
  %y_flat: f32[*] = Flatten(%x) {axis=1}
  %y_2d: f32[*] = Softmax(%y_flat) {axis=-1}
  %y: f32[1,2,3] = Reshape(%y_2d, %y_shape)
}
)");
  EXPECT_EQ(Raised(11, 13, R"(graph @g(%x: f32[n,2,3]) -> (%y) {
  %y: f32[n,2,3] = Softmax(%x) {axis=1}
}
)"),
            R"(graph @g(%x: f32[n,2,3]) -> (%y) {
  %y_shape: s64[*] = Shape(%x)
  %y_flat: f32[*] = Flatten(%x) {axis=1}
  %y_2d: f32[*] = Softmax(%y_flat) {axis=-1}
  %y: f32[n,2,3] = Reshape(%y_2d, %y_shape)
}
)");
}

TEST(RaiseOpset, SoftmaxWithOnesBehindItsAxis) {
  EXPECT_EQ(Raised(11, 13, R"(graph @g(%x: f32[n,1000,1,1]) -> (%y) {
  %y: f32[n,1000,1,1] = Softmax(%x)
}
)"),
            R"(graph @g(%x: f32[n,1000,1,1]) -> (%y) {
  %y: f32[n,1000,1,1] = Softmax(%x) {axis=1}
}
)");
}

TEST(RaiseOpset, FromSevenToThirteen) {
  EXPECT_EQ(Raised(7, 13, R"(graph @g(%x: f32[1,1,2,2]) -> (%a, %b, %c, %d, %e) {
  %a: f32[1,1,4,4] = Upsample(%x) {mode="nearest", scales=[1.0, 1.0, 2.0, 2.0]}
  %b: f32[1,1,2,2] = Clip(%x) {max=6.0, min=0.0}
  %c: f32[1,1,1,2] = Slice(%x) {axes=[2], ends=[1], starts=[0]}
  %d: f32[1,1,2,2] = Dropout(%x) {ratio=0.5}
  %e: f32[1,1,4,4] = Pad(%x) {mode="constant", pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5}
}
)"),
            R"(graph @g(%x: f32[1,1,2,2]) -> (%a, %b, %c, %d, %e) {
  %a_scales = constant f32[4] [1, 1, 2, 2]
  %c_starts = constant s64[1] [0]
  %c_ends = constant s64[1] [1]
  %c_axes = constant s64[1] [2]
  %b_min = constant f32[] 0
  %b_max = constant f32[] 6
  %e_pads = constant s64[8] [0, 0, 1, 1, 0, 0, 1, 1]
  %e_value = constant f32[] 0.5
  %a: f32[1,1,4,4] = Resize(%x, _, %a_scales) {mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"}
  %b: f32[1,1,2,2] = Clip(%x, %b_min, %b_max)
  %c: f32[1,1,1,2] = Slice(%x, %c_starts, %c_ends, %c_axes)
  %d: f32[1,1,2,2] = Dropout(%x)
  %e: f32[1,1,4,4] = Pad(%x, %e_pads, %e_value) {mode="constant"}
}
)");
}

TEST(RaiseOpset, SplitCounts) {
  EXPECT_EQ(Raised(13, 21, R"(graph @g(%x: f32[4]) -> (%a, %b) {
  %a: f32[2], %b: f32[2] = Split(%x) {axis=0}
}
)"),
            R"(graph @g(%x: f32[4]) -> (%a, %b) {
  %a: f32[2], %b: f32[2] = Split(%x) {axis=0, num_outputs=2}
}
)");
}

TEST(RaiseOpset, ScalesOfGroupsBecomeThoseOfChannels) {
  EXPECT_EQ(Raised(18, 21, R"(graph @g(%x: f32[1,4,2], %s: f32[2], %b: f32[2]) -> (%y) {
  %y: f32[1,4,2] = GroupNormalization(%x, %s, %b) {num_groups=2}
}
)"),
            R"(graph @g(%x: f32[1,4,2], %s: f32[2], %b: f32[2]) -> (%y) {
  %y_shape = constant s64[2] [2, 1]
  %y_shape_1 = constant s64[2] [2, 2]
  %y_shape_2 = constant s64[1] [4]
  %y_shape_3 = constant s64[2] [2, 1]
  %y_shape_4 = constant s64[2] [2, 2]
  %y_shape_5 = constant s64[1] [4]
  %y_channels: f32[2,1] = Reshape(%s, %y_shape)
  %y_channels_1: f32[2,2] = Expand(%y_channels, %y_shape_1)
  %y_channels_2: f32[4] = Reshape(%y_channels_1, %y_shape_2)
  %y_channels_3: f32[2,1] = Reshape(%b, %y_shape_3)
  %y_channels_4: f32[2,2] = Expand(%y_channels_3, %y_shape_4)
  %y_channels_5: f32[4] = Reshape(%y_channels_4, %y_shape_5)
  %y: f32[1,4,2] = GroupNormalization(%x, %y_channels_2, %y_channels_5) {num_groups=2}
}
)");
}

TEST(RaiseOpset, RefusalsNameTheOperatorAndWhy) {
  EXPECT_THAT(Refusal(11, 13, "graph @g(%x: f32[2]) -> (%y) {\n  %y: f32[2] = Foo(%x) @me\n}\n"), HasSubstr("me"));
  EXPECT_THAT(Refusal(18, 21, "graph @g(%x: f32[2]) -> (%y) {\n  %y: f32[2] = GroupNormalization(%x)\n}\n"),
              HasSubstr("per channel"));
  EXPECT_THAT(Refusal(7, 13, R"(graph @g(%x: f32[1,1,2,2]) -> (%a) {
  %a: f32[1,1,1,1] = Upsample(%x) {mode="nearest", scales=[1.0, 1.0, 0.5, 0.5]}
}
)"),
              HasSubstr("shrinks"));
  EXPECT_THAT(Refusal(11, 13, R"(graph @g(%x: f32[1,1,2,2], %s: f32[4]) -> (%a) {
  %a: f32[1,1,4,4] = Resize(%x, _, %s) {coordinate_transformation_mode="tf_half_pixel_for_nn"}
}
)"),
              HasSubstr("tf_half_pixel_for_nn"));
  EXPECT_THAT(Refusal(9, 13, R"(graph @g(%x: f16[2]) -> (%a) {
  %b: f16[*] = Relu(%x)
  %a: f16[2] = Clip(%b) {max=1.0}
}
)"),
              HasSubstr("not known to be f32"));
}

}  // namespace
}  // namespace octavo
