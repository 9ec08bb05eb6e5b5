// Block formats against ggml's own library, which is opened at run time: `bench_ggml LIBGGML-BASE.so [options]`.
//   --check N     compares bytes on N values a format (encoders with and without importance, decoders); exit 1 if they
//                 differ
//   --runs N      pairs of timings (default 9)
//   --formats A,B only these
//   --mb N        size of the f32 data in MB (default 8)
//   --mb2 N       the same where two threads run against one (default 64: a call of a millisecond is mostly the start
//                 of a thread)
//   --seconds S   what one figure may take (default 1.5): slow formats get fewer rows, then fewer pairs (three at
//   least)
// Timings are of the same data, the two sides in turn; a ratio is the median of the pairs' ratios. Of one thread the
// thread's own time counts. Two threads against one, "x2", is the shortest wall clock of each side, in turn: other work
// on the machine can only lengthen one. Beside it stands "memory", the same of two threads that only read and write as
// many bytes: what is faster than a third of that scales no better. The last line is of two threads that only count.
#include <dlfcn.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "octavo/numerics/ggml.h"
#include "octavo/numerics/ggml_kernels.h"

namespace {

using octavo::GgmlFormat;
using QuantizeChunk = std::size_t (*)(int, const float*, void*, std::int64_t, std::int64_t, std::int64_t, const float*);
using Dequantize = void (*)(const void*, float*, std::int64_t);

struct Oracle {
  void* library = nullptr;
  QuantizeChunk quantize = nullptr;

  explicit Oracle(const char* path) {
    library = dlopen(path, RTLD_NOW);
    if (library) quantize = reinterpret_cast<QuantizeChunk>(dlsym(library, "ggml_quantize_chunk"));
    if (!quantize) {
      std::fprintf(stderr, "bench_ggml: %s\n", dlerror());
      std::exit(2);
    }
  }
  Dequantize dequantize(const GgmlFormat& format) const {
    std::string name(format.ggml_name);
    for (char& c : name) c = c == 'K' ? 'K' : static_cast<char>(std::tolower(c));
    name = name == "bf16"  ? "ggml_bf16_to_fp32_row"
           : name == "f16" ? "ggml_fp16_to_fp32_row"
                           : "dequantize_row_" + name;
    return reinterpret_cast<Dequantize>(dlsym(library, name.c_str()));
  }
};

// Rows of many kinds: what weights look like, and every edge of the finite floats.
std::vector<float> TestData(std::size_t rows, std::size_t row, unsigned seed) {
  std::mt19937_64 gen(seed);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> x(rows * row);
  const auto finite_bits = [&] {
    for (;;) {
      const float v = std::bit_cast<float>(static_cast<std::uint32_t>(gen()));
      if (std::isfinite(v)) return v;
    }
  };
  for (std::size_t r = 0; r < rows; ++r) {
    float* v = x.data() + r * row;
    const unsigned kind = r % 4 != 3 ? 0 : static_cast<unsigned>(gen() % 16);
    const float scale = std::exp2(static_cast<float>(static_cast<int>(gen() % 24)) - 16);
    for (std::size_t i = 0; i < row; ++i) {
      switch (kind) {
        case 0:
          v[i] = normal(gen) * scale;
          break;
        case 1:
          v[i] = std::pow(normal(gen), 5.0f) * scale;
          break;
        case 2:
          v[i] = uniform(gen);
          break;
        case 3:
          v[i] = i / 32 % 2 ? 0.0f : normal(gen);
          break;
        case 4:
          v[i] = gen() % 2 ? 0.0f : -0.0f;
          break;
        case 5:
          v[i] = i / 16 % 3 == 0 ? -1.5f : 2.25f;
          break;
        case 6:
          v[i] = 0.37f;
          break;
        case 7:
          v[i] = gen() % 64 ? 0.0f : normal(gen);
          break;
        case 8:
          v[i] = static_cast<float>(static_cast<int>(gen() % 17) - 8) / 8;
          break;
        case 9:
          v[i] = std::bit_cast<float>(static_cast<std::uint32_t>(gen() & 0x807fffff));
          break;  // subnormal
        case 10:
          v[i] = normal(gen) * 1e-30f;
          break;
        case 11:
          v[i] = normal(gen) * 1e30f;
          break;
        case 12:
          v[i] = std::fabs(normal(gen));
          break;
        case 13:
          v[i] = finite_bits();
          break;
        case 14:
          v[i] = normal(gen) * std::exp2(static_cast<float>(i / 16 % 40) - 30);
          break;
        default:
          v[i] = normal(gen) * 1e4f;
          break;
      }
    }
  }
  return x;
}

std::vector<float> Importance(std::size_t row, unsigned seed) {
  std::mt19937_64 gen(seed);
  std::normal_distribution<float> normal;
  std::vector<float> w(row);
  for (std::size_t i = 0; i < row; ++i) {
    const float v = normal(gen);
    w[i] = seed % 3 == 2 && i / 8 % 4 == 0 ? 0.0f : v * v + 1e-4f;
  }
  return w;
}

bool Check(const Oracle& oracle, const GgmlFormat& format, std::size_t values) {
  constexpr std::size_t kRow = 1024;
  const std::size_t rows = (values + kRow - 1) / kRow;
  const std::string name(format.ggml_name);
  bool same = true;
  const auto compare = [&](const char* what, const void* a, const void* b, std::size_t bytes, std::size_t unit) {
    if (std::memcmp(a, b, bytes) == 0) return;
    same = false;
    std::size_t i = 0, bad = 0, first = bytes;
    for (; i < bytes; i += unit) {
      if (std::memcmp(static_cast<const char*>(a) + i, static_cast<const char*>(b) + i, unit) != 0) {
        first = std::min(first, i);
        ++bad;
      }
    }
    std::printf("%s %s: %zu of %zu differ, first is %zu\n ours  ", name.c_str(), what, bad, bytes / unit, first / unit);
    for (i = 0; i < unit; ++i) std::printf(" %02x", static_cast<const std::uint8_t*>(a)[first + i]);
    std::printf("\n theirs");
    for (i = 0; i < unit; ++i) std::printf(" %02x", static_cast<const std::uint8_t*>(b)[first + i]);
    std::printf("\n");
  };
  for (const bool weighted : {false, true}) {
    const std::vector<float> x = TestData(rows, kRow, weighted ? 2 : 1);
    std::vector<std::byte> ours(format.block_bytes * (x.size() / format.block)), theirs(ours.size());
    if (!weighted) {
      octavo::EncodeGgml(format, x, kRow, {}, ours, 2, "data");
      oracle.quantize(static_cast<int>(format.type_id), x.data(), theirs.data(), 0, static_cast<std::int64_t>(rows),
                      kRow, nullptr);
      compare("encode", ours.data(), theirs.data(), ours.size(), format.block_bytes);
      format.encode_reference(x.data(), x.size(), nullptr, ours.data());
      compare("encode (reference)", ours.data(), theirs.data(), ours.size(), format.block_bytes);
      std::vector<float> a(x.size()), b(x.size());
      const Dequantize dequantize = oracle.dequantize(format);
      if (!dequantize) {
        std::printf("%s: the library has no decoder\n", name.c_str());
        same = false;
        continue;
      }
      const auto decode = [&](const char* what, const char* reference) {
        octavo::DecodeGgml(format, theirs, a, 2, "data");
        dequantize(theirs.data(), b.data(), static_cast<std::int64_t>(b.size()));
        compare(what, a.data(), b.data(), a.size() * sizeof(float), sizeof(float));
        format.decode_reference(theirs.data(), a.size(), a.data());
        compare(reference, a.data(), b.data(), a.size() * sizeof(float), sizeof(float));
      };
      decode("decode", "decode (reference)");
      std::mt19937 gen(7);  // blocks that no encoder makes; without scales that are NaN, which has many patterns
      for (std::size_t i = 0; i < theirs.size(); ++i) {
        const auto byte = static_cast<std::uint8_t>(gen());
        theirs[i] = static_cast<std::byte>((byte & 0x7c) == 0x7c ? byte & 0xfb : byte);
      }
      decode("decode of random blocks", "decode of random blocks (reference)");
    } else {
      const std::size_t part = rows / 3 + 1;
      for (unsigned p = 0; p < 3; ++p) {
        const std::size_t first = p * part, count = first < rows ? std::min(part, rows - first) : 0;
        const std::vector<float> w = Importance(kRow, 11 + p);
        const std::size_t bytes = count * kRow / format.block * format.block_bytes;
        const std::size_t at = first * kRow / format.block * format.block_bytes;
        if (count == 0) continue;
        octavo::EncodeGgml(format, std::span(x).subspan(first * kRow, count * kRow), kRow, w,
                           std::span(ours).subspan(at, bytes), 2, "data");
        oracle.quantize(static_cast<int>(format.type_id), x.data() + first * kRow, theirs.data() + at, 0,
                        static_cast<std::int64_t>(count), kRow, w.data());
      }
      compare("encode with importance", ours.data(), theirs.data(), ours.size(), format.block_bytes);
      for (unsigned p = 0; p < 3; ++p) {
        const std::vector<float> w = Importance(kRow, 11 + p);
        for (std::size_t r = p * part; r < std::min(rows, (p + 1) * part); ++r) {
          format.encode_reference(x.data() + r * kRow, kRow, format.takes_importance ? w.data() : nullptr,
                                  ours.data() + r * kRow / format.block * format.block_bytes);
        }
      }
      compare("encode with importance (reference)", ours.data(), theirs.data(), ours.size(), format.block_bytes);
    }
  }
  if (same) std::printf("%s: %zu values identical\n", name.c_str(), rows * kRow);
  std::fflush(stdout);
  return same;
}

// Of one thread its own time, which others on the machine do not disturb; of two threads the wall clock.
enum class Clock { kThread, kWall };
double Seconds(Clock clock, const std::function<void()>& body) {
  const auto now = [&] {
    timespec t;
    clock_gettime(clock == Clock::kThread ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  };
  const double start = now();
  body();
  return now() - start;
}

struct Ratio {
  double ours, theirs, ratio;  // seconds, seconds, theirs / ours
};
Ratio Paired(Clock clock, int runs, double budget, const std::function<void()>& ours,
             const std::function<void()>& theirs) {
  std::vector<double> a, b, r;
  ours();
  double spent = 0;
  for (int i = 0; i < runs && (i < 3 || spent < budget); ++i) {
    if (i > 0) spent += a.back() + b.back();
    a.push_back(Seconds(clock, ours));
    b.push_back(Seconds(clock, theirs));
    r.push_back(b.back() / a.back());
  }
  const auto median = [](std::vector<double>& v) {
    std::sort(v.begin(), v.end());
    return v[v.size() / 2];
  };
  return {median(a), median(b), median(r)};
}

// body(0) and body(1) by two threads, or one after the other; the shortest wall clock of each, in turn.
struct Scaling {
  double one = 1e9, two = 1e9;  // seconds
  double ratio() const { return one / two; }
};
Scaling OneAndTwo(int runs, double budget, const std::function<void(int)>& threads) {
  Scaling s;
  threads(2);
  double spent = 0;
  for (int i = 0; i < 3 || (i < 8 * runs && spent < budget); ++i) {
    const double one = Seconds(Clock::kWall, [&] { threads(1); });
    const double two = Seconds(Clock::kWall, [&] { threads(2); });
    s.one = std::min(s.one, one);
    s.two = std::min(s.two, two);
    spent += one + two;
  }
  return s;
}
void Halves(int threads, const std::function<void(int)>& half) {
  if (threads == 1) {
    half(0);
    half(1);
    return;
  }
  std::thread other([&] { half(1); });
  half(0);
  other.join();
}

// What memory itself gives: `x` read once and `y` written once by two threads, through the caches or past them,
// whichever is faster: what the second one adds.
double TrafficScales(int runs, double budget, std::span<const std::byte> x, std::span<std::byte> y) {
  static volatile std::uint64_t kept;
  constexpr std::size_t kPieces = 1 << 13;
  const std::vector<std::byte> piece(y.size() / kPieces);
  const auto half = [&](int h, bool past_cache) {
    std::uint64_t sums[8] = {};
    for (std::size_t p = h == 0 ? 0 : kPieces / 2; p < (h == 0 ? kPieces / 2 : kPieces); ++p) {
      const std::size_t end = x.size() / kPieces * (p + 1);
      for (std::size_t i = x.size() / kPieces * p; i + 64 <= end; i += 64) {
        for (std::size_t k = 0; k < 8; ++k) {
          std::uint64_t v;
          std::memcpy(&v, x.data() + i + 8 * k, 8);
          sums[k] += v;
        }
      }
      std::byte* to = y.data() + piece.size() * p;
      if (past_cache) {
        octavo::ggml::CopyPastCache(piece.data(), piece.size(), to);
      } else {
        std::memcpy(to, piece.data(), piece.size());
      }
    }
    for (const std::uint64_t s : sums) kept = kept + s;
  };
  const auto scaling = [&](bool past_cache) {
    return OneAndTwo(runs, budget / 2, [&](int threads) { Halves(threads, [&](int h) { half(h, past_cache); }); });
  };
  const Scaling through = scaling(false), past = scaling(true);
  return std::min(through.one, past.one) / std::min(through.two, past.two);
}

// Two threads that touch no memory, for as long as a fast codec runs.
double CountingScales(int runs, double budget) {
  static volatile std::uint64_t kept;
  const auto half = [](int) {
    std::uint64_t v = 1;
    for (int i = 0; i < 2'000'000; ++i) v = v * 6364136223846793005u + 1442695040888963407u;
    kept = kept + v;
  };
  return OneAndTwo(runs, budget, [&](int threads) { Halves(threads, half); }).ratio();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(
        stderr,
        "usage: bench_ggml LIBGGML-BASE.so [--check N] [--runs N] [--formats A,B] [--mb N] [--mb2 N] [--seconds S]\n");
    return 2;
  }
  const Oracle oracle(argv[1]);
  std::size_t check = 0, mb = 8, mb2 = 64;
  int runs = 9;
  double budget = 1.5;
  std::string only;
  for (int i = 2; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--check") check = std::strtoull(argv[i + 1], nullptr, 10);
    if (option == "--runs") runs = std::max(1, std::atoi(argv[i + 1]));
    if (option == "--mb") mb = std::strtoull(argv[i + 1], nullptr, 10);
    if (option == "--mb2") mb2 = std::strtoull(argv[i + 1], nullptr, 10);
    if (option == "--seconds") budget = std::max(0.0, std::atof(argv[i + 1]));
    if (option == "--formats") only = "," + std::string(argv[i + 1]) + ",";
  }
  bool same = true;
  if (!check) {
    std::printf(
        "%zu MB of f32; GB/s of f32 (ours / ggml) and the ratio; x2: two threads against one on %zu MB, and of "
        "plain copying of as many bytes\n",
        mb, mb2);
    std::printf("%-9s %-30s %-11s  %-30s %-30s %-11s\n", "format", "encode", "x2  memory", "encode with importance",
                "decode", "x2  memory");
  }
  for (const GgmlFormat& format : octavo::GgmlFormats()) {
    if (format.type_id == 0) continue;
    if (!only.empty() && only.find("," + std::string(format.name) + ",") == std::string::npos) continue;
    if (check) {
      same = Check(oracle, format, check) && same;
      continue;
    }
    constexpr std::size_t kRow = 4096;
    const auto rows_of = [](std::size_t megabytes) { return std::max<std::size_t>(1, megabytes * 1000000 / 4 / kRow); };
    const std::size_t all_rows = rows_of(mb), rows2 = rows_of(mb2), most_rows = std::max(all_rows, rows2);
    std::vector<float> x(most_rows * kRow), y(x.size());
    std::mt19937 gen(3);
    std::normal_distribution<float> normal(0, 0.02f);
    for (float& v : x) v = normal(gen);
    const std::vector<float> w = Importance(kRow, 1);
    const auto bytes_of = [&](std::size_t n) { return n * (kRow / format.block) * format.block_bytes; };
    std::vector<std::byte> blocks(bytes_of(most_rows));
    std::size_t rows = all_rows;
    const auto chunk = [&](const float* importance) {
      oracle.quantize(static_cast<int>(format.type_id), x.data(), blocks.data(), 0, static_cast<std::int64_t>(rows),
                      kRow, importance);
    };
    const auto encode = [&](int threads, bool weighted) {
      octavo::EncodeGgml(format, std::span(x).first(rows * kRow), kRow,
                         weighted ? std::span<const float>(w) : std::span<const float>(),
                         std::span(blocks).first(bytes_of(rows)), threads, "bench");
    };
    // Rows that `body`, the slower side, takes in a share of the budget; 1 MB at least, which no encoder is too fast
    // for.
    const auto fit = [&](std::size_t most, const std::function<void()>& body) {
      constexpr std::size_t kLeast = 64;
      rows = std::min(most, kLeast);
      const double seconds = Seconds(Clock::kWall, body);
      const double wanted = budget / runs / 1.2 / seconds * static_cast<double>(rows);
      rows = static_cast<std::size_t>(std::clamp(wanted, static_cast<double>(rows), static_cast<double>(most)));
    };
    const auto show = [&](const Ratio& r) {
      const double gb = static_cast<double>(rows * kRow) * 4e-9;
      std::printf("%7.3f / %7.3f = %6.2f      ", gb / r.ours, gb / r.theirs, r.ratio);
      std::fflush(stdout);
    };
    const auto show_two = [&](const Scaling& s, double memory, const char* end) {
      std::printf("%5.2f %5.2f%s", s.ratio(), memory, end);
      std::fflush(stdout);
    };
    std::printf("%-9s ", std::string(format.ggml_name).c_str());
    fit(all_rows, [&] { chunk(nullptr); });
    show(Paired(
        Clock::kThread, runs, budget, [&] { encode(1, false); }, [&] { chunk(nullptr); }));
    fit(rows2, [&] { encode(1, false); });
    const auto floats_in = [&] { return std::as_bytes(std::span(x)).first(rows * kRow * 4); };
    const auto blocks_in = [&] { return std::span(blocks).first(bytes_of(rows)); };
    show_two(OneAndTwo(runs, budget, [&](int threads) { encode(threads, false); }),
             TrafficScales(runs, budget, floats_in(), blocks_in()), "   ");
    if (format.takes_importance) {
      fit(all_rows, [&] { chunk(w.data()); });
      show(Paired(
          Clock::kThread, runs, budget, [&] { encode(1, true); }, [&] { chunk(w.data()); }));
    } else {
      std::printf("%-31s", "-");
    }
    rows = all_rows;
    encode(1, false);
    const Dequantize dequantize = oracle.dequantize(format);
    const auto decode = [&](int threads) {
      octavo::DecodeGgml(format, std::span(blocks).first(bytes_of(rows)), std::span(y).first(rows * kRow), threads,
                         "bench");
    };
    show(Paired(
        Clock::kThread, runs, budget, [&] { decode(1); },
        [&] { dequantize(blocks.data(), y.data(), static_cast<std::int64_t>(rows * kRow)); }));
    rows = rows2;
    show_two(OneAndTwo(runs, budget, decode),
             TrafficScales(runs, budget, blocks_in(), std::as_writable_bytes(std::span(y)).first(rows * kRow * 4)),
             "\n");
  }
  if (!check) std::printf("two threads that only count: %.2f\n", CountingScales(runs, budget));
  return same ? 0 : 1;
}
