#include "octavo/compile/compile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "octavo/base/error.h"
#include "octavo/base/folder_test_util.h"
#include "octavo/ir/text.h"

namespace octavo {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Pair;

CompileContext For(const char* device, std::vector<std::pair<std::string, std::string>> options) {
  CompileContext context;
  context.device = FindDevice(device);
  context.options = std::move(options);
  return context;
}

// The message of the error with this code that `work` throws.
template <typename F>
std::string Refusal(ExitCode code, const F& work) {
  try {
    work();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "nothing was refused";
  return "";
}

TEST(EffectiveOptions, DefaultsThenTheUsers) {
  const auto options = EffectiveOptions(For("qnn", {{"htp_arch", "75"}}));
  EXPECT_THAT(options, Contains(Pair("htp_arch", "75")));
  EXPECT_THAT(options, Contains(Pair("soc_model", "60")));
  EXPECT_THAT(EffectiveOptions(For("qnn", {{"qnn_context_priority", "high"}})),
              Contains(Pair("qnn_context_priority", "high")));
  EXPECT_EQ(std::count_if(options.begin(), options.end(), [](const auto& o) { return o.first == "htp_arch"; }), 1);
}

TEST(EffectiveOptions, WrongOnesAreRefusedByName) {
  const auto refuse = [](const char* device, const char* name, const char* value, ExitCode code) {
    return Refusal(code, [&] { EffectiveOptions(For(device, {{name, value}})); });
  };
  EXPECT_THAT(refuse("qnn", "htp_arch", "12", ExitCode::kUsage), HasSubstr("0|68|69|73|75|79|81"));
  EXPECT_THAT(refuse("qnn", "htp_arch", "73|75", ExitCode::kUsage), HasSubstr("no value of 'htp_arch'"));
  EXPECT_THAT(refuse("qnn", "soc_model", "sixty", ExitCode::kUsage), HasSubstr("is no number"));
  EXPECT_THAT(refuse("qnn", "soc_model", "", ExitCode::kUsage), HasSubstr("is no number"));
  EXPECT_THAT(refuse("qnn", "htp_arhc", "73", ExitCode::kUsage), HasSubstr("htp_arch"));
  // The provider takes both of these without a word.
  EXPECT_THAT(refuse("qnn", "htp_performance_mode", "fastest", ExitCode::kUsage), HasSubstr("burst"));
  EXPECT_THAT(refuse("qnn", "no_such_thing_at_all", "1", ExitCode::kUsage), HasSubstr("octavo devices lists all"));
  EXPECT_THAT(refuse("cpu", "htp_arch", "73", ExitCode::kUnsupported), HasSubstr("takes no options"));
}

TEST(RequireStaticInputs, NamesTheDimensionAndWhatToGive) {
  const Model named = Parse("graph @g(%x: f32[batch,3]) -> (%y) {\n %y: f32[batch,3] = Relu(%x)\n}");
  EXPECT_THAT(Refusal(ExitCode::kUnsupported, [&] { RequireStaticInputs(*named.graph, *FindDevice("qnn")); }),
              HasSubstr("--dim batch=N"));
  const Model unnamed = Parse("graph @g(%x: f32[1,?]) -> (%y) {\n %y: f32[1,?] = Relu(%x)\n}");
  EXPECT_THAT(Refusal(ExitCode::kUnsupported, [&] { RequireStaticInputs(*unnamed.graph, *FindDevice("qnn")); }),
              HasSubstr("--dim x:1=N"));
  const Model rankless = Parse("graph @g(%x: f32[*]) -> (%y) {\n %y: f32[*] = Relu(%x)\n}");
  EXPECT_THAT(Refusal(ExitCode::kUnsupported, [&] { RequireStaticInputs(*rankless.graph, *FindDevice("qnn")); }),
              HasSubstr("no known rank"));
  RequireStaticInputs(*named.graph, *FindDevice("cpu"));
  const Model fixed = Parse("graph @g(%x: f32[1,3]) -> (%y) {\n %y: f32[1,3] = Relu(%x)\n}");
  RequireStaticInputs(*fixed.graph, *FindDevice("qnn"));
}

TEST(CompileModelFor, DevicesWithoutACompilerDeliverTheModel) {
  const TestFolder folder;
  const auto model = folder.path() / "q.onnx", out = folder.path() / "model.onnx";
  Put(model, "a model");
  const CompileReport report = CompileModelFor(model, out, For("dml", {}));
  EXPECT_FALSE(report.compiled);
  EXPECT_THAT(report.not_compiled_here, HasSubstr("Windows"));
  EXPECT_EQ(report.files, std::vector<std::filesystem::path>{out});
  EXPECT_EQ(std::filesystem::file_size(out), 7u);
}

}  // namespace
}  // namespace octavo
