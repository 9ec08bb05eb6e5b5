#include "octavo/import/data.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <functional>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/names.h"
#include "octavo/base/sha256.h"
#include "octavo/import/data_check.h"
#include "octavo/import/data_images.h"
#include "octavo/import/npy.h"
#include "octavo/import/npz.h"
#include "octavo/import/onnx_tensor.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

ByteSource OpenFile(const fs::path& path) {
  auto file = MappedFile::Open(path);
  const auto bytes = file->bytes();
  return {bytes, file, file, path.string()};
}

std::string Count(std::size_t n, const char* what) { return std::to_string(n) + " " + what + (n == 1 ? "" : "s"); }

// Samples made of files, in order; each form says how one sample is read from its files.
class FileData : public DataSource {
 public:
  FileData(std::string form, fs::path root, std::vector<InputSpec> inputs, std::vector<std::vector<fs::path>> files)
      : form_(std::move(form)), root_(std::move(root)), inputs_(std::move(inputs)), files_(std::move(files)) {}

  std::size_t size() const override { return files_.size(); }

  Sample Read(std::size_t i) const override {
    if (i >= files_.size()) ThrowInternal("sample index out of range");
    const fs::path& first = files_[i].front();
    Sample sample{files_[i].size() == 1 ? first.string() : NameOf(files_[i]), {}};
    sample.tensors.resize(inputs_.size());
    SampleChecker checker;
    ReadFiles(files_[i], checker, sample.tensors);
    return sample;
  }

  std::string ContentHash() const override {
    Sha256 hash;
    hash.Update("octavo data 1\n" + form_ + "\n" + OptionText());
    for (const auto& files : files_) {
      for (const fs::path& path : files) {
        const fs::path below = path.lexically_relative(root_);
        hash.Update((below == "." ? "" : below.generic_string()) + "\n" + Sha256::OfFile(path) + "\n");
      }
    }
    return hash.HexDigest();
  }

  std::string Describe() const override {
    return Count(files_.size(), "sample") + " (" + form_ + (fs::is_directory(root_) ? " in " : ": ") + root_.string() +
           ")";
  }

 protected:
  virtual void ReadFiles(const std::vector<fs::path>& files, SampleChecker& checker,
                         std::vector<TensorRef>& tensors) const = 0;
  virtual std::string OptionText() const { return {}; }
  // A sample of several files is called by their directory (test data) or by all of them.
  static std::string NameOf(const std::vector<fs::path>& files) {
    const fs::path parent = files.front().parent_path();
    std::string all;
    bool same = true;
    for (const fs::path& file : files) {
      same = same && file.parent_path() == parent;
      all += (all.empty() ? "" : " + ") + file.string();
    }
    return same ? parent.string() : all;
  }
  const std::vector<InputSpec>& inputs() const { return inputs_; }

 private:
  std::string form_;
  fs::path root_;
  std::vector<InputSpec> inputs_;
  std::vector<std::vector<fs::path>> files_;
};

std::size_t FindKey(const NpzArchive& archive, const InputSpec& input) {
  const std::ptrdiff_t at = archive.Find(input.name);
  if (at >= 0) return static_cast<std::size_t>(at);
  std::vector<std::string> keys;
  for (std::size_t i = 0; i < archive.size(); ++i) keys.push_back(archive.key(i));
  const std::string near = DidYouMean(input.name, keys);
  ThrowBadInput("no array for input '" + input.name + "'", archive.name(),
                near.empty() ? "the file holds no arrays" : "keys are input names; " + near);
}

class NpzFiles : public FileData {
 public:
  using FileData::FileData;

 private:
  void ReadFiles(const std::vector<fs::path>& files, SampleChecker& checker,
                 std::vector<TensorRef>& tensors) const override {
    const NpzArchive archive(OpenFile(files.front()));
    for (std::size_t j = 0; j < inputs().size(); ++j) {
      const InputSpec& input = inputs()[j];
      const std::size_t member = FindKey(archive, input);
      // Types before data: a wrong file is not unpacked.
      const NpyHeader header = archive.ReadHeader(member);
      checker.Check(input, header.dtype, header.dims, archive.name());
      tensors[j] = archive.Read(member);
      CheckFinite(tensors[j], input, archive.name());
    }
  }
};

class NpyFiles : public FileData {
 public:
  using FileData::FileData;

 private:
  void ReadFiles(const std::vector<fs::path>& files, SampleChecker& checker,
                 std::vector<TensorRef>& tensors) const override {
    for (std::size_t j = 0; j < inputs().size(); ++j) {
      const ByteSource source = OpenFile(files[j]);
      const NpyHeader header = ParseNpyHeader(source.bytes, source.name);
      checker.Check(inputs()[j], header.dtype, header.dims, source.name);
      tensors[j] = ReadNpy(source);
      CheckFinite(tensors[j], inputs()[j], source.name);
    }
  }
};

class TestData : public FileData {
 public:
  using FileData::FileData;

 private:
  void ReadFiles(const std::vector<fs::path>& files, SampleChecker& checker,
                 std::vector<TensorRef>& tensors) const override {
    std::vector<std::string> from(inputs().size());
    for (std::size_t f = 0; f < files.size(); ++f) {
      const ByteSource file = OpenFile(files[f]);
      TensorSource source;
      source.context = {file.bytes.data(), file.name};
      source.owner = file.owner;
      source.file = file.file;
      OnnxTensor tensor = ReadOnnxTensor(file.bytes, source, "tensor");
      const auto named =
          std::find_if(inputs().begin(), inputs().end(), [&](const InputSpec& i) { return i.name == tensor.name; });
      const std::size_t j = named == inputs().end() ? f : static_cast<std::size_t>(named - inputs().begin());
      if (!from[j].empty()) {
        ThrowBadInput("input '" + inputs()[j].name + "' is given twice", from[j] + " and " + file.name);
      }
      from[j] = file.name;
      checker.Check(inputs()[j], tensor.data.dtype, tensor.data.dims, file.name);
      CheckFinite(tensor.data, inputs()[j], file.name);
      tensors[j] = std::move(tensor.data);
    }
  }
};

class Images : public FileData {
 public:
  Images(std::string form, fs::path root, std::vector<InputSpec> inputs, std::vector<std::vector<fs::path>> files,
         const ImageOptions& options)
      : FileData(std::move(form), std::move(root), inputs, std::move(files)), converter_(options, inputs.front()) {}

 private:
  void ReadFiles(const std::vector<fs::path>& files, SampleChecker& checker,
                 std::vector<TensorRef>& tensors) const override {
    const ByteSource file = OpenFile(files.front());
    tensors[0] = converter_.Convert(file.bytes, file.name);
    checker.Check(inputs()[0], tensors[0].dtype, tensors[0].dims, file.name);
    CheckFinite(tensors[0], inputs()[0], file.name);
  }
  std::string OptionText() const override { return converter_.Text(); }

  ImageConverter converter_;
};

// One .npz, samples along a new first axis.
class StackedNpz : public DataSource {
 public:
  StackedNpz(const fs::path& path, std::vector<InputSpec> inputs)
      : path_(path), inputs_(std::move(inputs)), archive_(OpenFile(path)) {
    std::string first;
    for (const InputSpec& input : inputs_) {
      Array array{FindKey(archive_, input), {}, nullptr};
      array.header = archive_.ReadHeader(array.member);
      const NpyHeader& header = array.header;
      const std::string where = archive_.name();
      const bool stacked = input.any_rank ? !header.dims.empty() : header.dims.size() == input.dims.size() + 1;
      if (!stacked) {
        ThrowBadInput("array for input '" + input.name + "' has no sample axis: expected [samples] + " +
                          ToString(input) + ", found " + ToString(header.dtype, header.dims),
                      where, "stack the samples with numpy.stack, or put one .npz a sample into a directory");
      }
      const auto samples = static_cast<std::size_t>(header.dims[0]);
      if (arrays_.empty()) {
        samples_ = samples;
        first = input.name;
      }
      if (samples != samples_) {
        ThrowBadInput(Count(samples_, "sample") + " for input '" + first + "' but " + std::to_string(samples) +
                          " for input '" + input.name + "'",
                      where);
      }
      // In column-major order a sample's elements lie apart: the array is read once and kept.
      if (header.fortran_order && header.dims.size() > 1) {
        array.whole = std::make_shared<TensorRef>(archive_.Read(array.member));
      }
      arrays_.push_back(std::move(array));
    }
    if (samples_ == 0) ThrowBadInput("no samples", archive_.name());
    SampleChecker checker;
    for (std::size_t j = 0; j < inputs_.size(); ++j) {
      checker.Check(inputs_[j], arrays_[j].header.dtype, std::span(arrays_[j].header.dims).subspan(1), archive_.name());
    }
  }

  std::size_t size() const override { return samples_; }

  Sample Read(std::size_t i) const override {
    if (i >= samples_) ThrowInternal("sample index out of range");
    Sample sample{archive_.name() + "[" + std::to_string(i) + "]", {}};
    for (std::size_t j = 0; j < inputs_.size(); ++j) {
      const Array& array = arrays_[j];
      NpyHeader header = array.header;
      header.dims.erase(header.dims.begin());
      header.data_bytes /= samples_;
      header.fortran_order = false;
      const auto bytes = static_cast<std::size_t>(header.data_bytes);
      if (array.whole && array.whole->strings) {
        const auto first = array.whole->strings->begin() + static_cast<std::ptrdiff_t>(i * ElementCount(header.dims));
        TensorRef strings;
        strings.dtype = DType::kString;
        strings.strings = std::make_shared<std::vector<std::string>>(
            first, first + static_cast<std::ptrdiff_t>(ElementCount(header.dims)));
        strings.dims = std::move(header.dims);
        sample.tensors.push_back(std::move(strings));
      } else if (array.whole) {
        const auto part = array.whole->bytes.subspan(i * bytes, bytes);
        header.big_endian = false;
        sample.tensors.push_back(NpyTensor(header, {part.begin(), part.end()}, sample.name));
      } else {
        sample.tensors.push_back(
            NpyTensor(header, archive_.ReadData(array.member, i * header.data_bytes, bytes), sample.name));
      }
      CheckFinite(sample.tensors.back(), inputs_[j], sample.name);
    }
    return sample;
  }

  std::string ContentHash() const override {
    return Sha256::OfText("octavo data 1\nstacked .npz\n" + Sha256::OfFile(path_) + "\n");
  }
  std::string Describe() const override {
    return Count(samples_, "sample") + " (stacked .npz: " + path_.string() + ")";
  }

 private:
  struct Array {
    std::size_t member;
    NpyHeader header;
    std::shared_ptr<TensorRef> whole;
  };
  fs::path path_;
  std::vector<InputSpec> inputs_;
  NpzArchive archive_;
  std::vector<Array> arrays_;
  std::size_t samples_ = 0;
};

// --- finding out the form ---

enum class Kind { kOther, kNpz, kNpy, kPb, kImage, kForeignImage, kDirectory };

std::string LowerExtension(const fs::path& path) {
  std::string out = path.extension().string();
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

// N of "input_N.pb".
std::optional<std::size_t> InputNumber(const fs::path& path) {
  const std::string name = path.filename().string();
  if (!name.starts_with("input_") || !name.ends_with(".pb")) return std::nullopt;
  const std::string_view digits = std::string_view(name).substr(6, name.size() - 9);
  std::size_t number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return number;
}

Kind KindOf(const fs::path& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) return Kind::kDirectory;
  const std::string extension = LowerExtension(path);
  if (extension == ".npz") return Kind::kNpz;
  if (extension == ".npy") return Kind::kNpy;
  if (InputNumber(path)) return Kind::kPb;
  for (const char* e : {".png", ".jpg", ".jpeg", ".bmp"}) {
    if (extension == e) return Kind::kImage;
  }
  for (const char* e : {".gif", ".tif", ".tiff", ".webp", ".heic", ".avif", ".tga", ".ppm", ".pgm"}) {
    if (extension == e) return Kind::kForeignImage;
  }
  return Kind::kOther;
}

using Listing = std::map<Kind, std::vector<fs::path>>;

// Entries by kind, each in natural order; hidden ones and files that are no data (labels.txt, model.onnx) are skipped.
Listing List(const fs::path& directory) {
  Listing out;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().string().starts_with('.')) continue;
    const Kind kind = KindOf(it->path());
    if (kind != Kind::kOther) out[kind].push_back(it->path());
  }
  if (error) ThrowBadInput("cannot read directory (" + error.message() + ")", directory.string());
  for (auto& [kind, paths] : out) {
    std::sort(paths.begin(), paths.end(), [](const fs::path& a, const fs::path& b) {
      return NaturalLess(a.filename().string(), b.filename().string());
    });
  }
  return out;
}

constexpr const char* kForms =
    "give .npz files, one stacked .npz, .npy files (one sub-directory an input), ONNX test data (input_0.pb, ...) or "
    "png, jpeg or bmp images";

class Opener {
 public:
  Opener(const DataOptions& options, std::span<const InputSpec> inputs)
      : options_(options), root_(options.path), inputs_(inputs.begin(), inputs.end()) {}

  std::unique_ptr<DataSource> Open() {
    if (inputs_.empty()) ThrowUnsupported("the model has no inputs: data cannot be used", root_.string());
    std::error_code error;
    const fs::file_status status = fs::status(root_, error);
    if (!fs::exists(status)) ThrowBadInput("no such file or directory", root_.string(), "check --data");
    if (!fs::is_directory(status)) return OpenSingle();

    Listing listing = List(root_);
    if (listing.empty()) ThrowBadInput("directory without data", root_.string(), kForms);
    if (listing.size() > 1) {
      std::string found;
      for (const auto& [kind, paths] : listing) {
        found += (found.empty() ? "'" : ", '") + paths.front().filename().string() + "'";
      }
      ThrowBadInput("mixed forms of data (" + found + ")", root_.string(), "keep one form in a directory");
    }
    auto& [kind, paths] = *listing.begin();
    switch (kind) {
      case Kind::kNpz:
        return Make<NpzFiles>(".npz files", OneEach(paths));
      case Kind::kNpy:
        NeedOneInput(".npy files directly in the data directory", "make one sub-directory an input: " + InputNames());
        return Make<NpyFiles>(".npy files", OneEach(paths));
      case Kind::kPb:
        return Make<TestData>("ONNX test data", {TestFiles(root_, paths)});
      case Kind::kImage:
        return OpenImages(paths);
      case Kind::kDirectory:
        return OpenDirectories(paths);
      default:
        ThrowUnsupported("image format that is not read", paths.front().string(), "convert it to png, jpeg or bmp");
    }
  }

 private:
  template <typename T>
  std::unique_ptr<DataSource> Make(const char* form, std::vector<std::vector<fs::path>> files) const {
    NoImageOptions();
    return std::make_unique<T>(form, root_, inputs_, std::move(files));
  }
  void NoImageOptions() const {
    if (options_.image_options_given) {
      ThrowUsage("image options for data that are no images", root_.string(), "leave the --image options out");
    }
  }
  static std::vector<std::vector<fs::path>> OneEach(const std::vector<fs::path>& paths) {
    std::vector<std::vector<fs::path>> out;
    for (const fs::path& path : paths) out.push_back({path});
    return out;
  }
  std::string InputNames() const {
    std::string out;
    for (const InputSpec& input : inputs_) out += (out.empty() ? "'" : ", '") + input.name + "'";
    return out;
  }
  void NeedOneInput(const std::string& what, const std::string& how) const {
    if (inputs_.size() == 1) return;
    ThrowBadInput(what + " for a model of " + std::to_string(inputs_.size()) + " inputs", root_.string(), how);
  }

  std::unique_ptr<DataSource> OpenSingle() {
    switch (KindOf(root_)) {
      case Kind::kNpz:
        NoImageOptions();
        return std::make_unique<StackedNpz>(root_, inputs_);
      case Kind::kNpy:
        NeedOneInput("one .npy file", "make one sub-directory an input: " + InputNames());
        return Make<NpyFiles>(".npy file", {{root_}});
      case Kind::kImage:
        return OpenImages({root_});
      default:
        ThrowBadInput("data of unknown form", root_.string(), kForms);
    }
  }

  std::unique_ptr<DataSource> OpenImages(const std::vector<fs::path>& paths) {
    NeedOneInput("images", "give .npz files with all of " + InputNames());
    return std::make_unique<Images>("images", root_, inputs_, OneEach(paths), options_.image);
  }

  // input_0.pb ... in number order, one for every input.
  std::vector<fs::path> TestFiles(const fs::path& directory, const std::vector<fs::path>& paths) const {
    std::vector<fs::path> out(inputs_.size());
    for (const fs::path& path : paths) {
      const std::size_t number = *InputNumber(path);
      if (number >= out.size()) {
        ThrowBadInput("test data for more inputs than the model's " + std::to_string(out.size()), path.string());
      }
      if (!out[number].empty()) ThrowBadInput("input number twice", out[number].string() + " and " + path.string());
      out[number] = path;
    }
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (out[i].empty()) {
        ThrowBadInput("no input_" + std::to_string(i) + ".pb for input '" + inputs_[i].name + "'", directory.string());
      }
    }
    return out;
  }

  std::unique_ptr<DataSource> OpenDirectories(const std::vector<fs::path>& directories) {
    std::vector<std::pair<fs::path, Listing>> listings;
    for (const fs::path& directory : directories) {
      Listing listing = List(directory);
      if (!listing.empty()) listings.emplace_back(directory, std::move(listing));
    }
    if (listings.empty()) ThrowBadInput("directory without data", root_.string(), kForms);
    const auto all = [&](Kind kind) {
      return std::all_of(listings.begin(), listings.end(),
                         [&](const auto& l) { return l.second.contains(kind) && l.second.size() == 1; });
    };
    if (all(Kind::kPb)) {
      std::vector<std::vector<fs::path>> files;
      for (auto& [directory, listing] : listings) files.push_back(TestFiles(directory, listing[Kind::kPb]));
      return Make<TestData>("ONNX test data", std::move(files));
    }
    if (!all(Kind::kNpy)) {
      ThrowBadInput("sub-directories that are neither one an input (.npy files) nor ONNX test data (input_0.pb, ...)",
                    root_.string(), kForms);
    }
    std::vector<std::string> names;
    for (const auto& [directory, listing] : listings) names.push_back(directory.filename().string());
    std::vector<std::vector<fs::path>> files;
    for (std::size_t j = 0; j < inputs_.size(); ++j) {
      const auto at = std::find(names.begin(), names.end(), inputs_[j].name);
      if (at == names.end()) {
        ThrowBadInput("no sub-directory for input '" + inputs_[j].name + "'", root_.string(),
                      "sub-directories are called like inputs; " + DidYouMean(inputs_[j].name, names));
      }
      const auto& paths = listings[static_cast<std::size_t>(at - names.begin())].second[Kind::kNpy];
      if (j == 0) files.resize(paths.size());
      if (paths.size() != files.size()) {
        ThrowBadInput(Count(files.size(), "file") + " for input '" + inputs_[0].name + "' but " +
                          std::to_string(paths.size()) + " for input '" + inputs_[j].name + "'",
                      root_.string());
      }
      for (std::size_t i = 0; i < paths.size(); ++i) files[i].push_back(paths[i]);
    }
    return Make<NpyFiles>(".npy files", std::move(files));
  }

  const DataOptions& options_;
  fs::path root_;
  std::vector<InputSpec> inputs_;
};

}  // namespace

std::vector<InputSpec> InputSpecs(const Graph& graph) {
  std::vector<InputSpec> out;
  for (const Value* value : graph.inputs()) {
    if (value->data) continue;
    InputSpec spec;
    spec.name = value->name();
    spec.dtype = value->type.dtype;
    spec.any_rank = !value->type.shape.has_value();
    if (value->type.shape) spec.dims = *value->type.shape;
    // Some exporters (Paddle) write "?" for each size that they do not know: no name, and no two of them are equal.
    for (Dim& dim : spec.dims) {
      if (dim.symbol == "?") dim.symbol.clear();
    }
    out.push_back(std::move(spec));
  }
  return out;
}

std::unique_ptr<DataSource> OpenData(const DataOptions& options, std::span<const InputSpec> inputs) {
  return Opener(options, inputs).Open();
}

}  // namespace octavo
