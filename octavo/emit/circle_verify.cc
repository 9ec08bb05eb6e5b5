#include <algorithm>
#include <cmath>
#include <set>

#include "octavo/emit/circle.h"
#include "octavo/emit/circle_schema.h"

namespace octavo {
namespace {

using fbs::BuiltinOperator;
using fbs::TensorType;

constexpr std::size_t kMostViolations = 20;
constexpr flatbuffers::uoffset_t kMostTables = 100'000'000;

class Checker {
 public:
  Checker(std::span<const std::byte> file, std::uint64_t file_bytes)
      : file_(file), file_bytes_(file_bytes != 0 ? file_bytes : file.size()) {}

  std::vector<std::string> Run() {
    // The flatbuffer is the front of a file over 2 GB: the verifier's offsets reach no further anyway.
    constexpr std::size_t kLargest = FLATBUFFERS_MAX_BUFFER_SIZE - 1;
    flatbuffers::Verifier verifier(reinterpret_cast<const std::uint8_t*>(file_.data()),
                                   std::min(file_.size(), kLargest), 64, kMostTables);
    if (!fbs::VerifyModelBuffer(verifier)) {
      Add("the flatbuffers verifier refuses it");
      return std::move(violations_);
    }
    model_ = fbs::GetModel(file_.data());
    if (model_->version() != 0) Add("its version is not 0");
    if (Size(model_->subgraphs()) != 1) {
      Add("it does not have exactly one subgraph");
      return std::move(violations_);
    }
    if (Size(model_->buffers()) == 0) Add("it has no buffer 0");
    graph_ = model_->subgraphs()->Get(0);
    for (flatbuffers::uoffset_t i = 0; i < Size(graph_->tensors()); ++i) CheckTensor(i);
    if (violations_.empty()) CheckOrder();  // which reads shapes and parameters that must be sound
    return std::move(violations_);
  }

 private:
  template <class V>
  static flatbuffers::uoffset_t Size(const V* vector) {
    return vector == nullptr ? 0 : vector->size();
  }
  void Add(std::string text) {
    if (violations_.size() < kMostViolations) violations_.push_back(std::move(text));
  }
  const fbs::Tensor* Tensor(std::int32_t i) const {
    return i >= 0 && static_cast<flatbuffers::uoffset_t>(i) < Size(graph_->tensors())
               ? graph_->tensors()->Get(static_cast<flatbuffers::uoffset_t>(i))
               : nullptr;
  }
  static std::string NameOf(const fbs::Tensor& tensor) {
    return "tensor '" + (tensor.name() == nullptr ? std::string() : tensor.name()->str()) + "'";
  }
  static std::int64_t Rank(const fbs::Tensor& tensor) { return Size(tensor.shape()); }
  static std::int32_t DimOf(const fbs::Tensor& tensor, std::int64_t i) {
    return tensor.shape()->Get(static_cast<flatbuffers::uoffset_t>(i));
  }

  void CheckTensor(flatbuffers::uoffset_t index) {
    const fbs::Tensor& tensor = *graph_->tensors()->Get(index);
    const std::string name = NameOf(tensor);
    if (internal::SchemaName(*fbs::TensorTypeTypeTable(), static_cast<std::int64_t>(tensor.type())).empty()) {
      return Add(name + " has an unknown type");
    }
    if (tensor.name() == nullptr || tensor.name()->size() == 0) Add("tensor " + std::to_string(index) + " has no name");
    std::uint64_t elements = 1;
    for (flatbuffers::uoffset_t i = 0; i < Size(tensor.shape()); ++i) {
      const std::int32_t d = tensor.shape()->Get(i);
      if (d < 0 || __builtin_mul_overflow(elements, static_cast<std::uint64_t>(d), &elements)) {
        return Add(name + " has a shape with a negative or too large dimension");
      }
    }
    if (tensor.buffer() >= Size(model_->buffers())) return Add(name + " names a buffer that is not there");
    const fbs::Buffer& buffer = *model_->buffers()->Get(tensor.buffer());
    const std::uint64_t bytes = buffer.offset() > 1 ? buffer.size() : Size(buffer.data());
    if (buffer.offset() > 1) {
      if (buffer.offset() % 16 != 0) Add(name + " has a payload that is not aligned to 16 bytes");
      if (buffer.offset() > file_bytes_ || buffer.size() > file_bytes_ - buffer.offset()) {
        Add(name + " has a payload outside of the file");
      }
    }
    const int bits = internal::BitsOf(tensor.type());
    const bool constant = tensor.buffer() != 0 && (bytes > 0 || elements == 0);
    if (constant && bits != 0) {
      std::uint64_t need = 0;
      if (__builtin_mul_overflow(elements, static_cast<std::uint64_t>(bits), &need) || (need + 7) / 8 != bytes) {
        Add(name + " has " + std::to_string(bytes) + " bytes of data, which do not fit its shape and type");
      }
    }
    if (tensor.quantization() != nullptr) CheckQuantization(tensor, *tensor.quantization(), name);
  }

  void CheckQuantization(const fbs::Tensor& tensor, const fbs::QuantizationParameters& q, const std::string& name) {
    const bool mx = tensor.type() == TensorType::MXFP4 || tensor.type() == TensorType::MXINT8;
    if (mx) {
      if (q.details_type() != fbs::QuantizationDetails::MXQuantization || q.details() == nullptr) {
        return Add(name + " is an MX tensor without MXQuantization");
      }
      const std::int32_t axis = q.details_as_MXQuantization()->axis();
      if (axis != q.quantized_dimension()) Add(name + " has two different MX axes");
      if (axis < 0 || axis >= Rank(tensor)) Add(name + " has an MX axis outside of its shape");
      return;
    }
    const std::uint64_t scales = Size(q.scale());
    if (scales != Size(q.zero_point())) return Add(name + " has unequal numbers of scales and zero points");
    if (scales == 0) return;
    if (tensor.type() == TensorType::FLOAT32) Add(name + " is float and has quantization parameters");
    for (flatbuffers::uoffset_t i = 0; i < scales; ++i) {
      const float s = q.scale()->Get(i);
      if (!(s > 0) || !std::isfinite(s)) return Add(name + " has a scale that is not positive and finite");
      const std::int64_t z = q.zero_point()->Get(i);
      const int bits = internal::BitsOf(tensor.type());
      if (bits == 0) return Add(name + " has quantization parameters, which its type does not take");
      const bool is_unsigned = tensor.type() == TensorType::UINT8 || tensor.type() == TensorType::UINT4;
      if (bits > 16) {
        if (z != 0) return Add(name + " has a zero point outside of its type");
        continue;
      }
      const std::int64_t low = is_unsigned ? 0 : -(std::int64_t{1} << (bits - 1));
      const std::int64_t high = is_unsigned ? (std::int64_t{1} << bits) - 1 : (std::int64_t{1} << (bits - 1)) - 1;
      if (z < low || z > high) return Add(name + " has a zero point outside of its type");
      if (tensor.type() == TensorType::INT16 && z != 0) return Add(name + " is int16 with a zero point");
    }
    if (scales > 1) {
      const std::int32_t axis = q.quantized_dimension();
      if (axis < 0 || axis >= Rank(tensor) || static_cast<std::uint64_t>(DimOf(tensor, axis)) != scales) {
        Add(name + " has parameters that do not fit its quantized dimension");
      }
    }
  }

  void CheckOrder() {
    std::set<std::int32_t> ready;
    const auto tensors = static_cast<std::int32_t>(Size(graph_->tensors()));
    const auto known = [&](std::int32_t i) { return i >= 0 && i < tensors; };
    for (std::int32_t i = 0; i < tensors; ++i) {
      const fbs::Tensor& t = *Tensor(i);
      if (t.buffer() != 0 && t.buffer() < Size(model_->buffers())) {
        const fbs::Buffer& b = *model_->buffers()->Get(t.buffer());
        if (b.offset() > 1 || Size(b.data()) > 0) ready.insert(i);
      }
    }
    for (flatbuffers::uoffset_t i = 0; i < Size(graph_->inputs()); ++i) {
      const std::int32_t t = graph_->inputs()->Get(i);
      if (!known(t)) return Add("a graph input is not there");
      if (!ready.insert(t).second) Add(NameOf(*Tensor(t)) + " is a graph input twice, or has data");
    }
    // A constant without elements has no data either: it is one if nobody writes it.
    std::set<std::int32_t> written;
    for (flatbuffers::uoffset_t i = 0; i < Size(graph_->operators()); ++i) {
      const fbs::Operator& op = *graph_->operators()->Get(i);
      for (flatbuffers::uoffset_t o = 0; o < Size(op.outputs()); ++o) written.insert(op.outputs()->Get(o));
    }
    for (std::int32_t i = 0; i < tensors; ++i) {
      if (ElementsAreZero(*Tensor(i)) && written.count(i) == 0) ready.insert(i);
    }
    for (flatbuffers::uoffset_t i = 0; i < Size(graph_->operators()); ++i) {
      const fbs::Operator& op = *graph_->operators()->Get(i);
      if (op.opcode_index() >= Size(model_->operator_codes())) return Add("an operator's code is not there");
      const auto code = model_->operator_codes()->Get(op.opcode_index());
      std::string name(
          internal::SchemaName(*fbs::BuiltinOperatorTypeTable(), static_cast<std::int64_t>(code->builtin_code())));
      if (name.empty()) name = std::to_string(static_cast<int>(code->builtin_code()));
      const std::string where = "operator " + std::to_string(i) + " (" + name + ")";
      for (flatbuffers::uoffset_t k = 0; k < Size(op.inputs()); ++k) {
        const std::int32_t t = op.inputs()->Get(k);
        if (t == -1) continue;
        if (!known(t)) return Add(where + " reads a tensor that is not there");
        if (!ready.contains(t)) Add(where + " reads " + NameOf(*Tensor(t)) + ", which nothing has written");
      }
      for (flatbuffers::uoffset_t k = 0; k < Size(op.outputs()); ++k) {
        const std::int32_t t = op.outputs()->Get(k);
        if (!known(t)) return Add(where + " writes a tensor that is not there");
        if (!ready.insert(t).second) Add(where + " writes " + NameOf(*Tensor(t)) + ", which has a value already");
      }
      CheckOperator(op, code->builtin_code(), where);
    }
    for (flatbuffers::uoffset_t i = 0; i < Size(graph_->outputs()); ++i) {
      const std::int32_t t = graph_->outputs()->Get(i);
      if (!known(t)) return Add("a graph output is not there");
      if (!ready.contains(t)) Add("graph output " + NameOf(*Tensor(t)) + " is written by nothing");
    }
  }

  static bool ElementsAreZero(const fbs::Tensor& t) {
    for (flatbuffers::uoffset_t i = 0; i < Size(t.shape()); ++i) {
      if (t.shape()->Get(i) == 0) return true;
    }
    return false;
  }

  static bool SameParams(const fbs::Tensor& a, const fbs::Tensor& b) {
    if (a.type() != b.type()) return false;
    const auto *p = a.quantization(), *q = b.quantization();
    const auto count = [](const fbs::QuantizationParameters* x) { return x == nullptr ? 0u : Size(x->scale()); };
    if (count(p) != count(q)) return false;
    for (flatbuffers::uoffset_t i = 0; i < count(p); ++i) {
      if (p->scale()->Get(i) != q->scale()->Get(i) || p->zero_point()->Get(i) != q->zero_point()->Get(i)) return false;
    }
    return true;
  }

  const fbs::Tensor* In(const fbs::Operator& op, flatbuffers::uoffset_t i) const {
    return i < Size(op.inputs()) ? Tensor(op.inputs()->Get(i)) : nullptr;
  }
  const fbs::Tensor* Out(const fbs::Operator& op, flatbuffers::uoffset_t i = 0) const {
    return i < Size(op.outputs()) ? Tensor(op.outputs()->Get(i)) : nullptr;
  }

  void CheckOperator(const fbs::Operator& op, BuiltinOperator code, const std::string& where) {
    using O = BuiltinOperator;
    const fbs::Tensor *x = In(op, 0), *y = Out(op);
    if (x == nullptr || y == nullptr) return Add(where + " lacks its first input or its output");
    const auto quantized = [](const fbs::Tensor& t) {
      return t.quantization() != nullptr && Size(t.quantization()->scale()) > 0;
    };
    switch (code) {
      case O::CONV_2D:
      case O::DEPTHWISE_CONV_2D: {
        const fbs::Tensor *w = In(op, 1), *b = In(op, 2);
        if (w == nullptr || Rank(*x) != 4 || Rank(*w) != 4 || Rank(*y) != 4) return Add(where + " is not of rank 4");
        const bool depthwise = code == O::DEPTHWISE_CONV_2D;
        if (DimOf(*w, depthwise ? 3 : 0) != DimOf(*y, 3))
          Add(where + " has weights that do not fit its output channels");
        if (!depthwise && DimOf(*w, 3) != DimOf(*x, 3)) Add(where + " has weights that do not fit its input channels");
        CheckBias(*x, *w, b, where);
        break;
      }
      case O::FULLY_CONNECTED: {
        const fbs::Tensor *w = In(op, 1), *b = In(op, 2);
        if (w == nullptr || Rank(*w) != 2 || Rank(*x) == 0 || Rank(*y) == 0)
          return Add(where + " has weights that are not of rank 2");
        if (DimOf(*w, 1) != DimOf(*x, Rank(*x) - 1) || DimOf(*w, 0) != DimOf(*y, Rank(*y) - 1)) {
          Add(where + " has weights that do not fit its input and output");
        }
        CheckBias(*x, *w, b, where);
        break;
      }
      // Consumers move codes here without looking at the parameters.
      case O::AVERAGE_POOL_2D:
      case O::MAX_POOL_2D:
      case O::RESHAPE:
      case O::TRANSPOSE:
      case O::PAD:
      case O::PADV2:
      case O::GATHER:
      case O::SLICE:
      case O::STRIDED_SLICE:
      case O::RESIZE_BILINEAR:
      case O::RESIZE_NEAREST_NEIGHBOR:
      case O::TILE:
      case O::BROADCAST_TO:
      case O::REDUCE_MAX:
      case O::REDUCE_MIN:
        if (!SameParams(*x, *y)) Add(where + " has other parameters at its output than at its input");
        break;
      case O::CONCATENATION:
        for (flatbuffers::uoffset_t i = 0; i < Size(op.inputs()); ++i) {
          if (const fbs::Tensor* t = In(op, i); t == nullptr || !SameParams(*t, *y)) {
            return Add(where + " has other parameters at its output than at an input");
          }
        }
        break;
      case O::SPLIT:
      case O::SPLIT_V:
        break;
      case O::LOGISTIC:
      case O::SOFTMAX:
        if (quantized(*y)) {
          const float scale = y->quantization()->scale()->Get(0);
          if (scale != (y->type() == TensorType::INT16 ? 1.0f / 32768 : 1.0f / 256))
            Add(where + " has another output scale than consumers take");
        }
        break;
      case O::QUANTIZE:
        if (y->quantization() == nullptr) Add(where + " has an output without parameters");
        break;
      case O::DEQUANTIZE:
        if (y->type() != TensorType::FLOAT32) Add(where + " has an output that is not float");
        break;
      default:
        break;
    }
  }

  void CheckBias(const fbs::Tensor& x, const fbs::Tensor& w, const fbs::Tensor* b, const std::string& where) {
    const bool integer = x.type() == TensorType::UINT8 || x.type() == TensorType::INT8 || x.type() == TensorType::INT16;
    if (b == nullptr || !integer) return;
    const TensorType want = x.type() == TensorType::INT16 ? TensorType::INT64 : TensorType::INT32;
    if (b->type() != want) return Add(where + " has a bias of another type than its input asks for");
    const auto *xq = x.quantization(), *wq = w.quantization(), *bq = b->quantization();
    if (xq == nullptr || wq == nullptr || bq == nullptr || Size(xq->scale()) != 1 ||
        Size(wq->scale()) != Size(bq->scale())) {
      return Add(where + " has a bias whose parameters do not follow from input and weights");
    }
    for (flatbuffers::uoffset_t i = 0; i < Size(bq->scale()); ++i) {
      const double product = static_cast<double>(xq->scale()->Get(0)) * wq->scale()->Get(i);
      if (std::fabs(bq->scale()->Get(i) - product) > 1e-5 * product) {
        return Add(where + " has a bias scale that is not that of the products");
      }
    }
  }

  std::span<const std::byte> file_;
  std::uint64_t file_bytes_;
  const fbs::Model* model_ = nullptr;
  const fbs::SubGraph* graph_ = nullptr;
  std::vector<std::string> violations_;
};

}  // namespace

std::vector<std::string> VerifyCircle(std::span<const std::byte> file, std::uint64_t file_bytes) {
  return Checker(file, file_bytes).Run();
}

}  // namespace octavo
