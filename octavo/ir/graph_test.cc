#include "octavo/ir/graph.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "octavo/base/error.h"
#include "octavo/ir/compare.h"
#include "octavo/ir/random_graph_test_util.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

Type F32() {
  Type t;
  t.dtype = DType::kF32;
  return t;
}

std::vector<std::string> Ops(const Graph& g) {
  std::vector<std::string> out;
  for (const Node* n : g.nodes()) out.push_back(n->op());
  return out;
}

Node* Find(Graph& g, std::string_view op) {
  for (Node* n : g.nodes()) {
    if (n->op() == op) return n;
  }
  return nullptr;
}

// An If whose branches capture %a of the main graph, one of them from a graph two levels down.
constexpr std::string_view kCaptures = R"(
graph @main(%x: f32[2], %c: bool[]) -> (%y, %a) {
  %a: f32[2] = Relu(%x)
  %y: f32[2] = If(%c) {
    then_branch=graph @then() -> (%t) {
      %t: f32[2] = Add(%a, %a)
    },
    else_branch=graph @else() -> (%t) {
      %t: f32[2] = If(%c) {then_branch=graph @deep() -> (%u) {
        %u: f32[2] = Neg(%a)
      }}
    }
  }
}
)";

TEST(Graph, UseListsFollowEveryEdit) {
  Graph g;
  Value* x = g.AddInput("x", F32());
  Value* y = g.AddInput("y", F32());
  Node* n = g.AddNode("Sum", "", {x, x, nullptr, y}, {{"s", F32()}});
  EXPECT_EQ(x->uses().size(), 2u);
  n->SetInput(0, y);
  EXPECT_EQ(x->uses().size(), 1u);
  EXPECT_EQ(x->uses()[0].index, 1u);
  EXPECT_EQ(y->uses().size(), 2u);
  n->SetInput(5, x);  // grows, with nulls between
  EXPECT_EQ(n->inputs().size(), 6u);
  EXPECT_EQ(n->input(4), nullptr);
  n->ResizeInputs(1);
  EXPECT_TRUE(x->dead());
  EXPECT_EQ(y->uses().size(), 1u);
  g.AddOutput(x);
  g.AddOutput(x);
  EXPECT_TRUE(x->is_graph_output());
  g.SetOutput(0, n->output());
  EXPECT_TRUE(x->is_graph_output());
  g.SetOutput(1, n->output());
  EXPECT_FALSE(x->is_graph_output());
  g.EraseInput(x);
  EXPECT_EQ(g.FindValue("x"), nullptr);
  EXPECT_THAT(g.inputs(), ElementsAre(y));
  EXPECT_THROW(g.EraseInput(y), Error);
}

TEST(Graph, NamesAreUniqueAcrossNesting) {
  Graph g;
  Value* x = g.AddInput("x", F32());
  EXPECT_EQ(g.AddInput("x", F32())->name(), "x_1");
  EXPECT_EQ(g.AddInput("x", F32())->name(), "x_2");
  EXPECT_EQ(g.AddInput("", F32())->name(), "v_1");
  Node* n = g.AddNode("If", "", {}, {});
  auto then_branch = std::make_unique<Graph>(&g);
  auto else_branch = std::make_unique<Graph>(&g);
  EXPECT_EQ(then_branch->AddInput("x", F32())->name(), "x_3");  // does not hide the outer one
  EXPECT_EQ(then_branch->AddInput("t", F32())->name(), "t");
  EXPECT_EQ(else_branch->AddInput("t", F32())->name(), "t");  // branches do not see each other
  EXPECT_EQ(g.AddInput("t", F32())->name(), "t_1");           // would be hidden in the branches
  EXPECT_EQ(then_branch->Lookup("x"), x);
  EXPECT_EQ(then_branch->FindValue("x"), nullptr);
  n->SetAttribute("then_branch", std::move(then_branch));
  n->SetAttribute("else_branch", std::move(else_branch));
  n->RemoveAttribute("then_branch");
  EXPECT_TRUE(g.NameTaken("t"));
  g.Erase(n);
  EXPECT_FALSE(g.NameTaken("t"));
}

TEST(Graph, RenameAndSwapNames) {
  Graph g;
  Value* x = g.AddInput("x", F32());
  Value* y = g.AddInput("y", F32());
  EXPECT_THROW(g.Rename(x, "y"), Error);
  g.Rename(x, "z");
  EXPECT_EQ(g.FindValue("z"), x);
  EXPECT_EQ(g.FindValue("x"), nullptr);
  g.SwapNames(x, y);
  EXPECT_EQ(x->name(), "y");
  EXPECT_EQ(g.FindValue("y"), x);
  EXPECT_EQ(g.FindValue("z"), y);
}

TEST(Graph, ReplaceAllUsesReachesCapturesAndOutputs) {
  Model m = Parse(kCaptures);
  ASSERT_THAT(Verify(m), IsEmpty());
  Value* a = m.graph->FindValue("a");
  EXPECT_EQ(a->uses().size(), 3u);
  Value* x = m.graph->FindValue("x");
  m.graph->ReplaceAllUses(a, x);
  EXPECT_TRUE(a->dead());
  EXPECT_EQ(x->uses().size(), 4u);
  EXPECT_EQ(m.graph->outputs()[1], x);
  EXPECT_THAT(Verify(m), IsEmpty());
  m.graph->Erase(a->producer());
  EXPECT_THAT(Ops(*m.graph), ElementsAre("If"));
  EXPECT_THAT(Verify(m), IsEmpty());
}

TEST(Graph, ReplaceAllUsesExceptInsertsAfter) {
  Model m = Parse(kCaptures);
  Value* a = m.graph->FindValue("a");
  Node* fresh = m.graph->AddNode("Identity", "", {a}, {{"b", F32()}}, a->producer()->next());
  m.graph->ReplaceAllUses(a, fresh->output(), fresh);
  EXPECT_EQ(a->uses().size(), 1u);
  EXPECT_EQ(fresh->output()->uses().size(), 3u);
  EXPECT_FALSE(a->is_graph_output());
  EXPECT_THAT(Verify(m), IsEmpty());
}

TEST(Graph, ReplaceOutputUsesLeavesNodes) {
  Model m = Parse("graph (%x: f32[1]) -> (%a, %a) {\n %a = Relu(%x)\n %b = Neg(%a)\n}");
  Value* a = m.graph->FindValue("a");
  Value* b = m.graph->FindValue("b");
  m.graph->ReplaceOutputUses(a, b);
  EXPECT_THAT(m.graph->outputs(), ElementsAre(b, b));
  EXPECT_EQ(a->uses().size(), 1u);
  EXPECT_THAT(Verify(m), IsEmpty());
}

TEST(Graph, EraseRefusesWhatIsUsedAndReleasesCaptures) {
  Model m = Parse(kCaptures);
  Value* a = m.graph->FindValue("a");
  EXPECT_THROW(m.graph->Erase(a->producer()), Error);
  Node* branch = Find(*m.graph, "If");
  EXPECT_THROW(m.graph->Erase(branch), Error);
  m.graph->ReplaceOutputUses(branch->output(), a);
  branch->RemoveAttribute("else_branch");
  EXPECT_EQ(a->uses().size(), 2u);
  m.graph->Erase(branch);
  EXPECT_EQ(a->uses().size(), 0u);
  EXPECT_TRUE(m.graph->FindValue("c")->dead());
  EXPECT_THAT(Verify(m), IsEmpty());
}

TEST(Graph, SubgraphOutputMayBeACapture) {
  Model m = Parse("graph (%x: f32[1]) -> (%y) {\n %a = Relu(%x)\n %y = If() {then_branch=graph () -> (%a) {}}\n}");
  EXPECT_THAT(Verify(m), IsEmpty());
  Value* a = m.graph->FindValue("a");
  EXPECT_TRUE(a->is_graph_output());
  m.graph->ReplaceAllUses(a, m.graph->FindValue("x"));
  EXPECT_TRUE(a->dead());
  EXPECT_EQ(m.graph->EraseDead(), 1u);
  EXPECT_THAT(Verify(m), IsEmpty());
  Find(*m.graph, "If")->RemoveAttribute("then_branch");
  EXPECT_TRUE(m.graph->FindValue("x")->dead());
}

TEST(Graph, SetAttributeRefusesAForeignGraph) {
  Graph g;
  Graph other;
  Node* n = g.AddNode("If", "", {}, {});
  EXPECT_THROW(n->SetAttribute("then_branch", std::make_unique<Graph>(&other)), Error);
}

TEST(Graph, AttributesFallBackOnAbsenceAndOtherKind) {
  Graph g;
  Node* n = g.AddNode("Op", "", {}, {});
  n->SetAttribute("i", std::int64_t{3});
  n->SetAttribute("f", 0.5f);
  n->SetAttribute("s", std::string("x"));
  n->SetAttribute("l", std::vector<std::int64_t>{1, 2});
  EXPECT_EQ(n->IntAttribute("i", 7), 3);
  EXPECT_EQ(n->IntAttribute("f", 7), 7);
  EXPECT_EQ(n->FloatAttribute("f", 1), 0.5f);
  EXPECT_EQ(n->FloatAttribute("none", 1), 1);
  EXPECT_EQ(n->StringAttribute("s", ""), "x");
  ASSERT_NE(n->IntsAttribute("l"), nullptr);
  EXPECT_EQ(n->IntsAttribute("i"), nullptr);
  n->SetAttribute("i", std::int64_t{4});
  EXPECT_EQ(n->attributes().size(), 4u);
  EXPECT_EQ(n->IntAttribute("i", 7), 4);
}

TEST(Graph, MoveBefore) {
  Model m = Parse("graph (%x: f32[1]) -> () {\n %a = A(%x)\n %b = B(%x)\n %c = C(%x)\n}");
  Graph& g = *m.graph;
  g.MoveBefore(Find(g, "C"), Find(g, "A"));
  EXPECT_THAT(Ops(g), ElementsAre("C", "A", "B"));
  g.MoveBefore(Find(g, "C"), nullptr);
  EXPECT_THAT(Ops(g), ElementsAre("A", "B", "C"));
  g.MoveBefore(Find(g, "C"), nullptr);
  g.MoveBefore(Find(g, "B"), Find(g, "C"));
  g.MoveBefore(Find(g, "B"), Find(g, "B"));
  EXPECT_THAT(Ops(g), ElementsAre("A", "B", "C"));
  EXPECT_THAT(Verify(m), IsEmpty());
}

TEST(Graph, EraseDeadTakesChainsConstantsAndWhatOnlyADeadBranchCaptured) {
  Model m = Parse(R"(
graph (%x: f32[1]) -> (%y) {
  %w = constant f32[1] [1]
  %k = constant f32[1] [2]
  %p = Relu(%x)
  %q = Add(%p, %w)
  %r, _ = Unknown.op(%q, %q)
  %s = Neg(%x)
  %y = If(%x) {then_branch=graph () -> (%t) {
    %k2 = constant f32[1] [3]
    %t = Add(%x, %k)
    %u = Mul(%s, %k2)
  }}
})");
  ASSERT_THAT(Verify(m), IsEmpty());
  EXPECT_EQ(m.graph->EraseDead(), 5u);  // p, q, r, u, and s, which only u used
  EXPECT_THAT(Ops(*m.graph), ElementsAre("If"));
  EXPECT_EQ(m.graph->constant_count(), 1u);
  EXPECT_EQ(m.graph->FindValue("w"), nullptr);
  EXPECT_NE(m.graph->FindValue("k"), nullptr);
  EXPECT_EQ(Find(*m.graph, "If")->subgraphs()[0]->constant_count(), 0u);
  EXPECT_THAT(Verify(m), IsEmpty());
  EXPECT_EQ(m.graph->EraseDead(), 0u);
}

TEST(Graph, EraseDeadKeepsANodeWithOneLiveOutput) {
  Model m = Parse("graph (%x: f32[1]) -> (%b) {\n %a, %b = Split(%x)\n}");
  EXPECT_EQ(m.graph->EraseDead(), 0u);
  m.graph->EraseResult(m.graph->first(), 0);
  EXPECT_EQ(m.graph->first()->output(0), nullptr);
  EXPECT_THROW(m.graph->EraseResult(m.graph->first(), 1), Error);
  EXPECT_THAT(Verify(m), IsEmpty());
}

TEST(Graph, SortIsStableAndCountsCaptures) {
  Model m = Parse(R"(
graph (%x: f32[1]) -> (%y) {
  %d = D(%x)
  %y = If(%d) {then_branch=graph () -> (%t) {
    %t = T(%u)
    %u = U(%a)
  }}
  %e = E(%x)
  %a = A(%b)
  %b = B(%x)
})");
  EXPECT_FALSE(Verify(m).empty());
  m.graph->SortTopologically();
  EXPECT_THAT(Ops(*m.graph), ElementsAre("D", "B", "A", "If", "E"));
  EXPECT_THAT(Ops(*Find(*m.graph, "If")->subgraphs()[0]), ElementsAre("U", "T"));
  EXPECT_THAT(Verify(m), IsEmpty());
  const std::string sorted = Print(m);
  m.graph->SortTopologically();
  EXPECT_EQ(Print(m), sorted);
}

TEST(Graph, SortNamesANodeOnACycle) {
  Model m = Parse("graph (%x: f32[1]) -> (%a) {\n %z = Z(%x)\n %a = A(%b) @first\n %b = B(%a, %z) @second\n}");
  try {
    m.graph->SortTopologically();
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadInput);
    EXPECT_THAT(e.what(), HasSubstr("'first'"));
  }
  EXPECT_THAT(Ops(*m.graph), ElementsAre("Z", "A", "B"));
}

TEST(Graph, SortFindsACycleThroughASubgraph) {
  Model m = Parse("graph () -> (%y) {\n %y = If() {then_branch=graph () -> (%t) {\n %t = T(%y)\n }}\n}");
  EXPECT_THROW(m.graph->SortTopologically(), Error);
}

TEST(Graph, CloneRemapsCaptures) {
  const Model m = Parse(kCaptures);
  Model c = Clone(m);
  EXPECT_EQ(Difference(m, c), "");
  EXPECT_THAT(Verify(c), IsEmpty());
  Value* a = c.graph->FindValue("a");
  ASSERT_EQ(a->uses().size(), 3u);
  for (const Use& u : a->uses()) EXPECT_EQ(u.node->input(u.index), a);
  EXPECT_EQ(m.graph->FindValue("a")->uses().size(), 3u);
  c.graph->ReplaceAllUses(a, c.graph->FindValue("x"));
  EXPECT_EQ(m.graph->FindValue("a")->uses().size(), 3u);
  EXPECT_NE(Difference(m, c), "");
}

TEST(Graph, CloneOfASubgraphIntoItsParentSharesCaptures) {
  Model m = Parse(kCaptures);
  Node* branch = Find(*m.graph, "If");
  std::unordered_map<const Value*, Value*> mapping;
  branch->SetAttribute("copy", Clone(*branch->subgraphs()[0], m.graph.get(), mapping));
  EXPECT_EQ(m.graph->FindValue("a")->uses().size(), 5u);
  EXPECT_THAT(Verify(m), IsEmpty());
}

TEST(Graph, CloneSharesConstantData) {
  const Model m = Parse("graph () -> (%w) {\n %w = constant f32[4] [1, 2, 3, 4]\n}");
  const Model c = Clone(m);
  EXPECT_EQ(m.graph->FindValue("w")->data->bytes.data(), c.graph->FindValue("w")->data->bytes.data());
}

TEST(Graph, VisitNodesOuterBeforeInner) {
  Model m = Parse(kCaptures);
  std::vector<std::string> ops;
  VisitNodes(*m.graph, [&](Node& n) { ops.push_back(n.op()); });
  EXPECT_THAT(ops, ElementsAre("Relu", "If", "Add", "If", "Neg"));
}

TEST(Graph, OpsetVersions) {
  Model m;
  EXPECT_EQ(m.OpsetVersion(), 0);
  m.SetOpsetVersion("ai.onnx", 13);
  EXPECT_EQ(m.OpsetVersion(), 13);
  m.SetOpsetVersion("", 17);
  EXPECT_EQ(m.OpsetVersion("ai.onnx"), 17);
  EXPECT_EQ(m.opsets.size(), 1u);
}

TEST(Graph, RandomEditsKeepInvariants) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    testing::RandomModel random(seed);
    Model m = random.Make(random.Int(0, 25));
    ASSERT_THAT(Verify(m), IsEmpty()) << "seed " << seed;
    ASSERT_EQ(Difference(m, Clone(m)), "") << "seed " << seed;
    std::vector<Node*> nodes = m.graph->nodes();
    for (int i = 0; i < 10 && !nodes.empty(); ++i) {
      Node* n = nodes[static_cast<std::size_t>(random.Int(0, static_cast<int>(nodes.size()) - 1))];
      if (n->outputs().empty() || n->output() == nullptr || n->domain() == kIrDomain) continue;
      Value* source = n->input(0);
      if (source != nullptr && source->graph() == m.graph.get() && SameType(source->type, n->output()->type)) {
        m.graph->ReplaceAllUses(n->output(), source);
      } else if (!n->inputs().empty()) {
        n->ResizeInputs(n->inputs().size() - 1);
      }
    }
    m.graph->EraseDead();
    m.graph->SortTopologically();
    ASSERT_THAT(Verify(m), IsEmpty()) << "seed " << seed;
    ASSERT_EQ(Difference(m, Clone(m)), "") << "seed " << seed;
  }
}

// Quadratic edits would take minutes here.
TEST(Graph, BigGraphsAreLinear) {
  constexpr int kNodes = 200000;
  Model m;
  m.graph = std::make_unique<Graph>();
  Graph& g = *m.graph;
  Value* x = g.AddInput("x", F32());
  Value* w = g.AddConstant("w", TensorRef::Scalar(1));
  Value* last = x;
  for (int i = 0; i < kNodes; ++i) last = g.AddNode("Add", "", {last, w}, {{"same", F32()}})->output();
  EXPECT_EQ(w->uses().size(), static_cast<std::size_t>(kNodes));
  Value* w2 = g.AddConstant("w", TensorRef::Scalar(2));
  g.ReplaceAllUses(w, w2);
  for (Node* n : g.nodes()) n->SetInput(1, w);
  g.SortTopologically();
  g.AddOutput(g.first()->output());
  EXPECT_EQ(g.EraseDead(), static_cast<std::size_t>(kNodes - 1));
  EXPECT_EQ(g.constant_count(), 1u);
  EXPECT_THAT(Verify(m), IsEmpty());
}

}  // namespace
}  // namespace octavo
