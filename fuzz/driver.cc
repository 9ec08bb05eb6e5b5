// A small mutation driver for the fuzz targets, for compilers without libFuzzer. Each target keeps the libFuzzer entry
// point, so that `clang++ -fsanitize=fuzzer` takes it as it is.
//
//   fuzz_x SECONDS SEED [FILE|DIR...]   mutates the seeds (and an empty input) for SECONDS
//   fuzz_x FILE                         runs one input (a reproducer)
//
// The input that is being run is kept in `<target>.last`, so that a crash leaves its reproducer.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Bytes = std::vector<std::uint8_t>;
constexpr std::size_t kMaxInput = 1 << 16;

std::uint64_t g_state;
std::uint64_t Random() {  // splitmix64
  std::uint64_t z = (g_state += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}
std::size_t Below(std::size_t n) { return n == 0 ? 0 : Random() % n; }

Bytes ReadFile(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(in), {});
}

Bytes Mutate(Bytes input, const std::vector<Bytes>& corpus) {
  const std::size_t rounds = 1 + Below(6);
  for (std::size_t r = 0; r < rounds; ++r) {
    const std::size_t at = Below(input.size() + 1);
    switch (Below(8)) {
      case 0:
        if (at < input.size()) input[at] ^= static_cast<std::uint8_t>(1u << Below(8));
        break;
      case 1:
        if (at < input.size()) input[at] = static_cast<std::uint8_t>(Random());
        break;
      case 2:  // a varint-like run of high bytes: what size fields fear
        for (std::size_t i = at; i < input.size() && i < at + 1 + Below(9); ++i) input[i] = 0xff;
        break;
      case 3:
        input.insert(input.begin() + static_cast<std::ptrdiff_t>(at), static_cast<std::uint8_t>(Random()));
        break;
      case 4:
        input.resize(at);
        break;
      case 5:
        if (at < input.size()) input.erase(input.begin() + static_cast<std::ptrdiff_t>(at));
        break;
      case 6: {  // a word of a text format becomes another one
        static const std::vector<std::string> kWords = {"0",
                                                        "-1",
                                                        "-0",
                                                        "1e308",
                                                        "1e-320",
                                                        "9223372036854775808",
                                                        "18446744073709551615",
                                                        "4294967296",
                                                        "[]",
                                                        "{}",
                                                        "[[[[[[",
                                                        "null",
                                                        "true",
                                                        "\"\"",
                                                        "\"\\u0000\"",
                                                        "\"f32\""};
        const std::string& word = kWords[Below(kWords.size())];
        const auto inside = [&](std::size_t i) {
          return i < input.size() &&
                 std::string_view(",:[]{} \n\r\t").find(static_cast<char>(input[i])) == std::string::npos;
        };
        std::size_t from = at, to = at;
        while (from > 0 && inside(from - 1)) --from;
        while (inside(to)) ++to;
        input.erase(input.begin() + static_cast<std::ptrdiff_t>(from), input.begin() + static_cast<std::ptrdiff_t>(to));
        input.insert(input.begin() + static_cast<std::ptrdiff_t>(from), word.begin(), word.end());
        break;
      }
      default: {  // splice from another seed
        const Bytes& other = corpus[Below(corpus.size())];
        if (other.empty()) break;
        const std::size_t from = Below(other.size()), n = 1 + Below(other.size() - from);
        input.insert(input.begin() + static_cast<std::ptrdiff_t>(at), other.begin() + static_cast<std::ptrdiff_t>(from),
                     other.begin() + static_cast<std::ptrdiff_t>(from + n));
      }
    }
  }
  if (input.size() > kMaxInput) input.resize(kMaxInput);
  return input;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::filesystem::is_regular_file(argv[1])) {
    const Bytes input = ReadFile(argv[1]);
    LLVMFuzzerTestOneInput(input.data(), input.size());
    return 0;
  }
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s SECONDS SEED [FILE|DIR...]  or  %s FILE\n", argv[0], argv[0]);
    return 2;
  }
  const double seconds = std::atof(argv[1]);
  g_state = std::strtoull(argv[2], nullptr, 10);
  std::vector<Bytes> corpus{{}};
  for (int i = 3; i < argc; ++i) {
    if (std::filesystem::is_directory(argv[i])) {
      for (const auto& entry : std::filesystem::recursive_directory_iterator(argv[i])) {
        if (entry.is_regular_file() && entry.file_size() <= kMaxInput) corpus.push_back(ReadFile(entry.path()));
      }
    } else {
      corpus.push_back(ReadFile(argv[i]));
    }
  }
  const std::string last = std::filesystem::path(argv[0]).filename().string() + ".last";
  const auto start = std::chrono::steady_clock::now();
  std::uint64_t runs = 0;
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds) {
    const Bytes input = runs < corpus.size() ? corpus[runs] : Mutate(corpus[Below(corpus.size())], corpus);
    {
      std::ofstream out(last, std::ios::binary | std::ios::trunc);
      out.write(reinterpret_cast<const char*>(input.data()), static_cast<std::streamsize>(input.size()));
    }
    LLVMFuzzerTestOneInput(input.data(), input.size());
    ++runs;
  }
  std::filesystem::remove(last);
  std::printf("%s: %llu runs, no fault\n", argv[0], static_cast<unsigned long long>(runs));
  return 0;
}
