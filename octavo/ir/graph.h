// The graph: values in SSA form, nodes in execution order, use lists, constants, subgraphs.
//
// Ownership: a Graph owns its nodes and values; a subgraph is owned by the attribute that holds it and may use values
// of the enclosing graphs (a capture is an ordinary use of that value). Pointers stay valid until the object is erased.
// Edits keep use lists exact; Verify() checks every invariant. All edits are O(size of what is edited).
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

  Node* producer() const { return producer_; }            // null for inputs and constants
  std::size_t output_index() const { return output_index_; }
  std::span<const Use> uses() const { return uses_; }
  bool is_graph_output() const { return output_uses_ > 0; }
  // No use by a node or as a graph output.
  bool dead() const { return uses_.empty() && output_uses_ == 0; }
  bool is_constant() const { return kind_ == ValueKind::kConstant; }

 private:
  friend class Graph;
  friend class Node;
  Value() = default;
  std::string name_;
  ValueKind kind_ = ValueKind::kResult;
  Graph* graph_ = nullptr;
  Node* producer_ = nullptr;
  std::size_t output_index_ = 0;
  std::vector<Use> uses_;
  int output_uses_ = 0;
};

// A serialized AttributeProto that the IR does not model (type protos, sparse tensors, graph lists, references).
struct OpaqueAttribute {
  std::string bytes;
};

using AttributeValue = std::variant<std::int64_t, float, std::string, TensorRef, std::vector<std::int64_t>,
                                    std::vector<float>, std::vector<std::string>, std::unique_ptr<Graph>, OpaqueAttribute>;

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
  void ResizeInputs(std::size_t n);            // drops trailing inputs
  void SetOp(std::string op, std::string domain = {});

  std::vector<Attribute>& attributes() { return attributes_; }
  const std::vector<Attribute>& attributes() const { return attributes_; }
  const Attribute* FindAttribute(std::string_view name) const;
  std::int64_t IntAttribute(std::string_view name, std::int64_t fallback) const;  // fallback when absent or other kind
  float FloatAttribute(std::string_view name, float fallback) const;
  std::string StringAttribute(std::string_view name, std::string fallback) const;
  const std::vector<std::int64_t>* IntsAttribute(std::string_view name) const;    // null when absent
  void SetAttribute(std::string name, AttributeValue value);                     // adds or replaces
  void RemoveAttribute(std::string_view name);

  Node* next() const { return next_; }
  Node* prev() const { return prev_; }
  bool Is(std::string_view op, std::string_view domain = {}) const { return op_ == op && domain_ == domain; }

 private:
  friend class Graph;
  Node() = default;
  std::string op_, domain_;
  Graph* graph_ = nullptr;
  std::vector<Value*> inputs_, outputs_;
  std::vector<Attribute> attributes_;
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

  // Values. Names are unique within a graph and not those of an enclosing graph's visible values; an empty or taken
  // name is made unique by a numeric suffix.
  Value* AddInput(std::string name, Type type);
  Value* AddConstant(std::string name, TensorRef data);            // type from data
  Value* AddConstant(std::string name, TensorRef data, Type type);
  Value* FindValue(std::string_view name) const;                   // this graph only
  Value* Lookup(std::string_view name) const;                      // this graph, then enclosing ones
  std::string UniqueName(std::string_view base) const;
  void Rename(Value* value, std::string name);                     // kInternal if taken

  std::span<Value* const> inputs() const { return inputs_; }
  std::span<Value* const> outputs() const { return outputs_; }     // a value may appear more than once
  std::vector<Value*> constants() const;                           // in order of creation
  std::size_t constant_count() const { return constant_count_; }
  void AddOutput(Value* value);
  void SetOutput(std::size_t i, Value* value);
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
  void ReplaceOutputUses(Value* from, Value* to);                  // only uses as graph output
  void Erase(Node* node);   // outputs must be dead; its output values go with it; subgraph captures are released
  void Erase(Value* constant);  // a constant without uses
  // Erases nodes and constants that nothing uses. A node whose operator is unknown is kept only if it has a live output.
  // Returns how many nodes went.
  std::size_t EraseDead();

  // Stable topological order (ties by present order) after edits that may have broken it; kBadInput naming a node on a
  // cycle. O(nodes + edges).
  void SortTopologically();

 private:
  friend class Node;
  friend class Value;
  void AddUse(Value* value, Node* node, std::size_t index);
  void DropUse(Value* value, Node* node, std::size_t index);
  Value* NewValue(std::string name, ValueKind kind, Type type);
  void Destroy(Value* value);

  Graph* parent_;
  std::vector<Value*> inputs_, outputs_;
  std::unordered_map<std::string, std::unique_ptr<Value>> values_;
  std::map<std::uint64_t, Value*> constants_by_order_;
  std::unordered_map<const Value*, std::uint64_t> constant_order_;
  std::unordered_map<const Node*, std::unique_ptr<Node>> owned_nodes_;
  Node* first_ = nullptr;
  Node* last_ = nullptr;
  std::size_t node_count_ = 0;
  std::size_t constant_count_ = 0;
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
  std::map<std::string, std::string> metadata;   // metadata_props, order not kept (ONNX gives it no meaning)
  std::string extras;                            // serialized ModelProto without graph, opsets, metadata
  std::vector<std::string> functions;            // serialized FunctionProtos, untouched
  std::vector<std::string> function_ids;         // "domain:name[:overload]" of each, in the same order
  std::unique_ptr<Graph> graph;
  std::string source;                            // path it was read from, for messages

  std::int64_t OpsetVersion(std::string_view domain = {}) const;  // 0 when the domain is not imported
  void SetOpsetVersion(std::string_view domain, std::int64_t version);
};

// A deep copy; constant data are shared views.
Model Clone(const Model& model);

// Calls fn(node) for every node of the graph and of its subgraphs, outer before inner.
void VisitNodes(Graph& graph, const std::function<void(Node&)>& fn);
void VisitNodes(const Graph& graph, const std::function<void(const Node&)>& fn);

}  // namespace octavo
