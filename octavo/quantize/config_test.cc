#include "octavo/quantize/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "octavo/base/error.h"
#include "octavo/quantize/precision.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;

template <class Fn>
std::string Failure(ExitCode code, Fn fn) {
  try {
    fn();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return {};
}

TEST(Config, DefaultRoundTrips) {
  const QuantizationConfig c;
  EXPECT_EQ(QuantizationConfigFromJson(ToJson(c), "f"), c);
  EXPECT_EQ(QuantizationConfigFromJson("{}", "f"), c);
}

TEST(Config, EveryFieldRoundTrips) {
  QuantizationConfig c;
  c.precision = "int16";
  c.weight_type = DType::kS8;
  c.activation_type = DType::kU16;
  c.per_channel = true;
  c.symmetric = false;
  c.calibration = CalibrationMethod::kPercentile;
  c.percentile = 99.9;
  c.samples = 7;
  c.seed = 0xFFFFFFFFFFFFFFFFull;
  c.distribution = "normal";
  c.op_types = {"Conv", "Gemm"};
  c.exclude = {"a*", "b"};
  c.overrides = {{"x", "u16"}, {"y*", "f32"}};
  c.load_path = "s.json";
  c.save_path = "t.json";
  c.keep_float_auto = false;
  c.requantize = true;
  const std::string text = ToJson(c);
  EXPECT_EQ(QuantizationConfigFromJson(text, "f"), c);
  EXPECT_EQ(ToJson(QuantizationConfigFromJson(text, "f")), text);
  QuantizationConfig blocks;
  blocks.precision = "int4";
  blocks.block = 128;
  EXPECT_EQ(QuantizationConfigFromJson(ToJson(blocks), "f"), blocks);
}

TEST(Config, RefusesWhatWouldHaveNoEffect) {
  const auto fail = [](const std::string& text) {
    return Failure(ExitCode::kUsage, [&] { QuantizationConfigFromJson(text, "c.json"); });
  };
  EXPECT_THAT(fail(R"({"percentile": 99.5})"), HasSubstr("--calibration percentile"));
  EXPECT_THAT(fail(R"({"percentile": 99.5, "calibration": "mse"})"), HasSubstr("no effect"));
  EXPECT_THAT(fail(R"({"block": 64})"), HasSubstr("no effect with precision 'uint8'"));
  EXPECT_THAT(fail(R"({"block": 64, "precision": "q4_k"})"), HasSubstr("no effect with precision 'q4_k'"));
  for (const char* field :
       {R"("per_channel": false)", R"("symmetric": true)", R"("calibration": "mse")", R"("overrides": [["x", "u8"]])",
        R"("load_path": "s")", R"("save_path": "s")", R"("keep_float": "none")"}) {
    for (const char* precision : {"fp16", "bf16", "fp32"}) {
      const std::string text = std::string("{") + field + R"(, "precision": ")" + precision + "\"}";
      EXPECT_THAT(fail(text), HasSubstr("no effect with precision '" + std::string(precision) + "'")) << text;
    }
  }
  for (const char* precision : {"int4", "mxfp4", "q8_0", "q4_k"}) {
    for (const char* field : {R"("per_channel": true)", R"("symmetric": true)", R"("calibration": "mse")",
                              R"("keep_float": "none")", R"("weight_type": "u8")", R"("activation_type": "u8")"}) {
      const std::string text = std::string("{") + field + R"(, "precision": ")" + precision + "\"}";
      EXPECT_THAT(fail(text), HasSubstr("no effect with precision '" + std::string(precision) + "'")) << text;
    }
  }
  for (const char* precision : {"int4", "mxfp4", "q8_0"}) {  // no importance matrix can be made for these
    for (const char* field : {R"("load_path": "s")", R"("save_path": "s")", R"("imatrix": "m")"}) {
      const std::string text = std::string("{") + field + R"(, "precision": ")" + precision + "\"}";
      EXPECT_THAT(fail(text), HasSubstr("no effect with precision '" + std::string(precision) + "'")) << text;
    }
  }
  EXPECT_EQ(QuantizationConfigFromJson(R"({"load_path": "s", "precision": "q4_k"})", "f").load_path, "s");
  EXPECT_EQ(QuantizationConfigFromJson(R"({"overrides": [["x", "s8"]], "precision": "int4"})", "f").overrides.size(),
            1u);
  EXPECT_THAT(fail(R"({"exclude": ["x"], "precision": "fp32"})"), HasSubstr("exclude has no effect"));
  EXPECT_EQ(QuantizationConfigFromJson(R"({"exclude": ["x"], "precision": "fp16"})", "f").exclude.size(), 1u);
}

TEST(Config, RefusesWithTheKeyAndTheNearestName) {
  const auto fail = [](const std::string& text) {
    return Failure(ExitCode::kUsage, [&] { QuantizationConfigFromJson(text, "c.json"); });
  };
  EXPECT_THAT(fail(R"({"precison": "int8"})"), HasSubstr("precision"));
  EXPECT_THAT(fail(R"({"samples": "8"})"), HasSubstr("samples"));
  EXPECT_THAT(fail(R"({"samples": 0})"), HasSubstr("c.json"));
  EXPECT_THAT(fail(R"({"samples": 18446744073709551615})"), HasSubstr("samples"));
  EXPECT_THAT(fail(R"({"seed": -1})"), HasSubstr("seed"));
  EXPECT_THAT(fail(R"({"percentile": 12})"), HasSubstr("percentile"));
  EXPECT_THAT(fail(R"({"keep_float": true})"), HasSubstr("keep_float"));
  EXPECT_THAT(fail(R"({"overrides": [["x"]]})"), HasSubstr("pairs"));
  EXPECT_THAT(fail(R"({"overrides": [["x", "u7"]]})"), HasSubstr("u7"));
  EXPECT_THAT(fail(R"({"calibration": "magic"})"), HasSubstr("magic"));
  EXPECT_THAT(fail(R"({"weight_type": "u99"})"), HasSubstr("u99"));
  EXPECT_THAT(fail(R"({"precision": "uint88"})"), HasSubstr("uint8"));
  EXPECT_THAT(fail("[1]"), HasSubstr("object"));
  EXPECT_THAT(fail("{"), HasSubstr("c.json"));
  EXPECT_THAT(fail(std::string(100000, '[')), HasSubstr("JSON"));
}

TEST(Precision, Cpu) {
  const DeviceDescriptor& cpu = *FindDevice("cpu");
  QuantizationConfig c;
  ResolvedPrecision p = ResolvePrecision(c, cpu);
  EXPECT_EQ(p.weight, DType::kU8);
  EXPECT_FALSE(p.per_channel);
  EXPECT_FALSE(p.weight_symmetric);

  c.precision = "int8";
  p = ResolvePrecision(c, cpu);
  EXPECT_EQ(p.weight, DType::kU8);
  EXPECT_TRUE(p.per_channel);
  EXPECT_TRUE(p.weight_symmetric);
  EXPECT_THAT(p.weight_text, HasSubstr("zero point 128"));

  c.precision = "w8a16";
  p = ResolvePrecision(c, cpu);
  EXPECT_EQ(p.activation, DType::kU16);
  EXPECT_EQ(p.weight, DType::kS8);
  EXPECT_TRUE(p.per_channel);
  EXPECT_TRUE(p.weight_symmetric);

  c.precision = "int16";
  p = ResolvePrecision(c, cpu);
  EXPECT_EQ(p.activation, DType::kU16);
  EXPECT_EQ(p.weight, DType::kS16);
  EXPECT_TRUE(p.per_channel);
  // int8 selects what stays in float for both, whatever types were asked for.
  c.weight_type = DType::kU16;
  EXPECT_EQ(SelectionPrecision(c, cpu, ResolvePrecision(c, cpu)).activation, DType::kU8);
  EXPECT_EQ(SelectionPrecision(c, cpu, ResolvePrecision(c, cpu)).weight, DType::kU8);
  c.weight_type.reset();

  c.precision = "bf16";
  p = ResolvePrecision(c, cpu);
  EXPECT_EQ(p.kind, ResolvedPrecision::Kind::kHalf);
  EXPECT_EQ(p.half, DType::kBF16);
}

TEST(Precision, RefusesWhatIsNot) {
  const DeviceDescriptor& cpu = *FindDevice("cpu");
  QuantizationConfig c;
  c.precision = "q4_k";
  EXPECT_EQ(ResolvePrecision(c, cpu).kind, ResolvedPrecision::Kind::kWeightOnly);
  c.weight_type = DType::kU8;
  EXPECT_THAT(Failure(ExitCode::kUsage, [&] { ResolvePrecision(c, cpu); }), HasSubstr("q4_k"));
  c.weight_type.reset();
  c.precision = "int9";
  EXPECT_THAT(Failure(ExitCode::kUsage, [&] { ResolvePrecision(c, cpu); }), HasSubstr("int8"));
  c.precision = "fp16";
  c.weight_type = DType::kU8;
  EXPECT_THAT(Failure(ExitCode::kUsage, [&] { ResolvePrecision(c, cpu); }), HasSubstr("fp16"));
}

TEST(ResolvePrecision, AnNpuGetsTheTypesThatItTakes) {
  const DeviceDescriptor &qnn = *FindDevice("qnn"), &cpu = *FindDevice("cpu");
  QuantizationConfig c;
  c.activation_type = DType::kS8;
  ResolvedPrecision p = ResolvePrecision(c, qnn);
  EXPECT_EQ(p.activation, DType::kU8);
  EXPECT_THAT(p.activation_text, testing::HasSubstr("the codes of s8 plus 128"));
  c.activation_type = DType::kS16;
  EXPECT_EQ(ResolvePrecision(c, qnn).activation, DType::kU16);
  EXPECT_EQ(ResolvePrecision(c, cpu).activation, DType::kS16);
  c.activation_type.reset();
  c.per_channel = true;  // channels with zero points of their own are refused by the device
  EXPECT_TRUE(ResolvePrecision(c, qnn).weight_symmetric);
  c.per_channel.reset();
  c.weight_type = DType::kS4;
  p = ResolvePrecision(c, qnn);
  EXPECT_TRUE(p.weight == DType::kS4 && p.per_channel && p.weight_symmetric && p.activation == DType::kU8);
  c.per_channel = false;
  EXPECT_THROW(ResolvePrecision(c, qnn), Error);
  c.per_channel.reset();
  EXPECT_THROW(ResolvePrecision(c, cpu), Error);
}

}  // namespace
}  // namespace octavo
