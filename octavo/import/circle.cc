#include "octavo/import/circle.h"

#include <circle_generated.h>
#include <flatbuffers/minireflect.h>

#include <algorithm>
#include <cstring>

#include "octavo/base/error.h"

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
    if (Size(source_->subgraphs()) != 1) {
      ThrowUnsupported("a file with " + std::to_string(Size(source_->subgraphs())) + " subgraphs", where_,
                       "only one is read");
    }
    graph_ = source_->subgraphs()->Get(0);
    Model model;
    model.ir_version = 10;
    // The oldest that has every operator read here: quantized types that need a later one raise it when they are
    // written. From 21 on, onnxruntime's conversion of s8 pairs to u8 leaves their output_dtype behind and refuses the
    // model for it.
    model.SetOpsetVersion("", 20);
    model.source = where_;
    model.graph = std::make_unique<Graph>();
    out_ = model.graph.get();
    out_->name = graph_->name() == nullptr || graph_->name()->size() == 0 ? "main" : graph_->name()->str();
    values_.assign(Size(graph_->tensors()), nullptr);
    for (std::size_t i = 0; i < Size(graph_->inputs()); ++i) {
      const std::int32_t t = graph_->inputs()->Get(static_cast<flatbuffers::uoffset_t>(i));
      Check(t);
      if (values_[static_cast<std::size_t>(t)] != nullptr) Bad("a graph input twice");
      values_[static_cast<std::size_t>(t)] = out_->AddInput(TensorName(t), TypeOfTensor(t));
    }
    for (std::size_t i = 0; i < Size(graph_->operators()); ++i)
      ReadOperator(*graph_->operators()->Get(static_cast<flatbuffers::uoffset_t>(i)));
    for (std::size_t i = 0; i < Size(graph_->outputs()); ++i)
      out_->AddOutput(Input(graph_->outputs()->Get(static_cast<flatbuffers::uoffset_t>(i))));
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
        if (d < 0) ThrowUnsupported("a dynamic shape", where_ + ", " + where, "write the file with fixed shapes");
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
    if (bytes.empty() && need != 0) Bad(where + " is read before it is written");
    if (!need || *need != bytes.size()) Bad(where + " has data that do not fit its shape and type");
    TensorRef data;
    if (file_ != nullptr) {
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
    if (table == nullptr) ThrowUnsupported("options of an operator that is not read", where_ + ", " + node.op());
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
    if (number == 124) {
      ThrowUnsupported("sparse weights (DENSIFY) are not read", where_, "write the file with dense weights");
    }
    if (name.empty()) {
      ThrowUnsupported("operator " + std::to_string(number) + " of the schema's list BuiltinOperator is not read",
                       where_);
    }
    std::vector<Value*> inputs;
    for (std::size_t i = 0; i < Size(op.inputs()); ++i) {
      const std::int32_t t = op.inputs()->Get(static_cast<flatbuffers::uoffset_t>(i));
      inputs.push_back(t == -1 ? nullptr : Input(t));
    }
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
    Node* node = out_->AddNode(std::string(name), std::string(kCircle), std::move(inputs), std::move(outputs));
    ReadOptions(op, *node);
    for (std::size_t i = 0; i < indices.size(); ++i) values_[static_cast<std::size_t>(indices[i])] = node->output(i);
  }

  std::span<const std::byte> bytes_;
  std::shared_ptr<const MappedFile> file_;
  std::string where_;
  const fbs::Model* source_ = nullptr;
  const fbs::SubGraph* graph_ = nullptr;
  Graph* out_ = nullptr;
  std::vector<Value*> values_;
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
