// Round trips of real models. OCTAVO_TEST_MODELS names a directory searched for *.onnx; OCTAVO_TEST_OUT, if set,
// receives what was written, so that it can be run beside the original.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "octavo/base/resources.h"
#include "octavo/emit/onnx.h"
#include "octavo/import/onnx.h"
#include "octavo/ir/verify.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

class OnnxModels : public testing::Test {
 protected:
  void SetUp() override {
    const char* folder = std::getenv("OCTAVO_TEST_MODELS");
    if (!folder) GTEST_SKIP() << "OCTAVO_TEST_MODELS names no folder of models";
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      if (entry.path().extension() == ".onnx") paths_.push_back(entry.path());
    }
    std::sort(paths_.begin(), paths_.end());
    ASSERT_FALSE(paths_.empty());
    const char* out = std::getenv("OCTAVO_TEST_OUT");
    out_ = out ? fs::path(out) : fs::path(testing::TempDir()) / "octavo_models";
    fs::create_directories(out_);
  }

  fs::path Out(const fs::path& source, const std::string& suffix) const {
    return out_ / (source.stem().string() + suffix + ".onnx");
  }

  std::vector<fs::path> paths_;
  fs::path out_;
};

std::string Bytes(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST_F(OnnxModels, RoundTripIsStableAndWellFormed) {
  for (const fs::path& path : paths_) {
    SCOPED_TRACE(path.string());
    const Stopwatch watch;
    const std::uint64_t before = CurrentRssBytes();
    const Model model = ReadOnnx(path);
    const double seconds = watch.Seconds();
    RecordProperty("seconds", std::to_string(seconds));
    std::printf("%s: read in %.1f ms, %.1f MB resident\n", path.filename().c_str(), seconds * 1e3,
                (static_cast<double>(CurrentRssBytes()) - static_cast<double>(before)) / 1e6);
    EXPECT_EQ(Verify(model), std::vector<std::string>{});
    const OnnxFiles first = WriteOnnx(model, Out(path, "_rt"));
    EXPECT_TRUE(first.data.empty());
    const Model again = ReadOnnx(first.model);
    EXPECT_EQ(Verify(again), std::vector<std::string>{});
    const OnnxFiles second = WriteOnnx(again, Out(path, "_rt2"));
    EXPECT_EQ(Bytes(first.model), Bytes(second.model));
    const OnnxFiles external = WriteOnnx(model, Out(path, "_ext"), {.force_external_data = true});
    ASSERT_EQ(external.data.size(), 1u);
    WriteOnnx(ReadOnnx(external.model), Out(path, "_rt2"));
    EXPECT_EQ(Bytes(first.model), Bytes(Out(path, "_rt2")));
    const OnnxSkeleton skeleton = SerializeSkeleton(model);
    EXPECT_LT(skeleton.bytes.size(), std::size_t{2} << 20);
    EXPECT_FALSE(skeleton.externals.empty());
    std::ofstream(Out(path, "_skeleton"), std::ios::binary) << skeleton.bytes;
  }
}

// A dead constant whose type needs the operator set asked for.
void NeedOpset(Model& model, DType storage, bool axis) {
  Type type{.dtype = DType::kF32, .shape = {{{2, ""}}}, .quant = QuantType{}, .opaque = {}};
  Affine& affine = type.quant->affine;
  affine.storage = storage;
  if (axis) affine.axis = 0;
  affine.scale = axis ? TensorRef::FromFloats({2}, std::vector<float>{1.0f, 1.0f}) : TensorRef::Scalar(1.0f);
  const std::vector<std::int64_t> codes = {0, 1};
  model.graph->AddConstant("octavo_dead", TensorRef::FromInts(storage, {2}, codes), type);
}

TEST_F(OnnxModels, OpsetIsRaised) {
  struct Case {
    DType storage;
    bool axis;
    std::int64_t opset;
  };
  for (const fs::path& path : paths_) {
    SCOPED_TRACE(path.string());
    for (const Case& c : {Case{DType::kS8, true, 13}, Case{DType::kU16, false, 21}, Case{DType::kU2, false, 25}}) {
      Model model = ReadOnnx(path);
      const std::int64_t before = model.OpsetVersion();
      NeedOpset(model, c.storage, c.axis);
      RaiseOpsetForQuantization(model);
      EXPECT_EQ(model.OpsetVersion(), std::max(before, c.opset));
      model.graph->Erase(model.graph->FindValue("octavo_dead"));
      EXPECT_EQ(Verify(model), std::vector<std::string>{});
      WriteOnnx(model, Out(path, "_op" + std::to_string(c.opset)));
    }
  }
}

}  // namespace
}  // namespace octavo
