// Loops and Scans written out: the runtime runs both forms, and every number is the same.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <random>

#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;
using testing::ParseModel;

std::size_t Count(const Model& model, std::string_view op) {
  std::size_t count = 0;
  VisitNodes(static_cast<const Graph&>(*model.graph), [&](const Node& n) { count += n.Is(op) ? 1 : 0; });
  return count;
}

const Node* First(const Model& model, std::string_view op) {
  for (const Node* n = model.graph->first(); n != nullptr; n = n->next()) {
    if (n->Is(op)) return n;
  }
  return nullptr;
}

std::vector<std::string> OutputNames(const Model& model) {
  std::vector<std::string> names;
  for (const Value* v : model.graph->outputs()) names.push_back(v->name());
  return names;
}

void ExpectSame(const std::vector<TensorRef>& want, const std::vector<TensorRef>& got) {
  ASSERT_EQ(want.size(), got.size());
  for (std::size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(want[i].dims, got[i].dims) << "output " << i;
    EXPECT_EQ(want[i].dtype, got[i].dtype) << "output " << i;
    if (want[i].dtype == DType::kF32) {
      EXPECT_EQ(want[i].ToFloats(), got[i].ToFloats()) << "output " << i;
    } else {
      EXPECT_TRUE(SameContent(want[i], got[i])) << "output " << i;
    }
  }
}

// Unrolls; as many loops go as are said, none is left, and outputs keep their names and, bit for bit, their numbers.
void ExpectUnrolled(Model& model, std::int64_t loops, std::int64_t unknown = 2) {
  const std::vector<TensorRef> inputs = testing::RandomInputs(model, 5, unknown);
  const std::vector<TensorRef> before = testing::RunModel(model, inputs);
  const std::vector<std::string> names = OutputNames(model);
  EXPECT_EQ(UnrollLoops(model), loops);
  EXPECT_EQ(Verify(model), std::vector<std::string>{});
  EXPECT_EQ(Count(model, "Loop") + Count(model, "Scan"), 0u) << Print(*model.graph);
  EXPECT_EQ(OutputNames(model), names);
  ExpectSame(before, testing::RunModel(model, inputs));
  SimplifyFloat(model, RuleClass::kExact);
  ExpectSame(before, testing::RunModel(model, inputs));
}

// A sequence of f32 tensors: TypeProto {sequence_type = 4 {elem_type = 1 {tensor_type = 1 {elem_type = 1: FLOAT}}}}
void SetSequence(Value& value) {
  value.type = {};
  value.type.opaque = std::string("\x22\x06\x0a\x04\x0a\x02\x08\x01", 8);
}

void ExpectStays(Model& model, const std::string& why) {
  EXPECT_EQ(UnrollLoops(model), 0);
  const Node* loop = First(model, "Loop") != nullptr ? First(model, "Loop") : First(model, "Scan");
  ASSERT_NE(loop, nullptr);
  EXPECT_THAT(WhyLoopStays(model, *loop), HasSubstr(why));
}

// A recurrence of %steps steps, all states collected; %w is the body's own.
std::string Recurrence(const std::string& steps, const std::string& condition = "%c") {
  return R"(graph @g(%x: f32[2,3]) -> (%y, %ys) {
    %m = constant s64[] )" +
         steps + R"(
    %t = constant bool[] true
    %n: f32[2,3] = Neg(%x)
    %y: f32[2,3], %ys: f32[?,2,3] = Loop(%m, %t, %x) {body=graph @b(%i: s64[], %c: bool[], %h: f32[2,3]) -> ()" +
         condition + R"(, %a, %s) {
        %w = constant f32[3,3] [0.5, -0.25, 1, 0.125, 0.75, -1, 0.5, 0.5, 0.25]
        %p: f32[2,3] = MatMul(%h, %w)
        %s: f32[2,3] = Add(%p, %n)
        %a: f32[2,3] = Tanh(%s) }}
  })";
}

TEST(UnrollLoops, ANumberOfSteps) {
  for (const char* steps : {"1", "2", "7", "256"}) {
    SCOPED_TRACE(steps);
    Model model = ParseModel(Recurrence(steps));
    ExpectUnrolled(model, 1);
    EXPECT_EQ(Count(model, "MatMul"), static_cast<std::size_t>(std::stoi(steps)));
    // One matrix for all steps.
    std::size_t matrices = 0;
    for (const Value* c : model.graph->constants()) matrices += c->data->elements() == 9 ? 1 : 0;
    EXPECT_EQ(matrices, 1u);
  }
}

TEST(UnrollLoops, OtherNumbersOfStepsStay) {
  Model more = ParseModel(Recurrence("257"));
  ExpectStays(more, "more than 256 steps");
  Model none = ParseModel(Recurrence("0"));
  ExpectStays(none, "takes no step");
}

// As tf2onnx writes a while loop: no number, and the condition compares what is handed on. %l is handed on unchanged.
std::string While(const std::string& limit, const std::string& extra = "") {
  return R"(graph @g(%x: f32[5,2,3], %h0: f32[2,3], %s: s32[]) -> (%y, %last) {
    %t = constant bool[] true
    %zero = constant s32[] 0
    %two = constant f32[] 2
    %l = constant s32[] )" +
         limit + R"(
    %w = constant f32[3,3] [1, -2, 1, 0, 3, -1, 2, 2, 1]
    %last: s32[], %u: s32[], %y: f32[2,3] = Loop(_, %t, %zero, )" +
         (extra.empty() ? "%l" : extra) +
         R"(, %h0) {body=graph @b(%i: s64[], %c: bool[], %k: s32[], %m: s32[], %h: f32[2,3]) -> (%more, %next, %m, %a) {
        %one = constant s32[] 1
        %at: f32[2,3] = Gather(%x, %k)
        %q: f32[2,3] = MatMul(%at, %w)
        %p: f32[2,3] = Mul(%h, %two)
        %sum: f32[2,3] = Add(%p, %q)
        %a: f32[2,3] = Sin(%sum)
        %next: s32[] = Add(%k, %one)
        %f: f32[] = Cast(%next) {to=1}
        %g: f32[] = Cast(%m) {to=1}
        %more: bool[] = Less(%f, %g) }}
  })";
}

TEST(UnrollLoops, ACounterThatTheConditionReads) {
  for (const char* limit : {"5", "3"}) {
    SCOPED_TRACE(limit);
    Model model = ParseModel(While(limit));
    // Whole numbers: their sums are the same in any order.
    std::vector<TensorRef> inputs = testing::RandomInputs(model, 5);
    std::vector<float> whole(30);
    for (std::size_t i = 0; i < whole.size(); ++i) whole[i] = static_cast<float>(i % 7) - 3;
    inputs[0] = TensorRef::FromFloats({5, 2, 3}, whole);
    const std::vector<TensorRef> before = testing::RunModel(model, inputs);
    EXPECT_EQ(UnrollLoops(model), 1);
    EXPECT_EQ(Verify(model), std::vector<std::string>{});
    EXPECT_TRUE(testing::SameBits(before, testing::RunModel(model, inputs)));
    EXPECT_EQ(Count(model, "MatMul"), 1u) << "of all steps at once";
    EXPECT_EQ(Count(model, "Less"), 0u);
  }
}

TEST(UnrollLoops, AConditionOfDataStays) {
  Model model = ParseModel(While("5", "%s"));
  ExpectStays(model, "depends on data");
  Model first = ParseModel(R"(graph @g(%x: f32[2], %c0: bool[], %m: s64[]) -> (%y) {
    %y: f32[2] = Loop(_, %c0, %x) {body=graph @b(%i: s64[], %c: bool[], %h: f32[2]) -> (%d, %a) {
        %a: f32[2] = Neg(%h)
        %d = constant bool[] false }}
  })");
  ExpectStays(first, "first step");
  Model number = ParseModel(R"(graph @g(%x: f32[2], %m: s64[]) -> (%y) {
    %y: f32[2] = Loop(%m, _, %x) {body=graph @b(%i: s64[], %c: bool[], %h: f32[2]) -> (%c, %a) { %a: f32[2] = Neg(%h) }}
  })");
  ExpectStays(number, "number of its steps is computed");
}

TEST(UnrollLoops, AnEndThatComesBeforeTheNumber) {
  Model model = ParseModel(R"(graph @g(%x: f32[2]) -> (%y, %n) {
    %m = constant s64[1] [9]
    %zero = constant s64[1] [0]
    %y: f32[2], %n: s64[1], %is: s64[?,1] = Loop(%m, _, %x, %zero) {
      body=graph @b(%i: s64[], %c: bool[], %h: f32[2], %k: s64[1]) -> (%go, %a, %j, %k) {
        %two = constant s64[1] [2]
        %ten = constant s64[1] [10]
        %a: f32[2] = Sin(%h)
        %j: s64[1] = Add(%k, %two)
        %less: bool[1] = Less(%j, %ten)
        %go: bool[1] = And(%less, %c) }}
  })");
  ExpectUnrolled(model, 1);
  EXPECT_EQ(Count(model, "Sin"), 5u);
}

TEST(UnrollLoops, NoStepAtAll) {
  Model model = ParseModel(R"(graph @g(%x: f32[2]) -> (%y, %z) {
    %f = constant bool[] false
    %y: f32[2] = Loop(_, %f, %x) {body=graph @b(%i: s64[], %c: bool[], %h: f32[2]) -> (%c, %a) { %a: f32[2] = Neg(%h) }}
    %z: f32[2] = Abs(%y)
  })");
  ExpectUnrolled(model, 1);
}

TEST(UnrollLoops, SlicesForwardBackwardAndAside) {
  // Backwards by the number of the step, and a place that comes twice.
  Model model = ParseModel(R"(graph @g(%x: f32[4,2,3]) -> (%y, %ys, %zs) {
    %m = constant s64[] 4
    %three = constant s64[] 3
    %h0 = constant f32[2,3] [0, 0, 0, 0, 0, 0]
    %bias = constant f32[3] [1, 2, 3]
    %y: f32[2,3], %ys: f32[?,2,3], %zs: f32[?,2,3] = Loop(%m, _, %h0) {
      body=graph @b(%i: s64[], %c: bool[], %h: f32[2,3]) -> (%c, %a, %s, %z) {
        %two = constant s64[] 2
        %back: s64[] = Sub(%three, %i)
        %half: s64[] = Div(%i, %two)
        %p: f32[2,3] = Gather(%x, %back) {axis=0}
        %q: f32[2,3] = Gather(%x, %half)
        %pb: f32[2,3] = Add(%bias, %p)
        %s: f32[2,3] = Sigmoid(%pb)
        %z: f32[2,3] = Mul(%q, %s)
        %r: f32[2,3] = Sub(%h, %z)
        %a: f32[2,3] = Sin(%r) }}
  })");
  ExpectUnrolled(model, 1);
  EXPECT_EQ(Count(model, "Sigmoid"), 1u);
}

TEST(UnrollLoops, ScansOfEachAxisAndDirection) {
  for (const int opset : {11, 17}) {
    for (const int way : {0, 1}) {
      SCOPED_TRACE(way);
      const std::string w = std::to_string(way), v = std::to_string(1 - way);
      Model model =
          ParseModel(R"(graph @g(%h0: f32[2], %x: f32[2,5], %z: f32[5,2]) -> (%h, %ys, %zs) {
        %h: f32[2], %ys: f32[5,2], %zs: f32[2,5] = Scan(%h0, %x, %z) {num_scan_inputs=2, scan_input_axes=[-1, 0],
          scan_input_directions=[)" +
                         w + ", " + v + R"(], scan_output_axes=[0, 1], scan_output_directions=[)" + v + ", " + w + R"(],
          body=graph @b(%s: f32[2], %a: f32[2], %b: f32[2]) -> (%t, %t2, %n) {
            %p: f32[2] = Mul(%s, %a)
            %n: f32[2] = Neg(%b)
            %u: f32[2] = Add(%p, %n)
            %t: f32[2] = Sin(%u)
            %t2: f32[2] = Identity(%t) }}
      })",
                     opset);
      ExpectUnrolled(model, 1);
    }
  }
}

TEST(UnrollLoops, AScanOfUnknownLengthStays) {
  Model model = ParseModel(R"(graph @g(%h0: f32[2], %x: f32[?,2]) -> (%h) {
    %h: f32[2] = Scan(%h0, %x) {num_scan_inputs=1, body=graph @b(%s: f32[2], %a: f32[2]) -> (%t) {
        %t: f32[2] = Mul(%s, %a) }}
  })");
  ExpectStays(model, "shape");
}

TEST(UnrollLoops, LoopsInLoopsAndInBranches) {
  // The inner loop counts to the outer one's number; names are the same inside and outside.
  Model model = ParseModel(R"(graph @g(%x: f32[2,3], %c0: bool[]) -> (%y, %z) {
    %m = constant s64[] 3
    %y: f32[2,3] = Loop(%m, _, %x) {body=graph @b(%i: s64[], %c: bool[], %h: f32[2,3]) -> (%c, %a) {
        %y_1: f32[2,3] = Add(%h, %x)
        %a: f32[2,3] = Loop(%i, _, %y_1) {body=graph @b2(%j: s64[], %d: bool[], %g: f32[2,3]) -> (%d, %e) {
            %f: f32[2,3] = Mul(%g, %h)
            %e: f32[2,3] = Sin(%f) }} }}
    %z: f32[2,3] = If(%c0) {then_branch=graph @t() -> (%p) {
        %two = constant s64[] 2
        %p: f32[2,3] = Loop(%two, _, %x) {body=graph @b3(%i3: s64[], %c3: bool[], %h3: f32[2,3]) -> (%c3, %a3) {
            %a3: f32[2,3] = Sub(%h3, %y) }} },
      else_branch=graph @e() -> (%q) { %q: f32[2,3] = Neg(%x) }}
  })");
  ExpectUnrolled(model, 5);
  EXPECT_EQ(Count(model, "Sin"), 3u);
}

TEST(UnrollLoops, StatesThatChangeTheirShape) {
  Model model = ParseModel(R"(graph @g(%x: f32[1,3]) -> (%y) {
    %m = constant s64[] 4
    %y: f32[?,3] = Loop(%m, _, %x) {body=graph @b(%i: s64[], %c: bool[], %h: f32[?,3]) -> (%c, %a) {
        %s: f32[?,3] = Sin(%h)
        %a: f32[?,3] = Concat(%h, %s) {axis=0} }}
  })");
  ExpectUnrolled(model, 1);
  const std::vector<TensorRef> y = testing::RunModel(model, testing::RandomInputs(model, 1));
  EXPECT_EQ(y[0].dims, (Dims{16, 3}));
}

// Bodies of random operators over two states, a slice and what stands outside.
TEST(UnrollLoops, RandomBodies) {
  std::mt19937_64 rng(11);
  const auto one_of = [&](const std::vector<std::string>& list) { return list[rng() % list.size()]; };
  for (int trial = 0; trial < 60; ++trial) {
    const std::size_t steps = 1 + rng() % 5;
    const bool scan = rng() % 2 == 0;
    std::vector<std::string> values = {"%h", "%k", "%s", "%o", "%w"};
    std::string body;
    for (std::size_t i = 0; i < 3 + rng() % 8; ++i) {
      const std::string name = "%v" + std::to_string(i);
      body += "        " + name + ": f32[2,3] = ";
      body += rng() % 3 == 0
                  ? one_of({"Sin", "Neg", "Abs", "Sigmoid", "Relu"}) + "(" + one_of(values) + ")"
                  : one_of({"Add", "Sub", "Mul", "Min"}) + "(" + one_of(values) + ", " + one_of(values) + ")";
      body += "\n";
      values.push_back(name);
    }
    // Each result is a value of its own: the runtime's Scan loses one that comes twice.
    const std::array<std::string, 4> from = {one_of(values), one_of(values), values.back(), one_of(values)};
    std::string results;
    for (std::size_t i = 0; i < from.size(); ++i) {
      const std::string name = "%r" + std::to_string(i);
      body += "        " + name + ": f32[2,3] = Identity(" + from[i] + ")\n";
      results += (i == 0 ? "" : ", ") + name;
    }
    const std::string n = std::to_string(steps);
    std::string text = "graph @g(%x: f32[" + n +
                       ",2,3], %o: f32[2,3]) -> (%y, %z, %ys, %zs) {\n    %m = constant s64[] " + n +
                       "\n    %w = constant f32[2,3] [1, 2, 3, 4, 5, 6]\n" +
                       "    %y: f32[2,3], %z: f32[2,3], %ys: f32[?,2,3], %zs: f32[?,2,3] = ";
    if (scan) {
      text += "Scan(%o, %w, %x) {num_scan_inputs=1, body=graph @b(%h: f32[2,3], %k: f32[2,3], %s: f32[2,3]) -> (" +
              results + ") {\n" + body;
    } else {
      text += "Loop(%m, _, %o, %w) {body=graph @b(%i: s64[], %c: bool[], %h: f32[2,3], %k: f32[2,3]) -> (%c, " +
              results + ") {\n        %s: f32[2,3] = Gather(%x, %i)\n" + body;
    }
    text += "      }}\n  }";
    SCOPED_TRACE(text);
    Model model = ParseModel(text);
    ExpectUnrolled(model, 1);
  }
}

// As PyTorch's scripts collect the steps of a loop in a list.
TEST(ResolveSequences, AListThatStepsFill) {
  for (const char* attributes : {"axis=0, new_axis=1", "axis=-1"}) {
    SCOPED_TRACE(attributes);
    Model model = ParseModel(R"(graph @g(%x: f32[2,3]) -> (%y, %last, %n) {
    %m = constant s64[] 4
    %e = SequenceEmpty() {dtype=1}
    %h: f32[2,3], %l = Loop(%m, _, %x, %e) {body=graph @b(%i: s64[], %c: bool[], %h0: f32[2,3], %l0: f32[2]) -> (%c, %a, %l1) {
        %a: f32[2,3] = Sin(%h0)
        %l1 = SequenceInsert(%l0, %a) }}
    %p = constant s64[] -2
    %zero = constant s64[] 0
    %l2 = SequenceErase(%l, %zero)
    %l3 = SequenceInsert(%l2, %x, %zero)
    %last: f32[2,3] = SequenceAt(%l3, %p)
    %n: s64[] = SequenceLength(%l3)
    %y = ConcatFromSequence(%l3) {)" +
                             std::string(attributes) + "}\n  }");
    for (const char* name : {"e", "l", "l2", "l3"}) SetSequence(*model.graph->FindValue(name));
    Graph& body = *First(model, "Loop")->subgraphs()[0];
    SetSequence(*body.FindValue("l0"));
    SetSequence(*body.FindValue("l1"));
    model.graph->FindValue("y")->type.dtype = DType::kF32;
    const std::vector<TensorRef> inputs = testing::RandomInputs(model, 5);
    const std::vector<TensorRef> before = testing::RunModel(model, inputs);
    UnrollAndSimplify(model, RuleClass::kExact);
    EXPECT_EQ(Verify(model), std::vector<std::string>{});
    EXPECT_EQ(Print(*model.graph).find("Sequence"), std::string::npos) << Print(*model.graph);
    ExpectSame(before, testing::RunModel(model, inputs));
  }
}

TEST(ResolveSequences, PlacesThatAreComputedStay) {
  Model model = ParseModel(R"(graph @g(%x: f32[2], %i: s64[]) -> (%y) {
    %l = SequenceConstruct(%x, %x)
    %y: f32[2] = SequenceAt(%l, %i)
  })");
  EXPECT_EQ(ResolveSequences(model), 0);
  EXPECT_EQ(Count(model, "SequenceAt"), 1u);
}

TEST(MergeEqual, EqualNodesAndConstants) {
  Model model = ParseModel(R"(graph @g(%x: f32[2]) -> (%y, %z) {
    %a = constant f32[2] [1, 2]
    %b = constant f32[2] [1, 2]
    %c = constant f32[2] [1, 3]
    %p: f32[2] = Add(%x, %a)
    %q: f32[2] = Add(%x, %b)
    %r: f32[2] = Add(%x, %c)
    %s: f32[2] = RandomNormalLike(%x)
    %t: f32[2] = RandomNormalLike(%x)
    %u: f32[2] = Sub(%s, %t)
    %y: f32[2] = Sub(%p, %q)
    %z: f32[2] = Sub(%r, %u)
  })");
  EXPECT_EQ(MergeEqual(*model.graph), 1);
  EXPECT_EQ(Count(model, "Add"), 2u);
  EXPECT_EQ(Count(model, "RandomNormalLike"), 2u);
}

}  // namespace
}  // namespace octavo
