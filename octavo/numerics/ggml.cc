#include "octavo/numerics/ggml.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include "hwy/cache_control.h"
#include "octavo/base/error.h"
#include "octavo/base/names.h"
#include "octavo/base/thread_pool.h"
#include "octavo/numerics/ggml_blocks.h"
#include "octavo/numerics/ggml_kernels.h"
#include "octavo/numerics/ggml_reference.h"
#include "octavo/numerics/half.h"

namespace octavo {
namespace {

// --- the plain float types ------------------------------------------------------------------------------------------

void CopyIn(const float* x, std::size_t n, const float*, std::byte* out) { std::memcpy(out, x, n * sizeof *x); }
void CopyOut(const std::byte* in, std::size_t n, float* out) { std::memcpy(out, in, n * sizeof *out); }

constexpr std::size_t kRun = 1024;
constexpr std::size_t kPastCache = std::size_t{1} << 24;  // bytes of a result that no cache holds

// The bytes may lie anywhere: by runs through an aligned buffer where they must.
template <std::uint64_t (*kConvert)(std::span<const float>, std::uint16_t*)>
void Encode16(const float* x, std::size_t n, const float*, std::byte* out) {
  if (reinterpret_cast<std::uintptr_t>(out) % 2 == 0) {
    kConvert({x, n}, reinterpret_cast<std::uint16_t*>(out));
    return;
  }
  std::uint16_t buffer[kRun];
  for (std::size_t i = 0; i < n; i += kRun) {
    const std::size_t count = std::min(kRun, n - i);
    kConvert({x + i, count}, buffer);
    std::memcpy(out + 2 * i, buffer, 2 * count);
  }
}
template <void (*kConvert)(std::span<const std::uint16_t>, float*)>
void Decode16(const std::byte* in, std::size_t n, float* out) {
  if (reinterpret_cast<std::uintptr_t>(in) % 2 == 0) {
    kConvert({reinterpret_cast<const std::uint16_t*>(in), n}, out);
    return;
  }
  std::uint16_t buffer[kRun];
  for (std::size_t i = 0; i < n; i += kRun) {
    const std::size_t count = std::min(kRun, n - i);
    std::memcpy(buffer, in + 2 * i, 2 * count);
    kConvert({buffer, count}, out + i);
  }
}
template <std::uint16_t (*kConvert)(float)>
void EncodeReference16(const float* x, std::size_t n, const float*, std::byte* out) {
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint16_t bits = kConvert(x[i]);
    std::memcpy(out + 2 * i, &bits, 2);
  }
}
template <float (*kConvert)(std::uint16_t)>
void DecodeReference16(const std::byte* in, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, in + 2 * i, 2);
    out[i] = kConvert(bits);
  }
}

// --- the table ------------------------------------------------------------------------------------------------------

#define OCTAVO_ROW(name, ggml_name, id, block, symbol, importance)                                                   \
  {                                                                                                                  \
    name, ggml_name, id, block, sizeof(ggml::Block##symbol), importance, ggml::Encode##symbol, ggml::Decode##symbol, \
        ggml::EncodeReference##symbol, ggml::DecodeReference##symbol                                                 \
  }

constexpr GgmlFormat kFormats[] = {
    {"f32", "F32", 0, 1, 4, false, CopyIn, CopyOut, CopyIn, CopyOut},
    {"f16", "F16", 1, 1, 2, false, Encode16<FloatToHalf>, Decode16<HalfToFloat>, EncodeReference16<FloatToHalf>,
     DecodeReference16<HalfToFloat>},
    OCTAVO_ROW("q4_0", "Q4_0", 2, 32, Q4_0, true),
    OCTAVO_ROW("q4_1", "Q4_1", 3, 32, Q4_1, true),
    OCTAVO_ROW("q5_0", "Q5_0", 6, 32, Q5_0, true),
    OCTAVO_ROW("q5_1", "Q5_1", 7, 32, Q5_1, true),
    OCTAVO_ROW("q8_0", "Q8_0", 8, 32, Q8_0, false),
    OCTAVO_ROW("q2_k", "Q2_K", 10, 256, Q2_K, true),
    OCTAVO_ROW("q3_k", "Q3_K", 11, 256, Q3_K, true),
    OCTAVO_ROW("q4_k", "Q4_K", 12, 256, Q4_K, true),
    OCTAVO_ROW("q5_k", "Q5_K", 13, 256, Q5_K, true),
    OCTAVO_ROW("q6_k", "Q6_K", 14, 256, Q6_K, true),
    OCTAVO_ROW("iq4_nl", "IQ4_NL", 20, 32, Iq4Nl, true),
    OCTAVO_ROW("iq4_xs", "IQ4_XS", 23, 256, Iq4Xs, true),
    {"bf16", "BF16", 30, 1, 2, false, Encode16<FloatToBf16>, Decode16<Bf16ToFloat>, EncodeReference16<FloatToBf16>,
     DecodeReference16<Bf16ToFloat>},
    OCTAVO_ROW("tq1_0", "TQ1_0", 34, 256, Tq1_0, false),
    OCTAVO_ROW("tq2_0", "TQ2_0", 35, 256, Tq2_0, false),
    OCTAVO_ROW("mxfp4_gg", "MXFP4", 39, 32, Mxfp4, false),
    OCTAVO_ROW("nvfp4", "NVFP4", 40, 64, Nvfp4, false),
};
#undef OCTAVO_ROW

std::string Text(std::uint64_t n) { return std::to_string(n); }
std::string FloatText(float x) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", static_cast<double>(x));
  return text;
}

// Returns the bits of the largest magnitude.
std::uint32_t CheckFinite(const float* x, std::size_t n, std::uint64_t first, const std::string& where) {
  const std::uint32_t most = ggml::LargestBits(x, n);
  if (most < 0x7f800000) return most;
  for (std::size_t i = 0; i < n; ++i) {
    if (!std::isfinite(x[i])) {
      ThrowBadInput(std::isnan(x[i]) ? "weight is not a number" : "weight is infinite",
                    where + ", element " + Text(first + i),
                    "block formats hold finite numbers only; exclude or mend it");
    }
  }
  return most;
}

}  // namespace

std::span<const GgmlFormat> GgmlFormats() { return kFormats; }

const GgmlFormat* FindGgmlFormat(std::string_view name) {
  for (const GgmlFormat& format : kFormats) {
    if (format.name == name || format.ggml_name == name) return &format;
  }
  return nullptr;
}

const GgmlFormat* FindGgmlFormat(std::uint32_t type_id) {
  for (const GgmlFormat& format : kFormats) {
    if (format.type_id == type_id) return &format;
  }
  return nullptr;
}

const GgmlFormat& GetGgmlFormat(std::string_view name, const std::string& where) {
  if (const GgmlFormat* format = FindGgmlFormat(name)) return *format;
  std::vector<std::string> names;
  for (const GgmlFormat& format : kFormats) names.emplace_back(format.name);
  const std::string text(name);
  ThrowUsage("unknown block format '" + text + "'", where, DidYouMean(text, names));
}

std::uint64_t GgmlBytes(const GgmlFormat& format, std::uint64_t rows, std::uint64_t row, const std::string& where) {
  if (row % format.block != 0) {
    ThrowUnsupported("rows of " + Text(row) + " elements are no multiple of the " + Text(format.block) + " of a " +
                         std::string(format.ggml_name) + " block",
                     where, "choose a format with a smaller block, or leave this tensor out");
  }
  std::uint64_t bytes;
  if (__builtin_mul_overflow(row / format.block, std::uint64_t{format.block_bytes}, &bytes) ||
      __builtin_mul_overflow(bytes, rows, &bytes) || bytes > INT64_MAX) {
    ThrowBadInput("tensor is too large", where);
  }
  return bytes;
}

float EncodeGgml(const GgmlFormat& format, std::span<const float> x, std::uint64_t row,
                 std::span<const float> importance, std::span<std::byte> out, int threads, const std::string& where) {
  if (row == 0 || x.empty()) {
    if (!x.empty() || !out.empty()) ThrowInternal("rows without elements", where);
    return 0;
  }
  const std::uint64_t rows = x.size() / row;
  if (rows * row != x.size() || out.size() != GgmlBytes(format, rows, row, where)) {
    ThrowInternal("sizes of rows and blocks disagree", where);
  }
  if (!importance.empty()) {
    if (importance.size() != row) {
      ThrowBadInput("importance of " + Text(importance.size()) + " columns for rows of " + Text(row), where);
    }
    for (std::size_t i = 0; i < importance.size(); ++i) {
      if (!(importance[i] >= 0 && std::isfinite(importance[i]))) {
        ThrowBadInput("importance is negative or not finite", where + ", column " + Text(i));
      }
    }
  }
  const bool by_row = !importance.empty() && format.takes_importance;
  // Pieces that stay in the first cache between the check and the encoder, and tasks worth a thread's while. A piece is
  // as many blocks as fill any vector.
  constexpr std::uint64_t kPiece = 2048, kTask = 1 << 16;
  std::atomic<std::uint32_t> largest{0};
  const auto check = [&](std::uint64_t first, std::uint64_t count) {
    const std::uint32_t most = CheckFinite(x.data() + first, count, first, where);
    std::uint32_t before = largest.load(std::memory_order_relaxed);
    while (most > before && !largest.compare_exchange_weak(before, most, std::memory_order_relaxed)) {
    }
  };
  const auto encode = [&](std::uint64_t first, std::uint64_t count) {
    check(first, count);
    format.encode(x.data() + first, count, by_row ? importance.data() : nullptr,
                  out.data() + first / format.block * format.block_bytes);
  };
  // Plain floats of a result that no cache holds go past the caches: so many bytes would be read before they are
  // written.
  const bool past_cache = !format.is_block() && out.size() >= kPastCache;
  const auto encode_past_cache = [&](std::uint64_t first, std::uint64_t count) {
    check(first, count);
    alignas(64) std::byte piece[kPiece * sizeof(float)];
    format.encode(x.data() + first, count, nullptr, piece);
    ggml::CopyPastCache(piece, count * format.block_bytes, out.data() + first * format.block_bytes);
  };
  if (by_row) {
    const std::uint64_t rows_per_task = std::max<std::uint64_t>(1, kTask / row);
    ParallelFor((rows + rows_per_task - 1) / rows_per_task, threads, [&](std::size_t task) {
      const std::uint64_t end = std::min<std::uint64_t>(rows, (task + 1) * rows_per_task);
      for (std::uint64_t r = task * rows_per_task; r < end; ++r) encode(r * row, row);
    });
  } else {
    ParallelFor((x.size() + kTask - 1) / kTask, threads, [&](std::size_t task) {
      const std::uint64_t end = std::min<std::uint64_t>(x.size(), (task + 1) * kTask);
      for (std::uint64_t i = task * kTask; i < end; i += kPiece) {
        past_cache ? encode_past_cache(i, std::min(kPiece, end - i)) : encode(i, std::min(kPiece, end - i));
      }
      if (past_cache) hwy::FlushStream();
    });
  }
  return std::bit_cast<float>(largest.load());
}

void EncodeGgmlFinite(const GgmlFormat& format, std::span<const float> x, std::uint64_t row,
                      std::span<const float> importance, std::span<std::byte> out, int threads,
                      const std::string& where) {
  constexpr float kSafe = 32768;  // no scale, minimum or half of smaller values comes near the 65520 where f16 ends
  if (EncodeGgml(format, x, row, importance, out, threads, where) < kSafe) return;
  constexpr std::size_t kPiece = 4096;
  float piece[kPiece];
  for (std::size_t i = 0; i < x.size(); i += kPiece) {
    const std::size_t n = std::min(kPiece, x.size() - i);
    format.decode(out.data() + i / format.block * format.block_bytes, n, piece);
    const std::uint32_t most = ggml::LargestBits(piece, n);
    if (most < 0x7f800000) continue;
    const float* bad = std::find_if(piece, piece + n, [](float v) { return !std::isfinite(v); });
    const std::size_t at = i + static_cast<std::size_t>(bad - piece);
    ThrowBadInput(
        "weight " + FloatText(x[at]) + " or one of its block is too large for " + std::string(format.ggml_name),
        where + ", element " + Text(at), "exclude the tensor, or give it another type, for example bf16");
  }
}

void DecodeGgml(const GgmlFormat& format, std::span<const std::byte> blocks, std::span<float> out, int threads,
                const std::string& where) {
  if (blocks.size() != GgmlBytes(format, 1, out.size(), where))
    ThrowInternal("sizes of blocks and out disagree", where);
  // A result that no cache holds is written past them, by pieces that stay in the first one: otherwise every line of it
  // would be read before it is written.
  constexpr std::size_t kTask = 1 << 17, kPiece = 512;
  const bool past_cache = out.size() * sizeof(float) >= kPastCache;
  ParallelFor((out.size() + kTask - 1) / kTask, threads, [&](std::size_t task) {
    const std::size_t first = task * kTask, count = std::min(kTask, out.size() - first);
    const auto at = [&](std::size_t i) { return blocks.data() + i / format.block * format.block_bytes; };
    if (!past_cache) {
      format.decode(at(first), count, out.data() + first);
      return;
    }
    alignas(64) float piece[kPiece];
    for (std::size_t i = first; i < first + count; i += kPiece) {
      const std::size_t n = std::min(kPiece, first + count - i);
      format.decode(at(i), n, piece);
      ggml::CopyPastCache(piece, n * sizeof(float), out.data() + i);
    }
    hwy::FlushStream();
  });
}

}  // namespace octavo
