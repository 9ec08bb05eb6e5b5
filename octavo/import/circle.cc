#include "octavo/import/circle.h"

#include <circle_generated.h>
#include <flatbuffers/minireflect.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/import/circle_sparse.h"

namespace octavo {
namespace {

using fbs::TensorType;
constexpr std::string_view kCircle = "circle";

template <class V>
std::size_t Size(const V* vector) {
  return vector == nullptr ? 0 : vector->size();
}

std::string_view NameOf(const flatbuffers::TypeTable& table, std::int64_t value) {
  for (std::size_t i = 0; i < table.num_elems; ++i) {
    if ((table.values != nullptr ? table.values[i] : static_cast<std::int64_t>(i)) == value) return table.names[i];
  }
  return {};
}

DType ToDType(TensorType type) {
  switch (type) {
    case TensorType::FLOAT32:
      return DType::kF32;
    case TensorType::FLOAT16:
      return DType::kF16;
    case TensorType::BFLOAT16:
      return DType::kBF16;
    case TensorType::FLOAT64:
      return DType::kF64;
    case TensorType::INT4:
      return DType::kS4;
    case TensorType::UINT4:
      return DType::kU4;
    case TensorType::INT8:
      return DType::kS8;
    case TensorType::UINT8:
      return DType::kU8;
    case TensorType::INT16:
      return DType::kS16;
    case TensorType::UINT16:
      return DType::kU16;
    case TensorType::INT32:
      return DType::kS32;
    case TensorType::UINT32:
      return DType::kU32;
    case TensorType::INT64:
      return DType::kS64;
    case TensorType::UINT64:
      return DType::kU64;
    case TensorType::BOOL:
      return DType::kBool;
    default:
      return DType::kUndefined;
  }
}

class Reader {
 public:
  Reader(std::span<const std::byte> bytes, std::shared_ptr<const MappedFile> file, std::string where)
      : bytes_(bytes), file_(std::move(file)), where_(std::move(where)) {}

  Model Run() {
    if (!LooksLikeCircle(bytes_)) Bad("not a Circle or TFLite flatbuffer");
    // The identifier may be TFLite's: the tables are verified without it.
    flatbuffers::Verifier verifier(reinterpret_cast<const std::uint8_t*>(bytes_.data()),
                                   std::min<std::size_t>(bytes_.size(), FLATBUFFERS_MAX_BUFFER_SIZE - 1), 64,
                                   10'000'000);
    if (!verifier.VerifyBuffer<fbs::Model>(nullptr)) Bad("a malformed flatbuffer");
    source_ = fbs::GetModel(bytes_.data());
    if (Size(source_->subgraphs()) == 0) Bad("no subgraph");
    Model model;
    model.ir_version = 10;
    // The oldest that has every operator read here: quantized types that need a later one raise it when they are
    // written. From 21 on, onnxruntime's conversion of s8 pairs to u8 leaves their output_dtype behind and refuses the
    // model for it.
    model.SetOpsetVersion("", 20);
    model.source = where_;
    model.graph = std::make_unique<Graph>();
    main_ = model.graph.get();
    Enter(0, model.graph.get());
    for (std::size_t i = 0; i < Size(graph_->inputs()); ++i) {
      const std::int32_t t = graph_->inputs()->Get(static_cast<flatbuffers::uoffset_t>(i));
      Check(t);
      if (values_[static_cast<std::size_t>(t)] != nullptr) Bad("a graph input twice");
      values_[static_cast<std::size_t>(t)] = out_->AddInput(TensorName(t), TypeOfTensor(t));
    }
    ReadOperators();
    for (std::size_t i = 0; i < Size(graph_->outputs()); ++i)
      out_->AddOutput(Input(graph_->outputs()->Get(static_cast<flatbuffers::uoffset_t>(i))));
    for (const std::string& key : assigned_) out_->AddOutput(StateOutput(key, variables_.at(key)));
    return model;
  }

 private:
  [[noreturn]] void Bad(const std::string& what) const { ThrowBadInput(what, where_); }

  void Check(std::int32_t t) const {
    if (t < 0 || static_cast<std::size_t>(t) >= values_.size()) Bad("a tensor index outside of the graph");
  }
  const fbs::Tensor& TensorAt(std::int32_t t) const {
    return *graph_->tensors()->Get(static_cast<flatbuffers::uoffset_t>(t));
  }
  std::string TensorName(std::int32_t t) const {
    const auto* name = TensorAt(t).name();
    return name == nullptr || name->size() == 0 ? "tensor_" + std::to_string(t) : name->str();
  }

  Dims DimsOf(const fbs::Tensor& tensor) const {
    Dims dims;
    std::uint64_t elements = 1;
    for (std::size_t i = 0; i < Size(tensor.shape()); ++i) {
      const std::int32_t d = tensor.shape()->Get(static_cast<flatbuffers::uoffset_t>(i));
      if (d < 0 || __builtin_mul_overflow(elements, static_cast<std::uint64_t>(d), &elements) ||
          elements > (std::uint64_t{1} << 48)) {
        Bad("a tensor with an impossible shape");
      }
      dims.push_back(d);
    }
    return dims;
  }

  Type TypeOfTensor(std::int32_t t) const {
    const fbs::Tensor& tensor = TensorAt(t);
    const std::string where = "tensor '" + TensorName(t) + "'";
    if (tensor.shape_signature() != nullptr) {
      for (const std::int32_t d : *tensor.shape_signature()) {
        if (d < 0) {
          LogWarning(where_ + " leaves dimensions open: they are read as what the file holds, as its runtimes do");
        }
      }
    }
    Type type;
    type.shape.emplace();
    for (const std::int64_t d : DimsOf(tensor)) type.shape->push_back({d, {}});
    const auto* q = tensor.quantization();
    if (tensor.type() == TensorType::MXFP4 || tensor.type() == TensorType::MXINT8) {
      type.dtype = DType::kF32;
      QuantType quant;
      quant.kind = QuantType::Kind::kMx;
      quant.mx.format = tensor.type() == TensorType::MXFP4 ? "mxfp4" : "mxint8";
      if (q == nullptr) Bad(where + " is MX and has no axis");
      quant.mx.axis = q->details_type() == fbs::QuantizationDetails::MXQuantization && q->details() != nullptr
                          ? q->details_as_MXQuantization()->axis()
                          : q->quantized_dimension();
      if (quant.mx.axis < 0) quant.mx.axis += static_cast<std::int64_t>(type.shape->size());
      if (quant.mx.axis < 0 || quant.mx.axis >= static_cast<std::int64_t>(type.shape->size()))
        Bad(where + " has an MX axis outside of its shape");
      type.quant = quant;
      return type;
    }
    type.dtype = ToDType(tensor.type());
    if (type.dtype == DType::kUndefined) ThrowUnsupported("a tensor type that is not read", where_ + ", " + where);
    const std::size_t scales = q == nullptr ? 0 : Size(q->scale());
    if (scales == 0 || !IsInteger(type.dtype)) return type;
    if (q->zero_point() != nullptr && Size(q->zero_point()) != scales)
      Bad(where + " has unequal numbers of scales and zero points");
    QuantType quant;
    quant.affine.storage = type.dtype;
    std::vector<float> scale(q->scale()->begin(), q->scale()->end());
    std::vector<std::int64_t> zero(scales, 0);
    if (q->zero_point() != nullptr) zero.assign(q->zero_point()->begin(), q->zero_point()->end());
    for (std::size_t i = 0; i < scales; ++i) {
      if (!(scale[i] > 0) || scale[i] > 3e38f) Bad(where + " has a scale that is not positive and finite");
      const bool fits = BitWidth(type.dtype) > 32
                            ? zero[i] == 0
                            : zero[i] >= IntegerMin(type.dtype) && zero[i] <= IntegerMax(type.dtype);
      if (!fits) Bad(where + " has a zero point outside of its type");
    }
    Dims shape;
    if (scales > 1) {
      const std::int32_t axis = q->quantized_dimension();
      if (axis < 0 || static_cast<std::size_t>(axis) >= type.shape->size() ||
          (*type.shape)[static_cast<std::size_t>(axis)].value != static_cast<std::int64_t>(scales)) {
        Bad(where + " has scales that do not fit its quantized dimension");
      }
      quant.affine.axis = axis;
      shape = {static_cast<std::int64_t>(scales)};
    }
    quant.affine.scale = TensorRef::FromFloats(shape, scale);
    quant.affine.zero_point = TensorRef::FromInts(type.dtype, shape, zero);
    type.quant = std::move(quant);
    type.dtype = DType::kF32;
    return type;
  }

  // What is read from here on: a subgraph into a graph.
  void Enter(std::size_t subgraph, Graph* out) {
    if (!entered_.insert(subgraph).second) {
      ThrowUnsupported("a subgraph that is used twice, or by itself",
                       where_ + ", subgraph " + std::to_string(subgraph));
    }
    graph_ = source_->subgraphs()->Get(static_cast<flatbuffers::uoffset_t>(subgraph));
    out_ = out;
    out_->name = graph_->name() == nullptr || graph_->name()->size() == 0 ? "main" : graph_->name()->str();
    values_.assign(Size(graph_->tensors()), nullptr);
    handles_.clear();
  }

  void ReadOperators() {
    for (std::size_t i = 0; i < Size(graph_->operators()); ++i)
      ReadOperator(*graph_->operators()->Get(static_cast<flatbuffers::uoffset_t>(i)));
  }

  // fn() with another subgraph entered; then back to this one.
  template <class Fn>
  void Within(std::int64_t subgraph, Graph* out, Fn fn) {
    if (subgraph < 0 || static_cast<std::size_t>(subgraph) >= Size(source_->subgraphs())) {
      Bad("a subgraph that is not there");
    }
    const auto* graph = graph_;
    Graph* const outer = out_;
    std::vector<Value*> values = std::move(values_);
    std::map<std::int32_t, std::string> handles = std::move(handles_);
    Enter(static_cast<std::size_t>(subgraph), out);
    fn();
    graph_ = graph;
    out_ = outer;
    values_ = std::move(values);
    handles_ = std::move(handles);
  }

  // Before:  %y = IF(%c, %a) {then_subgraph_index=1, else_subgraph_index=2}
  // After:   the same node with a graph for each branch, which captures what the branch's inputs are.
  std::unique_ptr<Graph> ReadBranch(std::int64_t subgraph, std::span<Value* const> given, std::size_t outputs) {
    auto branch = std::make_unique<Graph>(out_);
    Within(subgraph, branch.get(), [&] {
      if (Size(graph_->inputs()) != given.size() || Size(graph_->outputs()) != outputs)
        Bad("a branch of IF whose inputs or outputs are not the operator's");
      for (std::size_t i = 0; i < given.size(); ++i) {
        const std::int32_t t = graph_->inputs()->Get(static_cast<flatbuffers::uoffset_t>(i));
        Check(t);
        values_[static_cast<std::size_t>(t)] = given[i];
      }
      ReadOperators();
      for (std::size_t i = 0; i < outputs; ++i) {
        Value* value = Input(graph_->outputs()->Get(static_cast<flatbuffers::uoffset_t>(i)));
        if (value->producer() == nullptr || value->graph() != out_) {  // a branch returns what it computes
          value = out_->AddNode("Identity", "", {value}, {{value->name() + "_out", value->type}})->output();
        }
        out_->AddOutput(value);
      }
    });
    return branch;
  }

  void ReadIf(const fbs::Operator& op) {
    const auto* options = op.builtin_options_as_IfOptions();
    std::vector<Value*> inputs = InputsOf(op);
    if (options == nullptr || inputs.empty()) Bad("an IF without a condition or branches");
    for (const Value* value : inputs) {
      if (value == nullptr) Bad("an IF that lacks an input");
    }
    const std::span<Value* const> given(inputs.begin() + 1, inputs.end());
    auto [indices, specs] = OutputsOf(op);
    Node* node = out_->AddNode("IF", std::string(kCircle), {inputs[0]}, std::move(specs));
    for (const bool then : {true, false}) {
      // The branch's values are older than the node, which they are part of.
      node->SetAttribute(
          then ? "then_branch" : "else_branch",
          ReadBranch(then ? options->then_subgraph_index() : options->else_subgraph_index(), given, indices.size()));
    }
    for (std::size_t i = 0; i < indices.size(); ++i) values_[static_cast<std::size_t>(indices[i])] = node->output(i);
  }

  // --- variables: what a file remembers from one run to the next becomes an input and an output of the graph
  // -----------

  const std::string& Handle(const fbs::Operator& op) const {
    const std::int32_t t = Size(op.inputs()) == 0 ? -1 : op.inputs()->Get(0);
    const auto it = handles_.find(t);
    if (it == handles_.end()) Bad("a variable that no VAR_HANDLE of its subgraph names");
    return it->second;
  }

  void ReadVarHandle(const fbs::Operator& op) {
    const auto* options = op.builtin_options_as_VarHandleOptions();
    if (Size(op.outputs()) != 1 || options == nullptr) Bad("a VAR_HANDLE without an output or options");
    const auto text = [](const flatbuffers::String* s) { return s == nullptr ? std::string() : s->str(); };
    const std::string container = text(options->container()), name = text(options->shared_name());
    const std::string key = container.empty() ? name : container + "/" + name;
    handles_[op.outputs()->Get(0)] = key.empty() ? "variable" : key;
  }

  void ReadVariable(const fbs::Operator& op) {
    if (out_ != main_) ThrowUnsupported("a variable that is read in a branch", where_);
    const std::string& key = Handle(op);
    auto [indices, specs] = OutputsOf(op);
    if (indices.size() != 1) Bad("a READ_VARIABLE without an output");
    Value*& now = variables_[key];
    if (now == nullptr) {
      Type plain = specs[0].type;
      plain.quant.reset();
      now = out_->AddInput(key, plain);
      if (specs[0].type.quant) {
        now = out_->AddNode(std::string(kQuantize), std::string(kIrDomain), {now}, std::move(specs))->output();
      }
    }
    values_[static_cast<std::size_t>(indices[0])] = now;
  }

  void AssignVariable(const fbs::Operator& op) {
    const std::string& key = Handle(op);
    if (Size(op.inputs()) != 2) Bad("an ASSIGN_VARIABLE without a value");
    Value* value = Input(op.inputs()->Get(1));
    if (initializing_) {
      if (!IsZero(*value)) {
        ThrowUnsupported("variable '" + key + "' does not begin with zeros", where_,
                         "its first value cannot be said by an input");
      }
      return;
    }
    if (out_ != main_) ThrowUnsupported("a variable that is written in a branch", where_);
    variables_[key] = value;
    if (std::find(assigned_.begin(), assigned_.end(), key) == assigned_.end()) assigned_.push_back(key);
  }

  // All of a constant's numbers are 0.
  static bool IsZero(const Value& value) {
    if (!value.is_constant() || !value.data) return false;
    if (value.type.quant) {
      if (value.type.quant->kind != QuantType::Kind::kAffine || value.type.quant->affine.axis) return false;
      const std::int64_t zero =
          value.type.quant->affine.zero_point ? value.type.quant->affine.zero_point->ToInts().at(0) : 0;
      const std::vector<std::int64_t> codes = value.data->ToInts();
      return std::all_of(codes.begin(), codes.end(), [&](std::int64_t c) { return c == zero; });
    }
    return std::all_of(value.data->bytes.begin(), value.data->bytes.end(),
                       [](std::byte b) { return b == std::byte{0}; });
  }

  // The subgraph that gives variables their first values: nothing but constants.
  void CallOnce(const fbs::Operator& op) {
    const auto* options = op.builtin_options_as_CallOnceOptions();
    if (options == nullptr || initializing_ || out_ != main_) Bad("a CALL_ONCE that is not at the beginning");
    Graph scratch;
    initializing_ = true;
    Within(options->init_subgraph_index(), &scratch, [&] { ReadOperators(); });
    initializing_ = false;
  }

  Value* StateOutput(const std::string& key, Value* value) {
    Type plain = value->type;
    plain.quant.reset();
    const bool codes = value->type.quant.has_value();
    return out_
        ->AddNode(codes ? std::string(kDequantize) : "Identity", codes ? std::string(kIrDomain) : "", {value},
                  {{out_->UniqueName(key + "_next"), plain}})
        ->output();
  }

  // The value of a tensor that is read: made already, or a constant.
  Value* Input(std::int32_t t) {
    Check(t);
    Value*& value = values_[static_cast<std::size_t>(t)];
    if (value != nullptr) return value;
    const fbs::Tensor& tensor = TensorAt(t);
    const std::string where = "tensor '" + TensorName(t) + "'";
    if (tensor.buffer() >= Size(source_->buffers())) Bad(where + " names a buffer that is not there");
    const fbs::Buffer& buffer = *source_->buffers()->Get(tensor.buffer());
    std::span<const std::byte> bytes;
    if (buffer.offset() > 1) {
      if (buffer.offset() > bytes_.size() || buffer.size() > bytes_.size() - buffer.offset())
        Bad(where + " has a payload outside of the file");
      bytes = bytes_.subspan(buffer.offset(), buffer.size());
    } else if (buffer.data() != nullptr) {
      bytes = {reinterpret_cast<const std::byte*>(buffer.data()->data()), buffer.data()->size()};
    }
    Type type = TypeOfTensor(t);
    const DType storage =
        type.quant && type.quant->kind == QuantType::Kind::kAffine ? type.quant->affine.storage : type.dtype;
    const Dims dims = DimsOf(tensor);
    const std::optional<std::uint64_t> need = ByteSize(storage, ElementCount(dims, where));
    if (type.quant && type.quant->kind == QuantType::Kind::kMx) Bad(where + " is MX and read before it is written");
    if (bytes.empty() && need != 0 && tensor.sparsity() == nullptr) Bad(where + " is read before it is written");
    TensorRef data;
    if (tensor.sparsity() != nullptr) {
      if (BitWidth(storage) % 8 != 0) ThrowUnsupported("sparse codes of less than a byte", where_ + ", " + where);
      auto dense = internal::Densify(*tensor.sparsity(), dims, static_cast<std::size_t>(BitWidth(storage)) / 8, bytes);
      if (!dense || need != dense->size()) Bad(where + " is sparse and its indices do not fit its shape or data");
      data = TensorRef::FromBytes(storage, dims, std::move(*dense));
    } else if (!need || *need != bytes.size()) {
      Bad(where + " has data that do not fit its shape and type");
    } else if (file_ != nullptr) {
      data.dtype = storage;
      data.dims = dims;
      data.bytes = bytes;
      data.owner = file_;
      data.file = file_;
    } else {
      data = TensorRef::FromBytes(storage, dims, std::vector<std::byte>(bytes.begin(), bytes.end()));
    }
    value = out_->AddConstant(TensorName(t), std::move(data), std::move(type));
    return value;
  }

  void ReadOptions(const fbs::Operator& op, Node& node) {
    const auto number = static_cast<std::int64_t>(op.builtin_options_type());
    if (number == 0 || op.builtin_options() == nullptr) return;
    const flatbuffers::TypeTable& all = *fbs::BuiltinOptionsTypeTable();
    const flatbuffers::TypeTable* table = nullptr;
    for (std::size_t i = 0; i < all.num_elems; ++i) {
      if ((all.values != nullptr ? all.values[i] : static_cast<std::int64_t>(i)) == number &&
          all.type_codes[i].sequence_ref >= 0) {
        table = all.type_refs[all.type_codes[i].sequence_ref]();
      }
    }
    if (table == nullptr) ThrowUnsupported("operator " + node.op() + " is not read", where_);
    const auto* options = static_cast<const flatbuffers::Table*>(op.builtin_options());
    for (std::size_t i = 0; i < table->num_elems; ++i) {
      const flatbuffers::TypeCode& code = table->type_codes[i];
      const auto slot = static_cast<flatbuffers::voffset_t>(4 + 2 * i);
      if (code.is_repeating || !options->CheckField(slot)) continue;
      switch (code.base_type) {
        case flatbuffers::ET_BOOL:
          node.SetAttribute(table->names[i], std::int64_t{options->GetField<std::uint8_t>(slot, 0) != 0});
          break;
        case flatbuffers::ET_CHAR: {
          // NOLINTNEXTLINE(bugprone-signed-char-misuse): a number of 8 bits, not a character
          const std::int64_t value = options->GetField<std::int8_t>(slot, 0);
          if (code.sequence_ref < 0) {
            node.SetAttribute(table->names[i], value);
            break;
          }
          const std::string_view name = NameOf(*table->type_refs[code.sequence_ref](), value);
          if (name.empty()) Bad("an option of " + node.op() + " with an unknown value");
          node.SetAttribute(table->names[i], std::string(name));
          break;
        }
        case flatbuffers::ET_INT:
          node.SetAttribute(table->names[i], std::int64_t{options->GetField<std::int32_t>(slot, 0)});
          break;
        case flatbuffers::ET_FLOAT:
          node.SetAttribute(table->names[i], options->GetField<float>(slot, 0));
          break;
        default:
          break;
      }
    }
  }

  void ReadOperator(const fbs::Operator& op) {
    if (op.opcode_index() >= Size(source_->operator_codes())) Bad("an operator whose code is not there");
    const fbs::OperatorCode& code = *source_->operator_codes()->Get(op.opcode_index());
    // Old files have only the byte.
    std::int64_t number = static_cast<std::int64_t>(code.builtin_code());
    if (number == 0 || number == 127) number = std::max<std::int64_t>(number, code.deprecated_builtin_code());
    const std::string_view name = NameOf(*fbs::BuiltinOperatorTypeTable(), number);
    if (name == "CUSTOM") {
      ThrowUnsupported("custom operator '" +
                           (code.custom_code() == nullptr ? std::string() : code.custom_code()->str()) +
                           "' is not read",
                       where_, "only operators of the schema are: leave that part out");
    }
    if (name.empty()) {
      ThrowUnsupported("operator " + std::to_string(number) + " of the schema's list BuiltinOperator is not read",
                       where_);
    }
    if (name == "VAR_HANDLE") return ReadVarHandle(op);
    if (name == "ASSIGN_VARIABLE") return AssignVariable(op);
    if (initializing_) {
      ThrowUnsupported(std::string(name) + " where variables get their first values is not read", where_,
                       "only constants are");
    }
    if (name == "READ_VARIABLE") return ReadVariable(op);
    if (name == "CALL_ONCE") return CallOnce(op);
    if (name == "IF") return ReadIf(op);
    std::vector<Value*> inputs = InputsOf(op, name == "UNIDIRECTIONAL_SEQUENCE_LSTM");
    auto [indices, outputs] = OutputsOf(op);
    if (name == "DENSIFY") {  // a sparse constant is dense when it is read
      if (inputs.size() != 1 || indices.size() != 1 || inputs[0] == nullptr || !inputs[0]->is_constant())
        Bad("a DENSIFY that is not of a constant");
      values_[static_cast<std::size_t>(indices[0])] = inputs[0];
      return;
    }
    Node* node = out_->AddNode(std::string(name), std::string(kCircle), std::move(inputs), std::move(outputs));
    ReadOptions(op, *node);
    for (std::size_t i = 0; i < indices.size(); ++i) values_[static_cast<std::size_t>(indices[i])] = node->output(i);
  }

  // `state`: a variable tensor without data is absent, not a fault.
  std::vector<Value*> InputsOf(const fbs::Operator& op, bool state = false) {
    std::vector<Value*> inputs;
    for (std::size_t i = 0; i < Size(op.inputs()); ++i) {
      const std::int32_t t = op.inputs()->Get(static_cast<flatbuffers::uoffset_t>(i));
      if (t != -1) Check(t);
      const bool absent =
          t == -1 || (state && TensorAt(t).is_variable() && values_[static_cast<std::size_t>(t)] == nullptr);
      inputs.push_back(absent ? nullptr : Input(t));
    }
    return inputs;
  }

  std::pair<std::vector<std::int32_t>, std::vector<Graph::OutputSpec>> OutputsOf(const fbs::Operator& op) {
    std::vector<Graph::OutputSpec> outputs;
    std::vector<std::int32_t> indices;
    for (std::size_t i = 0; i < Size(op.outputs()); ++i) {
      const std::int32_t t = op.outputs()->Get(static_cast<flatbuffers::uoffset_t>(i));
      Check(t);
      if (values_[static_cast<std::size_t>(t)] != nullptr ||
          std::find(indices.begin(), indices.end(), t) != indices.end()) {
        Bad("tensor '" + TensorName(t) + "' is written twice, or after it is read");
      }
      indices.push_back(t);
      outputs.push_back({out_->UniqueName(TensorName(t)), TypeOfTensor(t)});
    }
    return {std::move(indices), std::move(outputs)};
  }

  std::span<const std::byte> bytes_;
  std::shared_ptr<const MappedFile> file_;
  std::string where_;
  const fbs::Model* source_ = nullptr;
  const fbs::SubGraph* graph_ = nullptr;
  Graph* out_ = nullptr;
  Graph* main_ = nullptr;
  std::vector<Value*> values_;                   // of this subgraph's tensors
  std::map<std::int32_t, std::string> handles_;  // of this subgraph's tensors: the variable that they name
  std::set<std::size_t> entered_;
  std::map<std::string, Value*> variables_;  // what each holds now
  std::vector<std::string> assigned_;
  bool initializing_ = false;
};

}  // namespace

bool LooksLikeCircle(std::span<const std::byte> head) {
  return head.size() >= 8 &&
         (std::memcmp(head.data() + 4, "CIR0", 4) == 0 || std::memcmp(head.data() + 4, "TFL3", 4) == 0);
}

Model ReadCircle(const std::filesystem::path& path) { return ReadCircle(MappedFile::Open(path)); }

Model ReadCircle(std::shared_ptr<const MappedFile> file) {
  const std::string where = file->path().string();
  const std::span<const std::byte> bytes = file->bytes();
  return Reader(bytes, std::move(file), where).Run();
}

Model ReadCircle(std::span<const std::byte> bytes, const std::string& where) {
  return Reader(bytes, nullptr, where).Run();
}

}  // namespace octavo
