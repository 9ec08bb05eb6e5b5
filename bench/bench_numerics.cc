// Throughput of the vector kernels of octavo/numerics, in GB/s of f32 read or written, one thread, best of several
// runs.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <functional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "octavo/numerics/affine.h"
#include "octavo/numerics/error_stats.h"
#include "octavo/numerics/exact_sum.h"
#include "octavo/numerics/half.h"
#include "octavo/numerics/range_search.h"
#include "octavo/numerics/reduce.h"

namespace {

double ThreadTime() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

double Seconds(const std::function<void()>& body) {
  double best = 1e9;
  for (int i = 0; i < 7; ++i) {
    const double start = ThreadTime();
    body();
    best = std::min(best, ThreadTime() - start);
  }
  return best;
}

void Throughput(const char* name, std::size_t elements, const std::function<void()>& body) {
  std::printf("%-34s %8.2f GB/s\n", name, static_cast<double>(elements) * 4e-9 / Seconds(body));
}

void Duration(const char* name, const std::function<void()>& body) {
  std::printf("%-34s %8.3f ms\n", name, 1e3 * Seconds(body));
}

}  // namespace

int main() {
  using namespace octavo;
  constexpr std::size_t n = std::size_t{1} << 25;  // 128 MiB: not in any cache
  std::vector<float> x(n), y(n), relu(n);
  std::mt19937 gen(1);
  std::normal_distribution<float> normal;
  std::vector<float> pool(1 << 20);
  for (float& v : pool) v = normal(gen);
  for (std::size_t i = 0; i < n; ++i) {
    x[i] = pool[(i * 2654435761u) % pool.size()];
    relu[i] = std::max(x[i], 0.0f);
  }
  std::vector<std::byte> q(n * 4);
  auto* half = reinterpret_cast<std::uint16_t*>(q.data());
  volatile double sink = 0;

  Throughput("min/max", n, [&] {
    MinMax m;
    m.Add(x);
    sink = m.max;
  });
  RangeHistogram histogram;
  const auto count = [&](const std::vector<float>& data) {
    return [&] {
      RangeHistogram h;
      h.Add(data);
      sink = static_cast<double>(h.zeros);
      histogram = h;
    };
  };
  Throughput("min/max + histogram, normal", n, count(x));
  Throughput("min/max + histogram, ReLU", n, count(relu));
  Throughput("histogram, runs of 16384", n, [&] {
    RangeHistogram h;
    for (std::size_t i = 0; i < n; i += 16384) h.Add(std::span(x).subspan(i, 16384));
    sink = h.range.max;
  });
  for (const DType t : {DType::kU8, DType::kS8, DType::kU16, DType::kS4}) {
    const AffineParams p = ChooseParams(-5, 5, t, false);
    const std::string name(Name(t));
    Throughput(("quantize " + name).c_str(), n, [&] { QuantizeRun(x, p, t, q.data()); });
    Throughput(("dequantize " + name).c_str(), n, [&] { DequantizeRun(q.data(), n, p, t, y.data()); });
  }
  const std::vector<AffineParams> params(1024, {0.03f, 0});
  Throughput("quantize s8, 1024 channels last", n,
             [&] { QuantizeTensor(x, n / 1024, 1024, 1, params, DType::kS8, q.data()); });
  Throughput("squared error of quantization", n, [&] { sink = QuantizationSquaredError(x, {0.03f, 0}, DType::kS8); });
  Throughput("f32 -> f16", n, [&] { sink = static_cast<double>(FloatToHalf(x, half)); });
  Throughput("f16 -> f32", n, [&] { HalfToFloat({half, n}, y.data()); });
  Throughput("f32 -> bf16", n, [&] { sink = static_cast<double>(FloatToBf16(x, half)); });
  Throughput("error statistics (one of two inputs)", n, [&] {
    ErrorStats e;
    e.Add(x, relu);
    sink = e.noise;
  });
  std::vector<ExactSum> sums(1024), squares(1024);
  Throughput("channel sums, inner 1", n, [&] { AddChannelSums(x, n / 1024, 1024, 1, sums); });
  Throughput("channel sums + squares, inner 1", n, [&] { AddChannelSums(x, n / 1024, 1024, 1, sums, squares); });
  Throughput("channel sums, inner 1024", n, [&] { AddChannelSums(x, n / (1 << 20), 1024, 1024, sums); });
  count(x)();
  Duration("entropy range u8", [&] { sink = EntropyRange(histogram, DType::kU8, false).max; });
  Duration("entropy range s8 symmetric", [&] { sink = EntropyRange(histogram, DType::kS8, true).max; });
  Duration("MSE range u8", [&] { sink = MseRange(histogram, DType::kU8, false).max; });
  Duration("MSE range s8 symmetric", [&] { sink = MseRange(histogram, DType::kS8, true).max; });
  Duration("MSE weights s8, 1M, symmetric",
           [&] { sink = MseWeightParams(std::span(x).first(1 << 20), DType::kS8, true).scale; });
}
