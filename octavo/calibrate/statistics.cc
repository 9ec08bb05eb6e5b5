#include "octavo/calibrate/statistics.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/base/sha256.h"

namespace octavo {
namespace {

// Every field is preceded by its length: no two structures have the same serialization.
class Fingerprint {
 public:
  void Add(std::string_view text) {
    Add(static_cast<std::uint64_t>(text.size()));
    sha_.Update(text);
  }
  void Add(std::uint64_t v) {
    std::byte bytes[8];
    for (int i = 0; i < 8; ++i) bytes[i] = static_cast<std::byte>(v >> (8 * i));
    sha_.Update(std::span<const std::byte>(bytes));
  }
  void Add(const Type& type) {
    Add(static_cast<std::uint64_t>(type.dtype));
    Add(static_cast<std::uint64_t>(type.shape ? type.shape->size() + 1 : 0));
    if (!type.shape) return;
    for (const Dim& dim : *type.shape) {
      Add(static_cast<std::uint64_t>(dim.value));
      Add(std::string_view(dim.symbol));
    }
  }
  // The values' types are left out but for inputs and constants: they are inferred, and more or less of them may be
  // known.
  void Add(const Graph& graph) {
    Add(static_cast<std::uint64_t>(graph.inputs().size()));
    for (const Value* input : graph.inputs()) {
      Add(std::string_view(input->name()));
      Add(input->type);
    }
    const std::vector<Value*> constants = graph.constants();
    Add(static_cast<std::uint64_t>(constants.size()));
    for (const Value* constant : constants) {
      Add(std::string_view(constant->name()));
      Add(constant->type);
      const auto bytes = constant->data ? constant->data->bytes : std::span<const std::byte>();
      const auto head = bytes.subspan(0, std::min<std::size_t>(bytes.size(), 64));
      Add(std::string_view(reinterpret_cast<const char*>(head.data()), head.size()));
    }
    Add(static_cast<std::uint64_t>(graph.node_count()));
    for (const Node* node = graph.first(); node != nullptr; node = node->next()) {
      Add(std::string_view(node->domain()));
      Add(std::string_view(node->op()));
      Names(node->inputs());
      Names(node->outputs());
      for (const Attribute& attribute : node->attributes()) {
        if (const auto* body = std::get_if<std::unique_ptr<Graph>>(&attribute.value)) {
          Add(std::string_view(attribute.name));
          Add(**body);  // nesting is bounded by the importer
        }
      }
    }
    Names(graph.outputs());
  }
  std::string HexDigest() { return sha_.HexDigest(); }

 private:
  void Names(std::span<Value* const> values) {
    Add(static_cast<std::uint64_t>(values.size()));
    for (const Value* value : values) Add(value == nullptr ? std::string_view() : std::string_view(value->name()));
  }
  Sha256 sha_;
};

}  // namespace

void ChannelSums::Merge(const ChannelSums& other) {
  // Sums along different axes, or of different numbers of channels, have nothing in common: they are given up.
  if (axis >= 0 && other.axis >= 0 && axis != other.axis) finite = false;
  if (!sums.empty() && !other.sums.empty() && sums.size() != other.sums.size()) finite = false;
  axis = axis < 0 ? other.axis : other.axis < 0 ? axis : std::min(axis, other.axis);
  finite = finite && other.finite;
  if (!finite) {
    sums.clear();
    squares.clear();
    return;
  }
  if (other.sums.empty()) return;
  if (sums.empty()) {
    sums = other.sums;
    squares = other.squares;
    return;
  }
  for (std::size_t c = 0; c < sums.size(); ++c) {
    sums[c].Merge(other.sums[c]);
    squares[c].Merge(other.squares[c]);
  }
}

double TensorStatistics::ChannelMean(std::size_t c) const {
  const double per_channel = static_cast<double>(range.elements) / static_cast<double>(channels->sums.size());
  return channels->sums[c].ToDouble() / per_channel;
}

double TensorStatistics::ChannelMeanSquare(std::size_t c) const {
  const double per_channel = static_cast<double>(range.elements) / static_cast<double>(channels->squares.size());
  return channels->squares[c].ToDouble() / per_channel;
}

void TensorStatistics::Merge(const TensorStatistics& other) {
  if (histogram.has_value() != other.histogram.has_value()) {
    ThrowBadInput("statistics with and without a histogram cannot be merged");
  }
  if (channels.has_value() != other.channels.has_value()) {
    ThrowBadInput("statistics with and without channel sums cannot be merged");
  }
  if (histogram) {
    histogram->Merge(*other.histogram);
    range = histogram->range;
  } else {
    range.Merge(other.range);
  }
  if (channels) channels->Merge(*other.channels);
}

const TensorStatistics* Statistics::Find(std::string_view name) const {
  const auto it = tensors.find(std::string(name));
  return it == tensors.end() ? nullptr : &it->second;
}

void Statistics::Merge(const Statistics& other) {
  if (model_sha256 != other.model_sha256) {
    ThrowBadInput("statistics of different models cannot be merged",
                  model_sha256.substr(0, 12) + " and " + other.model_sha256.substr(0, 12));
  }
  if (method != other.method) {
    ThrowBadInput("statistics of different calibration methods cannot be merged", method + " and " + other.method);
  }
  const auto first_missing = [](const auto& a, const auto& b) -> const std::string* {
    for (const auto& [name, unused] : a) {
      if (b.find(name) == b.end()) return &name;
    }
    return nullptr;
  };
  const std::string* missing = first_missing(tensors, other.tensors);
  if (missing == nullptr) missing = first_missing(other.tensors, tensors);
  if (missing != nullptr) ThrowBadInput("a tensor is in one of the statistics only", *missing);
  std::vector<std::string> common;
  std::set_intersection(samples.begin(), samples.end(), other.samples.begin(), other.samples.end(),
                        std::back_inserter(common));
  if (!common.empty()) {
    LogWarning(std::to_string(common.size()) + " calibration sample(s) are in more than one of the merged statistics");
  }
  for (auto& [name, tensor] : tensors) {
    try {
      tensor.Merge(other.tensors.at(name));
    } catch (const Error& e) {
      throw Error(e.code(), e.reason(), name, e.how());
    }
  }
  std::vector<std::string> all;
  all.reserve(samples.size() + other.samples.size());
  std::merge(samples.begin(), samples.end(), other.samples.begin(), other.samples.end(), std::back_inserter(all));
  samples = std::move(all);
  for (const KeptSample& sample : other.kept) Keep(sample.sha256, sample.tensors);
}

std::string SampleDigest(std::span<const TensorRef> tensors) {
  Sha256 sha;
  for (const TensorRef& tensor : tensors) {
    std::string head = std::string(Name(tensor.dtype)) + "[";
    for (const std::int64_t dim : tensor.dims) head += std::to_string(dim) + ",";
    sha.Update(head + "]");
    sha.Update(tensor.bytes);
    if (tensor.strings == nullptr) continue;
    for (const std::string& text : *tensor.strings) sha.Update(std::to_string(text.size()) + ":" + text);
  }
  return sha.HexDigest();
}

namespace {

// How many samples of this size are kept.
std::size_t KeptOfSize(std::size_t bytes) {
  return bytes <= kLargeBytes ? kKeptSamples : bytes <= kMostKeptBytes ? kKeptLargeSamples : 0;
}

std::size_t BytesOf(const KeptSample& sample) {
  std::size_t bytes = 0;
  for (const TensorRef& tensor : sample.tensors) bytes += tensor.bytes.size();
  return bytes;
}

}  // namespace

void Statistics::Keep(std::string_view sha256, std::span<const TensorRef> tensors_of_sample) {
  const auto at = std::lower_bound(kept.begin(), kept.end(), sha256,
                                   [](const KeptSample& a, std::string_view b) { return a.sha256 < b; });
  if (at != kept.end() && at->sha256 == sha256) return;
  std::size_t bytes = 0;
  for (const TensorRef& tensor : tensors_of_sample) {
    if (tensor.strings != nullptr) return;
    bytes += tensor.bytes.size();
  }
  const std::size_t room = KeptOfSize(bytes);
  if (room == 0) return;
  std::size_t before = 0;
  for (auto it = kept.begin(); it != at; ++it) before += KeptOfSize(BytesOf(*it)) == room ? 1 : 0;
  if (before >= room) return;
  // First the one that has to go.
  const std::size_t place = static_cast<std::size_t>(at - kept.begin());
  std::size_t count = 1;
  std::erase_if(kept, [&](const KeptSample& k) { return KeptOfSize(BytesOf(k)) == room && ++count > room; });
  KeptSample sample{std::string(sha256), {}};
  for (const TensorRef& tensor : tensors_of_sample) {
    SpillBuffer copy(tensor.bytes.size());
    std::copy(tensor.bytes.begin(), tensor.bytes.end(), copy.data());
    sample.tensors.push_back(TensorRef::FromBuffer(tensor.dtype, tensor.dims, std::move(copy)));
  }
  kept.insert(kept.begin() + static_cast<std::ptrdiff_t>(place), std::move(sample));
}

std::string ModelFingerprint(const Model& model) {
  Fingerprint fingerprint;
  for (const OpsetImport& opset : model.opsets) {
    fingerprint.Add(std::string_view(opset.domain));
    fingerprint.Add(static_cast<std::uint64_t>(opset.version));
  }
  fingerprint.Add(static_cast<std::uint64_t>(model.functions.size()));
  for (const std::string& function : model.functions) fingerprint.Add(std::string_view(function));
  fingerprint.Add(*model.graph);
  return fingerprint.HexDigest();
}

}  // namespace octavo
