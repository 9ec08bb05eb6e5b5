#include "octavo/build/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "octavo/base/error.h"

namespace octavo {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string Refusal(const std::string& text) {
  try {
    BuildConfigFromJson(text, "c.json");
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kUsage) << error.what();
    return error.what();
  }
  return "accepted";
}

TEST(BuildConfig, RoundTripIsCanonical) {
  BuildConfig c;
  c.model = "/m/model.onnx";
  c.data.emplace();
  c.data->path = "/d/images";
  c.data->image_options_given = true;
  c.data->image.layout = ImageLayout::kNhwc;
  c.data->image.width = 224;
  c.data->image.height = 160;
  c.data->image.mean = {0.485f, 0.456f, 0.406f};
  c.data->image.color = ImageColor::kBgr;
  c.dims = {{"batch", 1}, {"x:2", 48}};
  c.quantization.emplace();
  c.quantization->precision = "int8";
  c.quantization->exclude = {"head*"};
  c.validate_samples = 16;
  c.min_sqnr = 20.5;
  c.compile.enabled = false;
  const std::string once = ToJson(c);
  const BuildConfig back = BuildConfigFromJson(once, "once");
  EXPECT_EQ(ToJson(back), once);
  EXPECT_EQ(back.quantization, c.quantization);
  EXPECT_EQ(back.dims, c.dims);
  EXPECT_EQ(back.min_sqnr, c.min_sqnr);
  EXPECT_EQ(back.data->image.mean, c.data->image.mean);
  EXPECT_EQ(back.data->image.width, 224);
  EXPECT_EQ(*back.data->image.layout, ImageLayout::kNhwc);
  EXPECT_FALSE(back.compile.enabled);
}

TEST(BuildConfig, ImageNumbers) {
  const auto image = [](const std::string& field) { return R"({"data": {"path": "d", "image": {)" + field + "}}}"; };
  EXPECT_THAT(Refusal(image(R"("std": [1, 0, 1])")), HasSubstr("positive"));
  EXPECT_THAT(Refusal(image(R"("mean": [1, 1e300, 1])")), HasSubstr("'mean'"));
  EXPECT_THAT(Refusal(image(R"("scale": -1e39)")), HasSubstr("'scale'"));
}

TEST(BuildConfig, DefaultsRoundTrip) {
  BuildConfig c;
  c.model = "/m.onnx";
  EXPECT_EQ(ToJson(BuildConfigFromJson(ToJson(c), "defaults")), ToJson(c));
  EXPECT_FALSE(BuildConfigFromJson("{}", "empty").quantization);
  // A file that says how to quantize, but no model.
  const std::string bare = ToJson(BuildConfigFromJson(R"({"precision": "int8"})", "bare"));
  EXPECT_EQ(ToJson(BuildConfigFromJson(bare, "bare")), bare);
}

TEST(BuildConfig, BareQuantizationIsTaken) {
  const BuildConfig c = BuildConfigFromJson(R"({"precision": "int8", "samples": 7})", "q.json");
  ASSERT_TRUE(c.quantization);
  EXPECT_EQ(c.quantization->precision, "int8");
  EXPECT_EQ(c.quantization->samples, 7);
  EXPECT_THAT(Refusal(R"({"precision": "int8", "sampels": 7})"), AllOf(HasSubstr("sampels"), HasSubstr("samples")));
}

TEST(BuildConfig, QuantizationInTheCompileSectionCounts) {
  const BuildConfig c = BuildConfigFromJson(R"({"compile": {"quantization": {"precision": "int16"}}})", "c.json");
  EXPECT_EQ(EffectiveQuantization(c).precision, "int16");
}

TEST(BuildConfig, QuantizationTwiceIsAConflict) {
  const char* text = R"({"quantization": {"precision": "uint8"}, "compile": {"quantization": {"precision": "uint8"}}})";
  EXPECT_THROW(BuildConfigFromJson(text, "c.json"), ConfigConflictError);
  BuildConfig c;
  c.quantization.emplace();
  c.compile.quantization.emplace();
  EXPECT_THROW(Validate(c), ConfigConflictError);
  EXPECT_THAT(Refusal(text), HasSubstr("both"));
}

TEST(BuildConfig, RefusalsNameTheKey) {
  EXPECT_THAT(Refusal(R"({"quantisation": {}})"), AllOf(HasSubstr("quantisation"), HasSubstr("'quantization'")));
  EXPECT_THAT(Refusal(R"({"quantization": {"presicion": "int8"}})"),
              AllOf(HasSubstr("presicion"), HasSubstr("precision")));
  EXPECT_THAT(Refusal(R"({"device": 3})"), HasSubstr("'device' must be a string"));
  EXPECT_THAT(Refusal(R"({"validate_samples": "many"})"), HasSubstr("validate_samples"));
  EXPECT_THAT(Refusal(R"({"validate_samples": 18446744073709551615})"), HasSubstr("validate_samples"));
  EXPECT_THAT(Refusal(R"({"min_sqnr": "20"})"), HasSubstr("min_sqnr"));
  EXPECT_THAT(Refusal(R"({"dims": {"n": 1.5}})"), HasSubstr("'n' must be an integer"));
  EXPECT_THAT(Refusal(R"({"data": {}})"), HasSubstr("path"));
  EXPECT_THAT(Refusal(R"({"data": {"path": "d", "image": {"size": [1]}}})"), HasSubstr("size"));
  EXPECT_THAT(Refusal(R"({"compile": {"enable": true}})"), AllOf(HasSubstr("enable"), HasSubstr("enabled")));
  EXPECT_THAT(Refusal(R"({"schema_version": 2})"), HasSubstr("schema_version"));
  EXPECT_THAT(Refusal(R"({"device": "cpu", "device": "qnn"})"), HasSubstr("twice"));
  EXPECT_THAT(Refusal("{\"quantization\": "), HasSubstr("parse error"));
  EXPECT_THAT(Refusal(std::string(100000, '[')), HasSubstr("deep"));
  EXPECT_THAT(Refusal("[]"), HasSubstr("object"));
}

TEST(BuildConfig, ValidateChecksRanges) {
  BuildConfig c;
  c.dims = {{"n", 0}};
  EXPECT_THROW(Validate(c), Error);
  c.dims = {{"n", 1}, {"n", 2}};
  EXPECT_THROW(Validate(c), Error);
  c.dims.clear();
  c.validate_samples = 0;
  EXPECT_THROW(Validate(c), Error);
  c.validate_samples = 1;
  EXPECT_NO_THROW(Validate(c));
  c.quantization.emplace();
  c.quantization->samples = -3;
  EXPECT_THROW(Validate(c), Error);
}

TEST(BuildConfig, ImageOptionsAreParsed) {
  EXPECT_EQ(ParseTriple("0.5,1,-2", "--image-mean"), (std::array<float, 3>{0.5f, 1, -2}));
  EXPECT_EQ(ParseSize("224x160", "--image-size"), std::make_pair(224, 160));
  for (const char* bad : {"", "1,2", "1,2,3,4", "a,b,c", "1,,3"}) EXPECT_THROW(ParseTriple(bad, "o"), Error) << bad;
  for (const char* bad : {"", "x", "224", "0x3", "3x", "-1x3", "999999x3"})
    EXPECT_THROW(ParseSize(bad, "o"), Error) << bad;
}

}  // namespace
}  // namespace octavo
