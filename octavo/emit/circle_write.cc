#include <algorithm>
#include <limits>
#include <string_view>
#include <unordered_map>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/output.h"
#include "octavo/emit/circle.h"
#include "octavo/emit/circle_schema.h"

namespace octavo {
namespace {

using internal::CircleOp;
constexpr std::uint64_t kAlignment = 16;

std::uint64_t AlignUp(std::uint64_t n) { return (n + kAlignment - 1) / kAlignment * kAlignment; }

class Writer {
 public:
  // `payload`: where the payload begins, for constants outside of the flatbuffer; unset: constants inside.
  Writer(const Model& model, std::optional<std::uint64_t> payload) : model_(model), payload_(payload) {}

  // The finished flatbuffer.
  flatbuffers::DetachedBuffer Run() {
    buffers_.push_back(fbs::CreateBuffer(builder_));  // buffer 0 is empty
    const Graph& graph = *model_.graph;
    for (const Value* input : graph.inputs()) AddTensor(*input);
    for (const Value* constant : graph.constants()) AddTensor(*constant);
    std::vector<flatbuffers::Offset<fbs::Operator>> operators;
    for (const Node* node = graph.first(); node != nullptr; node = node->next()) {
      for (const Value* output : node->outputs()) {
        if (output == nullptr) ThrowInternal("an operator of a Circle graph lacks an output", node->name);
        AddTensor(*output);
      }
      operators.push_back(WriteOperator(*node));
    }
    const auto indices = [&](std::span<Value* const> values) {
      std::vector<std::int32_t> out;
      for (const Value* value : values) out.push_back(tensor_of_.at(value));
      return builder_.CreateVector(out);
    };
    const auto inputs = indices(graph.inputs()), outputs = indices(graph.outputs());
    const auto subgraph = fbs::CreateSubGraph(builder_, builder_.CreateVector(tensors_), inputs, outputs,
                                              builder_.CreateVector(operators), builder_.CreateString(graph.name));
    const auto subgraphs = builder_.CreateVector(&subgraph, 1);
    const auto description = builder_.CreateString("octavo");
    const auto codes = builder_.CreateVector(codes_);
    const auto buffers = builder_.CreateVector(buffers_);
    builder_.ForceDefaults(true);  // the version is written though it is 0: who reads it as TFLite sets it to 3
    fbs::FinishModelBuffer(builder_, fbs::CreateModel(builder_, 0, codes, subgraphs, description, buffers));
    return builder_.Release();
  }

  const std::vector<const TensorRef*>& outside() const { return outside_; }
  std::uint64_t outside_bytes() const { return end_; }

 private:
  std::uint32_t AddBuffer(const TensorRef& data) {
    // Equal constants are one buffer: the steps of a recurrent operator read the same weights.
    const std::string_view bytes_of(reinterpret_cast<const char*>(data.bytes.data()), data.bytes.size());
    const auto [it, fresh] = buffer_of_.try_emplace(bytes_of, static_cast<std::uint32_t>(buffers_.size()));
    if (!fresh) return it->second;
    const auto index = static_cast<std::uint32_t>(buffers_.size());
    if (payload_) {
      buffers_.push_back(fbs::CreateBuffer(builder_, 0, *payload_ + end_, data.bytes.size()));
      end_ = AlignUp(end_ + data.bytes.size());
      outside_.push_back(&data);
    } else {
      builder_.ForceVectorAlignment(data.bytes.size(), 1, kAlignment);
      const auto bytes =
          builder_.CreateVector(reinterpret_cast<const std::uint8_t*>(data.bytes.data()), data.bytes.size());
      buffers_.push_back(fbs::CreateBuffer(builder_, bytes));
    }
    return index;
  }

  flatbuffers::Offset<fbs::QuantizationParameters> WriteQuantization(const Value& value) {
    const QuantType& quant = *value.type.quant;
    if (quant.kind == QuantType::Kind::kMx) {
      const auto axis = static_cast<std::int32_t>(quant.mx.axis);
      const auto details = fbs::CreateMXQuantization(builder_, axis);
      fbs::QuantizationParametersBuilder b(builder_);
      b.add_details_type(fbs::QuantizationDetails::MXQuantization);
      b.add_details(details.Union());
      b.add_quantized_dimension(axis);
      return b.Finish();
    }
    const Affine& affine = quant.affine;
    if (affine.block != 0) {
      ThrowUnsupported("Circle has no blocked affine tensors that a consumer reads", "value '" + value.name() + "'",
                       "use a per-axis type");
    }
    std::vector<float> scales = affine.scale.ToFloats();
    std::vector<std::int64_t> zeros(scales.size(), 0);
    if (affine.zero_point) zeros = affine.zero_point->ToInts();
    const auto scale = builder_.CreateVector(scales);
    const auto zero = builder_.CreateVector(zeros);
    return fbs::CreateQuantizationParameters(builder_, 0, 0, scale, zero, fbs::QuantizationDetails::NONE, 0,
                                             static_cast<std::int32_t>(affine.axis.value_or(0)));
  }

  void AddTensor(const Value& value) {
    const std::string where = "value '" + value.name() + "'";
    const std::optional<fbs::TensorType> type = internal::CircleTypeOf(value.type);
    if (!type) {
      const bool mx = value.type.quant && value.type.quant->kind == QuantType::Kind::kMx;
      ThrowUnsupported("Circle has no tensors of this type", where + ", " + ToString(value.type),
                       mx ? "its MX tensors are mxint8 and mxfp4 in blocks of 32" : "");
    }
    const std::optional<Dims> dims = StaticShape(value.type);
    if (!dims) ThrowInternal("a value of a Circle graph has no static shape", where);
    std::vector<std::int32_t> shape;
    for (const std::int64_t d : *dims) {
      if (d > std::numeric_limits<std::int32_t>::max()) ThrowUnsupported("a dimension does not fit in 32 bits", where);
      shape.push_back(static_cast<std::int32_t>(d));
    }
    std::uint32_t buffer = 0;
    if (value.is_constant()) {
      if (value.type.quant && value.type.quant->kind == QuantType::Kind::kMx) {
        ThrowInternal("a constant of MX codes in a Circle graph", where);
      }
      buffer = AddBuffer(*value.data);
    }
    flatbuffers::Offset<fbs::QuantizationParameters> quantization;
    if (value.type.quant) quantization = WriteQuantization(value);
    const auto name = builder_.CreateString(value.name());
    const auto shape_vector = builder_.CreateVector(shape);
    tensor_of_[&value] = static_cast<std::int32_t>(tensors_.size());
    tensors_.push_back(fbs::CreateTensor(builder_, shape_vector, *type, buffer, name, quantization));
  }

  std::uint32_t CodeOf(const Node& node) {
    const auto [it, fresh] = code_of_.emplace(node.op(), static_cast<std::uint32_t>(codes_.size()));
    if (fresh) {
      const auto code = internal::SchemaValue(*fbs::BuiltinOperatorTypeTable(), node.op());
      if (!code) ThrowInternal("no Circle operator has this name", node.op());
      codes_.push_back(fbs::CreateOperatorCode(builder_, static_cast<std::int8_t>(std::min<std::int64_t>(*code, 127)),
                                               0, 1, static_cast<fbs::BuiltinOperator>(*code)));
    }
    return it->second;
  }

  // The options table, field by field as the schema has it: every field is an attribute of the node, or left out.
  flatbuffers::Offset<void> WriteOptions(const Node& node, const flatbuffers::TypeTable& table) {
    for (const Attribute& attribute : node.attributes()) {
      if (!internal::SchemaValue(table, attribute.name)) {
        ThrowInternal("attribute '" + attribute.name + "' is no option of " + node.op(), node.name);
      }
    }
    const auto start = builder_.StartTable();
    builder_.ForceDefaults(true);
    for (std::size_t i = 0; i < table.num_elems; ++i) {
      const Attribute* attribute = node.FindAttribute(table.names[i]);
      if (attribute == nullptr) continue;
      const flatbuffers::TypeCode& code = table.type_codes[i];
      const auto slot = static_cast<flatbuffers::voffset_t>(4 + 2 * i);
      std::int64_t number = 0;
      float real = 0;
      if (const auto* text = std::get_if<std::string>(&attribute->value)) {
        const auto value =
            code.sequence_ref < 0 ? std::nullopt : internal::SchemaValue(*table.type_refs[code.sequence_ref](), *text);
        if (!value) ThrowInternal("'" + *text + "' is no value of option '" + attribute->name + "'", node.op());
        number = *value;
      } else if (const auto* integer = std::get_if<std::int64_t>(&attribute->value)) {
        number = *integer;
      } else if (const auto* f = std::get_if<float>(&attribute->value)) {
        real = *f;
      } else {
        ThrowInternal("option '" + attribute->name + "' has a kind that is not written", node.op());
      }
      switch (code.base_type) {
        case flatbuffers::ET_BOOL:
          builder_.AddElement<std::uint8_t>(slot, number != 0 ? 1 : 0, 0);
          break;
        case flatbuffers::ET_CHAR:
          builder_.AddElement<std::int8_t>(slot, static_cast<std::int8_t>(number), 0);
          break;
        case flatbuffers::ET_INT:
          builder_.AddElement<std::int32_t>(slot, static_cast<std::int32_t>(number), 0);
          break;
        case flatbuffers::ET_FLOAT:
          builder_.AddElement<float>(slot, real, 0);
          break;
        default:
          ThrowInternal("option '" + attribute->name + "' has a type that is not written", node.op());
      }
    }
    builder_.ForceDefaults(false);
    return flatbuffers::Offset<void>(builder_.EndTable(start));
  }

  flatbuffers::Offset<fbs::Operator> WriteOperator(const Node& node) {
    const CircleOp* op = internal::FindCircleOp(node.op());
    if (node.domain() != kCircleDomain || op == nullptr) ThrowInternal("not an operator of Circle", node.op());
    std::int64_t number = 0;
    flatbuffers::Offset<void> options;
    if (!op->options.empty()) {
      number = internal::SchemaValue(*fbs::BuiltinOptionsTypeTable(), op->options).value();
      options = WriteOptions(node, *internal::OptionsTable(number));
    }
    std::vector<std::int32_t> inputs, outputs;
    for (const Value* value : node.inputs()) inputs.push_back(value == nullptr ? -1 : tensor_of_.at(value));
    for (const Value* value : node.outputs()) outputs.push_back(tensor_of_.at(value));
    const std::uint32_t code = CodeOf(node);
    const auto in = builder_.CreateVector(inputs), out = builder_.CreateVector(outputs);
    return fbs::CreateOperator(builder_, code, in, out, static_cast<fbs::BuiltinOptions>(number), options);
  }

  const Model& model_;
  std::optional<std::uint64_t> payload_;
  std::uint64_t end_ = 0;
  flatbuffers::FlatBufferBuilder builder_{1 << 16};
  std::vector<flatbuffers::Offset<fbs::Buffer>> buffers_;
  std::vector<flatbuffers::Offset<fbs::Tensor>> tensors_;
  std::vector<flatbuffers::Offset<fbs::OperatorCode>> codes_;
  std::unordered_map<std::string, std::uint32_t> code_of_;
  std::unordered_map<const Value*, std::int32_t> tensor_of_;
  std::unordered_map<std::string_view, std::uint32_t> buffer_of_;  // by the bytes that it holds
  std::vector<const TensorRef*> outside_;
};

std::span<const std::byte> Bytes(const flatbuffers::DetachedBuffer& buffer) {
  return {reinterpret_cast<const std::byte*>(buffer.data()), buffer.size()};
}

void Check(std::span<const std::byte> file, const std::string& where, std::uint64_t file_bytes = 0) {
  const std::vector<std::string> violations = VerifyCircle(file, file_bytes);
  if (!violations.empty()) ThrowInternal("the Circle file would be malformed: " + violations.front(), where);
}

std::uint64_t ConstantBytes(const Model& model) {
  std::uint64_t bytes = 0;
  for (const Value* value : model.graph->constants())
    bytes += value->data ? AlignUp(value->data->bytes.size()) + 64 : 0;
  return bytes;
}

}  // namespace

std::string SerializeCircle(const Model& model) {
  const flatbuffers::DetachedBuffer buffer = Writer(model, std::nullopt).Run();
  Check(Bytes(buffer), model.source);
  return {reinterpret_cast<const char*>(buffer.data()), buffer.size()};
}

void WriteCircle(const Model& model, const std::filesystem::path& path, const CircleWriteOptions& options) {
  OutputFile file(path);
  if (ConstantBytes(model) <= options.largest_inline) {
    const flatbuffers::DetachedBuffer buffer = Writer(model, std::nullopt).Run();
    Check(Bytes(buffer), path.string());
    file.Write(Bytes(buffer));
    file.Commit();
    return;
  }
  // The size of the flatbuffer does not depend on where its payload lies.
  const std::uint64_t payload = AlignUp(Writer(model, kAlignment).Run().size());
  Writer writer(model, payload);
  const flatbuffers::DetachedBuffer buffer = writer.Run();
  if (AlignUp(buffer.size()) != payload) ThrowInternal("a Circle flatbuffer changed its size", path.string());
  Check(Bytes(buffer), path.string(), payload + writer.outside_bytes());
  file.Write(Bytes(buffer));
  const auto pad = [&] { file.Write(std::string_view(std::string(AlignUp(file.offset()) - file.offset(), '\0'))); };
  for (const TensorRef* tensor : writer.outside()) {
    pad();
    file.Write(tensor->bytes);
    CheckInterrupt();
  }
  pad();
  file.Commit();
}

}  // namespace octavo
