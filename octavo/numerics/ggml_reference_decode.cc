// The reference: decoders.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "octavo/numerics/ggml_blocks.h"
#include "octavo/numerics/ggml_reference.h"
#include "octavo/numerics/ggml_reference_fit.h"

namespace octavo::ggml {

namespace {

int FifthBit(const std::uint8_t* qh, int j) { return (qh[j / 8] >> (j % 8) & 1) << 4; }
int Nibble(const std::uint8_t* qs, int j) { return j < 16 ? qs[j] & 15 : qs[j - 16] >> 4; }
int CodePair(const std::uint8_t* qs, int j) { return qs[32 * (j / 128) + j % 32] >> (2 * (j / 32 % 4)) & 3; }

}  // namespace

void DecodeReferenceQ4_0(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ4_0>(n, 32, in, [&](std::size_t i, const BlockQ4_0& b) {
    const float d = b.d.value();
    for (int j = 0; j < 32; ++j) out[i + static_cast<std::size_t>(j)] = static_cast<float>(Nibble(b.qs, j) - 8) * d;
  });
}

void DecodeReferenceQ4_1(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ4_1>(n, 32, in, [&](std::size_t i, const BlockQ4_1& b) {
    const float d = b.d.value(), m = b.m.value();
    for (int j = 0; j < 32; ++j) out[i + static_cast<std::size_t>(j)] = static_cast<float>(Nibble(b.qs, j)) * d + m;
  });
}

void DecodeReferenceQ5_0(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ5_0>(n, 32, in, [&](std::size_t i, const BlockQ5_0& b) {
    const float d = b.d.value();
    for (int j = 0; j < 32; ++j) {
      const int q = Nibble(b.qs, j) | FifthBit(b.qh, j);
      out[i + static_cast<std::size_t>(j)] = static_cast<float>(q - 16) * d;
    }
  });
}

void DecodeReferenceQ5_1(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ5_1>(n, 32, in, [&](std::size_t i, const BlockQ5_1& b) {
    const float d = b.d.value(), m = b.m.value();
    for (int j = 0; j < 32; ++j) {
      const int q = Nibble(b.qs, j) | FifthBit(b.qh, j);
      out[i + static_cast<std::size_t>(j)] = static_cast<float>(q) * d + m;
    }
  });
}

void DecodeReferenceQ8_0(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ8_0>(n, 32, in, [&](std::size_t i, const BlockQ8_0& b) {
    const float d = b.d.value();
    for (int j = 0; j < 32; ++j) out[i + static_cast<std::size_t>(j)] = static_cast<float>(b.qs[j]) * d;
  });
}

void DecodeReferenceQ2_K(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ2_K>(n, kSuper, in, [&](std::size_t i, const BlockQ2_K& b) {
    const float d = b.d.value(), dmin = b.dmin.value();
    for (int j = 0; j < kSuper; ++j) {
      const std::uint8_t s = b.scales[j / 16];
      out[i + static_cast<std::size_t>(j)] =
          d * static_cast<float>(s & 15) * static_cast<float>(CodePair(b.qs, j)) - dmin * static_cast<float>(s >> 4);
    }
  });
}

void DecodeReferenceQ3_K(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ3_K>(n, kSuper, in, [&](std::size_t i, const BlockQ3_K& b) {
    const float d = b.d.value();
    for (int j = 0; j < kSuper; ++j) {
      const int q = CodePair(b.qs, j) - (b.hmask[j % 32] >> (j / 32) & 1 ? 0 : 4);
      out[i + static_cast<std::size_t>(j)] =
          d * static_cast<float>(GetScaleQ3(b.scales, j / 16) - 32) * static_cast<float>(q);
    }
  });
}

void DecodeReferenceQ4_K(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ4_K>(n, kSuper, in, [&](std::size_t i, const BlockQ4_K& b) {
    const float d = b.d.value(), dmin = b.dmin.value();
    for (int j = 0; j < kSuper; ++j) {
      const ScaleMin s = GetScaleMin(b.scales, j / 32);
      const int q = b.qs[32 * (j / 64) + j % 32] >> (4 * (j / 32 % 2)) & 15;
      out[i + static_cast<std::size_t>(j)] =
          d * static_cast<float>(s.scale) * static_cast<float>(q) - dmin * static_cast<float>(s.min);
    }
  });
}

void DecodeReferenceQ5_K(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ5_K>(n, kSuper, in, [&](std::size_t i, const BlockQ5_K& b) {
    const float d = b.d.value(), dmin = b.dmin.value();
    for (int j = 0; j < kSuper; ++j) {
      const ScaleMin s = GetScaleMin(b.scales, j / 32);
      const int low = b.qs[32 * (j / 64) + j % 32] >> (4 * (j / 32 % 2)) & 15;
      const int q = low | (b.qh[j % 32] >> (j / 32) & 1) << 4;
      out[i + static_cast<std::size_t>(j)] =
          d * static_cast<float>(s.scale) * static_cast<float>(q) - dmin * static_cast<float>(s.min);
    }
  });
}

void DecodeReferenceQ6_K(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockQ6_K>(n, kSuper, in, [&](std::size_t i, const BlockQ6_K& b) {
    const float d = b.d.value();
    for (int j = 0; j < kSuper; ++j) {
      const int low = b.ql[64 * (j / 128) + j % 64] >> (4 * (j / 64 % 2)) & 15;
      const int high = b.qh[32 * (j / 128) + j % 32] >> (2 * (j / 32 % 4)) & 3;
      out[i + static_cast<std::size_t>(j)] =
          // NOLINTNEXTLINE(bugprone-integer-division): an index
          d * static_cast<float>(b.scales[j / 16]) * static_cast<float>((low | high << 4) - 32);
    }
  });
}

void DecodeReferenceIq4Nl(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockIq4Nl>(n, 32, in, [&](std::size_t i, const BlockIq4Nl& b) {
    const float d = b.d.value();
    for (int j = 0; j < 32; ++j) {
      out[i + static_cast<std::size_t>(j)] = d * static_cast<float>(kIq4Values[Nibble(b.qs, j)]);
    }
  });
}

void DecodeReferenceIq4Xs(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockIq4Xs>(n, kSuper, in, [&](std::size_t i, const BlockIq4Xs& b) {
    const float d = b.d.value();
    for (int j = 0; j < 8; ++j) {
      const int scale = (b.scales_l[j / 2] >> (4 * (j % 2)) & 15) | (b.scales_h[j / 4] >> (2 * (j % 4)) & 3) << 4;
      const float s = d * static_cast<float>(scale - 32);
      for (int l = 0; l < 32; ++l) {
        out[i + static_cast<std::size_t>(32 * j + l)] = s * static_cast<float>(kIq4Values[Nibble(b.qs + 16 * j, l)]);
      }
    }
  });
}

void DecodeReferenceMxfp4(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockMxfp4>(n, 32, in, [&](std::size_t i, const BlockMxfp4& b) {
    const float d = E8m0HalfToFloat(b.e);
    for (int j = 0; j < 32; ++j) {
      out[i + static_cast<std::size_t>(j)] = static_cast<float>(kFp4Values[Nibble(b.qs, j)]) * d;
    }
  });
}

void DecodeReferenceNvfp4(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockNvfp4>(n, 64, in, [&](std::size_t i, const BlockNvfp4& b) {
    for (int j = 0; j < 64; ++j) {
      const int q = b.qs[8 * (j / 16) + j % 8] >> (4 * (j / 8 % 2)) & 15;
      out[i + static_cast<std::size_t>(j)] = static_cast<float>(kFp4Values[q]) * Ue4m3HalfToFloat(b.d[j / 16]);
    }
  });
}

void DecodeReferenceTq1_0(const std::byte* in, std::size_t n, float* out) {
  constexpr int kPowers[5] = {1, 3, 9, 27, 81};
  EachBlock<BlockTq1_0>(n, kSuper, in, [&](std::size_t i, const BlockTq1_0& b) {
    const float d = b.d.value();
    const auto group = [&](float* start, int bytes, int digits, const std::uint8_t* qs) {
      for (int k = 0; k < digits; ++k) {
        for (int j = 0; j < bytes; ++j) {
          const int digit = (qs[j] * kPowers[k] & 255) * 3 >> 8;
          start[k * bytes + j] = static_cast<float>(digit - 1) * d;
        }
      }
    };
    group(out + i, 32, 5, b.qs);
    group(out + i + 160, 16, 5, b.qs + 32);
    group(out + i + 240, 4, 4, b.qh);
  });
}

void DecodeReferenceTq2_0(const std::byte* in, std::size_t n, float* out) {
  EachBlock<BlockTq2_0>(n, kSuper, in, [&](std::size_t i, const BlockTq2_0& b) {
    const float d = b.d.value();
    for (int j = 0; j < kSuper; ++j) {
      out[i + static_cast<std::size_t>(j)] = static_cast<float>(CodePair(b.qs, j) - 1) * d;
    }
  });
}

}  // namespace octavo::ggml
