#include "octavo/ir/graph.h"

#include <algorithm>
#include <unordered_set>
#include <utility>

#include "octavo/base/error.h"

namespace octavo {
namespace {

std::string Describe(const Node& node) {
  std::string out = "node '" + node.name + "' (" + node.op();
  if (!node.domain().empty()) out += " of " + node.domain();
  return out + ")";
}

// Calls fn for every value that a graph of `node`'s attributes uses, the graphs' own values included.
template <typename Fn>
void ForEachNestedUse(const Node& node, const Fn& fn) {
  for (const Attribute& a : node.attributes()) {
    const auto* sub = std::get_if<std::unique_ptr<Graph>>(&a.value);
    if (sub == nullptr || *sub == nullptr) continue;
    for (Value* out : (*sub)->outputs()) fn(out);
    for (const Node* n = (*sub)->first(); n != nullptr; n = n->next()) {
      for (Value* in : n->inputs()) {
        if (in != nullptr) fn(in);
      }
      ForEachNestedUse(*n, fn);
    }
  }
}

}  // namespace

// ---- Node

void Node::SetInput(std::size_t i, Value* value) {
  if (i >= inputs_.size()) ResizeInputs(i + 1);
  if (inputs_[i] == value) return;
  if (inputs_[i] != nullptr) Graph::DropUse(this, i);
  inputs_[i] = value;
  if (value != nullptr) Graph::AddUse(value, this, i);
}

void Node::ResizeInputs(std::size_t n) {
  for (std::size_t i = n; i < inputs_.size(); ++i) {
    if (inputs_[i] != nullptr) Graph::DropUse(this, i);
  }
  inputs_.resize(n, nullptr);
  slots_.resize(n, 0);
}

void Node::SetOp(std::string op, std::string domain) {
  op_ = std::move(op);
  domain_ = std::move(domain);
}

const Attribute* Node::FindAttribute(std::string_view attribute) const {
  for (const Attribute& a : attributes_) {
    if (a.name == attribute) return &a;
  }
  return nullptr;
}

std::int64_t Node::IntAttribute(std::string_view attribute, std::int64_t fallback) const {
  const Attribute* a = FindAttribute(attribute);
  const auto* v = a != nullptr ? std::get_if<std::int64_t>(&a->value) : nullptr;
  return v != nullptr ? *v : fallback;
}

float Node::FloatAttribute(std::string_view attribute, float fallback) const {
  const Attribute* a = FindAttribute(attribute);
  const auto* v = a != nullptr ? std::get_if<float>(&a->value) : nullptr;
  return v != nullptr ? *v : fallback;
}

std::string Node::StringAttribute(std::string_view attribute, std::string fallback) const {
  const Attribute* a = FindAttribute(attribute);
  const auto* v = a != nullptr ? std::get_if<std::string>(&a->value) : nullptr;
  if (v != nullptr) return *v;
  return fallback;
}

const std::vector<std::int64_t>* Node::IntsAttribute(std::string_view attribute) const {
  const Attribute* a = FindAttribute(attribute);
  return a != nullptr ? std::get_if<std::vector<std::int64_t>>(&a->value) : nullptr;
}

void Node::SetAttribute(std::string attribute, AttributeValue value) {
  if (const auto* sub = std::get_if<std::unique_ptr<Graph>>(&value)) {
    if (*sub == nullptr || (*sub)->parent() != graph_) {
      ThrowInternal("subgraph '" + attribute + "' does not belong to the graph of its node", Describe(*this));
    }
  }
  for (Attribute& a : attributes_) {
    if (a.name == attribute) {
      a.value = std::move(value);
      return;
    }
  }
  attributes_.push_back({std::move(attribute), std::move(value)});
}

void Node::RemoveAttribute(std::string_view attribute) {
  std::erase_if(attributes_, [&](const Attribute& a) { return a.name == attribute; });
}

std::vector<Graph*> Node::subgraphs() const {
  std::vector<Graph*> out;
  for (const Attribute& a : attributes_) {
    const auto* sub = std::get_if<std::unique_ptr<Graph>>(&a.value);
    if (sub != nullptr && *sub != nullptr) out.push_back(sub->get());
  }
  return out;
}

// ---- Graph: life

Graph::Graph(Graph* parent) : parent_(parent) {}

Graph::~Graph() {
  // Subgraphs first: they hold uses of this graph's values. Then this graph's own captures. Uses between values and
  // nodes that go together need no bookkeeping.
  for (Node* n = first_; n != nullptr; n = n->next_) n->attributes_.clear();
  for (Node* n = first_; n != nullptr; n = n->next_) {
    for (std::size_t i = 0; i < n->inputs_.size(); ++i) {
      if (n->inputs_[i] != nullptr && n->inputs_[i]->graph_ != this) DropUse(n, i);
    }
  }
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    if (outputs_[i]->graph_ != this) DropOutputUse(outputs_[i], this, i);
  }
  if (parent_ != nullptr) {
    for (const auto& [value_name, value] : values_) UncountName(value_name);
  }
  for (Node* n = first_; n != nullptr;) {
    Node* next = n->next_;
    delete n;
    n = next;
  }
}

// ---- Graph: use lists

void Graph::AddUse(Value* value, Node* node, std::size_t index) {
  node->slots_[index] = value->uses_.size();
  value->uses_.push_back({node, index});
}

void Graph::DropUse(Node* node, std::size_t index) {
  std::vector<Use>& uses = node->inputs_[index]->uses_;
  const std::size_t slot = node->slots_[index];
  uses[slot] = uses.back();
  uses[slot].node->slots_[uses[slot].index] = slot;
  uses.pop_back();
}

void Graph::DropOutputUse(Value* value, const Graph* graph, std::size_t index) {
  std::erase_if(value->output_uses_, [&](const OutputUse& u) { return u.graph == graph && u.index == index; });
}

// ---- Graph: values

void Graph::CountName(const std::string& value_name) {
  for (Graph* g = parent_; g != nullptr; g = g->parent_) ++g->nested_names_[value_name];
}

void Graph::UncountName(const std::string& value_name) {
  for (Graph* g = parent_; g != nullptr; g = g->parent_) {
    const auto it = g->nested_names_.find(value_name);
    if (it != g->nested_names_.end() && --it->second == 0) g->nested_names_.erase(it);
  }
}

Value* Graph::NewValue(std::string value_name, ValueKind kind, Type type) {
  std::unique_ptr<Value> owned(new Value());
  Value* value = owned.get();
  value->name_ = std::move(value_name);
  value->kind_ = kind;
  value->graph_ = this;
  value->type = std::move(type);
  CountName(value->name_);
  values_.emplace(value->name_, std::move(owned));
  return value;
}

void Graph::Destroy(Value* value) {
  UncountName(value->name_);
  if (value->kind_ == ValueKind::kConstant) constants_.erase(value->order_);
  values_.erase(values_.find(value->name_));
}

// NOLINTNEXTLINE(performance-unnecessary-value-param): names are handed over, as to NewValue and Rename
Value* Graph::AddInput(std::string value_name, Type type) {
  Value* value = NewValue(UniqueName(value_name), ValueKind::kInput, std::move(type));
  inputs_.push_back(value);
  return value;
}

Value* Graph::AddConstant(std::string value_name, TensorRef data) {
  Type type = TypeOf(data);
  return AddConstant(std::move(value_name), std::move(data), std::move(type));
}

// NOLINTNEXTLINE(performance-unnecessary-value-param): names are handed over, as to NewValue and Rename
Value* Graph::AddConstant(std::string value_name, TensorRef data, Type type) {
  Value* value = NewValue(UniqueName(value_name), ValueKind::kConstant, std::move(type));
  value->data = std::move(data);
  value->order_ = next_order_++;
  constants_.emplace_hint(constants_.end(), value->order_, value);
  return value;
}

Value* Graph::FindValue(std::string_view value_name) const {
  const auto it = values_.find(std::string(value_name));
  return it == values_.end() ? nullptr : it->second.get();
}

Value* Graph::Lookup(std::string_view value_name) const {
  const std::string key(value_name);
  for (const Graph* g = this; g != nullptr; g = g->parent_) {
    const auto it = g->values_.find(key);
    if (it != g->values_.end()) return it->second.get();
  }
  return nullptr;
}

bool Graph::NameTaken(std::string_view value_name) const {
  return Lookup(value_name) != nullptr || (!nested_names_.empty() && nested_names_.contains(std::string(value_name)));
}

std::string Graph::UniqueName(std::string_view base) const {
  if (!base.empty() && !NameTaken(base)) return std::string(base);
  const std::string stem = base.empty() ? "v" : std::string(base);
  std::uint64_t& next = next_suffix_[stem];  // remembered: many values of one base stay linear
  for (;;) {
    std::string candidate = stem + "_" + std::to_string(++next);
    if (!NameTaken(candidate)) return candidate;
  }
}

void Graph::Rename(Value* value, std::string new_name) {
  if (value->graph_ != this) ThrowInternal("value belongs to another graph", value->name_);
  if (new_name == value->name_) return;
  if (new_name.empty() || NameTaken(new_name)) ThrowInternal("name '" + new_name + "' is taken", value->name_);
  auto handle = values_.extract(value->name_);
  UncountName(value->name_);
  value->name_ = std::move(new_name);
  CountName(value->name_);
  handle.key() = value->name_;
  values_.insert(std::move(handle));
}

void Graph::SwapNames(Value* a, Value* b) {
  if (a->graph_ != this || b->graph_ != this) ThrowInternal("value belongs to another graph", a->name_);
  if (a == b) return;
  auto ha = values_.extract(a->name_);
  auto hb = values_.extract(b->name_);
  std::swap(a->name_, b->name_);
  ha.key() = a->name_;
  hb.key() = b->name_;
  values_.insert(std::move(ha));
  values_.insert(std::move(hb));
}

std::vector<Value*> Graph::constants() const {
  std::vector<Value*> out;
  out.reserve(constants_.size());
  for (const auto& [order, value] : constants_) out.push_back(value);
  return out;
}

void Graph::AddOutput(Value* value) {
  if (value == nullptr) ThrowInternal("a graph output must be a value", name);
  value->output_uses_.push_back({this, outputs_.size()});
  outputs_.push_back(value);
}

void Graph::SetOutput(std::size_t i, Value* value) {
  if (i >= outputs_.size() || value == nullptr) ThrowInternal("no such graph output, or no value for it", name);
  DropOutputUse(outputs_[i], this, i);
  outputs_[i] = value;
  value->output_uses_.push_back({this, i});
}

void Graph::PopOutput() {
  if (outputs_.empty()) ThrowInternal("no graph output to take away", name);
  DropOutputUse(outputs_.back(), this, outputs_.size() - 1);
  outputs_.pop_back();
}

void Graph::EraseInput(Value* value) {
  const auto it = std::find(inputs_.begin(), inputs_.end(), value);
  if (it == inputs_.end()) ThrowInternal("not an input of this graph", value->name_);
  if (!value->dead()) ThrowInternal("erasing a graph input that is used", value->name_);
  inputs_.erase(it);
  Destroy(value);
}

// ---- Graph: nodes

void Graph::Link(Node* node, Node* before) {
  if (before != nullptr && before->graph_ != this) ThrowInternal("position is in another graph", Describe(*before));
  node->next_ = before;
  node->prev_ = before != nullptr ? before->prev_ : last_;
  (node->prev_ != nullptr ? node->prev_->next_ : first_) = node;
  (before != nullptr ? before->prev_ : last_) = node;
}

void Graph::Unlink(Node* node) {
  (node->prev_ != nullptr ? node->prev_->next_ : first_) = node->next_;
  (node->next_ != nullptr ? node->next_->prev_ : last_) = node->prev_;
}

Node* Graph::AddNode(std::string op, std::string domain, std::vector<Value*> inputs, std::vector<OutputSpec> outputs,
                     Node* before) {
  if (before != nullptr && before->graph_ != this) ThrowInternal("position is in another graph", Describe(*before));
  Node* node = new Node();
  Link(node, before);
  ++node_count_;
  node->graph_ = this;
  node->op_ = std::move(op);
  node->domain_ = std::move(domain);
  node->inputs_ = std::move(inputs);
  node->slots_.resize(node->inputs_.size(), 0);
  for (std::size_t i = 0; i < node->inputs_.size(); ++i) {
    if (node->inputs_[i] != nullptr) AddUse(node->inputs_[i], node, i);
  }
  node->outputs_.reserve(outputs.size());
  for (OutputSpec& spec : outputs) {
    Value* value = nullptr;
    if (!spec.name.empty()) {
      value = NewValue(UniqueName(spec.name), ValueKind::kResult, std::move(spec.type));
      value->producer_ = node;
      value->output_index_ = node->outputs_.size();
    }
    node->outputs_.push_back(value);
  }
  return node;
}

std::vector<Node*> Graph::nodes() const {
  std::vector<Node*> out;
  out.reserve(node_count_);
  for (Node* n = first_; n != nullptr; n = n->next_) out.push_back(n);
  return out;
}

void Graph::MoveBefore(Node* node, Node* before) {
  if (node->graph_ != this) ThrowInternal("node belongs to another graph", Describe(*node));
  if (before != nullptr && before->graph_ != this) ThrowInternal("position is in another graph", Describe(*before));
  if (node == before || (node->next_ == before && (before != nullptr || node == last_))) return;
  Unlink(node);
  Link(node, before);
}

void Graph::ReplaceAllUses(Value* from, Value* to) { ReplaceAllUses(from, to, nullptr); }

void Graph::ReplaceAllUses(Value* from, Value* to, const Node* except) {
  if (from == to) return;
  if (to == nullptr) ThrowInternal("uses replaced by nothing", from->name_);
  std::vector<Use> uses;
  uses.swap(from->uses_);
  to->uses_.reserve(to->uses_.size() + uses.size());
  for (const Use& use : uses) {
    if (except != nullptr && use.node == except) {
      AddUse(from, use.node, use.index);
      continue;
    }
    use.node->inputs_[use.index] = to;
    AddUse(to, use.node, use.index);
  }
  ReplaceOutputUses(from, to);
}

void Graph::ReplaceOutputUses(Value* from, Value* to) {
  if (from == to) return;
  if (to == nullptr) ThrowInternal("uses replaced by nothing", from->name_);
  for (const OutputUse& use : from->output_uses_) {
    use.graph->outputs_[use.index] = to;
    to->output_uses_.push_back(use);
  }
  from->output_uses_.clear();
}

void Graph::Erase(Node* node) {
  if (node->graph_ != this) ThrowInternal("node belongs to another graph", Describe(*node));
  // Checked before anything goes, captures by the node's own subgraphs included.
  for (const Value* out : node->outputs_) {
    if (out != nullptr && !out->dead()) ThrowInternal("erasing a node whose output is used", Describe(*node));
  }
  node->attributes_.clear();
  node->ResizeInputs(0);
  for (Value* out : node->outputs_) {
    if (out != nullptr) Destroy(out);
  }
  Unlink(node);
  --node_count_;
  delete node;
}

void Graph::Erase(Value* constant) {
  if (constant->graph_ != this || !constant->is_constant()) {
    ThrowInternal("not a constant of this graph", constant->name_);
  }
  if (!constant->dead()) ThrowInternal("erasing a constant that is used", constant->name_);
  Destroy(constant);
}

void Graph::EraseResult(Node* node, std::size_t i) {
  if (node->graph_ != this) ThrowInternal("node belongs to another graph", Describe(*node));
  Value* out = node->output(i);
  if (out == nullptr) return;
  if (!out->dead()) ThrowInternal("erasing an output that is used", out->name_);
  node->outputs_[i] = nullptr;
  Destroy(out);
}

std::size_t Graph::EraseDead() {
  std::size_t erased = 0;
  // Inner graphs first: what they no longer capture may die here, and nothing dies the other way.
  for (Node* n = first_; n != nullptr; n = n->next_) {
    for (Graph* sub : n->subgraphs()) erased += sub->EraseDead();
  }
  const auto dead = [](const Node& n) {
    return std::all_of(n.outputs_.begin(), n.outputs_.end(), [](const Value* v) { return v == nullptr || v->dead(); });
  };
  std::vector<Node*> work;
  for (Node* n = first_; n != nullptr; n = n->next_) {
    n->queued_ = dead(*n);
    if (n->queued_) work.push_back(n);
  }
  while (!work.empty()) {
    Node* node = work.back();
    work.pop_back();
    std::vector<Node*> producers;
    const auto note = [&](const Value* v) {
      if (v->graph_ == this && v->producer_ != nullptr && v->producer_ != node) producers.push_back(v->producer_);
    };
    for (const Value* v : node->inputs_) {
      if (v != nullptr) note(v);
    }
    ForEachNestedUse(*node, note);
    Erase(node);
    ++erased;
    for (Node* p : producers) {
      if (!p->queued_ && dead(*p)) {
        p->queued_ = true;
        work.push_back(p);
      }
    }
  }
  for (Value* c : constants()) {
    if (c->dead()) Destroy(c);
  }
  return erased;
}

void Graph::SortTopologically() {
  // Depth first from each node in present order, producers before users: a node keeps its place unless one of its
  // producers has to go before it. An explicit stack: a graph may be a chain of any length.
  struct Frame {
    Node* node;
    std::vector<Node*> producers;
    std::size_t next;
  };
  enum class State : std::uint8_t { kOpen, kDone };
  std::unordered_map<const Node*, State> state;
  state.reserve(node_count_);
  std::vector<Node*> order;
  order.reserve(node_count_);
  std::vector<Frame> stack;
  const auto open = [&](Node* node) {
    state.emplace(node, State::kOpen);
    Frame frame{node, {}, 0};
    const auto note = [&](const Value* v) {
      if (v->graph_ == this && v->producer_ != nullptr) frame.producers.push_back(v->producer_);
    };
    for (const Value* v : node->inputs_) {
      if (v != nullptr) note(v);
    }
    ForEachNestedUse(*node, note);
    stack.push_back(std::move(frame));
  };
  for (Node* start = first_; start != nullptr; start = start->next_) {
    if (state.contains(start)) continue;
    open(start);
    while (!stack.empty()) {
      Frame& frame = stack.back();
      if (frame.next == frame.producers.size()) {
        state[frame.node] = State::kDone;
        order.push_back(frame.node);
        stack.pop_back();
        continue;
      }
      Node* producer = frame.producers[frame.next++];
      const auto it = state.find(producer);
      if (it == state.end()) {
        open(producer);
      } else if (it->second == State::kOpen) {
        ThrowBadInput("the graph has a cycle", Describe(*producer), "break the cycle; a graph must be acyclic");
      }
    }
  }
  // Nothing moved before the whole order was found: on a cycle the graph is as it was.
  Node* prev = nullptr;
  first_ = nullptr;
  for (Node* n : order) {
    n->prev_ = prev;
    n->next_ = nullptr;
    (prev != nullptr ? prev->next_ : first_) = n;
    prev = n;
  }
  last_ = prev;
  for (Node* n : order) {
    for (Graph* sub : n->subgraphs()) sub->SortTopologically();
  }
}

// ---- Model

std::int64_t Model::OpsetVersion(std::string_view domain) const {
  if (domain == "ai.onnx") domain = {};
  for (const OpsetImport& o : opsets) {
    if ((o.domain == "ai.onnx" ? std::string_view() : std::string_view(o.domain)) == domain) return o.version;
  }
  return 0;
}

void Model::SetOpsetVersion(std::string_view domain, std::int64_t version) {
  if (domain == "ai.onnx") domain = {};
  for (OpsetImport& o : opsets) {
    if ((o.domain == "ai.onnx" ? std::string_view() : std::string_view(o.domain)) == domain) {
      o.version = version;
      return;
    }
  }
  opsets.push_back({std::string(domain), version});
}

namespace {

void KeepCopy(const Value* from, Value* to, std::unordered_map<const Value*, Value*>& mapping) {
  to->data = from->data;
  to->extras = from->extras;
  mapping[from] = to;
}

Value* Mapped(Value* v, const std::unordered_map<const Value*, Value*>& mapping) {
  const auto it = v == nullptr ? mapping.end() : mapping.find(v);
  return it == mapping.end() ? v : it->second;
}

}  // namespace

void CopyNodes(const Graph& graph, Graph& out, Node* before, std::unordered_map<const Value*, Value*>& mapping) {
  for (const Value* c : graph.constants()) {
    KeepCopy(c, out.AddConstant(c->name(), c->data.value_or(TensorRef{}), c->type), mapping);
  }
  // All values first, inputs and subgraphs after: also a graph that is out of order is copied.
  std::vector<std::pair<const Node*, Node*>> copies;
  copies.reserve(graph.node_count());
  for (const Node* n = graph.first(); n != nullptr; n = n->next()) {
    std::vector<Graph::OutputSpec> specs;
    for (const Value* v : n->outputs())
      specs.push_back(v != nullptr ? Graph::OutputSpec{v->name(), v->type} : Graph::OutputSpec{});
    Node* copy = out.AddNode(n->op(), n->domain(), {}, std::move(specs), before);
    copy->name = n->name;
    copy->overload = n->overload;
    copy->extras = n->extras;
    copy->form = n->form;
    for (std::size_t i = 0; i < n->outputs().size(); ++i) {
      if (n->output(i) != nullptr) KeepCopy(n->output(i), copy->output(i), mapping);
    }
    copies.emplace_back(n, copy);
  }
  for (const auto& [n, copy] : copies) {
    copy->ResizeInputs(n->inputs().size());
    for (std::size_t i = 0; i < n->inputs().size(); ++i) copy->SetInput(i, Mapped(n->input(i), mapping));
    for (const Attribute& a : n->attributes()) {
      AttributeValue value = std::visit(
          [&](const auto& v) -> AttributeValue {
            if constexpr (std::is_same_v<std::decay_t<decltype(v)>, std::unique_ptr<Graph>>) {
              return Clone(*v, &out, mapping);
            } else {
              return v;
            }
          },
          a.value);
      copy->attributes().push_back({a.name, std::move(value)});
    }
  }
}

std::unique_ptr<Graph> Clone(const Graph& graph, Graph* parent, std::unordered_map<const Value*, Value*>& mapping) {
  auto out = std::make_unique<Graph>(parent);
  out->name = graph.name;
  out->extras = graph.extras;
  for (const Value* in : graph.inputs()) KeepCopy(in, out->AddInput(in->name(), in->type), mapping);
  CopyNodes(graph, *out, nullptr, mapping);
  for (Value* v : graph.outputs()) out->AddOutput(Mapped(v, mapping));
  return out;
}

Model Clone(const Model& model) {
  Model out;
  out.ir_version = model.ir_version;
  out.opsets = model.opsets;
  out.metadata = model.metadata;
  out.extras = model.extras;
  out.functions = model.functions;
  out.function_ids = model.function_ids;
  out.source = model.source;
  if (model.graph) {
    std::unordered_map<const Value*, Value*> mapping;
    out.graph = Clone(*model.graph, nullptr, mapping);
  }
  return out;
}

void VisitNodes(Graph& graph, const std::function<void(Node&)>& fn) {
  for (Node* n = graph.first(); n != nullptr; n = n->next()) {
    fn(*n);
    for (Graph* sub : n->subgraphs()) VisitNodes(*sub, fn);
  }
}

void VisitNodes(const Graph& graph, const std::function<void(const Node&)>& fn) {
  for (const Node* n = graph.first(); n != nullptr; n = n->next()) {
    fn(*n);
    for (const Graph* sub : n->subgraphs()) VisitNodes(*sub, fn);
  }
}

}  // namespace octavo
