#include "octavo/compile/parts.h"

#include <algorithm>
#include <cctype>
#include <map>
#include <optional>
#include <set>
#include <system_error>
#include <unordered_set>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/log.h"
#include "octavo/base/resources.h"
#include "octavo/emit/onnx.h"
#include "octavo/import/onnx.h"
#include "octavo/ir/copy_nodes.h"
#include "octavo/ops/op_table.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/rules/quantized.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

bool IsQuantize(const Node& node) { return node.Is("QuantizeLinear"); }
bool IsDequantize(const Node& node) { return node.Is("DequantizeLinear"); }

// A Q or DQ that goes with the node whose tensor it is: it may stand on both sides of a cut. A Q behind a DQ changes
// parameters: that is work, and it stands once.
bool GoesAlong(const Node& node) {
  for (std::size_t i = 1; i < node.inputs().size(); ++i) {
    if (node.input(i) != nullptr && !node.input(i)->is_constant()) return false;
  }
  if (IsDequantize(node)) return true;
  const Node* before = IsQuantize(node) && node.input(0) != nullptr ? node.input(0)->producer() : nullptr;
  return IsQuantize(node) && (before == nullptr || !IsDequantize(*before));
}

// The node behind Q and DQ that makes the value; null: an input or a constant.
const Node* Origin(const Value* v) {
  const Node* node = v->producer();
  while (node != nullptr && GoesAlong(*node)) node = node->input(0) == nullptr ? nullptr : node->input(0)->producer();
  return node;
}

struct Work {
  Node* node = nullptr;
  bool on_device = true;
  std::size_t stage = 0;  // how often the way to it has come back from the CPU
};

const Value* OfUnknownShape(const Node& node) {
  const auto unknown = [](const Value* v) {
    return v != nullptr && !v->is_constant() && (v->type.dtype == DType::kUndefined || !StaticShape(v->type));
  };
  const auto in = std::find_if(node.inputs().begin(), node.inputs().end(), unknown);
  if (in != node.inputs().end()) return *in;
  const auto out = std::find_if(node.outputs().begin(), node.outputs().end(), unknown);
  return out == node.outputs().end() ? nullptr : *out;
}

constexpr std::size_t kProbes = 3;

// Gives the same for the same inputs, and holds no subgraph.
bool IsFunction(const Node& node) {
  return node.subgraphs().empty() && node.op().find("Random") == std::string::npos && !node.Is("Bernoulli") &&
         !node.Is("Multinomial") && !node.Is("Dropout");
}

// What the runtime may compute when it loads the model. An input that becomes a constant then is none to the provider,
// which counts them.
std::unordered_set<const Node*> FixedNodes(const Graph& graph) {
  std::unordered_set<const Node*> fixed;
  for (const Node* node : graph.nodes()) {
    if (!IsFunction(*node)) continue;
    const bool shape = (node->Is("Shape") || node->Is("Size")) && node->input(0) != nullptr &&
                       StaticShape(node->input(0)->type).has_value();
    const bool all = std::all_of(node->inputs().begin(), node->inputs().end(), [&](const Value* v) {
      return v == nullptr || v->is_constant() || (v->producer() != nullptr && fixed.count(v->producer()) > 0);
    });
    if (shape || all) fixed.insert(node);
  }
  return fixed;
}

bool TakesConstants(const Graph& graph) {
  const std::unordered_set<const Node*> fixed = FixedNodes(graph);
  for (const Node* node : graph.nodes()) {
    if (!node->Is("EPContext", "com.microsoft")) continue;
    for (const Value* v : node->inputs()) {
      if (v != nullptr && (v->is_constant() || (v->producer() != nullptr && fixed.count(v->producer()) > 0)))
        return true;
    }
  }
  return false;
}

// Which values are computed in the same way from the same.
class SameValues {
 public:
  explicit SameValues(const Graph& graph) {
    std::map<std::string, const Value*> constants;
    for (const Value* c : graph.constants()) {
      if (!c->data || c->data->bytes.size() > kMostBytes || c->type.quant) continue;
      std::string key = std::string(Name(c->data->dtype)) + ToString(c->type) + ":";
      key.append(reinterpret_cast<const char*>(c->data->bytes.data()), c->data->bytes.size());
      const auto [it, fresh] = constants.emplace(std::move(key), c);
      if (!fresh) first_[c] = it->second;
    }
    std::map<std::pair<std::string, std::vector<const Value*>>, std::vector<const Node*>> nodes;
    for (const Node* node : graph.nodes()) {
      if (!IsFunction(*node)) continue;
      std::vector<const Value*> inputs;
      for (const Value* v : node->inputs()) inputs.push_back(Of(v));
      std::vector<const Node*>& alike = nodes[{node->domain() + ":" + node->op(), std::move(inputs)}];
      const auto twin = std::find_if(alike.begin(), alike.end(), [&](const Node* other) {
        return other->outputs().size() == node->outputs().size() && SameAttributes(*other, *node);
      });
      if (twin == alike.end()) {
        alike.push_back(node);
        continue;
      }
      for (std::size_t i = 0; i < node->outputs().size(); ++i) {
        if (node->output(i) != nullptr && (*twin)->output(i) != nullptr) first_[node->output(i)] = (*twin)->output(i);
      }
    }
  }

  // The first of those that are the same as `v`.
  const Value* Of(const Value* v) const {
    const auto it = first_.find(v);
    return it == first_.end() ? v : it->second;
  }

 private:
  static constexpr std::size_t kMostBytes = 4096;
  std::unordered_map<const Value*, const Value*> first_;
};

using Region = std::vector<std::size_t>;  // indices of work, in execution order

class Splitter {
 public:
  Splitter(Model model, const fs::path& out, const DeviceDescriptor& device, const CompileOne& compile,
           const std::string& refusal, const PartLimits& limits)
      : model_(std::move(model)),
        graph_(*model_.graph),
        out_(out),
        device_(device),
        compile_(compile),
        refusal_(refusal),
        limits_(limits) {
    NameNodes(model_);
    InferMissingTypes(model_);
    FoldConstants(model_);
    same_.emplace(graph_);
    fixed_ = FixedNodes(graph_);
    for (Node* node : graph_.nodes()) {
      if (GoesAlong(*node) || fixed_.count(node) > 0) continue;
      index_[node] = work_.size();
      work_.push_back({node, true, 0});
      if (!node->subgraphs().empty()) {
        ToCpu(index_[node], "it holds subgraphs, which the device does not run" + WhyNoSteps(model_, *node));
      } else if (const Value* v = OfUnknownShape(*node); v != nullptr) {
        ToCpu(index_[node], "the shape of '" + v->name() + "' is not known before the model runs");
      } else if (const Value* made = OfFixed(*node); made != nullptr) {
        ToCpu(index_[node], "the runtime computes '" + made->name() +
                                "' when it loads the model, and a context does not take a constant as an input");
      }
    }
  }

  InParts Run() {
    while (Step()) {
    }
    if (regions_.empty()) {
      std::string why;
      int said = 0;
      for (const Work& w : work_) {
        const auto it = result_.reasons.find(w.node->name);
        if (it == result_.reasons.end() || why.find(it->second) != std::string::npos || ++said > 3) continue;
        why += (why.empty() ? "'" : "; '") + w.node->name + "' (" + w.node->op() + "): " + it->second;
      }
      ThrowUnsupported("the device takes no part of the model", out_.filename().string(), why.empty() ? refusal_ : why);
    }
    Assemble();
    return std::move(result_);
  }

 private:
  // One more decision; false: every part is compiled.
  bool Step() {
    regions_ = Regions();
    for (const Region& region : regions_) {
      if (HasWork(region)) continue;
      for (const std::size_t i : region) {
        ToCpu(i, "between nodes on the CPU nothing is left to compute: a context for moving data alone costs more");
      }
      return true;
    }
    for (const Region& region : regions_) {
      if (done_.count(region) == 0 && !Attempt(region)) return true;
    }
    return false;
  }

  void ToCpu(std::size_t i, std::string reason) {
    work_[i].on_device = false;
    result_.reasons.emplace(work_[i].node->name, std::move(reason));
  }

  const Value* OfFixed(const Node& node) const {
    for (const Value* v : node.inputs()) {
      const Node* from = v == nullptr ? nullptr : Origin(v);
      if (from != nullptr && fixed_.count(from) > 0) return v;
    }
    return nullptr;
  }

  // A value that the node reads, in its subgraphs too.
  void EachRead(const Node& node, const std::function<void(const Value*)>& fn) const {
    for (const Value* v : node.inputs()) {
      if (v != nullptr) fn(v);
    }
    for (const Graph* sub : node.subgraphs()) {
      VisitNodes(*sub, [&](const Node& inner) {
        for (const Value* v : inner.inputs()) {
          if (v != nullptr && v->graph() == &graph_) fn(v);
        }
      });
      for (const Value* v : sub->outputs()) {
        if (v->graph() == &graph_) fn(v);
      }
    }
  }

  std::vector<Region> Regions() {
    std::map<std::pair<std::size_t, std::size_t>, Region> regions;
    for (Work& w : work_) {
      w.stage = 0;
      EachRead(*w.node, [&](const Value* v) {
        const Node* from = Origin(v);
        const auto it = from == nullptr ? index_.end() : index_.find(from);
        if (it == index_.end()) return;
        const Work& other = work_[it->second];
        w.stage = std::max(w.stage, other.stage + (w.on_device && !other.on_device ? 1 : 0));
      });
    }
    for (std::size_t i = 0; i < work_.size(); ++i) {
      if (!work_[i].on_device) continue;
      const std::size_t stage = work_[i].stage;
      const auto before = std::count_if(cuts_.begin(), cuts_.end(), [&](std::size_t cut) {
        return cut <= i && work_[cut].on_device && work_[cut].stage == stage;
      });
      regions[{stage, static_cast<std::size_t>(before)}].push_back(i);
    }
    std::vector<Region> list;
    for (auto& [key, region] : regions) list.push_back(std::move(region));
    return list;
  }

  // Whether anything in it is worth a context.
  bool HasWork(const Region& region) const {
    return std::any_of(region.begin(), region.end(), [&](std::size_t i) {
      const Node& node = *work_[i].node;
      const OpSupport* row = device_.Row(node.op(), node.domain());
      const auto is_float = [](const Value* v) {
        return v != nullptr && (v->type.dtype == DType::kF32 || v->type.dtype == DType::kF16);
      };
      return row != nullptr && row->support == QuantSupport::kInteger &&
             std::any_of(node.outputs().begin(), node.outputs().end(), is_float);
    });
  }

  // --- one part

  struct Compiled {
    Model model;
    std::string stem;  // of its files
  };

  struct Part {
    Model model;
    std::vector<std::string> outputs;
  };

  bool Inside(const std::unordered_set<const Node*>& inside, const Node* node) const { return inside.count(node) > 0; }

  bool OnDevice(const Node* node) const {
    const auto it = index_.find(node);
    return it != index_.end() && work_[it->second].on_device;
  }

  // Adds to `stops` where the part begins on the way to `v`.
  void Begin(Value* v, const std::unordered_set<const Node*>& inside, std::vector<Value*>& stops) const {
    for (;;) {
      if (v == nullptr || v->is_constant()) return;
      const Node* node = v->producer();
      if (node != nullptr && fixed_.count(node) > 0) return;  // the part computes it for itself
      if (node == nullptr || !GoesAlong(*node)) {
        if (node == nullptr || !Inside(inside, node)) stops.push_back(v);
        return;
      }
      // Codes that another part makes come in as codes.
      if (IsQuantize(*node)) {
        const Node* maker = node->input(0)->producer();
        if (maker != nullptr && !Inside(inside, maker) && OnDevice(maker)) {
          stops.push_back(v);
          return;
        }
      }
      v = node->input(0);
    }
  }

  // Adds to `outs` what others need of `v`, which the part makes.
  void End(Value* v, const std::unordered_set<const Node*>& inside, std::vector<Value*>& outs) const {
    if (v->is_graph_output()) outs.push_back(v);
    for (const Use& use : v->uses()) {
      if (use.node->graph() != &graph_) {
        outs.push_back(v);
      } else if (!GoesAlong(*use.node)) {
        if (!Inside(inside, use.node)) outs.push_back(v);
      } else if (IsQuantize(*use.node)) {
        End(use.node->output(), inside, outs);
      } else {
        Value* y = use.node->output();
        if (y->is_graph_output()) outs.push_back(y);
        for (const Use& reader : y->uses()) {
          if (reader.node->graph() == &graph_ && Inside(inside, reader.node)) continue;
          // Another part takes the codes; the CPU takes numbers.
          outs.push_back(reader.node->graph() == &graph_ && OnDevice(reader.node) ? v : y);
        }
      }
    }
  }

  std::optional<Part> Cut(const Region& region) const {
    std::unordered_set<const Node*> inside;
    for (const std::size_t i : region) inside.insert(work_[i].node);
    std::vector<Value*> stops, outs;
    for (const std::size_t i : region) {
      for (Value* v : work_[i].node->inputs()) Begin(v, inside, stops);
      for (Value* v : work_[i].node->outputs()) {
        if (v != nullptr) End(v, inside, outs);
      }
    }
    Part part{Clone(model_), {}};
    Graph& graph = *part.model.graph;
    while (!graph.outputs().empty()) graph.PopOutput();
    std::set<const Value*> seen;
    for (const Value* v : outs) {
      if (!seen.insert(v).second) continue;
      graph.AddOutput(graph.FindValue(v->name()));
      part.outputs.push_back(v->name());
    }
    if (part.outputs.empty()) return std::nullopt;
    std::vector<std::pair<Value*, std::string>> fresh;
    // Equal values come in once: the runtime finds out, and the provider does not take one value at two inputs.
    std::unordered_map<const Value*, const Value*> first_of;
    std::unordered_map<const Value*, std::string> entry;  // what it is called in the part
    for (const Value* v : stops) {
      if (!seen.insert(v).second) continue;
      const Value* first = first_of.emplace(same_->Of(v), v).first->second;
      if (first != v) {
        graph.ReplaceAllUses(graph.FindValue(v->name()), graph.FindValue(entry.at(first)));
        continue;
      }
      entry[v] = v->name();
      if (v->kind() != ValueKind::kResult) continue;
      if (v->type.dtype == DType::kUndefined || !StaticShape(v->type)) {
        ThrowUnsupported("the model cannot be cut at '" + v->name() + "', whose shape is not known",
                         out_.filename().string(), refusal_);
      }
      Value* input = graph.AddInput(v->name() + "_in", v->type);
      graph.ReplaceAllUses(graph.FindValue(v->name()), input);
      fresh.emplace_back(input, v->name());
      entry[v] = input->name();
    }
    graph.EraseDead();
    const std::vector<Value*> inputs(graph.inputs().begin(), graph.inputs().end());
    for (Value* input : inputs) {
      if (input->dead()) graph.EraseInput(input);
    }
    for (auto& [input, name] : fresh) {
      if (graph.FindValue(name) == nullptr) graph.Rename(input, name);
    }
    return part;
  }

  // --- the compiler

  struct Outcome {
    std::optional<Model> model;              // with EPContext nodes and at most Q/DQ beside them
    std::map<std::size_t, std::string> cpu;  // what the compiler left to the CPU
    std::string refusal;                     // where neither is here
    std::string stem;                        // of its files
  };

  Outcome Ask(const Region& region) {
    CheckInterrupt();
    if (++result_.tries > limits_.tries || time_.Seconds() > limits_.seconds) {
      ThrowUnsupported(
          "the compiler refuses the model, and still some parts after " + std::to_string(result_.tries - 1) + " tries",
          out_.filename().string(), refusal_);
    }
    Outcome outcome;
    const std::optional<Part> part = Cut(region);
    if (!part) {
      for (const std::size_t i : region) outcome.cpu[i] = "nothing needs what it makes";
      return outcome;
    }
    const std::string stem = "part_" + std::to_string(result_.tries);
    outcome.stem = stem;
    const fs::path source = out_.parent_path() / (stem + "_source.onnx"), made = out_.parent_path() / (stem + ".onnx");
    const OnnxFiles files = WriteOnnx(part->model, source);
    EpCompileResult compiled;
    try {
      compiled = compile_(files.model, made);
    } catch (const Error& error) {
      if (error.code() != ExitCode::kUnsupported) throw;
      outcome.refusal = error.what();
    }
    std::error_code ignored;
    fs::remove(files.model, ignored);
    for (const fs::path& file : files.data) fs::remove(file, ignored);
    result_.seconds += compiled.seconds;
    if (outcome.refusal.empty()) Judge(region, made, compiled.log, outcome);
    fs::remove(made, ignored);
    if (!outcome.model) RemoveBinaries(stem);
    LogDebug("part of " + std::to_string(region.size()) + " nodes: " +
             (outcome.model         ? "compiled"
              : outcome.cpu.empty() ? outcome.refusal
                                    : std::to_string(outcome.cpu.size()) + " go to the CPU"));
    result_.log.insert(result_.log.end(), compiled.log.begin(), compiled.log.end());
    return outcome;
  }

  void RemoveBinaries(const std::string& stem) const {
    std::error_code error;
    std::vector<fs::path> gone;
    for (const auto& entry : fs::directory_iterator(fs::absolute(out_).parent_path(), error)) {
      const std::string name = entry.path().filename().string();
      // "part_1" is the beginning of "part_10": a digit behind it is another part.
      if (name.starts_with(stem) && name.size() > stem.size() && (name[stem.size()] < '0' || name[stem.size()] > '9')) {
        gone.push_back(entry.path());
      }
    }
    for (const fs::path& file : gone) fs::remove(file, error);
  }

  void Judge(const Region& region, const fs::path& made, const std::vector<EpMessage>& log, Outcome& outcome) const {
    Model model = ReadOnnx(made);
    std::map<std::string, std::size_t> by_name;
    for (const std::size_t i : region) by_name[work_[i].node->name] = i;
    std::int64_t contexts = 0;
    for (const Node* node : model.graph->nodes()) {
      contexts += node->Is("EPContext", "com.microsoft") ? 1 : 0;
      const auto it = by_name.find(node->name);
      if (it == by_name.end() || IsQuantize(*node) || IsDequantize(*node)) continue;
      const std::string said = SaidOf(node->name, log);
      outcome.cpu[it->second] =
          said.empty() ? std::string(device_.Reason(node->op(), node->domain())) : "the provider says: " + said;
    }
    if (contexts > 0 && outcome.cpu.empty() && TakesConstants(*model.graph)) {
      outcome.refusal = "it makes a constant an input of a context, and does not run that";
    } else if (contexts > 0 && outcome.cpu.empty()) {
      outcome.model = std::move(model);
    } else if (contexts == 0) {
      // All are left: those that it names are why.
      std::map<std::size_t, std::string> named;
      for (const auto& [name, i] : by_name) {
        if (std::string said = SaidOf(name, log); !said.empty()) named[i] = "the provider says: " + said;
      }
      outcome.cpu = std::move(named);
      outcome.refusal = "it takes no node of it";
      for (const EpMessage& message : log) {
        if (message.error) {
          outcome.refusal = message.text.substr(0, 400);
          break;
        }
      }
    }
  }

  // True: the part is compiled. False: something was decided, and the parts are others now.
  bool Attempt(const Region& region) {
    Outcome outcome = Ask(region);
    if (outcome.model) {
      done_.emplace(region, Compiled{std::move(*outcome.model), outcome.stem});
      return true;
    }
    if (Take(outcome)) return false;
    if (result_.tries == 1 && RefusesAll(region)) {
      ThrowUnsupported("the compiler refuses the model", out_.filename().string(), refusal_);
    }
    // The shortest beginning that is refused: its last node is why.
    std::size_t good = 0, bad = region.size();
    std::string refusal = outcome.refusal;
    while (bad - good > 1) {
      const std::size_t middle = (good + bad) / 2;
      Outcome half = Ask(Region(region.begin(), region.begin() + static_cast<std::ptrdiff_t>(middle)));
      if (half.model) RemoveBinaries(half.stem);
      if (Take(half)) return false;
      (half.model ? good : bad) = middle;
      if (!half.model) refusal = half.refusal;
    }
    const std::size_t culprit = region[bad - 1];
    if (bad > 1) {
      Outcome alone = Ask({culprit});
      if (alone.model) RemoveBinaries(alone.stem);
      if (Take(alone)) return false;
      if (alone.model) {  // only beside the others
        cuts_.insert(culprit);
        return false;
      }
      refusal = alone.refusal;
    }
    ToCpu(culprit, "the provider says: " + refusal.substr(0, 400));
    return false;
  }

  // A compiler that takes none of a few nodes alone refuses something else than the model: its options, the machine.
  bool RefusesAll(const Region& region) {
    for (std::size_t i = 1; i <= kProbes; ++i) {
      Outcome one = Ask({region[i * region.size() / (kProbes + 1)]});
      if (one.model) RemoveBinaries(one.stem);
      if (one.model || !one.cpu.empty()) return false;
    }
    return true;
  }

  bool Take(Outcome& outcome) {
    for (auto& [i, reason] : outcome.cpu) ToCpu(i, std::move(reason));
    return !outcome.cpu.empty();
  }

  // --- the whole

  void Assemble() {
    for (const auto& [region, compiled] : done_) {
      if (std::find(regions_.begin(), regions_.end(), region) == regions_.end()) RemoveBinaries(compiled.stem);
    }
    for (const Region& region : regions_) {
      const Model& part = done_.at(region).model;
      std::unordered_map<const Value*, Value*> mapping;
      for (const Value* input : part.graph->inputs()) {
        Value* v = graph_.FindValue(input->name());
        if (v == nullptr) ThrowInternal("a part reads what the model does not have", input->name());
        mapping[input] = v;
      }
      CopyNodes(*part.graph, graph_, nullptr, mapping);
      for (Value* output : part.graph->outputs()) {
        Value* old = graph_.FindValue(output->name());
        const auto made = mapping.find(output);
        if (old == nullptr || made == mapping.end()) ThrowInternal("a part lost an output", output->name());
        made->second->type = old->type;
        graph_.ReplaceAllUses(old, made->second);
        graph_.SwapNames(old, made->second);
      }
      for (const OpsetImport& opset : part.opsets) {
        if (model_.OpsetVersion(opset.domain) == 0) model_.SetOpsetVersion(opset.domain, opset.version);
      }
    }
    graph_.EraseDead();
    graph_.SortTopologically();
    NameNodes(model_);
    WriteOnnx(model_, out_);
  }

  Model model_;
  Graph& graph_;
  fs::path out_;
  const DeviceDescriptor& device_;
  const CompileOne& compile_;
  const std::string& refusal_;
  PartLimits limits_;
  Stopwatch time_;
  std::vector<Work> work_;
  std::unordered_map<const Node*, std::size_t> index_;
  std::optional<SameValues> same_;
  std::unordered_set<const Node*> fixed_;
  std::set<std::size_t> cuts_;  // a part begins there
  std::vector<Region> regions_;
  std::map<Region, Compiled> done_;
  InParts result_;
};

}  // namespace

std::int64_t NameNodes(Model& model) {
  std::unordered_set<std::string> taken;
  std::int64_t renamed = 0;
  std::vector<Node*> again;
  VisitNodes(*model.graph, [&](Node& node) {
    if (node.name.empty() || !taken.insert(node.name).second) again.push_back(&node);
  });
  for (Node* node : again) {
    std::string base = node->name;
    for (const Value* v : node->outputs()) {
      if (base.empty() && v != nullptr) base = v->name();
    }
    if (base.empty()) base = node->op();
    std::string name = base;
    for (std::int64_t i = 1; !taken.insert(name).second; ++i) name = base + "_" + std::to_string(i);
    node->name = std::move(name);
    ++renamed;
  }
  return renamed;
}

namespace {

// Whether a line speaks of the node, not of one whose name only holds it. The provider adds "_token_<number>".
bool SpeaksOf(const std::string& line, const std::string& node) {
  const auto in_name = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '/'; };
  for (std::size_t at = line.find(node); !node.empty() && at != std::string::npos; at = line.find(node, at + 1)) {
    const std::size_t end = at + node.size();
    if (at > 0 && in_name(line[at - 1])) continue;
    if (end == line.size() || !in_name(line[end]) || line.compare(end, 7, "_token_") == 0) return true;
  }
  return false;
}

// One line of at most 400 characters, without the list of the nodes that stand around: the reason comes behind it.
std::string Condensed(std::string line) {
  const std::size_t list = line.find("Operator type:"), reason = line.find("REASON");
  if (list != std::string::npos && reason != std::string::npos && reason > list) line.erase(list, reason - list);
  std::string text;
  for (const char c : line) {
    const bool space = std::isspace(static_cast<unsigned char>(c)) != 0;
    if (space && (text.empty() || text.back() == ' ')) continue;
    text += space ? ' ' : c;
  }
  while (!text.empty() && text.back() == ' ') text.pop_back();
  return text.substr(0, 400);
}

}  // namespace

std::string SaidOf(const std::string& node, const std::vector<EpMessage>& log) {
  for (const auto& [error, line] : log) {
    if (!SpeaksOf(line, node)) continue;
    const bool failure = error || line.find("alidation FAILED") != std::string::npos ||
                         line.find("not support") != std::string::npos || line.find("nsupported") != std::string::npos;
    if (failure) return Condensed(line);
  }
  return {};
}

std::string WhyNoSteps(const Model& model, const Node& node) {
  const std::string why = node.Is("Loop") || node.Is("Scan") ? WhyLoopStays(model, node) : std::string();
  return why.empty() ? why : "; its steps are not written out: " + why;
}

InParts CompileInParts(const Model& model, const fs::path& out, const DeviceDescriptor& device,
                       const CompileOne& compile, const std::string& refusal, const PartLimits& limits) {
  return Splitter(Clone(model), out, device, compile, refusal, limits).Run();
}

}  // namespace octavo
