#include "octavo/import/npz.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "octavo/base/error.h"
#include "octavo/import/npz_test_util.h"

namespace octavo {
namespace {

using namespace npz_test;
using testing::ElementsAre;
using testing::HasSubstr;

ByteSource Source(const std::string& content) {
  auto owner = std::make_shared<const std::string>(content);
  return {std::as_bytes(std::span(owner->data(), owner->size())), owner, nullptr, "f"};
}

ExitCode CodeOf(const std::function<void()>& fn, std::string* message = nullptr) {
  try {
    fn();
  } catch (const Error& e) {
    if (message != nullptr) *message = e.what();
    return e.code();
  }
  return ExitCode::kOk;
}

TEST(Npy, VersionsAndOrders) {
  const std::string data = Floats({1, 2, 3, 4, 5, 6});
  for (int version = 1; version <= 3; ++version) {
    const TensorRef t = ReadNpy(Source(Npy("<f4", "(2, 3)", data, false, version)));
    EXPECT_EQ(t.dtype, DType::kF32);
    EXPECT_THAT(t.dims, ElementsAre(2, 3));
    EXPECT_THAT(t.ToFloats(), ElementsAre(1, 2, 3, 4, 5, 6));
  }
  const TensorRef f = ReadNpy(Source(Npy("<f4", "(2, 3)", data, true)));
  EXPECT_THAT(f.dims, ElementsAre(2, 3));
  EXPECT_THAT(f.ToFloats(), ElementsAre(1, 3, 5, 2, 4, 6));
  const TensorRef big = ReadNpy(Source(Npy(">i4", "(2,)", std::string("\0\0\0\x07\xff\xff\xff\xfe", 8))));
  EXPECT_THAT(big.ToInts(), ElementsAre(7, -2));
  EXPECT_THAT(ReadNpy(Source(Npy("|b1", "()", "\x01"))).ToInts(), ElementsAre(1));
  EXPECT_EQ(ReadNpy(Source(Npy("<i8", "(3, 0)", ""))).elements(), 0u);
  EXPECT_EQ(ReadNpy(Source(Npy("<f2", "(2L, )", "abcd"))).dtype, DType::kF16);
}

TEST(Npy, RefusesDamage) {
  const std::string good = Npy("<f4", "(2,)", Floats({1, 2}));
  for (std::size_t n = 0; n < good.size(); ++n) {
    EXPECT_EQ(CodeOf([&] { ReadNpy(Source(good.substr(0, n))); }), ExitCode::kBadInput) << n;
  }
  EXPECT_EQ(CodeOf([&] { ReadNpy(Source(good + "x")); }), ExitCode::kBadInput);
  for (const char* shape : {"(9223372036854775807, 2)", "(4294967296, 4294967296)", "(99999999999999999999,)", "(-1,)",
                            "(2", "2", "(,)", "(2 3)", "((2,),)"}) {
    EXPECT_EQ(CodeOf([&] { ReadNpy(Source(Npy("<f4", shape, Floats({1, 2})))); }), ExitCode::kBadInput) << shape;
  }
  for (const char* header : {"", "{}", "{'descr': '<f4'}", "{'descr': '<f4', 'descr': '<f4', 'shape': ()}",
                             "{'descr': '<f4', 'fortran_order': False, 'shape': (), 'x': 1}", "[1]",
                             "{'descr': '<f4', 'fortran_order': Maybe, 'shape': ()}",
                             "{'descr': '<f4', 'fortran_order': False, 'shape': ()} x"}) {
    EXPECT_EQ(CodeOf([&] { ReadNpy(Source(NpyWithHeader(header, "abcd"))); }), ExitCode::kBadInput) << header;
  }
}

TEST(Npy, RefusesTypesThatOnnxLacks) {
  for (const char* descr : {"|O", "<U0", "|S99999999", "<M8[ns]", "|V2", "<f16", "x", ""}) {
    EXPECT_EQ(CodeOf([&] { ReadNpy(Source(Npy(descr, "(1,)", "abcdefgh"))); }), ExitCode::kUnsupported) << descr;
  }
  EXPECT_EQ(CodeOf([&] {
              ReadNpy(Source(NpyWithHeader("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': ()}", "abcd")));
            }),
            ExitCode::kUnsupported);
  EXPECT_EQ(CodeOf([&] { ReadNpy(Source(Npy("<f4", "()", "abcd", false, 4))); }), ExitCode::kUnsupported);
}

TEST(Npy, Strings) {
  const auto utf32 = [](std::initializer_list<std::uint32_t> units, bool swap = false) {
    std::string out;
    for (const std::uint32_t u : units) {
      const std::string little = Little(u, 4);
      out += swap ? std::string(little.rbegin(), little.rend()) : little;
    }
    return out;
  };
  // "aé€", "😀", "" and three strings of column-major order.
  const std::initializer_list<std::uint32_t> units = {'a', 0xe9, 0x20ac, 0x1f600, 0, 0, 0, 0, 0};
  for (const bool big : {false, true}) {
    const TensorRef t = ReadNpy(Source(Npy(big ? ">U3" : "<U3", "(3,)", utf32(units, big))));
    ASSERT_EQ(t.dtype, DType::kString);
    EXPECT_THAT(*t.strings, ElementsAre("a\xc3\xa9\xe2\x82\xac", "\xf0\x9f\x98\x80", ""));
  }
  EXPECT_THAT(*ReadNpy(Source(Npy("|S2", "(2, 2)", std::string("a\0bbc\0dd", 8), true))).strings,
              ElementsAre("a", "c", "bb", "dd"));
  EXPECT_EQ(CodeOf([&] { ReadNpy(Source(Npy("|S3", "(1,)", std::string("a\0b", 3)))); }), ExitCode::kBadInput);
  EXPECT_EQ(CodeOf([&] { ReadNpy(Source(Npy("<U1", "(1,)", utf32({0x110000})))); }), ExitCode::kBadInput);
  EXPECT_EQ(CodeOf([&] { ReadNpy(Source(Npy("<U1", "(1,)", utf32({0xd800})))); }), ExitCode::kBadInput);
  EXPECT_EQ(CodeOf([&] { ReadNpy(Source(Npy("<U4", "(4611686018427387904,)", "abcd"))); }), ExitCode::kBadInput);
  EXPECT_EQ(CodeOf([&] { ReadNpy(Source(Npy("<Ux", "(1,)", "abcd"))); }), ExitCode::kBadInput);
}

std::vector<float> Ramp(std::size_t n) {
  std::vector<float> out(n);
  for (std::size_t i = 0; i < n; ++i) out[i] = static_cast<float>(i % 1000);
  return out;
}

TEST(Npz, StoredDeflatedAndZip64) {
  for (const bool deflate : {false, true}) {
    for (const bool zip64 : {false, true}) {
      ZipMember a{"a.npy", Npy("<f4", "(300, 300)", Floats(Ramp(90000))), deflate};
      ZipMember b{"dir/b:0.npy", Npy("<i8", "(2,)", Raw<std::int64_t>({5, 6})), deflate};
      a.zip64 = b.zip64 = zip64;
      const NpzArchive archive(Source(Zip({a, b})));
      ASSERT_EQ(archive.size(), 2u);
      EXPECT_EQ(archive.Find("a"), 0);
      EXPECT_EQ(archive.Find("dir/b:0"), 1);
      EXPECT_EQ(archive.Find("b"), -1);
      EXPECT_EQ(archive.ReadHeader(0).data_bytes, 360000u);
      EXPECT_EQ(archive.Read(0).ToFloats(), Ramp(90000));
      EXPECT_THAT(archive.Read(1).ToInts(), ElementsAre(5, 6));
      // Parts, forward and backward.
      for (const std::uint64_t at : {0, 40000, 359996, 4}) {
        const auto part = archive.ReadData(0, at, 4);
        float value;
        std::memcpy(&value, part.data(), 4);
        EXPECT_EQ(value, static_cast<float>(at / 4 % 1000));
      }
    }
  }
}

TEST(Npz, LongHeader) {
  std::string shape = "(1, ";
  for (int i = 0; i < 60; ++i) shape += "1, ";
  const NpzArchive archive(Source(Zip({{"x.npy", Npy("<f4", shape + ")", Floats({3})), true}})));
  EXPECT_EQ(archive.ReadHeader(0).dims.size(), 61u);
}

TEST(Npz, EveryTruncationIsAnError) {
  const std::string good = Zip({{"x.npy", Npy("<f4", "(2,)", Floats({1, 2})), true}});
  for (std::size_t n = 0; n < good.size(); ++n) {
    EXPECT_EQ(CodeOf([&] { NpzArchive(Source(good.substr(0, n))).Read(0); }), ExitCode::kBadInput) << n;
  }
}

TEST(Npz, EveryDamagedByteIsFoundOrHarmless) {
  const std::string good = Zip({{"x.npy", Npy("<f4", "(2,)", Floats({1, 2})), true}});
  int refused = 0;
  for (std::size_t n = 0; n < good.size(); ++n) {
    std::string bad = good;
    bad[n] = static_cast<char>(bad[n] ^ 0x5a);
    const ExitCode code = CodeOf([&] {
      const NpzArchive archive(Source(bad));
      if (archive.size() != 1 || archive.key(0) != "x") throw Error(ExitCode::kBadInput, "another archive");
      EXPECT_THAT(archive.Read(0).ToFloats(), ElementsAre(1, 2)) << n;  // fields that nothing depends on
    });
    refused += code != ExitCode::kOk;
    EXPECT_NE(code, ExitCode::kInternal) << n;
  }
  EXPECT_GT(refused, 100);
}

TEST(Npz, WrongChecksumAndSizes) {
  const std::string array = Npy("<f4", "(2,)", Floats({1, 2}));
  std::string message;
  for (const bool deflate : {false, true}) {
    ZipMember m{"x.npy", array, deflate};
    m.crc_flip = 1;
    const NpzArchive archive(Source(Zip({m})));
    EXPECT_EQ(CodeOf([&] { archive.Read(0); }, &message), ExitCode::kBadInput);
    EXPECT_THAT(message, HasSubstr("checksum"));
    EXPECT_THAT(message, HasSubstr("array 'x'"));
    EXPECT_EQ(CodeOf([&] { archive.ReadData(0, 0, 4); }), ExitCode::kBadInput);
  }
  // A bomb: an enormous size on a few bytes.
  ZipMember bomb{"x.npy", Npy("<f4", "(1000000000,)", ""), true};
  bomb.size_add = 4000000000;
  bomb.zip64 = true;
  EXPECT_EQ(CodeOf([&] { NpzArchive(Source(Zip({bomb}))).Read(0); }, &message), ExitCode::kBadInput);
  EXPECT_THAT(message, HasSubstr("cannot hold"));
  // More data than the array's header says, and more than the member says.
  EXPECT_EQ(CodeOf([&] {
              NpzArchive(Source(Zip({{"x.npy", array + std::string(10000, 'x'), true}}))).Read(0);
            }),
            ExitCode::kBadInput);
  ZipMember longer{"x.npy", array + std::string(100, 'x'), true};
  longer.size_add = -100;
  EXPECT_EQ(CodeOf([&] { NpzArchive(Source(Zip({longer}))).Read(0); }), ExitCode::kBadInput);
  EXPECT_EQ(CodeOf([&] { NpzArchive(Source(Zip({longer}))).ReadData(0, 0, 4); }), ExitCode::kBadInput);
}

TEST(Npz, RefusesOtherArchives) {
  const std::string array = Npy("<f4", "(2,)", Floats({1, 2}));
  ZipMember encrypted{"x.npy", array};
  encrypted.flags = 1;
  EXPECT_EQ(CodeOf([&] { NpzArchive(Source(Zip({encrypted}))); }), ExitCode::kUnsupported);
  ZipMember bzip{"x.npy", array};
  bzip.method = 12;
  EXPECT_EQ(CodeOf([&] { NpzArchive(Source(Zip({bzip}))); }), ExitCode::kUnsupported);
  EXPECT_EQ(CodeOf([&] { NpzArchive(Source(Zip({{"x.txt", array}}))); }), ExitCode::kBadInput);
  EXPECT_EQ(CodeOf([&] { NpzArchive(Source(Zip({{"x.npy", array}, {"x.npy", array}}))); }), ExitCode::kBadInput);
  EXPECT_EQ(CodeOf([&] { NpzArchive(Source("")); }), ExitCode::kBadInput);
  EXPECT_EQ(CodeOf([&] { NpzArchive(Source(std::string(70000, 'P'))); }), ExitCode::kBadInput);
}

}  // namespace
}  // namespace octavo
