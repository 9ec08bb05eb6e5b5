#include "octavo/runtime/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "octavo/base/error.h"
#include "octavo/runtime/library_test_util.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Just enough of the protobuf wire format to write an ONNX model (field numbers: onnx.proto3).
std::string Varint(std::uint64_t v) {
  std::string out;
  for (; v >= 0x80; v >>= 7) out.push_back(static_cast<char>(v | 0x80));
  out.push_back(static_cast<char>(v));
  return out;
}
std::string Number(int field, std::uint64_t v) { return Varint(static_cast<std::uint64_t>(field) << 3) + Varint(v); }
std::string Bytes(int field, const std::string& v) {
  return Varint(static_cast<std::uint64_t>(field) << 3 | 2) + Varint(v.size()) + v;
}
std::string Info(const std::string& name, DType dtype, const std::vector<std::string>& dims) {
  std::string shape;
  for (const std::string& dim : dims) {
    const bool number = dim.find_first_not_of("0123456789") == std::string::npos;
    shape += Bytes(1, number ? Number(1, std::stoull(dim)) : Bytes(2, dim));
  }
  const std::string tensor = Number(1, static_cast<std::uint64_t>(dtype)) + Bytes(2, shape);
  return Bytes(1, name) + Bytes(2, Bytes(1, tensor));
}
std::string IntAttribute(const std::string& name, std::int64_t v) {
  return Bytes(5, Bytes(1, name) + Number(3, static_cast<std::uint64_t>(v)) + Number(20, 2));
}
std::string NodeBytes(const std::string& op, const std::vector<std::string>& inputs,
                      const std::vector<std::string>& outputs, const std::string& attributes = {},
                      const std::string& domain = {}) {
  std::string node;
  for (const std::string& i : inputs) node += Bytes(1, i);
  for (const std::string& o : outputs) node += Bytes(2, o);
  return Bytes(1, node + Bytes(4, op) + attributes + Bytes(7, domain));
}
std::string ObserveNode(const std::string& in, const std::string& out, std::int64_t id) {
  return NodeBytes(kObserveOp, {in}, {out}, IntAttribute("id", id), kObserveDomain);
}
std::string ModelBytes(const std::string& graph) {
  return Number(1, 8) + Bytes(7, graph + Bytes(2, "g")) + Bytes(8, Number(2, 17)) +
         Bytes(8, Bytes(1, kObserveDomain) + Number(2, 1));
}
std::string Input(const std::string& info) { return Bytes(11, info); }
std::string Output(const std::string& info) { return Bytes(12, info); }

// y = relu(x), z = y + x; x [n, 2]
std::string SmallModel() {
  return ModelBytes(NodeBytes("Relu", {"x"}, {"y"}) + NodeBytes("Add", {"y", "x"}, {"z"}) +
                    Input(Info("x", DType::kF32, {"n", "2"})) + Output(Info("y", DType::kF32, {"n", "2"})) +
                    Output(Info("z", DType::kF32, {"n", "2"})));
}

TEST(Library, LoadsAndSaysWhichOneItIs) {
  EXPECT_THAT(OrtVersion(), ::testing::MatchesRegex("[0-9]+\\.[0-9]+.*"))
      << "these tests need ONNX Runtime: set OCTAVO_ORT_LIBRARY";
  EXPECT_THAT(OrtLibraryPath(), HasSubstr("onnxruntime"));
  const char* telemetry = std::getenv("ORT_DISABLE_TELEMETRY");
  ASSERT_NE(telemetry, nullptr) << "the runtime must not report its use unless the user wants it";
  const RuntimePreload again;  // what is loaded already is not loaded twice, nor waited for
}

TEST(Session, RunsAndReportsItsSignature) {
  const Session session(SmallModel(), {}, {});
  ASSERT_EQ(session.inputs().size(), 1u);
  EXPECT_EQ(session.inputs()[0].name, "x");
  EXPECT_EQ(session.inputs()[0].type.dtype, DType::kF32);
  ASSERT_TRUE(session.inputs()[0].type.shape.has_value());
  EXPECT_EQ((*session.inputs()[0].type.shape)[0].symbol, "n");
  EXPECT_EQ((*session.inputs()[0].type.shape)[1].value, 2);
  ASSERT_EQ(session.outputs().size(), 2u);
  const std::vector<float> x = {-1, 2, 3, -4};
  const std::vector<TensorRef> in = {TensorRef::FromFloats({2, 2}, x)};
  const auto out = session.Run(in);
  ASSERT_EQ(out.size(), 2u);
  EXPECT_THAT(out[0].ToFloats(), ElementsAre(0, 2, 3, 0));
  EXPECT_THAT(out[1].ToFloats(), ElementsAre(-1, 4, 6, -4));
  EXPECT_THAT(out[1].dims, ElementsAre(2, 2));
  const std::vector<std::string> wanted = {"z"};
  const auto z = session.Run(in, wanted);
  ASSERT_EQ(z.size(), 1u);
  EXPECT_THAT(z[0].ToFloats(), ElementsAre(-1, 4, 6, -4));
}

TEST(Session, TakesInputsAtAnyAddressAndEmptyOnes) {
  const Session session(SmallModel(), {}, {});
  const float x[2] = {-1, 2};
  auto buffer = std::make_shared<std::vector<std::byte>>(1 + sizeof x);
  std::memcpy(buffer->data() + 1, x, sizeof x);
  TensorRef odd;
  odd.dtype = DType::kF32;
  odd.dims = {1, 2};
  odd.bytes = {buffer->data() + 1, sizeof x};
  odd.owner = buffer;
  const std::vector<TensorRef> in = {odd};
  EXPECT_THAT(session.Run(in)[0].ToFloats(), ElementsAre(0, 2));
  TensorRef none;
  none.dtype = DType::kF32;
  none.dims = {0, 2};
  const std::vector<TensorRef> empty = {none};
  EXPECT_THAT(session.Run(empty)[0].dims, ElementsAre(0, 2));
}

TEST(Session, ReadsAFile) {
  const std::filesystem::path path = std::filesystem::path(::testing::TempDir()) / "octavo_session_test.onnx";
  std::ofstream(path, std::ios::binary) << SmallModel();
  const Session session(path, {});
  EXPECT_EQ(session.inputs().size(), 1u);
  std::filesystem::remove(path);
  try {
    const Session missing(path, {});
    FAIL() << "a missing file was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadInput);
    EXPECT_THAT(e.what(), HasSubstr("octavo_session_test.onnx"));
  }
}

TEST(Session, NamesWhatIsWrong) {
  try {
    const Session bad("not a protobuf", {}, {});
    FAIL() << "garbage was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadInput);
    EXPECT_THAT(e.what(), HasSubstr("refuses the model"));
  }
  const Session session(SmallModel(), {}, {});
  EXPECT_THROW(session.Run({}), Error);
  const std::int64_t ints[] = {1, 2};
  const std::vector<TensorRef> wrong_type = {TensorRef::FromInts(DType::kS64, {1, 2}, ints)};
  try {
    session.Run(wrong_type);
    FAIL() << "a wrong element type was accepted";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("input 'x' is f32, found s64"));
  }
  const std::vector<float> x(3);
  const std::vector<TensorRef> wrong_shape = {TensorRef::FromFloats({1, 3}, x)};
  try {
    session.Run(wrong_shape);
    FAIL() << "a wrong shape was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadInput);
    EXPECT_THAT(e.what(), HasSubstr("x"));
  }
}

// y = x + w, w marked external without saying where.
std::string ExternalModel(std::int64_t n) {
  const std::string w = Number(1, static_cast<std::uint64_t>(n)) + Number(2, 1) + Bytes(8, "w") +
                        Bytes(13, Bytes(1, "location") + Bytes(2, "nowhere")) + Number(14, 1);
  const std::string dim = std::to_string(n);
  return ModelBytes(NodeBytes("Add", {"x", "w"}, {"y"}) + Bytes(5, w) + Input(Info("x", DType::kF32, {dim})) +
                    Output(Info("y", DType::kF32, {dim})));
}

TEST(Session, TakesInitializersFromMemory) {
  std::vector<float> values(1024, 2.0f), x(1024, 1.0f);
  TensorRef view;
  view.dtype = DType::kF32;
  view.dims = {1024};
  view.bytes = std::as_bytes(std::span(values));
  const Session session(ExternalModel(1024), {{"w", view}}, {});
  const std::vector<TensorRef> in = {TensorRef::FromFloats({1024}, x)};
  EXPECT_EQ(session.Run(in)[0].ToFloats()[1023], 3.0f);
}

std::int64_t AnonymousKb() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("RssAnon:", 0) == 0) return std::stoll(line.substr(8));
  }
  return -1;
}

TEST(Session, ReadsInitializersWhereTheyLieInAFile) {
  constexpr std::int64_t kElements = 16 << 20;  // 64 MiB
  const std::filesystem::path path = std::filesystem::path(::testing::TempDir()) / "octavo_session_test.data";
  {
    std::ofstream out(path, std::ios::binary);
    out << "odd";  // the offset is aligned to nothing
    const std::vector<float> block(1 << 20, 2.0f);
    for (int i = 0; i < 16; ++i) out.write(reinterpret_cast<const char*>(block.data()), 4 << 20);
  }
  const auto file = MappedFile::Open(path);
  TensorRef view;
  view.dtype = DType::kF32;
  view.dims = {kElements};
  view.bytes = file->bytes().subspan(3);
  view.owner = file;
  view.file = file;
  const std::vector<float> x(kElements, 1.0f);
  const std::vector<TensorRef> in = {TensorRef::FromFloats({kElements}, x)};
  OrtVersion();  // the library's own memory is not counted
  const std::int64_t before = AnonymousKb();
  const Session session(ExternalModel(kElements), {{"w", view}}, {});
  EXPECT_LT(AnonymousKb() - before, 32 << 10) << "the weights were copied";
  EXPECT_EQ(session.Run(in)[0].ToFloats()[kElements - 1], 3.0f);
  // A file that is gone: the mapping is used.
  std::filesystem::remove(path);
  const Session orphan(ExternalModel(kElements), {{"w", view}}, {});
  EXPECT_EQ(orphan.Run(in)[0].ToFloats()[kElements - 1], 3.0f);
}

TEST(Session, RunsInArenasOfTheirOwn) {
  constexpr std::int64_t kRows = 1 << 15;
  std::vector<TensorRef> kept;
  {
    SessionOptions options;
    options.intra_op_threads = 1;
    options.memory_pattern = false;
    options.run_arenas = true;
    const Session session(SmallModel(), {}, options);
    std::vector<std::thread> threads;
    std::mutex mutex;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        const std::vector<TensorRef> in = {
            TensorRef::FromFloats({kRows, 2}, std::vector<float>(2 * kRows, static_cast<float>(t + 1)))};
        for (int i = 0; i < 8; ++i) {
          std::vector<TensorRef> out = session.Run(in);
          const std::lock_guard lock(mutex);
          if (i == 7) kept.push_back(std::move(out[1]));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  // Outputs hold what they were, after other runs and after the session.
  float sum = 0;
  for (const TensorRef& out : kept) {
    const std::vector<float> values = out.ToFloats();
    EXPECT_THAT(values, ::testing::Each(values[0]));
    sum += values[0];
  }
  EXPECT_EQ(sum, 2 * (1 + 2 + 3 + 4));
}

TEST(Session, ReadsWhereTheCallerMapped) {
  constexpr std::int64_t kElements = 1 << 20;
  const std::filesystem::path path = std::filesystem::path(::testing::TempDir()) / "octavo_session_in_place.data";
  {
    std::ofstream out(path, std::ios::binary);
    const std::vector<float> values(kElements, 2.0f);
    out.write(reinterpret_cast<const char*>(values.data()), kElements * 4);
  }
  const auto file = MappedFile::Open(path);
  TensorRef view;
  view.dtype = DType::kF32;
  view.dims = {kElements};
  view.bytes = file->bytes();
  view.owner = file;
  view.file = file;
  SessionOptions options;
  options.in_place = {"w"};
  const Session session(ExternalModel(kElements), {{"w", view}}, options);
  const std::vector<TensorRef> in = {TensorRef::FromFloats({kElements}, std::vector<float>(kElements, 1.0f))};
  EXPECT_EQ(session.Run(in)[0].ToFloats()[5], 3.0f);
  // The runtime reads the file again wherever the caller dropped its pages: another number in the file shows.
  {
    std::fstream out(path, std::ios::binary | std::ios::in | std::ios::out);
    const std::vector<float> values(kElements, 4.0f);
    out.write(reinterpret_cast<const char*>(values.data()), kElements * 4);
  }
  file->DropPages(file->bytes());
  EXPECT_EQ(session.Run(in)[0].ToFloats()[5], 5.0f);
  std::filesystem::remove(path);
  options.in_place = {"v"};
  EXPECT_THROW(Session(ExternalModel(kElements), {{"w", view}}, options), Error);
}

struct Seen {
  std::int64_t id;
  DType dtype;
  std::vector<std::int64_t> dims;
  std::vector<float> values;
  const void* data;
};

SessionOptions Observing(Observer observer) {
  SessionOptions options;
  options.intra_op_threads = 1;
  options.observer = std::move(observer);
  return options;
}

void Record(std::int64_t id, DType dtype, std::span<const std::int64_t> dims, const void* data, void* context) {
  Seen seen{id, dtype, {dims.begin(), dims.end()}, {}, data};
  if (dtype == DType::kF32) {
    const auto* f = static_cast<const float*>(data);
    seen.values.assign(f, f + ElementCount(dims));
  }
  static_cast<std::vector<Seen>*>(context)->push_back(std::move(seen));
}

TEST(Observe, SeesTensorsOfAnyTypeInTheDataPath) {
  // x -> Observe(7) -> Relu -> Observe(8) -> Cast(s64) -> Observe(9) -> y
  const std::string model =
      ModelBytes(ObserveNode("x", "xo", 7) + NodeBytes("Relu", {"xo"}, {"r"}) + ObserveNode("r", "ro", 8) +
                 NodeBytes("Cast", {"ro"}, {"c"}, IntAttribute("to", 7)) + ObserveNode("c", "y", 9) +
                 Input(Info("x", DType::kF32, {"n"})) + Output(Info("y", DType::kS64, {"n"})));
  const Session session(model, {}, Observing(Record));
  std::vector<Seen> seen;
  const std::vector<float> x = {-1, 2};
  const std::vector<TensorRef> in = {TensorRef::FromFloats({2}, x)};
  const auto out = session.Run(in, {}, &seen);
  EXPECT_THAT(out[0].ToInts(), ElementsAre(0, 2));
  ASSERT_EQ(seen.size(), 3u);
  EXPECT_EQ(seen[0].id, 7);
  EXPECT_THAT(seen[0].values, ElementsAre(-1, 2));
  EXPECT_EQ(seen[0].data, in[0].bytes.data()) << "the graph input was copied";
  EXPECT_EQ(seen[1].id, 8);
  EXPECT_THAT(seen[1].values, ElementsAre(0, 2));
  EXPECT_EQ(seen[2].dtype, DType::kS64);
  EXPECT_THAT(seen[2].dims, ElementsAre(2));
}

TEST(Observe, WorksWhereTheRankIsUnknown) {
  // The runtime does not know the rank of a Reshape to a computed shape; nor do operators that would refuse a scalar.
  const std::string model = ModelBytes(NodeBytes("Reshape", {"x", "shape"}, {"r"}) + ObserveNode("r", "ro", 0) +
                                       NodeBytes("Softmax", {"ro"}, {"s"}, IntAttribute("axis", 1)) +
                                       ObserveNode("s", "so", 1) + NodeBytes("Add", {"so", "so"}, {"y"}) +
                                       Input(Info("x", DType::kF32, {"4"})) + Input(Info("shape", DType::kS64, {"k"})) +
                                       Bytes(12, Bytes(1, "y") + Bytes(2, Bytes(1, Number(1, 1)))));
  const Session session(model, {}, Observing(Record));
  const std::vector<float> x = {1, 1, 1, 1};
  const std::int64_t shape[] = {2, 2};
  const std::vector<TensorRef> in = {TensorRef::FromFloats({4}, x), TensorRef::FromInts(DType::kS64, {2}, shape)};
  std::vector<Seen> seen;
  EXPECT_THAT(session.Run(in, {}, &seen)[0].ToFloats(), ElementsAre(1, 1, 1, 1));
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_THAT(seen[0].dims, ElementsAre(2, 2));
}

TEST(Observe, WorksWhereADimensionIsUnknown) {
  // NonZero has an unknown, nameless dimension; so has its sum with a tensor of 3.
  const std::string model =
      ModelBytes(NodeBytes("NonZero", {"x"}, {"i"}) + ObserveNode("i", "io", 5) +
                 NodeBytes("Cast", {"io"}, {"f"}, IntAttribute("to", 1)) + ObserveNode("f", "fo", 6) +
                 NodeBytes("Add", {"fo", "x"}, {"y"}) + Input(Info("x", DType::kF32, {"3"})) +
                 Output(Info("y", DType::kF32, {"a", "b"})));
  const Session session(model, {}, Observing(Record));
  const std::vector<float> x = {1, 2, 3};
  const std::vector<TensorRef> in = {TensorRef::FromFloats({3}, x)};
  std::vector<Seen> seen;
  EXPECT_THAT(session.Run(in, {}, &seen)[0].ToFloats(), ElementsAre(1, 3, 5));
  EXPECT_EQ(seen.size(), 2u);
}

TEST(Observe, AnInputThatIsStillNeededIsNotOverwritten) {
  // Both r and its observed alias are read after an operator that would like to work in place.
  const std::string model = ModelBytes(NodeBytes("Relu", {"x"}, {"r"}) + ObserveNode("r", "ro", 0) +
                                       NodeBytes("Neg", {"ro"}, {"a"}) + NodeBytes("Exp", {"a"}, {"b"}) +
                                       NodeBytes("Add", {"b", "ro"}, {"c"}) + NodeBytes("Add", {"c", "r"}, {"y"}) +
                                       Input(Info("x", DType::kF32, {"n"})) + Output(Info("y", DType::kF32, {"n"})));
  SessionOptions options = Observing(Record);
  options.optimization = GraphOptimization::kNone;
  const Session session(model, {}, options);
  std::vector<Seen> seen;
  const std::vector<float> x = {0, 1};
  const std::vector<TensorRef> in = {TensorRef::FromFloats({2}, x)};
  const auto y = session.Run(in, {}, &seen)[0].ToFloats();
  EXPECT_FLOAT_EQ(y[0], 1.0f);
  EXPECT_FLOAT_EQ(y[1], 2.0f + std::exp(-1.0f));
}

TEST(Observe, ExceptionsComeOutOfTheRun) {
  const std::string model = ModelBytes(ObserveNode("x", "y", 1) + Input(Info("x", DType::kF32, {"n"})) +
                                       Output(Info("y", DType::kF32, {"n"})));
  const Session session(model, {},
                        Observing([](std::int64_t, DType, std::span<const std::int64_t>, const void*, void* context) {
                          if (context != nullptr) throw std::range_error("stop here");
                        }));
  const std::vector<float> x = {1};
  const std::vector<TensorRef> in = {TensorRef::FromFloats({1}, x)};
  int context = 0;
  EXPECT_THROW(session.Run(in, {}, &context), std::range_error);
  EXPECT_THAT(session.Run(in)[0].ToFloats(), ElementsAre(1));  // and the session goes on
}

TEST(Observe, IsKeptByEveryOptimizationLevelEvenOnConstants) {
  // c is constant: a runtime that folded it would call the observer while loading, not while running.
  const std::string c = Number(1, 2) + Number(2, 1) + Bytes(8, "c") + Bytes(9, std::string(8, '\0'));
  const std::string model =
      ModelBytes(NodeBytes("Exp", {"c"}, {"e"}) + ObserveNode("e", "eo", 3) + NodeBytes("Add", {"x", "eo"}, {"s"}) +
                 ObserveNode("s", "unread", 4) + NodeBytes("Identity", {"s"}, {"y"}) + Bytes(5, c) +
                 Input(Info("x", DType::kF32, {"2"})) + Output(Info("y", DType::kF32, {"2"})));
  for (const auto level :
       {GraphOptimization::kNone, GraphOptimization::kBasic, GraphOptimization::kExtended, GraphOptimization::kAll}) {
    SessionOptions options = Observing(Record);
    options.optimization = level;
    const Session session(model, {}, options);
    std::vector<Seen> seen;
    const std::vector<float> x = {1, 2};
    const std::vector<TensorRef> in = {TensorRef::FromFloats({2}, x)};
    session.Run(in, {}, &seen);
    ASSERT_EQ(seen.size(), 2u) << static_cast<int>(level);
    EXPECT_EQ(seen[0].id + seen[1].id, 7);
  }
}

TEST(Observe, EachThreadFindsItsOwnContext) {
  const std::string model =
      ModelBytes(ObserveNode("x", "a", 1) + NodeBytes("Relu", {"a"}, {"b"}) + ObserveNode("b", "y", 2) +
                 Input(Info("x", DType::kF32, {"n"})) + Output(Info("y", DType::kF32, {"n"})));
  const Session session(model, {}, Observing(Record));
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const std::vector<float> x = {static_cast<float>(t)};
      const std::vector<TensorRef> in = {TensorRef::FromFloats({1}, x)};
      for (int i = 0; i < 50; ++i) {
        std::vector<Seen> seen;
        session.Run(in, {}, &seen);
        if (seen.size() != 2 || seen[0].values[0] != static_cast<float>(t) || seen[1].values[0] != seen[0].values[0])
          ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(Observe, NeedsOneThreadInsideAnOperator) {
  SessionOptions options = Observing(Record);
  options.intra_op_threads = 2;
  EXPECT_THROW(Session(SmallModel(), {}, options), Error);
}

}  // namespace
}  // namespace octavo
