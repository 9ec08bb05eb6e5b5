// Throughput of the MX formats: `bench_mx [MB of f32, default 32]`, in GB/s of f32 read or written, one thread, the
// thread's own time, median of 9 runs. Blocks run along the last axis ("rows") and along the first ("columns").
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "octavo/numerics/mx.h"

namespace {

double ThreadTime() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double Median(const std::function<void()>& body) {
  std::vector<double> seconds;
  for (int i = 0; i < 9; ++i) {
    const double start = ThreadTime();
    body();
    seconds.push_back(ThreadTime() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[seconds.size() / 2];
}

}  // namespace

int main(int argc, char** argv) {
  using namespace octavo;
  const double mb = argc > 1 ? std::atof(argv[1]) : 32;
  if (!(mb >= 1) || mb > 4096) {
    std::fprintf(stderr, "bench_mx: the size must be from 1 to 4096 MB\n");
    return 2;
  }
  constexpr std::size_t kRow = 1024;
  const std::size_t rows = static_cast<std::size_t>(mb * 1e6 / 4) / kRow;
  const std::size_t n = rows * kRow;
  std::vector<float> x(n), y(n);
  std::mt19937 gen(1);
  std::normal_distribution<float> normal;
  for (float& v : x) v = normal(gen);
  std::printf("%-12s %-8s %-8s %8s %8s %8s   GB/s of f32, one thread, %.0f MB\n", "format", "rounding", "axis",
              "encode", "decode", "fake", static_cast<double>(n) * 4e-6);
  for (const MxFormat& format : MxFormats()) {
    const auto block = static_cast<std::size_t>(format.block);
    for (const bool along_rows : {true, false}) {
      const MxShape shape = along_rows ? MxShape{rows, kRow, 1, block} : MxShape{1, rows, kRow, block};
      std::vector<std::uint8_t> codes(n), scales(shape.scales());
      for (const MxRounding rounding : {MxRounding::kEven, MxRounding::kAway}) {
        const float tensor = MxTensorScale(x, format);
        const auto speed = [&](const std::function<void()>& body) {
          return static_cast<double>(n) * 4e-9 / Median(body);
        };
        const double encode =
            speed([&] { MxEncode(x.data(), shape, format, rounding, codes.data(), scales.data(), tensor); });
        const double decode = speed([&] { MxDecode(codes.data(), scales.data(), shape, format, y.data(), tensor); });
        const double fake = speed([&] { MxFakeQuantize(x.data(), shape, format, rounding, y.data()); });
        std::printf("%-12s %-8s %-8s %8.2f %8.2f %8.2f\n", std::string(format.name).c_str(),
                    rounding == MxRounding::kEven ? "even" : "away", along_rows ? "rows" : "columns", encode, decode,
                    fake);
      }
    }
  }
}
