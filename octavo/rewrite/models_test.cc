// The passes on real models, where OCTAVO_TEST_MODELS names their folder: what is run before and after
// must agree. Symbolic dimensions of images are fixed to what the models of the documentation want.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "octavo/base/resources.h"
#include "octavo/import/onnx.h"
#include "octavo/ir/verify.h"
#include "octavo/numerics/error_stats.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

std::vector<std::string> Models() {
  std::vector<std::string> paths;
  const char* folder = std::getenv("OCTAVO_TEST_MODELS");
  if (folder == nullptr) return paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".onnx") paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

Model ReadFixed(const std::string& path) {
  Model model = ReadOnnx(path);
  for (Value* input : model.graph->inputs()) {
    std::vector<Dim>& dims = *input->type.shape;
    for (std::size_t i = 0; i < dims.size(); ++i) {
      const bool cls = path.find("_cls_") != std::string::npos;
      if (dims[i].known()) continue;
      dims[i] = Dim{dims.size() == 4 ? (i == 0   ? 1
                                        : i == 2 ? (cls ? 48 : 320)
                                                 : (cls ? 192 : 320))
                                     : (i == 0 ? 2 : 17),
                    {}};
    }
  }
  return model;
}

// Noise is no image: a text detector's probabilities on it are all next to 0, and relative errors there mean nothing.
// Lines of dark strokes of random widths on a light page are close enough to text.
std::vector<TensorRef> Inputs(const Model& model) {
  std::vector<TensorRef> inputs = testing::RandomInputs(model, 1);
  std::mt19937_64 rng(7);
  for (TensorRef& input : inputs) {
    if (input.dims.size() != 4 || input.dims[1] != 3) continue;
    const std::int64_t height = input.dims[2], width = input.dims[3];
    std::vector<float> page(static_cast<std::size_t>(height * width), 0.9f);
    for (std::int64_t top = 12; top + 14 < height; top += 26) {
      for (std::int64_t x = 16; x + 24 < width; x += 3 + static_cast<std::int64_t>(rng() % 5)) {
        const auto from = static_cast<std::int64_t>(rng() % 6), to = 8 + static_cast<std::int64_t>(rng() % 6);
        for (std::int64_t y = from; y < to; ++y) page[static_cast<std::size_t>((top + y) * width + x)] = -0.9f;
        if (rng() % 2 == 0) {
          for (std::int64_t i = 0; i < 5; ++i) page[static_cast<std::size_t>((top + from) * width + x + i)] = -0.9f;
        }
      }
    }
    std::vector<float> values;
    for (int c = 0; c < 3; ++c) values.insert(values.end(), page.begin(), page.end());
    input = TensorRef::FromFloats(input.dims, values);
  }
  return inputs;
}

double Sqnr(const std::vector<TensorRef>& reference, const std::vector<TensorRef>& got) {
  EXPECT_EQ(reference.size(), got.size());
  ErrorStats stats;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    EXPECT_EQ(reference[i].dims, got[i].dims);
    if (reference[i].dtype == DType::kF32) stats.Add(reference[i].ToFloats(), got[i].ToFloats());
  }
  return stats.SqnrDb();
}

// A float model as quantizers write them: a Q/DQ pair on what each layer reads, weights included.
void InsertQdq(Model& model) {
  InferTypes(model);
  Graph& graph = *model.graph;
  int count = 0;
  const auto constant = [&](TensorRef tensor) {
    return graph.AddConstant("qdq_parameter_" + std::to_string(count++), std::move(tensor));
  };
  for (Node* node : graph.nodes()) {
    if (node->op() != "Conv" && node->op() != "Gemm" && node->op() != "MatMul") continue;
    for (std::size_t i = 0; i < 2; ++i) {
      Value* const x = node->input(i);
      if (x->type.dtype != DType::kF32) continue;
      const bool weight = x->is_constant();
      Value* const scale = constant(TensorRef::FromFloats({}, std::vector<float>{weight ? 0.01f : 0.03f}));
      Value* const zero = constant(TensorRef::FromBytes(weight ? DType::kS8 : DType::kU8, {},
                                                        std::vector<std::byte>{std::byte(weight ? 0 : 128)}));
      const std::string name = "qdq_" + std::to_string(count++);
      Node* const q = graph.AddNode("QuantizeLinear", "", {x, scale, zero}, {{name + "_q", Type{}}}, node);
      Node* const dq = graph.AddNode("DequantizeLinear", "", {q->output(), scale, zero}, {{name, x->type}}, node);
      node->SetInput(i, dq->output());
    }
  }
}

class RealModels : public ::testing::Test {
 protected:
  void SetUp() override {
    if (Models().empty()) GTEST_SKIP() << "OCTAVO_TEST_MODELS names no models";
  }
};

TEST_F(RealModels, SimplifyFloat) {
  for (const std::string& path : Models()) {
    SCOPED_TRACE(path);
    Model model = ReadFixed(path);
    if (IsQuantized(model)) continue;
    const std::vector<TensorRef> inputs = Inputs(model);
    const std::vector<TensorRef> reference = testing::RunModel(model, inputs);
    const std::size_t before = model.graph->node_count();
    Stopwatch watch;
    std::stringstream counts;
    for (const PassCount& count : SimplifyFloat(model)) counts << " " << count.rule << "=" << count.applied;
    const double seconds = watch.Seconds();
    VerifyOrThrow(model, "SimplifyFloat");
    const double sqnr = Sqnr(reference, testing::RunModel(model, inputs));
    std::cout << path.substr(path.rfind('/') + 1) << ": " << before << " -> " << model.graph->node_count() << " nodes, "
              << seconds << " s," << counts.str() << ", " << sqnr << " dB\n";
    EXPECT_GT(sqnr, 90.0);
    EXPECT_LT(model.graph->node_count(), before);
    const std::int64_t pairs = EqualizeLayers(model);
    const double equalized = Sqnr(reference, testing::RunModel(model, inputs));
    std::cout << "  equalized " << pairs << " pairs, " << equalized << " dB\n";
    EXPECT_GT(equalized, 90.0);
  }
}

TEST_F(RealModels, ConvertToHalf) {
  for (const std::string& path : Models()) {
    SCOPED_TRACE(path);
    Model model = ReadFixed(path);
    if (IsQuantized(model)) continue;
    const std::vector<TensorRef> inputs = Inputs(model);
    const std::vector<TensorRef> reference = testing::RunModel(model, inputs);
    SimplifyFloat(model);
    std::vector<std::string> blocked;
    std::stringstream list(std::getenv("OCTAVO_TEST_BLOCKED") == nullptr ? "" : std::getenv("OCTAVO_TEST_BLOCKED"));
    for (std::string op; std::getline(list, op, ',');) blocked.push_back(op);
    HalfOptions options;
    options.keep = [&](const Node& node) {
      return std::find(blocked.begin(), blocked.end(), node.op()) != blocked.end() ? "blocked" : "";
    };
    const HalfResult result = ConvertToHalf(model, DType::kF16, options);
    VerifyOrThrow(model, "ConvertToHalf");
    const double sqnr = Sqnr(reference, testing::RunModel(model, inputs));
    std::cout << path.substr(path.rfind('/') + 1) << ": f16 " << sqnr << " dB, overflows " << result.overflows
              << ", kept " << result.kept_float.size() << " of " << model.graph->node_count() << " nodes\n";
    EXPECT_GE(sqnr, 55.0);
  }
}

TEST_F(RealModels, FoldAndLowerIsBitIdentical) {
  for (const std::string& path : Models()) {
    SCOPED_TRACE(path);
    Model model = ReadFixed(path);
    if (!IsQuantized(model)) InsertQdq(model);
    const std::vector<TensorRef> inputs = Inputs(model);
    const std::vector<TensorRef> reference = testing::RunModel(model, inputs);
    const std::int64_t folded = FoldQdq(model);
    VerifyOrThrow(model, "FoldQdq");
    int left = 0;
    VisitNodes(*model.graph,
               [&](Node& node) { left += node.op() == "QuantizeLinear" || node.op() == "DequantizeLinear" ? 1 : 0; });
    EXPECT_GT(folded, 0);
    EXPECT_TRUE(IsQuantized(model));
    RaiseOpsetForQuantization(model);
    LowerToQdq(model);
    VerifyOrThrow(model, "LowerToQdq");
    std::cout << path.substr(path.rfind('/') + 1) << ": " << folded << " pairs, " << left << " Q/DQ nodes left\n";
    EXPECT_TRUE(testing::SameBits(reference, testing::RunModel(model, inputs)));
  }
}

}  // namespace
}  // namespace octavo
