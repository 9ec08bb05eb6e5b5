#include "octavo/build/pipeline.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "octavo/base/error.h"
#include "octavo/base/folder_test_util.h"
#include "octavo/base/log.h"
#include "octavo/base/sha256.h"
#include "octavo/build/inspect.h"
#include "octavo/build/plan.h"
#include "octavo/build/rewrite.h"
#include "octavo/build/summary.h"
#include "octavo/build/version.h"
#include "octavo/emit/onnx.h"
#include "octavo/import/onnx.h"
#include "octavo/ir/text.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using testing::Contains;
using testing::HasSubstr;

class PipelineTest : public FolderTest {
 protected:
  void SetUp() override {
#ifdef OCTAVO_TEST_ORT_LIBRARY
    ::setenv("OCTAVO_ORT_LIBRARY", OCTAVO_TEST_ORT_LIBRARY, 0);
#endif
    ::unsetenv("OCTAVO_REQUIRE_DATA");
    SetLogLevel(LogLevel::kQuiet);
    ::setenv("XDG_CACHE_HOME", (folder_ / "cache").c_str(), 1);
    fs::create_directory(folder_ / "data");
    for (int i = 0; i < 24; ++i) WriteSample(i);

    std::string w = "[", v = "[";
    for (int i = 0; i < 48; ++i) w += (i ? ", " : "") + std::to_string(0.05 * ((i * 37) % 41 - 20));
    for (int i = 0; i < 24; ++i) v += (i ? ", " : "") + std::to_string(0.04 * ((i * 29) % 31 - 15));
    WriteOnnx(Parse("ir_version = 8\nopset \"\" = 13\ngraph @mlp(%x: f32[n,6]) -> (%y) {\n%w = constant f32[6,8] " + w +
                    "]\n%v = constant f32[8,3] " + v +
                    "]\n%h: f32[n,8] = MatMul(%x, %w) @first\n"
                    "%r: f32[n,8] = Relu(%h) @act\n%y: f32[n,3] = MatMul(%r, %v) @second\n}\n"),
              folder_ / "m.onnx");
  }
  void WriteSample(int i, float offset = 0) {
    std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 6), }";
    header.resize(118, ' ');
    header.back() = '\n';
    char name[32];
    std::snprintf(name, sizeof name, "%03d.npy", i);
    std::ofstream file(folder_ / "data" / name, std::ios::binary);
    file.write("\x93NUMPY\x01\x00\x76\x00", 10);
    file << header;
    for (int k = 0; k < 24; ++k) {
      const float value = 0.1f * static_cast<float>((i * 31 + k * 17) % 61 - 30) + offset;
      file.write(reinterpret_cast<const char*>(&value), 4);
    }
  }

  BuildOptions Options(const std::string& out) {
    BuildOptions o;
    o.config.model = folder_ / "m.onnx";
    o.config.data.emplace();
    o.config.data->path = folder_ / "data";
    o.config.quantization.emplace();
    o.config.quantization->samples = 12;
    o.out = folder_ / out;
    o.threads = 1;
    return o;
  }
  Json ManifestOf(const std::string& out) { return Json::parse(Slurp(folder_ / out / "manifest.json")); }
  ExitCode CodeOf(const BuildOptions& options) {
    try {
      Build(options);
    } catch (const Error& error) {
      message_ = error.what();
      return error.code();
    }
    return ExitCode::kOk;
  }
  // Nothing beside what was there: no half-made output, no temporary.
  std::vector<std::string> Entries() {
    std::vector<std::string> names;
    for (const auto& e : fs::directory_iterator(folder_)) names.push_back(e.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }

  std::string message_;
};

TEST_F(PipelineTest, ManifestHasTheSchema) {
  const BuildResult result = Build(Options("out"));
  EXPECT_FALSE(result.up_to_date);
  const Json m = ManifestOf("out");
  EXPECT_EQ(m["schema_version"], 1);
  EXPECT_EQ(m["source"]["sha256"], Sha256::OfFile(folder_ / "m.onnx"));
  EXPECT_EQ(m["source"]["bytes"], fs::file_size(folder_ / "m.onnx"));
  EXPECT_EQ(m["device"]["name"], "cpu");
  EXPECT_EQ(m["device"]["ep"], "CPUExecutionProvider");
  EXPECT_TRUE(m["device"]["options"].is_object());
  EXPECT_EQ(m["precision"], "uint8");
  EXPECT_FALSE(m["effective_types"]["weights"].get<std::string>().empty());
  EXPECT_FALSE(m["effective_types"]["activations"].get<std::string>().empty());
  EXPECT_EQ(m["quantization_config"]["samples"], 12);
  EXPECT_EQ(m["calibration"]["source"], "data");
  EXPECT_EQ(m["calibration"]["samples"], 12);
  EXPECT_EQ(m["calibration"]["method"], "minmax");
  EXPECT_EQ(m["calibration"]["sha256"].get<std::string>().size(), 64u);
  std::vector<std::string> stages;
  for (const Json& s : m["stages"]) {
    stages.push_back(s["name"]);
    EXPECT_GE(s["seconds"].get<double>(), 0);
    EXPECT_GT(s["peak_rss_bytes"].get<std::uint64_t>(), 0u);
    EXPECT_TRUE(s.contains("status"));
  }
  EXPECT_EQ(stages, (std::vector<std::string>{"import", "quantize", "rewrite", "compile", "validate", "publish"}));
  EXPECT_GE(m["quantize"]["nodes_total"].get<int>(), m["quantize"]["nodes_quantized"].get<int>());
  EXPECT_GT(m["quantize"]["nodes_quantized"].get<int>(), 0);
  EXPECT_TRUE(m["quantize"]["nodes_skipped"].is_array());
  EXPECT_GT(m["quantize"]["calibration_time_seconds"].get<double>(), 0);
  EXPECT_GT(m["quantize"]["qdq_insertion_time_seconds"].get<double>(), 0);
  EXPECT_TRUE(m["rewrite"].is_array());
  EXPECT_EQ(m["compile"]["ep_context_nodes"], 0);
  EXPECT_EQ(m["validate"]["samples"], 12);
  EXPECT_EQ(m["validate"]["validated_on"], "held_out");
  ASSERT_EQ(m["validate"]["outputs"].size(), 1u);
  for (const char* key : {"name", "sqnr_db", "cosine", "max_abs", "top1_agreement"}) {
    EXPECT_TRUE(m["validate"]["outputs"][0].contains(key)) << key;
  }
  EXPECT_GT(m["validate"]["outputs"][0]["sqnr_db"].get<double>(), 20);
  std::vector<std::string> artifacts;
  for (const Json& a : m["artifacts"]) {
    artifacts.push_back(a["path"]);
    EXPECT_EQ(a["sha256"], Sha256::OfFile(folder_ / "out" / a["path"].get<std::string>()));
    EXPECT_EQ(a["bytes"], fs::file_size(folder_ / "out" / a["path"].get<std::string>()));
  }
  EXPECT_THAT(artifacts, testing::UnorderedElementsAre("model.onnx", "quantized.onnx", "config.json"));
  EXPECT_TRUE(m["warnings"].is_array());
  EXPECT_THAT(Summary(result, "out"), HasSubstr("nodes quantized"));
  BuildConfig artifact;
  artifact.model = folder_ / "out" / "model.onnx";
  const Model built = ImportModel(artifact);
  EXPECT_GT(Inspect(folder_ / "out" / "model.onnx", {}).text.size(), 0u);
  EXPECT_THAT(Inspect(folder_ / "out" / "model.onnx", {}).text, HasSubstr("MatMul"));
}

TEST_F(PipelineTest, ConfigRepeatsTheBuildToTheSameBytes) {
  Build(Options("a"));
  BuildOptions again;
  again.config = ReadBuildConfig(folder_ / "a" / "config.json");
  again.out = folder_ / "b";
  again.threads = 2;
  again.cache = false;
  Build(again);
  for (const char* file : {"model.onnx", "quantized.onnx", "config.json"}) {
    EXPECT_EQ(Slurp(folder_ / "a" / file), Slurp(folder_ / "b" / file)) << file;
  }
}

TEST_F(PipelineTest, CachedStatisticsGiveTheSameModel) {
  Build(Options("a"));
  fs::remove_all(folder_ / "cache" / "octavo" / "builds");
  Build(Options("b"));
  EXPECT_EQ(Slurp(folder_ / "a" / "model.onnx"), Slurp(folder_ / "b" / "model.onnx"));
  EXPECT_EQ(ManifestOf("a")["stages"][1]["status"], "done");
  EXPECT_EQ(ManifestOf("b")["stages"][1]["status"], "reused");
  EXPECT_EQ(ManifestOf("b")["stages"][4]["status"], "done");
  EXPECT_EQ(ManifestOf("b")["calibration"], ManifestOf("a")["calibration"]);
  BuildOptions fresh = Options("c");
  fresh.cache = false;
  Build(fresh);
  EXPECT_EQ(ManifestOf("c")["stages"][1]["status"], "done");
  BuildOptions gate = Options("d");  // decides no statistics
  gate.config.min_sqnr = 1;
  gate.config.validate_samples = 7;
  Build(gate);
  EXPECT_EQ(ManifestOf("d")["stages"][1]["status"], "reused");
  EXPECT_EQ(ManifestOf("d")["validate"]["samples"], 7);
}

TEST_F(PipelineTest, AFinishedBuildComesFromTheCache) {
  Build(Options("a"));
  const BuildResult again = Build(Options("b"));
  EXPECT_TRUE(again.reused);
  EXPECT_THAT(ReusedSummary(again, "b"), AllOf(HasSubstr("from the cache"), HasSubstr(" dB")));
  Json a = ManifestOf("a"), b = ManifestOf("b");
  ASSERT_EQ(b["stages"].size(), 6U);
  for (std::size_t i = 1; i < 6; ++i) EXPECT_EQ(b["stages"][i]["seconds"], 0) << i;
  EXPECT_EQ(b["stages"][1]["status"], "reused");
  EXPECT_EQ(b["stages"][4]["status"], "reused");
  for (Json* m : {&a, &b}) m->erase("stages");
  EXPECT_EQ(a, b);
  for (const char* file : {"model.onnx", "quantized.onnx", "config.json"}) {
    EXPECT_EQ(Slurp(folder_ / "a" / file), Slurp(folder_ / "b" / file)) << file;
  }
  EXPECT_TRUE(Build(Options("b")).up_to_date);
  EXPECT_TRUE(Build(Options("a")).up_to_date);
}

TEST_F(PipelineTest, TheCacheFollowsContentsNotNames) {
  Build(Options("a"));
  fs::rename(folder_ / "m.onnx", folder_ / "other.onnx");
  fs::rename(folder_ / "data", folder_ / "samples");
  BuildOptions moved = Options("b");
  moved.config.model = folder_ / "other.onnx";
  moved.config.data->path = folder_ / "samples";
  EXPECT_TRUE(Build(moved).reused);
  EXPECT_EQ(ManifestOf("b")["source"]["path"], (folder_ / "other.onnx").string());
  EXPECT_EQ(ReadBuildConfig(folder_ / "b" / "config.json").model, folder_ / "other.onnx");
  const Json manifest = ManifestOf("b");
  for (const Json& artifact : manifest["artifacts"]) {
    EXPECT_EQ(artifact["sha256"], Sha256::OfFile(folder_ / "b" / artifact["path"].get<std::string>()));
  }
  moved.out = folder_ / "c";
  moved.config.quantization->samples = 15;
  EXPECT_FALSE(Build(moved).reused);
  moved.out = folder_ / "d";
  EXPECT_TRUE(Build(moved).reused);
  std::string sample = Slurp(folder_ / "samples" / "023.npy");
  sample[sample.size() - 4] ^= 1;  // the last bit of the last number
  std::ofstream(folder_ / "samples" / "023.npy", std::ios::binary) << sample;
  moved.out = folder_ / "e";
  EXPECT_FALSE(Build(moved).reused);
}

TEST_F(PipelineTest, ADamagedCacheIsMadeAgain) {
  Build(Options("a"));
  const std::string model = Slurp(folder_ / "a" / "model.onnx");
  int n = 0;
  for (const char* file : {"model.onnx", "quantized.onnx", "entry.json"}) {
    for (const bool gone : {false, true}) {
      const fs::path entry = fs::directory_iterator(folder_ / "cache" / "octavo" / "builds")->path();
      std::string bytes = Slurp(entry / file);
      bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
      if (gone) {
        fs::remove(entry / file);
      } else {
        std::ofstream(entry / file, std::ios::binary) << bytes;
      }
      const BuildResult result = Build(Options("n" + std::to_string(n)));
      EXPECT_FALSE(result.reused) << file;
      EXPECT_EQ(Slurp(folder_ / ("n" + std::to_string(n)) / "model.onnx"), model);
      EXPECT_THAT(result.manifest_json, HasSubstr("damaged"));
      ++n;
      EXPECT_TRUE(Build(Options("again" + std::to_string(n))).reused) << file;
    }
  }
}

TEST_F(PipelineTest, NoOutInTheFolderOfTheData) {
  EXPECT_EQ(CodeOf(Options("data/out")), ExitCode::kUsage);
  EXPECT_THAT(message_, HasSubstr("folder of the data"));
  BuildOptions held = Options("held/out");
  fs::create_directory(folder_ / "held");
  held.config.validate_data = held.config.data;
  held.config.validate_data->path = folder_ / "held";
  EXPECT_EQ(CodeOf(held), ExitCode::kUsage);
}

TEST_F(PipelineTest, TypesOfWhatWasNotQuantized) {
  BuildOptions o = Options("out");
  o.config.quantization->precision = "int4";  // weights of 48 numbers are not worth it
  o.config.data.reset();
  o.config.quantization->samples = QuantizationConfig{}.samples;
  o.config.dims = {{"n", 4}};
  Build(o);
  EXPECT_EQ(ManifestOf("out")["quantize"]["nodes_quantized"], 0);
  EXPECT_THAT(ManifestOf("out")["effective_types"]["weights"].get<std::string>(), HasSubstr("as in the input"));
}

TEST_F(PipelineTest, UpToDateRefusedForced) {
  Build(Options("out"));
  const std::string before = Slurp(folder_ / "out" / "manifest.json");
  EXPECT_TRUE(Build(Options("out")).up_to_date);
  EXPECT_EQ(Slurp(folder_ / "out" / "manifest.json"), before);
  BuildOptions other = Options("out");
  other.config.quantization->precision = "int8";
  EXPECT_EQ(CodeOf(other), ExitCode::kUsage);
  EXPECT_THAT(message_, HasSubstr("--force"));
  EXPECT_EQ(Slurp(folder_ / "out" / "manifest.json"), before);
  other.force = true;
  EXPECT_FALSE(Build(other).up_to_date);
  EXPECT_EQ(ManifestOf("out")["precision"], "int8");
  EXPECT_THAT(Entries(), testing::ElementsAre("cache", "data", "m.onnx", "out"));
}

TEST_F(PipelineTest, ChangedContentIsNotUpToDate) {
  Build(Options("out"));
  WriteSample(23, 0.125f);  // a held-out sample: the figures change with it
  EXPECT_EQ(CodeOf(Options("out")), ExitCode::kUsage);
  WriteSample(23);
  EXPECT_EQ(CodeOf(Options("out")), ExitCode::kOk);
  std::ofstream(folder_ / "out" / "model.onnx", std::ios::app) << "x";  // a damaged artifact
  EXPECT_EQ(CodeOf(Options("out")), ExitCode::kUsage);
}

TEST_F(PipelineTest, ForeignDirectoryIsRefusedEmptyOneTaken) {
  fs::create_directory(folder_ / "mine");
  EXPECT_EQ(CodeOf(Options("mine")), ExitCode::kOk);
  fs::create_directory(folder_ / "theirs");
  std::ofstream(folder_ / "theirs" / "manifest.json") << "{\"schema_version\": 1}";
  EXPECT_EQ(CodeOf(Options("theirs")), ExitCode::kUsage);
  EXPECT_EQ(Slurp(folder_ / "theirs" / "manifest.json"), "{\"schema_version\": 1}");
}

TEST_F(PipelineTest, GateFailsAndWritesNothing) {
  BuildOptions o = Options("out");
  o.config.min_sqnr = 250;
  EXPECT_EQ(CodeOf(o), ExitCode::kGate);
  EXPECT_THAT(message_, HasSubstr("250"));
  EXPECT_THAT(Entries(), testing::ElementsAre("cache", "data", "m.onnx"));
  o.config.min_sqnr = 10;
  EXPECT_EQ(CodeOf(o), ExitCode::kOk);
}

TEST_F(PipelineTest, FewSamplesAreMarked) {
  BuildOptions o = Options("out");
  o.config.quantization->samples = 17;
  Build(o);
  EXPECT_EQ(ManifestOf("out")["validate"]["validated_on"], "calibration");
  EXPECT_FALSE(ManifestOf("out")["validate"]["accuracy_validated"].get<bool>());
  EXPECT_THAT(ManifestOf("out")["warnings"].dump(), HasSubstr("hold"));
  BuildOptions enough = Options("out2");
  enough.config.quantization->samples = 16;
  Build(enough);
  EXPECT_EQ(ManifestOf("out2")["validate"]["validated_on"], "held_out");
  EXPECT_EQ(ManifestOf("out2")["validate"]["samples"], 8);
}

TEST_F(PipelineTest, WithoutDataIsHonest) {
  BuildOptions o = Options("out");
  o.config.data.reset();
  EXPECT_EQ(CodeOf(o), ExitCode::kUsage);
  EXPECT_THAT(message_, HasSubstr("--dim"));
  o.config.dims = {{"n", 2}};
  Build(o);
  const Json m = ManifestOf("out");
  EXPECT_EQ(m["calibration"]["source"], "synthetic");
  EXPECT_EQ(m["validate"]["validated_on"], "synthetic");
  EXPECT_FALSE(m["validate"]["accuracy_validated"].get<bool>());
  EXPECT_THAT(m["warnings"].dump(), HasSubstr("NOT validated"));
  o.out = folder_ / "no";
  o.require_data = true;
  EXPECT_EQ(CodeOf(o), ExitCode::kUsage);
  EXPECT_THAT(message_, HasSubstr("--data"));
  o.require_data = false;
  ::setenv("OCTAVO_REQUIRE_DATA", "1", 1);
  EXPECT_EQ(CodeOf(o), ExitCode::kUsage);
  EXPECT_FALSE(fs::exists(folder_ / "no"));
}

TEST_F(PipelineTest, QuantizedInputKeepsItsQuantization) {
  Build(Options("a"));
  BuildOptions o = Options("b");
  o.config.model = folder_ / "a" / "model.onnx";
  o.config.quantization->precision = "int8";
  Build(o);
  EXPECT_EQ(ManifestOf("b")["stages"][1]["status"], "skipped");
  // Against the input itself: only the default session's fusions round differently.
  EXPECT_GT(ManifestOf("b")["validate"]["outputs"][0]["sqnr_db"].get<double>(), 100);
}

TEST_F(PipelineTest, FloatPrecisionsAndNoQuant) {
  BuildOptions o = Options("fp32");
  o.config.quantize = false;
  Build(o);
  EXPECT_FALSE(fs::exists(folder_ / "fp32" / "quantized.onnx"));
  EXPECT_EQ(ManifestOf("fp32")["precision"], "fp32");
  EXPECT_GT(ManifestOf("fp32")["validate"]["outputs"][0]["sqnr_db"].get<double>(), 90);
  BuildOptions half = Options("fp16");
  half.config.quantization->precision = "fp16";
  Build(half);
  EXPECT_GT(ManifestOf("fp16")["validate"]["outputs"][0]["sqnr_db"].get<double>(), 55);
  EXPECT_EQ(ManifestOf("fp16")["calibration"]["source"], "data");
  EXPECT_EQ(ManifestOf("fp16")["calibration"]["method"], "means");
  EXPECT_EQ(ManifestOf("fp16")["validate"]["validated_on"], "held_out");
}

TEST_F(PipelineTest, Refusals) {
  BuildOptions o = Options("out");
  o.config.device = "qnn";
  o.config.compile.enabled = false;  // the plugin may not be here
  EXPECT_EQ(CodeOf(o), ExitCode::kUnsupported);
  EXPECT_THAT(message_, HasSubstr("static shapes"));
  o.config.device = "cpuu";
  EXPECT_EQ(CodeOf(o), ExitCode::kUsage);
  EXPECT_THAT(message_, HasSubstr("'cpu'"));
  o = Options("out");
  o.config.quantization->precision = "q8_0";
  o.config.quantization->load_path = "s.json";  // a format that takes no importance has no use for statistics
  EXPECT_EQ(CodeOf(o), ExitCode::kUsage);
  o = Options("out");
  o.config.compile.embed_context = true;
  EXPECT_EQ(CodeOf(o), ExitCode::kUnsupported);
  o = Options("out");
  o.config.compile.options = {{"a", "b"}};
  EXPECT_EQ(CodeOf(o), ExitCode::kUnsupported);
  o = Options("out");
  o.config.model = folder_ / "gone.onnx";
  EXPECT_EQ(CodeOf(o), ExitCode::kBadInput);
  o = Options("out");
  o.config.compile.quantization.emplace();
  EXPECT_THROW(Build(o), ConfigConflictError);
  WriteOnnx(Parse("ir_version = 8\nopset \"\" = 17\nopset \"com.microsoft\" = 1\ngraph @g(%x: f32[1]) -> (%y) {\n"
                  "%y: f32[1] = com.microsoft::EPContext(%x) {embed_mode=0, ep_cache_context=\"c.bin\"}\n}\n"),
            folder_ / "ctx.onnx");
  o = Options("out");
  o.config.model = folder_ / "ctx.onnx";
  EXPECT_EQ(CodeOf(o), ExitCode::kUnsupported);
  EXPECT_THAT(message_, HasSubstr("EPContext"));
  EXPECT_FALSE(fs::exists(folder_ / "out"));
}

TEST_F(PipelineTest, StagedCommandsGiveTheSameBytes) {
  const BuildOptions o = Options("out");
  Build(o);
  QuantizeFile(o.config, folder_ / "q.onnx", 1, false);
  EXPECT_EQ(Slurp(folder_ / "q.onnx"), Slurp(folder_ / "out" / "quantized.onnx"));
  RewriteFileOptions rewrite;
  rewrite.model = folder_ / "q.onnx";
  rewrite.device = &RequireDevice("cpu");
  RewriteFile(rewrite, folder_ / "rewritten.onnx");
  EXPECT_EQ(Slurp(folder_ / "rewritten.onnx"), Slurp(folder_ / "out" / "model.onnx"));
  const CalibrateFileResult c = CalibrateFile(o.config, folder_ / "s.json", 1, false);
  EXPECT_EQ(c.samples, 12u);
  EXPECT_GT(c.tensors, 0u);
  BuildConfig loaded = o.config;
  loaded.data.reset();
  loaded.quantization->load_path = (folder_ / "s.json").string();
  const QuantizeFileResult r = QuantizeFile(loaded, folder_ / "r.onnx", 1, false);
  EXPECT_EQ(r.quantize.calibration_source, "loaded");
  EXPECT_EQ(Slurp(folder_ / "r.onnx"), Slurp(folder_ / "q.onnx"));
  EXPECT_THAT(Inspect(folder_ / "s.json", {}).text, HasSubstr("12 samples"));
  EXPECT_THROW(MergeStatistics({(folder_ / "s.json").string()}, folder_ / "t.json"), Error);
}

TEST_F(PipelineTest, PlanWritesNothing) {
  const BuildOptions o = Options("out");
  const BuildPlan plan = MakePlan(o.config, o.out, false, PlanFor::kBuild);
  EXPECT_THAT(ToText(plan), HasSubstr("f32[n,6]"));
  EXPECT_THAT(ToText(plan), HasSubstr("uint8"));
  const Json j = Json::parse(ToJson(plan));
  EXPECT_EQ(j["inputs"][0]["type"], "f32[n,6]");
  EXPECT_EQ(j["output"]["path"], o.out.string());
  EXPECT_EQ(j["source"]["nodes"], 3);
  EXPECT_THAT(Entries(), testing::ElementsAre("data", "m.onnx"));
}

TEST_F(PipelineTest, InspectTellsKinds) {
  std::ofstream(folder_ / "x.gguf") << "GGUF....";
  EXPECT_THROW(Inspect(folder_ / "x.gguf", {}), Error);
  std::ofstream(folder_ / "text") << "this is no model";
  try {
    Inspect(folder_ / "text", {});
    FAIL() << "text was taken for a model";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::kBadInput);
  }
  InspectOptions ir;
  ir.ir = true;
  EXPECT_THAT(Inspect(folder_ / "m.onnx", ir).text, HasSubstr("graph @mlp"));
  const Json j = Json::parse(Inspect(folder_ / "m.onnx", {}).json);
  EXPECT_EQ(j["nodes"], 3);
  EXPECT_EQ(j["nodes_quantized"], 0);
}

}  // namespace
}  // namespace octavo
