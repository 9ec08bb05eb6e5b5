#include "octavo/import/data.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <limits>

#include "octavo/base/error.h"
#include "octavo/base/folder_test_util.h"
#include "octavo/import/data_check.h"
#include "octavo/import/npz_test_util.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;
using namespace npz_test;
using testing::AllOf;
using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;

Dim Fixed(std::int64_t value) { return {value, ""}; }
Dim Named(const std::string& symbol) { return {-1, symbol}; }

class Data : public FolderTest {
 protected:
  void Put(const std::string& name, const std::string& content) const { octavo::Put(folder_ / name, content); }
  std::unique_ptr<DataSource> Open(const std::vector<InputSpec>& inputs, const std::string& name = "",
                                   const ImageOptions* image = nullptr) const {
    DataOptions options;
    options.path = name.empty() ? folder_ : folder_ / name;
    if (image != nullptr) options.image = *image;
    options.image_options_given = image != nullptr;
    return OpenData(options, inputs);
  }

  // x: f32[n,2], ids: s64[n]
  const std::vector<InputSpec> two_ = {{"x", DType::kF32, {Named("n"), Fixed(2)}}, {"ids", DType::kS64, {Named("n")}}};
  const std::vector<InputSpec> one_ = {{"x", DType::kF32, {Fixed(1), Fixed(2)}}};
  static std::string X(float a, float b) { return Npy("<f4", "(1, 2)", Floats({a, b})); }
  static std::string Ids(std::int64_t v) { return Npy("<i8", "(1,)", Raw<std::int64_t>({v})); }
};

ExitCode CodeOf(const std::function<void()>& fn, std::string* message = nullptr) {
  try {
    fn();
  } catch (const Error& e) {
    if (message != nullptr) *message = e.what();
    return e.code();
  }
  return ExitCode::kOk;
}

TEST(DataOrder, Natural) {
  EXPECT_TRUE(NaturalLess("2.npz", "10.npz"));
  EXPECT_FALSE(NaturalLess("10.npz", "2.npz"));
  EXPECT_TRUE(NaturalLess("a9b2", "a9b10"));
  EXPECT_TRUE(NaturalLess("a", "b"));
  EXPECT_TRUE(NaturalLess("a", "a1"));
  EXPECT_TRUE(NaturalLess("x1", "x01"));
  EXPECT_FALSE(NaturalLess("x01", "x1"));
  EXPECT_FALSE(NaturalLess("x1", "x1"));
  EXPECT_TRUE(NaturalLess("99999999999999999999998", "99999999999999999999999"));
}

TEST_F(Data, NpzDirectoryInNaturalOrder) {
  for (const int i : {10, 2, 1}) {
    Put(std::to_string(i) + ".npz", Zip({{"ids.npy", Ids(i), i == 2}, {"x.npy", X(1, 2)}, {"label.npy", Ids(0)}}));
  }
  Put("README.txt", "not data");
  const auto data = Open(two_);
  ASSERT_EQ(data->size(), 3u);
  EXPECT_THAT(data->Read(0).tensors[1].ToInts(), ElementsAre(1));
  EXPECT_THAT(data->Read(1).tensors[1].ToInts(), ElementsAre(2));
  EXPECT_THAT(data->Read(2).tensors[1].ToInts(), ElementsAre(10));
  EXPECT_THAT(data->Read(2).tensors[0].ToFloats(), ElementsAre(1, 2));
  EXPECT_THAT(data->Read(2).name, EndsWith("10.npz"));
  EXPECT_THAT(data->Describe(), HasSubstr("3 samples"));
  const std::string hash = data->ContentHash();
  EXPECT_EQ(hash.size(), 64u);
  EXPECT_EQ(Open(two_)->ContentHash(), hash);
  Put("2.npz", Zip({{"ids.npy", Ids(3)}, {"x.npy", X(1, 2)}}));
  EXPECT_NE(Open(two_)->ContentHash(), hash);
}

TEST_F(Data, StackedNpz) {
  for (const bool deflate : {false, true}) {
    const std::string x = Npy("<f4", "(3, 1, 2)", Floats({0, 1, 2, 3, 4, 5}));
    Put("d.npz",
        Zip({{"x.npy", x, deflate}, {"ids.npy", Npy(">i8", "(3, 1)", std::string(23, '\0') + "\x07"), deflate}}));
    const auto data = Open(two_, "d.npz");
    ASSERT_EQ(data->size(), 3u);
    for (const std::size_t i : {2, 0, 1}) {
      const Sample sample = data->Read(i);
      EXPECT_THAT(sample.tensors[0].dims, ElementsAre(1, 2));
      EXPECT_THAT(sample.tensors[0].ToFloats(), ElementsAre(2.0f * i, 2.0f * i + 1));
      EXPECT_THAT(sample.tensors[1].ToInts(), ElementsAre(i == 2 ? 7 : 0));
      EXPECT_THAT(sample.name, EndsWith("d.npz[" + std::to_string(i) + "]"));
    }
  }
  Put("f.npz", Zip({{"x.npy", Npy("<f4", "(3, 1, 2)", Floats({0, 2, 4, 1, 3, 5}), true)}}));
  EXPECT_THAT(Open(one_, "f.npz")->Read(1).tensors[0].ToFloats(), ElementsAre(2, 3));
}

TEST_F(Data, StackedNpzRefused) {
  std::string message;
  Put("a.npz", Zip({{"x.npy", X(1, 2)}}));
  EXPECT_EQ(CodeOf([&] { Open(one_, "a.npz"); }, &message), ExitCode::kBadInput);
  EXPECT_THAT(message, AllOf(HasSubstr("numpy.stack"), HasSubstr("a.npz"), HasSubstr("f32[1,2]")));
  Put("b.npz",
      Zip({{"x.npy", Npy("<f4", "(2, 1, 2)", Floats({1, 2, 3, 4}))}, {"ids.npy", Npy("<i8", "(1, 1)", "12345678")}}));
  EXPECT_EQ(CodeOf([&] { Open(two_, "b.npz"); }, &message), ExitCode::kBadInput);
  EXPECT_THAT(message, HasSubstr("2 samples for input 'x' but 1 for input 'ids'"));
  Put("c.npz", Zip({{"x.npy", Npy("<f4", "(0, 1, 2)", "")}}));
  EXPECT_EQ(CodeOf([&] { Open(one_, "c.npz"); }), ExitCode::kBadInput);
  ZipMember damaged{"x.npy", Npy("<f4", "(1, 1, 2)", Floats({1, 2}))};
  damaged.crc_flip = 1;
  Put("d.npz", Zip({damaged}));
  EXPECT_EQ(CodeOf([&] { Open(one_, "d.npz")->Read(0); }), ExitCode::kBadInput);
}

TEST_F(Data, NpyForms) {
  Put("one/9.npy", X(9, 9));
  Put("one/10.npy", X(10, 10));
  EXPECT_THAT(Open(one_, "one")->Read(0).tensors[0].ToFloats(), ElementsAre(9, 9));
  EXPECT_EQ(Open(one_, "one/9.npy")->size(), 1u);
  EXPECT_EQ(CodeOf([&] { Open(two_, "one"); }), ExitCode::kBadInput);
  for (const int i : {0, 1}) {
    Put("two/x/" + std::to_string(i) + ".npy", X(static_cast<float>(i), 0));
    Put("two/ids/" + std::to_string(i) + ".npy", Ids(i));
  }
  const auto data = Open(two_, "two");
  ASSERT_EQ(data->size(), 2u);
  EXPECT_THAT(data->Read(1).tensors[0].ToFloats(), ElementsAre(1, 0));
  EXPECT_THAT(data->Read(1).tensors[1].ToInts(), ElementsAre(1));
  Put("two/ids/2.npy", Ids(2));
  std::string message;
  EXPECT_EQ(CodeOf([&] { Open(two_, "two"); }, &message), ExitCode::kBadInput);
  EXPECT_THAT(message, HasSubstr("2 files for input 'x' but 3 for input 'ids'"));
  fs::rename(folder_ / "two/ids", folder_ / "two/idz");
  EXPECT_EQ(CodeOf([&] { Open(two_, "two"); }, &message), ExitCode::kBadInput);
  EXPECT_THAT(message, AllOf(HasSubstr("'ids'"), HasSubstr("did you mean 'idz'")));
}

// TensorProto by hand: dims = 1, data_type = 2, name = 8, raw_data = 9.
std::string Proto(const std::string& dims, int dtype, const std::string& name, const std::string& raw) {
  std::string out = "\x0a" + Little(dims.size(), 1) + dims + "\x10" + Little(static_cast<std::uint64_t>(dtype), 1);
  if (!name.empty()) out += "\x42" + Little(name.size(), 1) + name;
  return out + "\x4a" + Little(raw.size(), 1) + raw;
}

TEST_F(Data, OnnxTestData) {
  const std::string x = Proto("\x01\x02", 1, "", Floats({1, 2})), ids = Proto("\x01", 7, "", Raw<std::int64_t>({5}));
  Put("test_data_set_0/input_0.pb", x);
  Put("test_data_set_0/input_1.pb", ids);
  Put("test_data_set_0/output_0.pb", "ignored");
  Put("model.onnx", "ignored");
  Put("test_data_set_10/input_0.pb", x);
  Put("test_data_set_10/input_1.pb", Proto("\x01", 7, "", Raw<std::int64_t>({10})));
  Put("test_data_set_2/input_0.pb", Proto("\x01", 7, "ids", Raw<std::int64_t>({2})));  // a name counts, not the place
  Put("test_data_set_2/input_1.pb", Proto("\x01\x02", 1, "x", Floats({3, 4})));
  const auto data = Open(two_);
  ASSERT_EQ(data->size(), 3u);
  EXPECT_THAT(data->Read(0).tensors[0].ToFloats(), ElementsAre(1, 2));
  EXPECT_THAT(data->Read(0).tensors[1].ToInts(), ElementsAre(5));
  EXPECT_THAT(data->Read(1).tensors[0].ToFloats(), ElementsAre(3, 4));
  EXPECT_THAT(data->Read(1).tensors[1].ToInts(), ElementsAre(2));
  EXPECT_THAT(data->Read(2).tensors[1].ToInts(), ElementsAre(10));
  EXPECT_THAT(data->Read(2).name, EndsWith("test_data_set_10"));
  EXPECT_EQ(Open(two_, "test_data_set_0")->size(), 1u);

  std::string message;
  EXPECT_EQ(CodeOf([&] { Open(one_, "test_data_set_0"); }, &message), ExitCode::kBadInput);
  EXPECT_THAT(message, HasSubstr("more inputs"));
  Put("test_data_set_2/input_1.pb", Proto("\x01", 7, "ids", Raw<std::int64_t>({2})));
  EXPECT_EQ(CodeOf([&] { Open(two_)->Read(1); }, &message), ExitCode::kBadInput);
  EXPECT_THAT(message, HasSubstr("twice"));
  for (std::size_t n = 0; n < x.size(); ++n) {
    Put("test_data_set_0/input_0.pb", x.substr(0, n));
    EXPECT_EQ(CodeOf([&] { Open(two_)->Read(0); }), ExitCode::kBadInput) << n;
  }
  fs::remove(folder_ / "test_data_set_0/input_0.pb");
  EXPECT_EQ(CodeOf([&] { Open(two_); }, &message), ExitCode::kBadInput);
  EXPECT_THAT(message, HasSubstr("input_0.pb"));
}

TEST_F(Data, MismatchNamesFileInputExpectedFound) {
  std::string message;
  const auto read = [&](const std::string& descr, const std::string& shape, const std::string& bytes) {
    Put("s.npz", Zip({{"x.npy", Npy(descr, shape, bytes)}, {"ids.npy", Ids(1)}}));
    message.clear();
    return CodeOf([&] { Open(two_)->Read(0); }, &message);
  };
  EXPECT_EQ(read("<f4", "(1, 2)", Floats({1, 2})), ExitCode::kOk);
  EXPECT_EQ(read("<f4", "(1, 3)", Floats({1, 2, 3})), ExitCode::kBadInput);
  EXPECT_THAT(message, AllOf(HasSubstr("s.npz"), HasSubstr("'x'"), HasSubstr("f32[n,2]"), HasSubstr("f32[1,3]")));
  EXPECT_EQ(read("<f4", "(2,)", Floats({1, 2})), ExitCode::kBadInput);
  EXPECT_EQ(read("<f8", "(1, 2)", Raw<double>({1, 2})), ExitCode::kBadInput);
  EXPECT_THAT(message, AllOf(HasSubstr("f64[1,2]"), HasSubstr("astype(numpy.float32)")));
  EXPECT_EQ(read("<f4", "(2, 2)", Floats({1, 2, 3, 4})), ExitCode::kBadInput);  // n is 2, in ids it is 1
  EXPECT_THAT(message, AllOf(HasSubstr("'n'"), HasSubstr("'ids'")));
  EXPECT_EQ(read("<f4", "(1, 2)", Floats({1, std::numeric_limits<float>::quiet_NaN()})), ExitCode::kBadInput);
  EXPECT_THAT(message, AllOf(HasSubstr("NaN"), HasSubstr("s.npz"), HasSubstr("element 1")));
  EXPECT_EQ(read("<f4", "(1, 2)", Floats({-INFINITY, 1})), ExitCode::kBadInput);
  Put("s.npz", Zip({{"X.npy", X(1, 2)}, {"ids.npy", Ids(1)}}));
  EXPECT_EQ(CodeOf([&] { Open(two_)->Read(0); }, &message), ExitCode::kBadInput);
  EXPECT_THAT(message, HasSubstr("did you mean 'X'"));
}

TEST_F(Data, WrongDirectories) {
  std::string message;
  EXPECT_EQ(CodeOf([&] { Open(one_); }, &message), ExitCode::kBadInput);
  EXPECT_THAT(message, HasSubstr("without data"));
  EXPECT_EQ(CodeOf([&] { Open(one_, "missing"); }, &message), ExitCode::kBadInput);
  EXPECT_THAT(message, HasSubstr("missing"));
  Put("a.npz", Zip({{"x.npy", X(1, 2)}}));
  Put("b.npy", X(1, 2));
  EXPECT_EQ(CodeOf([&] { Open(one_); }, &message), ExitCode::kBadInput);
  EXPECT_THAT(message, AllOf(HasSubstr("mixed"), HasSubstr("a.npz"), HasSubstr("b.npy")));
  Put("c.txt", "x");
  EXPECT_EQ(CodeOf([&] { Open(one_, "c.txt"); }), ExitCode::kBadInput);
  Put("tif/a.tiff", "x");
  EXPECT_EQ(CodeOf([&] { Open(one_, "tif"); }), ExitCode::kUnsupported);
  Put("cls/cat/1.png", "x");
  EXPECT_EQ(CodeOf([&] { Open(one_, "cls"); }), ExitCode::kBadInput);
  const ImageOptions image;
  EXPECT_EQ(CodeOf([&] { Open(one_, "b.npy", &image); }), ExitCode::kUsage);
}

// 2x1 pixels, bottom-up rows of blue, green, red.
const std::string kBmp = "BM" + Little(62, 4) + Little(0, 4) + Little(54, 4) + Little(40, 4) + Little(2, 4) +
                         Little(1, 4) + Little(1, 2) + Little(24, 2) + Little(0, 4) + Little(8, 4) + Little(0, 16) +
                         std::string("\x1e\x14\x0a\xff\x00\x80\0\0", 8);  // (10,20,30) (128,0,255)

TEST_F(Data, Images) {
  Put("2.bmp", kBmp);
  Put("10.bmp", kBmp);
  const std::vector<InputSpec> nchw = {{"x", DType::kF32, {Named("n"), Fixed(3), Fixed(1), Fixed(2)}}};
  const auto data = Open(nchw);
  ASSERT_EQ(data->size(), 2u);
  const Sample sample = data->Read(0);
  EXPECT_THAT(sample.name, EndsWith("2.bmp"));
  EXPECT_THAT(sample.tensors[0].dims, ElementsAre(1, 3, 1, 2));
  const float s = 1.0f / 255.0f;
  EXPECT_THAT(sample.tensors[0].ToFloats(), ElementsAre(10 * s, 128 * s, 20 * s, 0 * s, 30 * s, 255 * s));

  ImageOptions options;
  options.scale = 1;
  options.mean = {1, 2, 3};
  options.std = {2, 4, 8};
  options.color = ImageColor::kBgr;
  const auto bgr = Open(nchw, "", &options);
  EXPECT_THAT(bgr->Read(0).tensors[0].ToFloats(),
              ElementsAre(29 / 2.f, 254 / 2.f, 18 / 4.f, -2 / 4.f, 7 / 8.f, 125 / 8.f));
  EXPECT_NE(bgr->ContentHash(), data->ContentHash());

  const std::vector<InputSpec> nhwc = {{"x", DType::kF32, {Fixed(1), Fixed(1), Fixed(2), Fixed(3)}}};
  ImageOptions last;
  last.layout = ImageLayout::kNhwc;
  EXPECT_THAT(Open(nhwc, "", &last)->Read(0).tensors[0].ToFloats(),
              ElementsAre(10 * s, 20 * s, 30 * s, 128 * s, 0, 255 * s));
  const std::vector<InputSpec> gray = {{"x", DType::kU8, {Fixed(1), Fixed(1), Fixed(2)}}};
  EXPECT_THAT(Open(gray)->Read(0).tensors[0].ToInts(), ElementsAre(18, 67));

  const std::vector<InputSpec> open = {{"x", DType::kF32, {Fixed(1), Fixed(3), Named("h"), Named("w")}}};
  std::string message;
  EXPECT_EQ(CodeOf([&] { Open(open); }, &message), ExitCode::kUsage);
  EXPECT_THAT(message, HasSubstr("--image-size"));
  ImageOptions sized;
  sized.width = 4;
  sized.height = 3;
  EXPECT_THAT(Open(open, "", &sized)->Read(0).tensors[0].dims, ElementsAre(1, 3, 3, 4));
  EXPECT_EQ(CodeOf([&] { Open(nchw, "", &sized); }), ExitCode::kUsage);
  EXPECT_EQ(CodeOf([&] { Open(two_); }), ExitCode::kBadInput);
  EXPECT_EQ(CodeOf([&] { Open(one_); }), ExitCode::kUnsupported);
  options.std[1] = 0;
  EXPECT_EQ(CodeOf([&] { Open(nchw, "", &options); }), ExitCode::kUsage);
  Put("10.bmp", kBmp.substr(0, 60));
  EXPECT_EQ(CodeOf([&] { Open(nchw)->Read(1); }, &message), ExitCode::kBadInput);
  EXPECT_THAT(message, HasSubstr("10.bmp"));
}

TEST(Synthetic, FixedValuesForEver) {
  const std::vector<InputSpec> inputs = {{"x", DType::kF32, {Fixed(3)}}, {"ids", DType::kS64, {Fixed(8)}}};
  const auto data = SyntheticData(inputs, Distribution::kUniform, 0, 4);
  EXPECT_EQ(data->size(), 4u);
  const Sample sample = data->Read(1);
  constexpr float kStep = 1.0f / (1 << 24);
  EXPECT_THAT(sample.tensors[0].ToFloats(), ElementsAre(5671776 * kStep, 16077267 * kStep, 1137732 * kStep));
  EXPECT_THAT(sample.tensors[1].ToInts(), ElementsAre(1, 0, 0, 1, 1, 0, 0, 1));
  EXPECT_NE(data->Read(0).tensors[0].ToFloats(), sample.tensors[0].ToFloats());
  EXPECT_NE(SyntheticData(inputs, Distribution::kUniform, 1, 4)->Read(1).tensors[0].ToFloats(),
            sample.tensors[0].ToFloats());
  EXPECT_NE(SyntheticData(inputs, Distribution::kUniform, 1, 4)->ContentHash(), data->ContentHash());
}

TEST(Synthetic, Distributions) {
  const std::vector<InputSpec> inputs = {{"x", DType::kF32, {Fixed(20000)}}, {"b", DType::kBool, {Fixed(1000)}}};
  const auto moments = [](const std::vector<float>& v) {
    double sum = 0, square = 0;
    for (const float x : v) sum += x, square += static_cast<double>(x) * x;
    const double mean = sum / static_cast<double>(v.size());
    return std::pair(mean, square / static_cast<double>(v.size()) - mean * mean);
  };
  const Sample uniform = SyntheticData(inputs, ParseDistribution("uniform"), 7, 1)->Read(0);
  const auto values = uniform.tensors[0].ToFloats();
  EXPECT_GE(*std::min_element(values.begin(), values.end()), 0.0f);
  EXPECT_LT(*std::max_element(values.begin(), values.end()), 1.0f);
  EXPECT_NEAR(moments(values).first, 0.5, 0.01);
  EXPECT_NEAR(moments(values).second, 1.0 / 12, 0.005);
  const auto [mean, variance] =
      moments(SyntheticData(inputs, ParseDistribution("normal"), 7, 1)->Read(0).tensors[0].ToFloats());
  EXPECT_NEAR(mean, 0, 0.03);
  EXPECT_NEAR(variance, 1, 0.04);
  const auto bits = uniform.tensors[1].ToInts();
  EXPECT_NEAR(static_cast<double>(std::count(bits.begin(), bits.end(), 1)), 500, 60);
  EXPECT_EQ(std::count(bits.begin(), bits.end(), 1) + std::count(bits.begin(), bits.end(), 0), 1000);
  EXPECT_THROW(ParseDistribution("gauss"), Error);
}

TEST(Synthetic, UnknownDimensionsAreNamed) {
  std::string message;
  const auto code = [&](std::vector<InputSpec> inputs) {
    return CodeOf([&] { SyntheticData(inputs, Distribution::kUniform, 0, 1); }, &message);
  };
  EXPECT_EQ(code({{"x", DType::kF32, {Fixed(1), Named("seq")}}}), ExitCode::kUsage);
  EXPECT_THAT(message, AllOf(HasSubstr("'x'"), HasSubstr("--dim seq=VALUE")));
  EXPECT_EQ(code({{"x", DType::kF32, {Fixed(1), Fixed(3), Fixed(-1)}}}), ExitCode::kUsage);
  EXPECT_THAT(message, HasSubstr("--dim x:2=VALUE"));
  EXPECT_EQ(code({{"s", DType::kString, {Fixed(1)}}}), ExitCode::kUnsupported);
  InputSpec open{"x", DType::kF32, {}};
  open.any_rank = true;
  EXPECT_EQ(code({open}), ExitCode::kUnsupported);
  EXPECT_EQ(code({{"x", DType::kF32, {Fixed(std::int64_t{1} << 50)}}}), ExitCode::kUsage);
}

}  // namespace
}  // namespace octavo
