// The saved form of statistics. The one file of this room that sees nlohmann/json.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>

#include "octavo/base/error.h"
#include "octavo/base/output.h"
#include "octavo/calibrate/statistics.h"

namespace octavo {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxBytes = std::size_t{256} << 20;
constexpr int kMaxDepth = 5;                   // {kept: {digest: [{dims: [number]}]}}
constexpr std::size_t kMaxValues = 4'000'000;  // long lists of numbers are strings: few values make a large file
constexpr std::size_t kMaxChannels = std::size_t{1} << 20;
constexpr std::int64_t kMaxAxis = 64;

// ------------------------------------------------------------------------------------------------------------- writing

// As a double: the shortest text of a float, read as a double and rounded, need not be the float.
std::string Number(float v) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof text, static_cast<double>(v)).ptr;
  return {text, end};
}

std::string Quoted(const std::string& text) {
  // Names come from models and need not be UTF-8: what is not is replaced when printing, so such a file would not load
  // for the same model. Refused instead.
  try {
    return Json(text).dump();
  } catch (const Json::exception&) {
    ThrowUnsupported("a tensor name that is not UTF-8 cannot be saved", text);
  }
}

// "3z 5 1 2z 7": counts in order, a run of k zeros as kz; trailing zeros left out.
std::string CountsText(const std::vector<std::uint64_t>& counts) {
  std::string out;
  std::size_t zeros = 0;
  for (const std::uint64_t count : counts) {
    if (count == 0) {
      ++zeros;
      continue;
    }
    if (!out.empty()) out.push_back(' ');
    if (zeros > 0) out += std::to_string(zeros) + "z ";
    zeros = 0;
    out += std::to_string(count);
  }
  return out;
}

std::string SumsText(const std::vector<ExactSum>& sums) {
  std::string out;
  for (const ExactSum& sum : sums) {
    if (!out.empty()) out.push_back(' ');
    out += sum.ToText();
  }
  return out;
}

std::string TensorJson(const TensorStatistics& tensor) {
  const MinMax& range = tensor.range;
  std::string out = "{\"elements\": " + std::to_string(range.elements) + ", \"nans\": " + std::to_string(range.nans) +
                    ", \"infs\": " + std::to_string(range.infs);
  if (range.HasRange()) out += ", \"min\": " + Number(range.min) + ", \"max\": " + Number(range.max);
  if (tensor.histogram) {
    const RangeHistogram& h = *tensor.histogram;
    out += ", \"exponent\": " + std::to_string(h.exponent) + ", \"zeros\": " + std::to_string(h.zeros) +
           ", \"counts\": \"" + CountsText(h.counts) + "\"";
  }
  if (tensor.channels) {
    const ChannelSums& c = *tensor.channels;
    out += ", \"channel_axis\": " + std::to_string(c.axis);
    if (c.finite) {
      out += ", \"sums\": \"" + SumsText(c.sums) + "\", \"squares\": \"" + SumsText(c.squares) + "\"";
    }
  }
  return out + "}";
}

constexpr std::string_view kBase64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

// RFC 4648, section 4.
std::string Base64(std::span<const std::byte> bytes) {
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    const std::size_t n = std::min<std::size_t>(3, bytes.size() - i);
    std::uint32_t word = 0;
    for (std::size_t k = 0; k < 3; ++k) word = word << 8 | (k < n ? std::to_integer<std::uint32_t>(bytes[i + k]) : 0);
    for (std::size_t k = 0; k < 4; ++k) out.push_back(k <= n ? kBase64[word >> (18 - 6 * k) & 63] : '=');
  }
  return out;
}

std::string KeptJson(const KeptSample& sample) {
  std::string out = "[";
  for (const TensorRef& tensor : sample.tensors) {
    if (out.size() > 1) out += ", ";
    out += "{\"dtype\": \"" + std::string(Name(tensor.dtype)) + "\", \"dims\": [";
    for (std::size_t i = 0; i < tensor.dims.size(); ++i) out += (i > 0 ? ", " : "") + std::to_string(tensor.dims[i]);
    out += "], \"data\": \"" + Base64(tensor.bytes) + "\"}";
  }
  return out + "]";
}

// ------------------------------------------------------------------------------------------------------------- reading

// Nothing when the text is not canonical base64.
std::optional<std::vector<std::byte>> FromBase64(std::string_view text) {
  static const auto values = [] {
    std::array<std::int8_t, 256> v{};
    v.fill(-1);
    for (std::size_t i = 0; i < kBase64.size(); ++i)
      v[static_cast<unsigned char>(kBase64[i])] = static_cast<std::int8_t>(i);
    return v;
  }();
  if (text.size() % 4 != 0) return std::nullopt;
  std::size_t pad = 0;
  while (pad < 2 && pad < text.size() && text[text.size() - 1 - pad] == '=') ++pad;
  std::vector<std::byte> out;
  out.reserve(text.size() / 4 * 3);
  for (std::size_t i = 0; i < text.size(); i += 4) {
    std::uint32_t word = 0;
    for (std::size_t k = 0; k < 4; ++k) {
      const bool padding = i + k + pad >= text.size();
      const std::int8_t v = padding ? std::int8_t{0} : values[static_cast<unsigned char>(text[i + k])];
      if (v < 0) return std::nullopt;
      word = word << 6 | static_cast<std::uint32_t>(v);
    }
    for (std::size_t k = 0; k < 3; ++k) out.push_back(static_cast<std::byte>(word >> (16 - 8 * k)));
  }
  out.resize(out.size() - pad);
  return out;
}

class Reader {
 public:
  explicit Reader(const std::string& where) : where_(where) {}

  [[noreturn]] void Fail(const std::string& key, const std::string& what) const {
    ThrowBadInput("damaged statistics: " + what, where_ + ": key '" + key + "'");
  }

  std::vector<TensorRef> Sample(const Json& list, const std::string& path) const {
    if (!list.is_array()) Fail(path, "expected a list of tensors");
    std::vector<TensorRef> out;
    for (const Json& tensor : list) {
      if (!tensor.is_object()) Fail(path, "expected a tensor");
      OnlyKeys(tensor, {"dtype", "dims", "data"}, path + ".");
      const std::optional<DType> dtype = ParseDType(String(tensor, "dtype", path + "."));
      const Json& list_of_dims = Get(tensor, "dims", path + ".");
      if (!dtype || !list_of_dims.is_array() || list_of_dims.size() > 64) Fail(path, "expected a dtype and dims");
      Dims dims;
      for (const Json& dim : list_of_dims) {
        if (!dim.is_number_unsigned() || dim.get<std::uint64_t>() > kMostKeptBytes) Fail(path, "expected small dims");
        dims.push_back(dim.get<std::int64_t>());
      }
      std::optional<std::vector<std::byte>> data = FromBase64(String(tensor, "data", path + "."));
      std::uint64_t elements = 1;  // bounded before each product: at most 4 Mi bytes of at least a quarter byte each
      for (const std::int64_t dim : dims) {
        elements *= static_cast<std::uint64_t>(dim);
        if (elements > kMostKeptBytes * 4) Fail(path, "the tensor is too large");
      }
      if (!data || ByteSize(*dtype, elements) != data->size()) Fail(path, "the data do not fit dtype and dims");
      out.push_back(TensorRef::FromBytes(*dtype, std::move(dims), std::move(*data)));
    }
    return out;
  }

  const Json& Get(const Json& object, const char* key, const std::string& path) const {
    const auto it = object.find(key);
    if (it == object.end()) Fail(path + key, "the key is missing");
    return *it;
  }

  std::uint64_t Unsigned(const Json& object, const char* key, const std::string& path) const {
    const Json& v = Get(object, key, path);
    if (!v.is_number_unsigned()) Fail(path + key, "expected a non-negative integer");
    return v.get<std::uint64_t>();
  }

  std::int64_t Integer(const Json& object, const char* key, const std::string& path, std::int64_t low,
                       std::int64_t high) const {
    const Json& v = Get(object, key, path);
    const bool fits = v.is_number_unsigned() ? v.get<std::uint64_t>() <= static_cast<std::uint64_t>(INT64_MAX)
                                             : v.is_number_integer();
    if (!fits || v.get<std::int64_t>() < low || v.get<std::int64_t>() > high) {
      Fail(path + key, "expected an integer from " + std::to_string(low) + " to " + std::to_string(high));
    }
    return v.get<std::int64_t>();
  }

  const std::string& String(const Json& object, const char* key, const std::string& path) const {
    const Json& v = Get(object, key, path);
    if (!v.is_string()) Fail(path + key, "expected a string");
    return v.get_ref<const std::string&>();
  }

  float Float(const Json& object, const char* key, const std::string& path) const {
    const Json& v = Get(object, key, path);
    if (!v.is_number()) Fail(path + key, "expected a number");
    const auto d = v.get<double>();
    if (!(std::abs(d) <= static_cast<double>(std::numeric_limits<float>::max()))) Fail(path + key, "out of range");
    const auto f = static_cast<float>(d);
    if (static_cast<double>(f) != d) Fail(path + key, "not a 32-bit float");
    return f == 0.0f ? 0.0f : f;
  }

  // Calls fn(token) for each of the tokens of a text, separated by single spaces.
  template <typename Fn>
  static void Tokens(std::string_view text, const Fn& fn) {
    while (!text.empty()) {
      const std::size_t end = std::min(text.find(' '), text.size());
      fn(text.substr(0, end));
      text.remove_prefix(std::min(end + 1, text.size()));
    }
  }

  std::vector<std::uint64_t> Counts(const std::string& text, const std::string& key) const {
    std::vector<std::uint64_t> counts;
    Tokens(text, [&](std::string_view token) {
      const bool zeros = !token.empty() && token.back() == 'z';
      if (zeros) token.remove_suffix(1);
      std::uint64_t n = 0;
      const auto [end, error] = std::from_chars(token.data(), token.data() + token.size(), n);
      if (error != std::errc() || end != token.data() + token.size() || n == 0) Fail(key, "not a list of counts");
      if (counts.size() >= RangeHistogram::kBins || (zeros && n > RangeHistogram::kBins - counts.size())) {
        Fail(key, "too many bins");
      }
      if (zeros) {
        counts.resize(counts.size() + n, 0);
      } else {
        counts.push_back(n);
      }
    });
    if (!counts.empty()) counts.resize(RangeHistogram::kBins, 0);
    return counts;
  }

  std::vector<ExactSum> Sums(const std::string& text, const std::string& key) const {
    std::vector<ExactSum> sums;
    Tokens(text, [&](std::string_view token) {
      if (sums.size() >= kMaxChannels) Fail(key, "too many channels");
      try {
        sums.push_back(ExactSum::FromText(token));
      } catch (const Error& e) {
        Fail(key, e.reason());
      }
    });
    return sums;
  }

  void OnlyKeys(const Json& object, const std::set<std::string>& known, const std::string& path) const {
    for (const auto& [key, unused] : object.items()) {
      if (known.find(key) == known.end()) Fail(path + key, "unknown key");
    }
  }

  TensorStatistics Tensor(const Json& json, const std::string& path) const {
    if (!json.is_object()) Fail(path, "expected an object");
    const std::string inside = path + ".";
    OnlyKeys(
        json,
        {"elements", "nans", "infs", "min", "max", "exponent", "zeros", "counts", "channel_axis", "sums", "squares"},
        inside);
    TensorStatistics tensor;
    MinMax& range = tensor.range;
    range.elements = Unsigned(json, "elements", inside);
    range.nans = Unsigned(json, "nans", inside);
    range.infs = Unsigned(json, "infs", inside);
    if (range.nans > range.elements || range.infs > range.elements - range.nans) {
      Fail(inside + "elements", "fewer elements than non-finite ones");
    }
    const bool finite_values = range.elements > range.nans + range.infs;
    if (finite_values) {
      range.min = Float(json, "min", inside);
      range.max = Float(json, "max", inside);
      if (range.min > range.max) Fail(inside + "min", "greater than max");
    } else if (json.contains("min") || json.contains("max")) {
      Fail(inside + "min", "a range without finite values");
    }
    if (json.contains("exponent") || json.contains("zeros") || json.contains("counts")) {
      RangeHistogram h;
      h.range = range;
      h.exponent = static_cast<int>(
          Integer(json, "exponent", inside, RangeHistogram::kMinExponent, RangeHistogram::kMaxExponent));
      h.zeros = Unsigned(json, "zeros", inside);
      h.counts = Counts(String(json, "counts", inside), inside + "counts");
      try {
        h.Check();
      } catch (const Error& e) {
        Fail(inside + "counts", e.reason());
      }
      tensor.histogram = std::move(h);
    }
    if (json.contains("channel_axis") || json.contains("sums") || json.contains("squares")) {
      ChannelSums c;
      c.axis = Integer(json, "channel_axis", inside, -1, kMaxAxis);
      c.finite = json.contains("sums") || json.contains("squares");
      if (c.finite) {
        c.sums = Sums(String(json, "sums", inside), inside + "sums");
        c.squares = Sums(String(json, "squares", inside), inside + "squares");
        if (c.sums.size() != c.squares.size()) Fail(inside + "squares", "another number of channels than in sums");
        if (!c.sums.empty() && range.elements % c.sums.size() != 0) {
          Fail(inside + "sums", "the number of elements is no multiple of the number of channels");
        }
        if (range.elements > 0 && c.sums.empty()) Fail(inside + "sums", "no channels for a tensor with elements");
      }
      tensor.channels = std::move(c);
    }
    return tensor;
  }

  std::string Digest(const Json& json, const std::string& key) const {
    if (json.is_string()) {
      const auto& text = json.get_ref<const std::string&>();
      if (text.size() == 64 && text.find_first_not_of("0123456789abcdef") == std::string::npos) return text;
    }
    Fail(key, "expected a SHA-256 in 64 lower-case hexadecimal digits");
  }

 private:
  const std::string& where_;
};

Json ParseBounded(std::string_view text, const std::string& where) {
  if (text.size() > kMaxBytes) ThrowBadInput("a statistics file of more than 256 MiB", where);
  std::size_t values = 0;
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth || ++values > kMaxValues) ThrowBadInput("statistics nested too deep or too many", where);
    // nlohmann keeps the last of two equal keys; a file with two is not what Octavo wrote.
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end && !keys.empty()) keys.pop_back();
    if (event == Json::parse_event_t::key && !keys.empty() && !keys.back().insert(parsed.get<std::string>()).second) {
      ThrowBadInput("damaged statistics: a key is there twice", where + ": key '" + parsed.get<std::string>() + "'");
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const Json::parse_error& e) {
    ThrowBadInput("the statistics are not JSON", where + ": byte " + std::to_string(e.byte));
  } catch (const Json::exception& e) {
    ThrowBadInput("the statistics are not JSON", where, e.what());
  }
}

}  // namespace

std::string ToJson(const Statistics& statistics) {
  std::string out = "{\n\"schema_version\": " + std::to_string(kStatisticsSchemaVersion) + ",\n\"model_sha256\": \"" +
                    statistics.model_sha256 + "\",\n\"method\": " + Quoted(statistics.method) + ",\n\"samples\": [";
  const char* separator = "\n";
  for (const std::string& sample : statistics.samples) {
    out += separator;
    out += "\"" + sample + "\"";
    separator = ",\n";
  }
  out += "],\n\"tensors\": {";
  separator = "\n";
  for (const auto& [name, tensor] : statistics.tensors) {
    out += separator;
    out += Quoted(name) + ": " + TensorJson(tensor);
    separator = ",\n";
  }
  out += "},\n\"kept\": {";
  separator = "\n";
  for (const KeptSample& sample : statistics.kept) {
    out += separator;
    out += "\"" + sample.sha256 + "\": " + KeptJson(sample);
    separator = ",\n";
  }
  return out + "}\n}\n";
}

Statistics StatisticsFromJson(std::string_view text, const std::string& where) {
  const Json json = ParseBounded(text, where);
  const Reader reader(where);
  if (!json.is_object()) ThrowBadInput("damaged statistics: expected an object", where);
  if (!json.contains("tensors") && !json.contains("model_sha256")) {
    ThrowBadInput("this JSON holds no calibration statistics", where, "octavo calibrate writes them");
  }
  if (const std::int64_t version = reader.Integer(json, "schema_version", "", 0, INT64_MAX);
      version != kStatisticsSchemaVersion) {
    ThrowUnsupported("statistics of schema_version " + std::to_string(version), where,
                     "this version of octavo reads " + std::to_string(kStatisticsSchemaVersion));
  }
  reader.OnlyKeys(json, {"schema_version", "model_sha256", "method", "samples", "tensors", "kept"}, "");
  Statistics statistics;
  statistics.model_sha256 = reader.Digest(reader.Get(json, "model_sha256", ""), "model_sha256");
  statistics.method = reader.String(json, "method", "");
  const Json& samples = reader.Get(json, "samples", "");
  if (!samples.is_array()) reader.Fail("samples", "expected a list");
  for (const Json& sample : samples) statistics.samples.push_back(reader.Digest(sample, "samples"));
  if (!std::is_sorted(statistics.samples.begin(), statistics.samples.end())) reader.Fail("samples", "not sorted");
  const Json& tensors = reader.Get(json, "tensors", "");
  if (!tensors.is_object()) reader.Fail("tensors", "expected an object");
  for (const auto& [name, tensor] : tensors.items()) {
    statistics.tensors.emplace(name, reader.Tensor(tensor, "tensors." + name));
  }
  const Json& kept = reader.Get(json, "kept", "");
  if (!kept.is_object() || kept.size() > kKeptSamples + kKeptLargeSamples)
    reader.Fail("kept", "expected an object of few samples");
  for (const auto& [digest, sample] : kept.items()) {
    const std::string path = "kept." + digest;
    const std::vector<TensorRef> inputs = reader.Sample(sample, path);
    // The digest covers dtypes, dims and data: a sample that was altered is noticed.
    if (SampleDigest(inputs) != digest) reader.Fail(path, "the sample is not the one that its digest names");
    statistics.Keep(digest, inputs);
  }
  return statistics;
}

void SaveStatistics(const Statistics& statistics, const std::filesystem::path& path) {
  OutputFile file(path);
  file.Write(std::string_view(ToJson(statistics)));
  file.Commit();
}

Statistics LoadStatistics(const std::filesystem::path& path) {
  return StatisticsFromJson(ReadTextFile(path, kMaxBytes), path.string());
}

}  // namespace octavo
