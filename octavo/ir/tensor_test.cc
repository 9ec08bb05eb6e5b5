#include "octavo/ir/tensor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>

#include "octavo/base/error.h"
#include "octavo/ir/type.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;

std::vector<std::byte> Bytes(std::initializer_list<int> list) {
  std::vector<std::byte> out;
  for (const int b : list) out.push_back(static_cast<std::byte>(b));
  return out;
}

TEST(DType, NamesRoundTrip) {
  for (int i = 0; i < kDTypeCount; ++i) {
    const auto d = static_cast<DType>(i);
    EXPECT_EQ(ParseDType(Name(d)), d);
  }
  EXPECT_EQ(ParseDType("float"), std::nullopt);
  EXPECT_EQ(Name(static_cast<DType>(200)), "?");
}

TEST(DType, Sizes) {
  EXPECT_EQ(ByteSize(DType::kF32, 3), 12u);
  EXPECT_EQ(ByteSize(DType::kS4, 3), 2u);
  EXPECT_EQ(ByteSize(DType::kU2, 5), 2u);
  EXPECT_EQ(ByteSize(DType::kC128, 1), 16u);
  EXPECT_EQ(ByteSize(DType::kString, 1), std::nullopt);
  EXPECT_EQ(ByteSize(DType::kF64, std::uint64_t{1} << 60), std::nullopt);
  EXPECT_EQ(ByteSize(DType::kU8, std::uint64_t{1} << 63), std::nullopt);
}

TEST(DType, Ranges) {
  EXPECT_EQ(IntegerMin(DType::kS4), -8);
  EXPECT_EQ(IntegerMax(DType::kS4), 7);
  EXPECT_EQ(IntegerMax(DType::kU2), 3);
  EXPECT_EQ(IntegerMin(DType::kS32), std::numeric_limits<std::int32_t>::min());
  EXPECT_EQ(IntegerMax(DType::kU32), std::numeric_limits<std::uint32_t>::max());
  EXPECT_FALSE(IsInteger(DType::kBool));
  EXPECT_TRUE(IsFloat(DType::kF4E2M1));
  EXPECT_THROW(IntegerMax(DType::kS64), Error);
}

TEST(Tensor, ElementCountChecks) {
  EXPECT_EQ(ElementCount(Dims{}), 1u);
  EXPECT_EQ(ElementCount(Dims{2, 0, 3}), 0u);
  EXPECT_THROW(ElementCount(Dims{2, -1}), Error);
  EXPECT_THROW(ElementCount(Dims{std::int64_t{1} << 40, std::int64_t{1} << 40}), Error);
  EXPECT_THROW(ElementCount(Dims{std::int64_t{1} << 62, 2}), Error);
  EXPECT_EQ(ElementCount(Dims{std::int64_t{1} << 62}), std::uint64_t{1} << 62);
}

TEST(Tensor, IntegersOfAllWidthsRoundTrip) {
  for (const DType d : {DType::kU2, DType::kS2, DType::kU4, DType::kS4, DType::kU8, DType::kS8, DType::kU16,
                        DType::kS16, DType::kU32, DType::kS32}) {
    const std::vector<std::int64_t> v = {IntegerMin(d), 1, IntegerMax(d), 0, 1};
    const TensorRef t = TensorRef::FromInts(d, {5}, v);
    EXPECT_EQ(t.ToInts(), v) << Name(d);
    EXPECT_EQ(t.ToFloats()[2], static_cast<float>(IntegerMax(d)));
    EXPECT_THROW(TensorRef::FromInts(d, {1}, std::vector<std::int64_t>{IntegerMax(d) + 1}), Error);
    EXPECT_THROW(TensorRef::FromInts(d, {1}, std::vector<std::int64_t>{IntegerMin(d) - 1}), Error);
  }
  const std::vector<std::int64_t> wide = {std::numeric_limits<std::int64_t>::min(), -1};
  EXPECT_EQ(TensorRef::FromInts(DType::kS64, {2}, wide).ToInts(), wide);
  EXPECT_THROW(TensorRef::FromInts(DType::kU64, {2}, wide), Error);
}

TEST(Tensor, PacksLowNibbleFirst) {
  const TensorRef t = TensorRef::FromInts(DType::kS4, {3}, std::vector<std::int64_t>{1, -1, 2});
  EXPECT_EQ(t.bytes[0], std::byte{0xF1});
  EXPECT_EQ(t.bytes[1], std::byte{0x02});
  EXPECT_EQ(ElementBits(t, 1), 0xFu);
}

TEST(Tensor, SmallFloats) {
  const auto decode = [](DType d, std::initializer_list<int> bytes) {
    return TensorRef::FromBytes(d, {static_cast<std::int64_t>(bytes.size())}, Bytes(bytes)).ToFloats();
  };
  EXPECT_THAT(decode(DType::kF8E4M3FN, {0x38, 0x7E, 0x01, 0xB8}), ElementsAre(1.0f, 448.0f, 0x1p-9f, -1.0f));
  EXPECT_TRUE(std::isnan(decode(DType::kF8E4M3FN, {0xFF})[0]));
  EXPECT_THAT(decode(DType::kF8E4M3FNUZ, {0x40, 0x7F, 0x01}), ElementsAre(1.0f, 240.0f, 0x1p-10f));
  EXPECT_TRUE(std::isnan(decode(DType::kF8E4M3FNUZ, {0x80})[0]));
  EXPECT_THAT(decode(DType::kF8E5M2, {0x3C, 0x7B, 0xFC}),
              ElementsAre(1.0f, 57344.0f, -std::numeric_limits<float>::infinity()));
  EXPECT_THAT(decode(DType::kF8E5M2FNUZ, {0x40, 0x7F}), ElementsAre(1.0f, 57344.0f));
  EXPECT_THAT(decode(DType::kF8E8M0, {0x7F, 0x00, 0xFE}), ElementsAre(1.0f, 0x1p-127f, 0x1p127f));
  const TensorRef fp4 = TensorRef::FromBytes(DType::kF4E2M1, {8}, Bytes({0x10, 0x32, 0x54, 0xF6}));
  EXPECT_THAT(fp4.ToFloats(), ElementsAre(0, 0.5f, 1, 1.5f, 2, 3, 4, -6));
}

TEST(Tensor, HalfAndBf16BitsSurviveTheRoundTrip) {
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    for (const DType d : {DType::kF16, DType::kBF16}) {
      const float f = BitsToFloat(d, bits);
      if (std::isnan(f)) {
        EXPECT_TRUE(std::isnan(BitsToFloat(d, FloatToBits(d, f))));
      } else {
        ASSERT_EQ(FloatToBits(d, f), bits) << Name(d);
      }
    }
  }
}

// The tie between each two neighbours goes to the even one; a hair to each side goes to the nearer.
TEST(Tensor, HalfAndBf16RoundHalfToEven) {
  for (const DType d : {DType::kF16, DType::kBF16}) {
    const std::uint32_t max = d == DType::kF16 ? 0x7BFF : 0x7F7F;
    for (std::uint32_t bits = 0; bits < max; ++bits) {
      const double low = static_cast<double>(BitsToFloat(d, bits));
      const double high = static_cast<double>(BitsToFloat(d, bits + 1));
      const float tie = static_cast<float>((low + high) / 2);
      if (static_cast<double>(tie) != (low + high) / 2) continue;  // below f32's own resolution
      ASSERT_EQ(FloatToBits(d, tie), bits + (bits & 1));
      ASSERT_EQ(FloatToBits(d, std::nextafter(tie, 0.0f)), bits);
      ASSERT_EQ(FloatToBits(d, std::nextafter(tie, std::numeric_limits<float>::infinity())), bits + 1);
    }
  }
  EXPECT_EQ(FloatToBits(DType::kF16, 65519.0f), 0x7BFFu);
  EXPECT_EQ(FloatToBits(DType::kF16, 65520.0f), 0x7C00u);
  EXPECT_EQ(FloatToBits(DType::kF16, -1e30f), 0xFC00u);
  EXPECT_EQ(FloatToBits(DType::kBF16, std::numeric_limits<float>::max()), 0x7F80u);
}

TEST(Tensor, UnalignedViews) {
  const auto buffer = std::make_shared<std::vector<std::byte>>(Bytes({9, 0, 0, 0x80, 0x3F, 0, 0, 0, 0x40}));
  TensorRef t;
  t.dtype = DType::kF32;
  t.dims = {2};
  t.bytes = std::span<const std::byte>(*buffer).subspan(1);
  t.owner = buffer;
  EXPECT_THAT(t.ToFloats(), ElementsAre(1.0f, 2.0f));
}

TEST(Tensor, WrongUseIsInternal) {
  EXPECT_THROW(TensorRef::FromBytes(DType::kF32, {2}, Bytes({1})), Error);
  EXPECT_THROW(TensorRef::FromInts(DType::kF32, {1}, std::vector<std::int64_t>{1}), Error);
  EXPECT_THROW(TensorRef::Scalar(1).ToInts(), Error);
  TensorRef broken = TensorRef::Scalar(1);
  broken.dims = {5};
  EXPECT_THROW(broken.ToFloats(), Error);
}

TEST(Tensor, SameContent) {
  const TensorRef a = TensorRef::FromFloats({2}, std::vector<float>{1, 2});
  EXPECT_TRUE(SameContent(a, TensorRef::FromFloats({2}, std::vector<float>{1, 2})));
  EXPECT_FALSE(SameContent(a, TensorRef::FromFloats({1, 2}, std::vector<float>{1, 2})));
  EXPECT_FALSE(SameContent(a, TensorRef::FromFloats({2}, std::vector<float>{1, 3})));
  EXPECT_FALSE(SameContent(TensorRef::Scalar(0.0f), TensorRef::Scalar(-0.0f)));
}

TEST(Type, SameParamsSeesWhatTheOperatorsRead) {
  Affine a;
  a.scale = TensorRef::Scalar(0.5f);
  Affine b = a;
  b.scale = TensorRef::FromFloats({1}, std::vector<float>{0.5f});
  b.zero_point = TensorRef::FromInts(DType::kU8, {1}, std::vector<std::int64_t>{0});
  EXPECT_TRUE(SameParams(a, b));
  EXPECT_TRUE(SameParams(b, a));
  Affine c = b;
  c.zero_point = TensorRef::FromInts(DType::kU8, {1}, std::vector<std::int64_t>{1});
  EXPECT_FALSE(SameParams(b, c));
  EXPECT_FALSE(SameParams(a, c));
  Affine d = a;
  d.scale = TensorRef::Scalar(std::nextafter(0.5f, 1.0f));
  EXPECT_FALSE(SameParams(a, d));
  Affine e = a;
  e.storage = DType::kS8;
  EXPECT_FALSE(SameParams(a, e));
  Affine f = b;  // one channel is not per tensor
  f.axis = 0;
  EXPECT_FALSE(SameParams(b, f));
}

TEST(Type, ToString) {
  Type t;
  EXPECT_EQ(ToString(t), "?[*]");
  t.dtype = DType::kF32;
  t.shape = std::vector<Dim>{{1, {}}, {3, {}}, {-1, {}}, {-1, "width"}};
  EXPECT_EQ(ToString(t), "f32[1,3,?,width]");
  EXPECT_EQ(StaticShape(t), std::nullopt);
  t.shape->resize(2);
  EXPECT_EQ(StaticShape(t), (Dims{1, 3}));
  t.quant.emplace();
  t.quant->affine.scale = TensorRef::Scalar(0.25f);
  t.quant->affine.zero_point = TensorRef::FromInts(DType::kU8, {}, std::vector<std::int64_t>{128});
  EXPECT_EQ(ToString(t), "f32[1,3] # u8(scale=0.25, zero=128)");
}

}  // namespace
}  // namespace octavo
