#include "octavo/import/onnx.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "octavo/base/error.h"
#include "octavo/base/folder_test_util.h"
#include "octavo/emit/wire_rope.h"
#include "octavo/import/onnx_bytes.h"
#include "octavo/ir/verify.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

// ---- Builders of serialized protos, field numbers of onnx.proto.

WireRope TensorProto(const std::string& name, DType dtype, const Dims& dims) {
  WireRope out;
  for (std::int64_t d : dims) out.Int(1, d);
  out.Int(2, static_cast<std::int64_t>(dtype));
  out.Text(8, name);
  return out;
}

WireRope FloatTensor(const std::string& name, const Dims& dims, const std::vector<float>& values) {
  WireRope out = TensorProto(name, DType::kF32, dims);
  out.Text(9, {reinterpret_cast<const char*>(values.data()), values.size() * 4});
  return out;
}

WireRope NodeProto(const std::string& op, const std::vector<std::string>& inputs,
                   const std::vector<std::string>& outputs) {
  WireRope out;
  for (const auto& name : inputs) out.Text(1, name);
  for (const auto& name : outputs) out.Text(2, name);
  out.Text(3, "n_" + op);
  out.Text(4, op);
  return out;
}

WireRope ValueProto(const std::string& name, const std::vector<std::string>& dims = {}) {
  WireRope shape;
  for (const auto& text : dims) {
    WireRope dim;
    if (!text.empty() && (text[0] == '-' || (text[0] >= '0' && text[0] <= '9'))) {
      dim.Int(1, std::stoll(text));
    } else {
      dim.Text(2, text);
    }
    shape.Message(1, std::move(dim));
  }
  WireRope tensor, type, out;
  tensor.Int(1, 1);
  tensor.Message(2, std::move(shape));
  type.Message(1, std::move(tensor));
  out.Text(1, name);
  out.Message(2, std::move(type));
  return out;
}

std::string ModelProto(WireRope graph, std::int64_t opset = 17, std::int64_t ir = 8) {
  WireRope out, import;
  out.Int(1, ir);
  import.Int(2, opset);
  out.Message(8, std::move(import));
  out.Message(7, std::move(graph));
  return out.Flatten();
}

Model Read(const std::string& bytes) {
  auto owner = std::make_shared<std::string>(bytes);
  return ReadOnnxBytes(std::as_bytes(std::span(*owner)), owner, "test.onnx");
}

// The message of the refusal; fails the test when there is none or its exit code is another.
std::string Refusal(const std::string& bytes, ExitCode code = ExitCode::kBadInput) {
  try {
    Read(bytes);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "accepted";
  return {};
}

// x -> Relu -> y with one initializer that an Add reads.
WireRope SmallGraph() {
  WireRope graph;
  graph.Message(1, NodeProto("Relu", {"x"}, {"r"}));
  graph.Message(1, NodeProto("Add", {"r", "w"}, {"y"}));
  graph.Text(2, "g");
  graph.Message(5, FloatTensor("w", {2}, {1.5f, -2.0f}));
  graph.Message(11, ValueProto("x", {"batch", "2"}));
  graph.Message(12, ValueProto("y", {"batch", "2"}));
  return graph;
}

std::string WithTensor(WireRope tensor) {
  WireRope graph = SmallGraph();
  graph.Message(5, std::move(tensor));
  return ModelProto(std::move(graph));
}

class ModelFolder : public TestFolder {
 public:
  fs::path Write(const fs::path& name, const std::string& bytes) const {
    Put(path() / name, bytes);
    return path() / name;
  }
};

TEST(ReadOnnx, SmallModel) {
  const Model model = Read(ModelProto(SmallGraph()));
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  EXPECT_EQ(model.graph->node_count(), 2u);
  EXPECT_EQ(model.graph->inputs()[0]->type.shape->at(0).symbol, "batch");
  EXPECT_EQ(model.graph->FindValue("w")->data->ToFloats(), (std::vector<float>{1.5f, -2.0f}));
}

TEST(ReadOnnx, WeightsAreViewsIntoTheFile) {
  const ModelFolder folder;
  WireRope graph = SmallGraph();
  graph.Message(5, FloatTensor("big", {1000}, std::vector<float>(1000, 0.5f)));
  const Model model = ReadOnnx(folder.Write("model/m.onnx", ModelProto(std::move(graph))));
  const TensorRef& big = *model.graph->FindValue("big")->data;
  ASSERT_TRUE(big.file);
  const auto file = big.file->bytes();
  EXPECT_GE(big.bytes.data(), file.data());
  EXPECT_LE(big.bytes.data() + big.bytes.size(), file.data() + file.size());
  EXPECT_EQ(big.ToFloats(), std::vector<float>(1000, 0.5f));
}

TEST(ReadOnnx, TypedData) {
  WireRope graph = SmallGraph();
  const auto add = [&](const std::string& name, DType dtype, const Dims& dims, std::uint32_t field,
                       const std::vector<std::int64_t>& values) {
    WireRope tensor = TensorProto(name, dtype, dims);
    for (std::int64_t v : values) tensor.Int(field, v);  // not packed: both forms are legal
    graph.Message(5, std::move(tensor));
  };
  add("u8", DType::kU8, {2}, 5, {0, 255});
  add("s8", DType::kS8, {2}, 5, {-128, 127});
  add("f16", DType::kF16, {2}, 5, {0x3c00, 0xc000});
  add("bf16", DType::kBF16, {1}, 5, {0x3f80});
  add("s4", DType::kS4, {3}, 5, {0xf1, 0x07});
  add("bool", DType::kBool, {2}, 5, {1, 0});
  add("s64", DType::kS64, {2}, 7, {-5, 1LL << 40});
  add("u32", DType::kU32, {1}, 11, {0xffffffffLL});
  WireRope packed = TensorProto("f32", DType::kF32, {2});
  const float floats[2] = {1.0f, 2.5f};
  packed.Text(4, {reinterpret_cast<const char*>(floats), 8});
  graph.Message(5, std::move(packed));
  WireRope text = TensorProto("str", DType::kString, {2});
  text.Text(6, "a");
  text.Text(6, "b");
  graph.Message(5, std::move(text));
  const Model model = Read(ModelProto(std::move(graph)));
  const auto ints = [&](const char* name) { return model.graph->FindValue(name)->data->ToInts(); };
  const auto reals = [&](const char* name) { return model.graph->FindValue(name)->data->ToFloats(); };
  using Ints = std::vector<std::int64_t>;
  using Floats = std::vector<float>;
  EXPECT_EQ(ints("u8"), (Ints{0, 255}));
  EXPECT_EQ(ints("s8"), (Ints{-128, 127}));
  EXPECT_EQ(reals("f16"), (Floats{1.0f, -2.0f}));
  EXPECT_EQ(reals("bf16"), (Floats{1.0f}));
  EXPECT_EQ(ints("s4"), (Ints{1, -1, 7}));
  EXPECT_EQ(ints("bool"), (Ints{1, 0}));
  EXPECT_EQ(ints("s64"), (Ints{-5, 1LL << 40}));
  EXPECT_EQ(ints("u32"), (Ints{0xffffffffLL}));
  EXPECT_EQ(reals("f32"), (Floats{1.0f, 2.5f}));
  EXPECT_EQ(*model.graph->FindValue("str")->data->strings, (std::vector<std::string>{"a", "b"}));
}

TEST(ReadOnnx, ConstantNodesBecomeConstants) {
  WireRope graph;
  WireRope node = NodeProto("Constant", {}, {"c"});
  WireRope attribute;
  attribute.Text(1, "value_ints");
  attribute.Int(8, 3);
  attribute.Int(8, -4);
  attribute.Int(20, 7);
  node.Message(5, std::move(attribute));
  graph.Message(1, std::move(node));
  graph.Message(1, NodeProto("Identity", {"c"}, {"y"}));
  graph.Message(12, ValueProto("y"));
  const Model model = Read(ModelProto(std::move(graph)));
  EXPECT_EQ(model.graph->node_count(), 1u);
  EXPECT_EQ(model.graph->FindValue("c")->data->ToInts(), (std::vector<std::int64_t>{3, -4}));
  EXPECT_EQ(model.graph->FindValue("c")->data->dims, Dims{2});
}

TEST(ReadOnnx, OverridableInitializers) {
  const auto graph = [] {
    WireRope out = SmallGraph();
    out.Message(11, ValueProto("w", {"2"}));
    return out;
  };
  const Model now = Read(ModelProto(graph(), 17, 8));
  EXPECT_EQ(now.graph->FindValue("w")->kind(), ValueKind::kInput);
  EXPECT_TRUE(now.graph->FindValue("w")->data.has_value());
  const Model old = Read(ModelProto(graph(), 8, 3));
  EXPECT_EQ(old.graph->FindValue("w")->kind(), ValueKind::kConstant);
  EXPECT_EQ(old.graph->inputs().size(), 1u);
}

TEST(ReadOnnx, AbsentInputsAndOutputs) {
  WireRope graph;
  graph.Message(1, NodeProto("Clip", {"x", "", "x"}, {"y", "", "z"}));
  graph.Message(11, ValueProto("x"));
  graph.Message(12, ValueProto("y"));
  const Model model = Read(ModelProto(std::move(graph)));
  const Node& node = *model.graph->first();
  ASSERT_EQ(node.inputs().size(), 3u);
  EXPECT_EQ(node.input(1), nullptr);
  EXPECT_EQ(node.output(1), nullptr);
  EXPECT_NE(node.output(2), nullptr);
}

TEST(ReadOnnx, NodesInAnyOrderButNotInACycle) {
  WireRope graph;
  graph.Message(1, NodeProto("Neg", {"a"}, {"y"}));
  graph.Message(1, NodeProto("Relu", {"x"}, {"a"}));
  graph.Message(11, ValueProto("x"));
  graph.Message(12, ValueProto("y"));
  const Model model = Read(ModelProto(std::move(graph)));
  EXPECT_EQ(model.graph->first()->op(), "Relu");
  EXPECT_EQ(Verify(model), std::vector<std::string>{});

  WireRope cycle;
  cycle.Message(1, NodeProto("Neg", {"a"}, {"b"}));
  cycle.Message(1, NodeProto("Relu", {"b"}, {"a"}));
  EXPECT_THAT(Refusal(ModelProto(std::move(cycle))), HasSubstr("cycle"));
}

TEST(ReadOnnx, NamesThatDoNotResolveOrAreTaken) {
  WireRope undefined;
  undefined.Message(1, NodeProto("Neg", {"nothing"}, {"b"}));
  EXPECT_THAT(Refusal(ModelProto(std::move(undefined))), HasSubstr("undefined value"));
  WireRope output;
  output.Message(12, ValueProto("nothing"));
  EXPECT_THAT(Refusal(ModelProto(std::move(output))), HasSubstr("undefined graph output"));
  WireRope twice = SmallGraph();
  twice.Message(1, NodeProto("Neg", {"x"}, {"r"}));
  EXPECT_THAT(Refusal(ModelProto(std::move(twice))), HasSubstr("defined twice"));
  WireRope same;
  same.Message(1, NodeProto("Split", {"x"}, {"a", "a"}));
  same.Message(11, ValueProto("x"));
  EXPECT_THAT(Refusal(ModelProto(std::move(same))), HasSubstr("defined twice"));
  EXPECT_THAT(Refusal(WithTensor(FloatTensor("w", {1}, {0.0f}))), HasSubstr("defined twice"));
}

WireRope IfNode(WireRope branch, const std::string& condition, const std::string& output) {
  WireRope attribute, node = NodeProto("If", {condition}, {output});
  attribute.Text(1, "then_branch");
  attribute.Message(6, std::move(branch));
  attribute.Int(20, 5);
  node.Message(5, std::move(attribute));
  return node;
}

TEST(ReadOnnx, SubgraphsCaptureOuterValues) {
  const auto outer = [](const std::string& inner) {
    WireRope branch;
    branch.Message(1, NodeProto("Neg", {"x"}, {inner}));
    branch.Message(12, ValueProto(inner));
    WireRope graph;
    graph.Message(1, IfNode(std::move(branch), "x", "y"));
    graph.Message(11, ValueProto("x"));
    graph.Message(12, ValueProto("y"));
    return ModelProto(std::move(graph));
  };
  const Model model = Read(outer("t"));
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  EXPECT_EQ(model.graph->inputs()[0]->uses().size(), 2u);
  EXPECT_THAT(Refusal(outer("x")), HasSubstr("defined twice"));  // shadowing
}

TEST(ReadOnnx, NestingIsBounded) {
  const auto nested = [](int depth) {
    WireRope graph;
    for (int i = 0; i < depth; ++i) {
      WireRope outer;
      outer.Message(1, IfNode(std::move(graph), "x", "y" + std::to_string(i)));
      if (i == depth - 1) outer.Message(11, ValueProto("x"));
      graph = std::move(outer);
    }
    return ModelProto(std::move(graph));
  };
  EXPECT_EQ(Read(nested(60)).graph->node_count(), 1u);
  EXPECT_THAT(Refusal(nested(65)), HasSubstr("nested more than 64 deep"));
  EXPECT_THAT(Refusal(nested(2000)), HasSubstr("nested more than 64 deep"));
}

TEST(ReadOnnx, AbsurdDimensions) {
  constexpr std::int64_t kHuge = std::int64_t{1} << 62;
  EXPECT_NE(Refusal(WithTensor(FloatTensor("t", {kHuge, 4}, {1.0f}))), "");
  EXPECT_NE(Refusal(WithTensor(FloatTensor("t", {kHuge}, {1.0f}))), "");
  EXPECT_NE(Refusal(WithTensor(FloatTensor("t", {-1}, {1.0f}))), "");
  EXPECT_THAT(Refusal(WithTensor(FloatTensor("t", {std::int64_t{1} << 40}, {1.0f}))), HasSubstr("dimensions take"));
  EXPECT_THAT(Refusal(WithTensor(TensorProto("t", DType::kF32, {std::int64_t{1} << 40}))),
              HasSubstr("dimensions take"));
  EXPECT_THAT(Refusal(WithTensor(TensorProto("t", DType::kString, {std::int64_t{1} << 40}))),
              HasSubstr("dimensions take"));
  EXPECT_THAT(Refusal(WithTensor(FloatTensor("t", Dims(65, 1), {1.0f}))), HasSubstr("64 dimensions"));
  EXPECT_NE(Refusal(WithTensor(TensorProto("t", static_cast<DType>(99), {1})), ExitCode::kUnsupported), "");
  WireRope wrong = TensorProto("t", DType::kF32, {1});
  wrong.Int(7, 1);
  EXPECT_THAT(Refusal(WithTensor(std::move(wrong))), HasSubstr("not for its type"));
}

TEST(ReadOnnx, TruncationAtEveryByte) {
  WireRope graph = SmallGraph();
  WireRope branch;
  branch.Message(1, NodeProto("Neg", {"x"}, {"t"}));
  branch.Message(12, ValueProto("t"));
  graph.Message(1, IfNode(std::move(branch), "x", "z"));
  const std::string bytes = ModelProto(std::move(graph));
  Read(bytes);
  int refused = 0;
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    try {
      Read(bytes.substr(0, size));
    } catch (const Error& error) {
      EXPECT_TRUE(error.code() == ExitCode::kBadInput) << size << ": " << error.what();
      ++refused;
    }
  }
  EXPECT_EQ(refused, static_cast<int>(bytes.size()));
}

TEST(ReadOnnx, EveryByteDamaged) {
  const std::string bytes = ModelProto(SmallGraph());
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    for (int value : {0x00, 0x01, 0x7f, 0x80, 0xff}) {
      std::string damaged = bytes;
      damaged[i] = static_cast<char>(value);
      try {
        EXPECT_EQ(Verify(Read(damaged)), std::vector<std::string>{}) << i;
      } catch (const Error& error) {
        EXPECT_TRUE(error.code() == ExitCode::kBadInput || error.code() == ExitCode::kUnsupported)
            << i << ": " << error.what();
      }
    }
  }
}

TEST(ReadOnnx, ExternalData) {
  const ModelFolder folder;
  folder.Write("model/w.bin", std::string(64, '\0') + std::string("\0\0\x80\x3f\0\0\0\x40", 8));
  folder.Write("secret.bin", std::string(100, 's'));
  fs::create_symlink(folder.path() / "secret.bin", folder.path() / "model/link.bin");
  fs::create_symlink(folder.path() / "model/w.bin", folder.path() / "model/good.bin");
  const auto read = [&](const std::string& location, const std::string& offset, const std::string& length) {
    WireRope tensor = TensorProto("e", DType::kF32, {2});
    const auto entry = [&](const std::string& key, const std::string& value) {
      WireRope pair;
      pair.Text(1, key);
      pair.Text(2, value);
      tensor.Message(13, std::move(pair));
    };
    entry("location", location);
    if (!offset.empty()) entry("offset", offset);
    if (!length.empty()) entry("length", length);
    tensor.Int(14, 1);
    return ReadOnnx(folder.Write("model/m.onnx", WithTensor(std::move(tensor))));
  };
  const auto refusal = [&](const std::string& location, const std::string& offset, const std::string& length) {
    try {
      read(location, offset, length);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadInput);
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  const Model model = read("w.bin", "64", "8");
  EXPECT_EQ(model.graph->FindValue("e")->data->ToFloats(), (std::vector<float>{1.0f, 2.0f}));
  EXPECT_EQ(model.graph->FindValue("e")->data->file->path().filename(), "w.bin");
  EXPECT_EQ(read("good.bin", "64", "").graph->FindValue("e")->data->ToFloats(), (std::vector<float>{1.0f, 2.0f}));
  EXPECT_THAT(refusal("../secret.bin", "", ""), HasSubstr("leaves the model's folder"));
  EXPECT_THAT(refusal("sub/../../secret.bin", "", ""), HasSubstr("leaves the model's folder"));
  EXPECT_THAT(refusal((folder.path() / "secret.bin").string(), "", ""), HasSubstr("leaves the model's folder"));
  EXPECT_THAT(refusal("link.bin", "", ""), HasSubstr("leaves the model's folder"));
  EXPECT_THAT(refusal("", "", ""), HasSubstr("leaves the model's folder"));
  EXPECT_THAT(refusal(".", "", ""), HasSubstr("e"));
  EXPECT_THAT(refusal("none.bin", "", ""), HasSubstr("missing external data"));
  EXPECT_THAT(refusal("w.bin", "65", "8"), HasSubstr("after the end"));
  EXPECT_THAT(refusal("w.bin", "18446744073709551615", "8"), HasSubstr("after the end"));
  EXPECT_THAT(refusal("w.bin", "-1", "8"), HasSubstr("bad offset"));
  EXPECT_THAT(refusal("w.bin", "0", "9"), HasSubstr("dimensions take"));
}

TEST(ReadOnnx, WhatIsNotRead) {
  EXPECT_THAT(Refusal(ModelProto(SmallGraph(), 6), ExitCode::kUnsupported), HasSubstr("operator set 6"));
  WireRope sparse = SmallGraph();
  sparse.Text(15, "");
  EXPECT_THAT(Refusal(ModelProto(std::move(sparse)), ExitCode::kUnsupported), HasSubstr("sparse"));
  WireRope reserved;
  WireRope node = NodeProto("Quantize", {}, {"q"});
  node.Text(7, "octavo.ir");
  reserved.Message(1, std::move(node));
  EXPECT_THAT(Refusal(ModelProto(std::move(reserved))), HasSubstr("reserved domain"));
  EXPECT_NE(Refusal(""), "");
  EXPECT_NE(Refusal("not a model at all"), "");
}

TEST(OnnxModel, EpContextIsFound) {
  EXPECT_FALSE(HasEpContext(Read(ModelProto(SmallGraph()))));
  WireRope graph = SmallGraph();
  WireRope node = NodeProto("EPContext", {"x"}, {"e"});
  node.Text(7, "com.microsoft");
  graph.Message(1, std::move(node));
  EXPECT_TRUE(HasEpContext(Read(ModelProto(std::move(graph)))));
}

Model DimModel() {
  WireRope graph;
  graph.Message(1, NodeProto("Relu", {"x"}, {"r"}));
  graph.Message(1, NodeProto("Neg", {"r"}, {"y"}));
  graph.Message(11, ValueProto("x", {"-1", "n", "?", "?"}));
  graph.Message(12, ValueProto("y", {"n", "?", "3"}));
  graph.Message(13, ValueProto("r", {"n", "?"}));
  return Read(ModelProto(std::move(graph)));
}

TEST(OnnxModel, FixDims) {
  Model named = DimModel();
  FixDims(named, {{"n", 5}, {"x:0", 2}});
  EXPECT_EQ(ToString(named.graph->inputs()[0]->type), R"(f32[2,5,?,?])");
  EXPECT_EQ(named.graph->outputs()[0]->type.shape->at(0).value, 5);

  Model one = DimModel();
  FixDims(one, {{"x:2", 48}});
  EXPECT_EQ(one.graph->inputs()[0]->type.shape->at(2).value, 48);
  EXPECT_EQ(one.graph->inputs()[0]->type.shape->at(3).symbol, "?");
  EXPECT_EQ(one.graph->outputs()[0]->type.shape->at(1), Dim{});  // the symbol speaks no longer for it

  Model all = DimModel();
  FixDims(all, {{"?", 7}});
  EXPECT_EQ(all.graph->inputs()[0]->type.shape->at(2).value, 7);
  EXPECT_EQ(all.graph->inputs()[0]->type.shape->at(3).value, 7);
  EXPECT_EQ(all.graph->outputs()[0]->type.shape->at(1), Dim{});

  const auto usage = [](const std::string& name, std::int64_t size) {
    Model model = DimModel();
    try {
      FixDims(model, {{name, size}});
    } catch (const Error& error) {
      return error.code() == ExitCode::kUsage;
    }
    return false;
  };
  EXPECT_TRUE(usage("m", 1));
  EXPECT_TRUE(usage("n", 0));
  EXPECT_TRUE(usage("x:4", 1));
  EXPECT_TRUE(usage("x:", 1));
  EXPECT_TRUE(usage("z:0", 1));
}

}  // namespace
}  // namespace octavo
