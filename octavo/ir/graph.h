// The graph: values in SSA form, nodes in execution order, use lists, constants, subgraphs.
//
// Ownership: a Graph owns its nodes and values; a subgraph is owned by the attribute that holds it and may use values
// of the enclosing graphs (a capture is an ordinary use of that value). Pointers stay valid until the object is erased.
// Edits keep use lists exact; Verify() checks every invariant. All edits are O(size of what is edited).
// A subgraph must not outlive its parent graph: it gives back its captures and its names when it is destroyed.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "octavo/ir/tensor.h"
#include "octavo/ir/type.h"

namespace octavo {

class Graph;
class Node;

enum class ValueKind : std::uint8_t { kInput, kConstant, kResult };

struct Use {
  Node* node;         // may live in a subgraph of the value's graph
  std::size_t index;  // position in node->inputs()
};

struct OutputUse {
  Graph* graph;       // the value's graph, or a subgraph that returns a captured value
  std::size_t index;  // position in graph->outputs()
};

class Value {
 public:
  const std::string& name() const { return name_; }
  ValueKind kind() const { return kind_; }
  Graph* graph() const { return graph_; }

  Type type;
  // Data of a constant. For a constant with type.quant set the data are the stored codes (dtype = storage), while
  // type.dtype is what they mean. For an input: its default (an overridable initializer), if any.
  std::optional<TensorRef> data;
  std::string extras;  // serialized ValueInfoProto/TensorProto fields that the IR does not model (doc_string, metadata)

  Node* producer() const { return producer_; }  // null for inputs and constants
  std::size_t output_index() const { return output_index_; }
  // In no particular order. Invalidated by any edit that adds or drops a use of this value: copy before editing.
  std::span<const Use> uses() const { return uses_; }
  std::span<const OutputUse> output_uses() const { return output_uses_; }
  bool is_graph_output() const { return !output_uses_.empty(); }
  // No use by a node or as a graph output.
  bool dead() const { return uses_.empty() && output_uses_.empty(); }
  bool is_constant() const { return kind_ == ValueKind::kConstant; }

 private:
  friend class Graph;
  friend class Node;
  friend struct GraphTestPeer;  // breaks invariants on purpose, in the verifier's test
  Value() = default;
  std::string name_;
  ValueKind kind_ = ValueKind::kResult;
  Graph* graph_ = nullptr;
  Node* producer_ = nullptr;
  std::size_t output_index_ = 0;
  std::vector<Use> uses_;
  std::vector<OutputUse> output_uses_;
  std::uint64_t order_ = 0;  // of creation, among the constants of its graph
};

// A serialized AttributeProto that the IR does not model (type protos, sparse tensors, graph lists, references).
struct OpaqueAttribute {
  std::string bytes;
};

using AttributeValue =
    std::variant<std::int64_t, float, std::string, TensorRef, std::vector<std::int64_t>, std::vector<float>,
                 std::vector<std::string>, std::unique_ptr<Graph>, OpaqueAttribute>;

struct Attribute {
  std::string name;
  AttributeValue value;
};

// The form a quantized operator was imported in: QDQ rounds a float accumulator, QLinear an int32 one.
enum class QuantForm : std::uint8_t { kNone, kQdq, kQLinear };

class Node {
 public:
  // "" domain is ai.onnx. The IR's own operators live in domain "octavo.ir" (see ir_ops below).
  const std::string& op() const { return op_; }
  const std::string& domain() const { return domain_; }
  std::string name;
  std::string overload;
  std::string extras;  // serialized NodeProto fields that the IR does not model (doc_string, metadata, devices)
  QuantForm form = QuantForm::kNone;

  Graph* graph() const { return graph_; }
  std::span<Value* const> inputs() const { return inputs_; }    // null where an optional input is absent
  std::span<Value* const> outputs() const { return outputs_; }  // null where an optional output is absent
  Value* input(std::size_t i) const { return i < inputs_.size() ? inputs_[i] : nullptr; }
  Value* output(std::size_t i = 0) const { return i < outputs_.size() ? outputs_[i] : nullptr; }

  void SetInput(std::size_t i, Value* value);  // grows the list with nulls where needed
  void ResizeInputs(std::size_t n);            // drops trailing inputs, or grows the list with nulls
  void SetOp(std::string op, std::string domain = {});

  std::vector<Attribute>& attributes() { return attributes_; }
  const std::vector<Attribute>& attributes() const { return attributes_; }
  const Attribute* FindAttribute(std::string_view name) const;
  std::int64_t IntAttribute(std::string_view name, std::int64_t fallback) const;  // fallback when absent or other kind
  float FloatAttribute(std::string_view name, float fallback) const;
  std::string StringAttribute(std::string_view name, std::string fallback) const;
  const std::vector<std::int64_t>* IntsAttribute(std::string_view name) const;  // null when absent
  // Adds or replaces; a graph must have this node's graph as its parent (kInternal otherwise).
  void SetAttribute(std::string name, AttributeValue value);
  void RemoveAttribute(std::string_view name);
  std::vector<Graph*> subgraphs() const;  // of the attributes, in their order

  Node* next() const { return next_; }
  Node* prev() const { return prev_; }
  bool Is(std::string_view op, std::string_view domain = {}) const { return op_ == op && domain_ == domain; }

 private:
  friend class Graph;
  friend struct GraphTestPeer;
  Node() = default;
  std::string op_, domain_;
  Graph* graph_ = nullptr;
  std::vector<Value*> inputs_, outputs_;
  std::vector<std::size_t> slots_;  // slots_[i]: where in inputs_[i]->uses_ this use stands, so that it drops in O(1)
  std::vector<Attribute> attributes_;
  bool queued_ = false;  // scratch of EraseDead
  Node* next_ = nullptr;
  Node* prev_ = nullptr;
};

// Operators that exist only inside the IR.
//   Quantize(x: float) -> y: type.quant        y's QuantType says how
//   Dequantize(x: type.quant) -> y: float
//   Requantize(x: type.quant) -> y: type.quant  dequantize to f32, then quantize
//   StorageCast(x) -> y    raw integer codes <-> quantized value of the same storage; no arithmetic
inline constexpr std::string_view kIrDomain = "octavo.ir";
inline constexpr std::string_view kQuantize = "Quantize";
inline constexpr std::string_view kDequantize = "Dequantize";
inline constexpr std::string_view kRequantize = "Requantize";
inline constexpr std::string_view kStorageCast = "StorageCast";

class Graph {
 public:
  explicit Graph(Graph* parent = nullptr);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  std::string name;
  std::string extras;  // serialized GraphProto fields that the IR does not model
  Graph* parent() const { return parent_; }

  // Values. A name is unique within its graph, the enclosing graphs and the subgraphs (so that a capture can always be
  // said by name); two branches of one node may use the same name. An empty or taken name is made unique by a numeric
  // suffix ("x" -> "x_1").
  Value* AddInput(std::string name, Type type);
  Value* AddConstant(std::string name, TensorRef data);  // type from data
  Value* AddConstant(std::string name, TensorRef data, Type type);
  Value* FindValue(std::string_view name) const;  // this graph only
  Value* Lookup(std::string_view name) const;     // this graph, then enclosing ones
  bool NameTaken(std::string_view name) const;    // in this graph, enclosing ones or subgraphs
  std::string UniqueName(std::string_view base) const;
  void Rename(Value* value, std::string name);  // kInternal if taken
  // After a replacement, the new value takes the name that the outside knows. Both values must be of this graph.
  void SwapNames(Value* a, Value* b);

  std::span<Value* const> inputs() const { return inputs_; }
  std::span<Value* const> outputs() const { return outputs_; }  // a value may appear more than once
  std::vector<Value*> constants() const;                        // in order of creation
  std::size_t constant_count() const { return constants_.size(); }
  void AddOutput(Value* value);
  void SetOutput(std::size_t i, Value* value);
  void PopOutput();  // the last graph output is one no more
  // Removes a graph input without uses.
  void EraseInput(Value* value);

  // Nodes. A new node is put before `before` (null: at the end). Output names as for values; an empty string with
  // `optional` semantics is expressed by AddNode + nullptr via `absent_outputs`.
  struct OutputSpec {
    std::string name;  // "" makes the output absent (nullptr)
    Type type;
  };
  Node* AddNode(std::string op, std::string domain, std::vector<Value*> inputs, std::vector<OutputSpec> outputs,
                Node* before = nullptr);
  Node* first() const { return first_; }
  Node* last() const { return last_; }
  std::size_t node_count() const { return node_count_; }
  std::vector<Node*> nodes() const;  // snapshot in execution order, safe against edits
  void MoveBefore(Node* node, Node* before);

  // Every use of `from` (nodes, subgraph captures, graph outputs) becomes a use of `to`.
  void ReplaceAllUses(Value* from, Value* to);
  // The same, but the uses by `except` stay: for inserting a node after a value.
  void ReplaceAllUses(Value* from, Value* to, const Node* except);
  void ReplaceOutputUses(Value* from, Value* to);  // only uses as graph output
  void Erase(Node* node);       // outputs must be dead; its output values go with it; subgraph captures are released
  void Erase(Value* constant);  // a constant without uses
  void EraseResult(Node* node, std::size_t i);  // makes a dead output absent (nullptr)
  // Erases nodes and constants that nothing uses, in subgraphs too. A node, its operator known or not, is kept only if
  // it has a live output. Returns how many nodes went. O(nodes + edges).
  std::size_t EraseDead();

  // Stable topological order (ties by present order) after edits that may have broken it; kBadInput naming a node on a
  // cycle. Subgraphs are sorted too; a capture counts as an input of the node that holds the subgraph.
  // O((nodes + edges) * nesting depth).
  void SortTopologically();

 private:
  friend class Node;
  friend class Value;
  friend struct GraphTestPeer;
  static void AddUse(Value* value, Node* node, std::size_t index);
  static void DropUse(Node* node, std::size_t index);
  static void DropOutputUse(Value* value, const Graph* graph, std::size_t index);
  Value* NewValue(std::string name, ValueKind kind, Type type);  // the name must be free
  void CountName(const std::string& name);                       // in the enclosing graphs
  void UncountName(const std::string& name);
  void Destroy(Value* value);
  void Link(Node* node, Node* before);
  void Unlink(Node* node);

  Graph* parent_;
  std::vector<Value*> inputs_, outputs_;
  std::unordered_map<std::string, std::unique_ptr<Value>> values_;
  std::unordered_map<std::string, std::uint32_t> nested_names_;  // names in subgraphs, how often
  mutable std::unordered_map<std::string, std::uint64_t> next_suffix_;
  std::map<std::uint64_t, Value*> constants_;  // by order of creation
  Node* first_ = nullptr;                      // owned, linked
  Node* last_ = nullptr;
  std::size_t node_count_ = 0;
  std::uint64_t next_order_ = 0;
};

struct OpsetImport {
  std::string domain;
  std::int64_t version;
};

// A whole model. What the IR does not model is kept serialized and comes out again.
struct Model {
  std::int64_t ir_version = 8;
  std::vector<OpsetImport> opsets;
  std::map<std::string, std::string> metadata;  // metadata_props, order not kept (ONNX gives it no meaning)
  std::string extras;                           // serialized ModelProto without graph, opsets, metadata
  std::vector<std::string> functions;           // serialized FunctionProtos, untouched
  std::vector<std::string> function_ids;        // "domain:name[:overload]" of each, in the same order
  std::unique_ptr<Graph> graph;
  std::string source;  // path it was read from, for messages

  // 0 when the domain is not imported; "ai.onnx" is the domain "".
  std::int64_t OpsetVersion(std::string_view domain = {}) const;
  void SetOpsetVersion(std::string_view domain, std::int64_t version);
};

// A deep copy; constant data are shared views.
Model Clone(const Model& model);
// A deep copy of a graph as a graph within `parent` (null: a graph of its own). `mapping` gives what captured values
// become (those it lacks stay themselves) and receives the copy of every value. Names are kept where they are free.
std::unique_ptr<Graph> Clone(const Graph& graph, Graph* parent, std::unordered_map<const Value*, Value*>& mapping);

// Calls fn(node) for every node of the graph and of its subgraphs, outer before inner. fn may edit but not erase its
// node.
void VisitNodes(Graph& graph, const std::function<void(Node&)>& fn);
void VisitNodes(const Graph& graph, const std::function<void(const Node&)>& fn);

}  // namespace octavo
