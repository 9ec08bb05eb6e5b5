#include "octavo/emit/lower_circle.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "octavo/base/error.h"
#include "octavo/numerics/affine.h"

namespace octavo {
namespace internal {

Storage StorageOf(const Type& type) {
  if (!type.quant) return Storage::kFloat;
  if (type.quant->kind == QuantType::Kind::kMx) return Storage::kMx;
  if (type.quant->kind != QuantType::Kind::kAffine || type.quant->affine.block != 0) return Storage::kOther;
  switch (type.quant->affine.storage) {
    case DType::kU8:
    case DType::kU4:
      return Storage::kU8;
    case DType::kS8:
    case DType::kS4:
      return Storage::kS8;
    case DType::kS16:
      return Storage::kS16;
    default:
      return Storage::kOther;
  }
}

std::vector<std::int64_t> ToLast(std::size_t rank) {
  std::vector<std::int64_t> perm{0};
  for (std::size_t i = 2; i < rank; ++i) perm.push_back(static_cast<std::int64_t>(i));
  perm.push_back(1);
  return perm;
}

std::vector<std::int64_t> ToFirst(std::size_t rank) {
  std::vector<std::int64_t> perm{0, static_cast<std::int64_t>(rank) - 1};
  for (std::size_t i = 1; i + 1 < rank; ++i) perm.push_back(static_cast<std::int64_t>(i));
  return perm;
}

Dims Permuted(const Dims& dims, std::span<const std::int64_t> perm) {
  Dims out;
  for (const std::int64_t p : perm) out.push_back(dims[static_cast<std::size_t>(p)]);
  return out;
}

namespace {

template <class T>
std::vector<std::byte> PermuteElements(const TensorRef& data, std::span<const std::int64_t> perm) {
  const std::size_t rank = perm.size();
  std::vector<std::uint64_t> stride(rank, 1);
  for (std::size_t i = rank; i-- > 1;) stride[i - 1] = stride[i] * static_cast<std::uint64_t>(data.dims[i]);
  const Dims dims = Permuted(data.dims, perm);
  std::vector<std::uint64_t> step(rank);
  for (std::size_t i = 0; i < rank; ++i) step[i] = stride[static_cast<std::size_t>(perm[i])];
  const std::uint64_t n = data.elements();
  std::vector<std::byte> out(n * sizeof(T));
  std::vector<std::int64_t> at(rank, 0);
  std::uint64_t from = 0;
  for (std::uint64_t i = 0; i < n; ++i) {
    std::memcpy(out.data() + i * sizeof(T), data.bytes.data() + from * sizeof(T), sizeof(T));
    for (std::size_t d = rank; d-- > 0;) {
      from += step[d];
      if (++at[d] < dims[d]) break;
      from -= step[d] * static_cast<std::uint64_t>(dims[d]);
      at[d] = 0;
    }
  }
  return out;
}

bool IsIdentity(std::span<const std::int64_t> perm) {
  for (std::size_t i = 0; i < perm.size(); ++i) {
    if (perm[i] != static_cast<std::int64_t>(i)) return false;
  }
  return true;
}

// No element moves in memory: dimensions of more than one keep their order.
bool IsTrivial(const Dims& dims, std::span<const std::int64_t> perm) {
  std::int64_t last = -1;
  for (const std::int64_t p : perm) {
    if (dims[static_cast<std::size_t>(p)] == 1) continue;
    if (p < last) return false;
    last = p;
  }
  return true;
}

// Codes of 4 bits in a byte each: the same numbers, in a type whose kernels exist.
void Widen(TensorRef& data, QuantType& quant) {
  const DType wide = quant.affine.storage == DType::kS4 ? DType::kS8 : DType::kU8;
  data = TensorRef::FromInts(wide, data.dims, data.ToInts());
  if (quant.affine.zero_point) {
    quant.affine.zero_point =
        TensorRef::FromInts(wide, quant.affine.zero_point->dims, quant.affine.zero_point->ToInts());
  }
  quant.affine.storage = wide;
}

}  // namespace

TensorRef Dequantized(const TensorRef& codes, const Affine& affine, const std::string& where) {
  if (affine.block != 0) {
    // Blocked along axis: scale dims equal the tensor's but for that axis.
    const std::vector<std::int64_t> q = codes.ToInts();
    const std::vector<float> scales = affine.scale.ToFloats();
    std::vector<std::int64_t> zeros(scales.size(), 0);
    if (affine.zero_point) zeros = affine.zero_point->ToInts();
    const auto axis = static_cast<std::size_t>(*affine.axis);
    if (affine.scale.dims.size() != codes.dims.size()) ThrowInternal("blocked scales of another rank", where);
    std::uint64_t inner = 1;
    for (std::size_t i = axis + 1; i < codes.dims.size(); ++i) inner *= static_cast<std::uint64_t>(codes.dims[i]);
    const auto n = static_cast<std::uint64_t>(codes.dims[axis]),
               blocks = static_cast<std::uint64_t>(affine.scale.dims[axis]);
    std::vector<float> out(q.size());
    for (std::uint64_t i = 0; i < q.size(); ++i) {
      const std::uint64_t s =
          (i / inner / n * blocks + i / inner % n / static_cast<std::uint64_t>(affine.block)) * inner + i % inner;
      out[i] = static_cast<float>(q[i] - zeros[s]) * scales[s];
    }
    return TensorRef::FromFloats(codes.dims, out);
  }
  const std::vector<std::int64_t> q = codes.ToInts();
  const std::vector<float> scales = affine.scale.ToFloats();
  std::vector<std::int64_t> zeros(scales.size(), 0);
  if (affine.zero_point) zeros = affine.zero_point->ToInts();
  std::uint64_t inner = 1;
  if (affine.axis) {
    for (std::size_t i = static_cast<std::size_t>(*affine.axis) + 1; i < codes.dims.size(); ++i) {
      inner *= static_cast<std::uint64_t>(codes.dims[i]);
    }
  }
  std::vector<float> out(q.size());
  for (std::uint64_t i = 0; i < q.size(); ++i) {
    const std::size_t c = scales.size() == 1 ? 0 : i / std::max<std::uint64_t>(inner, 1) % scales.size();
    out[i] = static_cast<float>(q[i] - zeros[c]) * scales[c];
  }
  return TensorRef::FromFloats(codes.dims, out);
}

TensorRef PermutedData(const TensorRef& data, std::span<const std::int64_t> perm) {
  const Dims dims = Permuted(data.dims, perm);
  if (IsTrivial(data.dims, perm)) {
    TensorRef out = data;
    out.dims = dims;
    return out;
  }
  switch (BitWidth(data.dtype)) {
    case 8:
      return TensorRef::FromBytes(data.dtype, dims, PermuteElements<std::uint8_t>(data, perm));
    case 16:
      return TensorRef::FromBytes(data.dtype, dims, PermuteElements<std::uint16_t>(data, perm));
    case 32:
      return TensorRef::FromBytes(data.dtype, dims, PermuteElements<std::uint32_t>(data, perm));
    case 64:
      return TensorRef::FromBytes(data.dtype, dims, PermuteElements<std::uint64_t>(data, perm));
    default:
      ThrowUnsupported("a constant of type " + std::string(Name(data.dtype)) + " cannot change its layout");
  }
}

QuantType PermutedQuant(QuantType quant, std::span<const std::int64_t> perm) {
  const auto map = [&](std::int64_t axis) { return std::find(perm.begin(), perm.end(), axis) - perm.begin(); };
  if (quant.kind == QuantType::Kind::kAffine && quant.affine.axis) quant.affine.axis = map(*quant.affine.axis);
  if (quant.kind == QuantType::Kind::kMx) quant.mx.axis = map(quant.mx.axis);
  return quant;
}

Type MakeType(DType dtype, const Dims& dims, std::optional<QuantType> quant) {
  Type type;
  type.dtype = dtype;
  type.shape.emplace();
  for (const std::int64_t d : dims) type.shape->push_back({d, {}});
  type.quant = std::move(quant);
  return type;
}

QuantType PerTensor(DType storage, float scale, std::int64_t zero_point) {
  QuantType q;
  q.affine.storage = storage;
  q.affine.scale = TensorRef::Scalar(scale);
  q.affine.zero_point = TensorRef::FromInts(storage, {}, {&zero_point, 1});
  return q;
}

bool SameQuant(const Type& a, const Type& b) {
  if (a.quant.has_value() != b.quant.has_value()) return false;
  return !a.quant || SameParams(*a.quant, *b.quant);
}

// ------------------------------------------------------------------------------------------------------------- values

CircleLowering::CircleLowering(Model& model) : model_(model), old_(*model.graph), new_(std::make_unique<Graph>()) {
  new_->name = old_.name;
  for (const Node* node = old_.first(); node != nullptr; node = node->next()) {
    for (const Value* v : node->outputs()) exact_ = exact_ || (v != nullptr && StorageOf(v->type) == Storage::kMx);
  }
  for (const Value* v : old_.constants()) exact_ = exact_ || StorageOf(v->type) == Storage::kMx;
}

void CircleLowering::Refuse(const Node& node, const std::string& reason) const {
  const std::string name = node.name.empty() && node.output() != nullptr ? node.output()->name() : node.name;
  ThrowUnsupported("no form in Circle: " + reason, node.op() + " '" + name + "'", "leave that part of the model out");
}

const Dims& CircleLowering::DimsOf(const Value* old) {
  if (old == nullptr) ThrowBadInput("an operator lacks an input that it needs", model_.source);
  const auto it = dims_.find(old);
  if (it != dims_.end()) return it->second;
  std::optional<Dims> dims;
  if (old->is_constant() && old->data) {
    dims = old->data->dims;
  } else {
    dims = StaticShape(old->type);
    // Shape inference cannot tell a scalar from an unknown rank; an operator without inputs of rank 1 and more makes
    // one.
    if (!dims) {
      ThrowUnsupported("Circle needs static shapes, and this one is not known",
                       "value '" + old->name() + "', " + ToString(old->type), "fix the model's dimensions with --dim");
    }
  }
  return dims_.emplace(old, *dims).first->second;
}

bool CircleLowering::Has(const Value* old, Layout layout) const {
  const auto it = forms_.find(old);
  if (it == forms_.end()) return false;
  const auto& at = it->second.at[static_cast<int>(layout)];
  return at[0] != nullptr || at[1] != nullptr;
}

Layout CircleLowering::Prefer(const Value* old) const {
  return Has(old, Layout::kLast) ? Layout::kLast : Layout::kFirst;
}

void CircleLowering::Set(const Value* old, Layout layout, bool as_float, Value* value) {
  forms_[old].at[static_cast<int>(layout)][as_float ? 1 : 0] = value;
}

Value* CircleLowering::GetConstant(const Value* old, Layout layout, bool as_float) {
  TensorRef data = *old->data;
  std::optional<QuantType> quant = old->type.quant;
  DType dtype = old->type.quant ? old->type.dtype : data.dtype;
  std::string name = old->name();
  if (quant && quant->kind == QuantType::Kind::kGgml) {
    ThrowUnsupported("Circle has no consumer of this block format", "constant '" + name + "', " + quant->ggml.format,
                     "export to GGUF, or from a float model");
  }
  if (quant && quant->kind == QuantType::Kind::kAffine) {
    if (as_float || quant->affine.block != 0) {
      data = Dequantized(data, quant->affine, name);
      quant.reset();
      dtype = DType::kF32;
    } else if (BitWidth(quant->affine.storage) == 4) {
      Widen(data, *quant);
    }
  }
  std::optional<QuantType> mx;
  if (quant && quant->kind == QuantType::Kind::kMx) {
    // An MX constant lies in the file as f32 numbers on its grid; a QUANTIZE makes it MX.
    mx = quant;
    quant.reset();
    if (data.dtype != DType::kF32) ThrowInternal("an MX constant of a lowering does not hold numbers", name);
  }
  const std::size_t rank = data.dims.size();
  if (layout == Layout::kLast && rank >= 3) {
    const std::vector<std::int64_t> perm = ToLast(rank);
    data = PermutedData(data, perm);
    if (quant) quant = PermutedQuant(*quant, perm);
    if (mx) mx = PermutedQuant(*mx, perm);
  }
  if (!quant && IsFloat(dtype) && dtype != DType::kF32) {  // consumers compute in f32
    data = TensorRef::FromFloats(data.dims, data.ToFloats());
    dtype = DType::kF32;
  }
  const Dims dims = data.dims;
  Value* value = new_->AddConstant(name, std::move(data), MakeType(dtype, dims, quant));
  if (mx && !as_float) return Quantize(value, *mx, name + "_mx");
  return value;
}

Value* CircleLowering::Get(const Value* old, Layout layout, bool as_float) {
  if (old == nullptr) ThrowBadInput("an operator lacks an input that it needs", model_.source);
  if (!old->type.quant) as_float = false;  // one form
  const std::size_t rank = DimsOf(old).size();
  if (rank < 3) layout = Layout::kFirst;
  const int l = static_cast<int>(layout), f = as_float ? 1 : 0;
  if (Value* found = forms_[old].at[l][f]) return found;
  Value* made = nullptr;
  if (old->is_constant()) {
    made = GetConstant(old, layout, as_float);
  } else if (Value* other = forms_[old].at[1 - l][f]; other != nullptr && rank >= 3) {
    made = Transpose(other, layout == Layout::kLast ? ToLast(rank) : ToFirst(rank), old->name());
  } else if (as_float) {
    // The quantized form in whatever layout it has.
    const Layout have = forms_[old].at[l][0] != nullptr ? layout : static_cast<Layout>(1 - l);
    Value* codes = forms_[old].at[static_cast<int>(have)][0];
    if (codes == nullptr) ThrowInternal("a value is used before it is lowered", old->name());
    Type type = codes->type;
    type.quant.reset();
    type.dtype = DType::kF32;
    Value* value = Emit("DEQUANTIZE", {codes}, old->name() + "_float", std::move(type));
    Set(old, have, true, value);
    return Get(old, layout, true);
  } else {
    ThrowInternal("a value is used before it is lowered", old->name());
  }
  forms_[old].at[l][f] = made;
  return made;
}

// ---------------------------------------------------------------------------------------------------------- operators

Value* CircleLowering::Emit(std::string_view op, std::vector<Value*> inputs, const std::string& name, Type type,
                            Attributes attributes) {  // NOLINT(performance-unnecessary-value-param): moved from
  Node* node = new_->AddNode(std::string(op), std::string(kCircleDomain), std::move(inputs), {{name, std::move(type)}});
  for (auto& [key, option] : attributes) {
    std::visit([&, &name = key](auto& value) { node->SetAttribute(name, AttributeValue(std::move(value))); }, option);
  }
  return node->output();
}

Value* CircleLowering::Transpose(Value* x, std::span<const std::int64_t> perm, const std::string& name) {
  const Dims dims = ShapeOf(x);
  if (IsIdentity(perm)) return x;
  if (IsTrivial(dims, perm)) {
    Value* y = Reshape(x, Permuted(dims, perm), name);
    if (y->type.quant) y->type.quant = PermutedQuant(*x->type.quant, perm);
    return y;
  }
  Type type = MakeType(x->type.dtype, Permuted(dims, perm), x->type.quant);
  if (type.quant) type.quant = PermutedQuant(*type.quant, perm);
  return Emit("TRANSPOSE", {x, Int32s(perm, name + "_perm")}, name + "_t", std::move(type));
}

Value* CircleLowering::Reshape(Value* x, const Dims& dims, const std::string& name) {
  if (ShapeOf(x) == dims) return x;
  return Emit("RESHAPE", {x, Int32s(dims, name + "_shape")}, name + "_r", MakeType(x->type.dtype, dims, x->type.quant));
}

Value* CircleLowering::Quantize(Value* x, const QuantType& quant, const std::string& name) {
  if (StorageOf(x->type) == Storage::kU8 && quant.kind == QuantType::Kind::kAffine) {
    // onert has no QUANTIZE between two integer types. (int8 is for LiteRT, which has.)
    x = Emit("DEQUANTIZE", {x}, name + "_numbers", MakeType(DType::kF32, ShapeOf(x)));
  }
  return Emit("QUANTIZE", {x}, name, MakeType(DType::kF32, ShapeOf(x), quant));
}

Value* CircleLowering::Int32s(std::span<const std::int64_t> values, const std::string& name) {
  return new_->AddConstant(name, TensorRef::FromInts(DType::kS32, {static_cast<std::int64_t>(values.size())}, values));
}

Value* CircleLowering::Int32Scalar(std::int64_t value, const std::string& name) {
  return new_->AddConstant(name, TensorRef::FromInts(DType::kS32, {}, {&value, 1}));
}

Value* CircleLowering::Floats(const Dims& dims, std::span<const float> values, const std::string& name) {
  return new_->AddConstant(name, TensorRef::FromFloats(dims, values));
}

Value* CircleLowering::Scalar(float value, const std::string& name) { return Floats({}, {&value, 1}, name); }

Value* CircleLowering::Binary(std::string_view op, Value* a, Value* b, const std::string& name,
                              std::string_view activation) {
  Dims da = ShapeOf(a), db = ShapeOf(b);
  while (da.size() < db.size()) da.insert(da.begin(), 1);
  while (db.size() < da.size()) db.insert(db.begin(), 1);
  for (std::size_t i = 0; i < da.size(); ++i) da[i] = da[i] == 1 ? db[i] : da[i];
  Attributes attributes;
  if (op == "ADD" || op == "SUB" || op == "MUL" || op == "DIV") {
    attributes.emplace_back("fused_activation_function", std::string(activation));
  }
  return Emit(op, {a, b}, name, MakeType(DType::kF32, da), std::move(attributes));
}

Value* CircleLowering::Unary(std::string_view op, Value* a, const std::string& name) {
  return Emit(op, {a}, name, MakeType(DType::kF32, ShapeOf(a)));
}

Value* CircleLowering::Mean(Value* x, std::span<const std::int64_t> axes, bool keep, const std::string& name,
                            std::string_view op) {
  Dims dims;
  const Dims in = ShapeOf(x);
  for (std::size_t i = 0; i < in.size(); ++i) {
    const bool gone = std::find(axes.begin(), axes.end(), static_cast<std::int64_t>(i)) != axes.end();
    if (!gone)
      dims.push_back(in[i]);
    else if (keep)
      dims.push_back(1);
  }
  return Emit(op, {x, Int32s(axes, name + "_axes")}, name, MakeType(DType::kF32, dims),
              {{"keep_dims", std::int64_t{keep}}});
}

// ----------------------------------------------------------------------------------------------------------- deciding

namespace {

enum KernelBits : unsigned { kU8 = 1, kS8 = 2, kS16 = 4 };
struct Kernel {
  std::string_view op;
  unsigned storages;
};
// Integer kernels that a consumer has and computes right (docs/circle.md has the consumers' table).
constexpr Kernel kKernels[] = {
    {"CONV_2D", kU8 | kS8 | kS16},
    {"DEPTHWISE_CONV_2D", kU8 | kS8 | kS16},
    {"TRANSPOSE_CONV", kU8 | kS8 | kS16},
    {"FULLY_CONNECTED", kU8 | kS8 | kS16},
    {"BATCH_MATMUL", kS8 | kS16},
    {"ADD", kU8 | kS8 | kS16},
    {"SUB", kU8 | kS8 | kS16},
    {"MUL", kU8 | kS8 | kS16},
    {"MAX_POOL_2D", kU8 | kS8 | kS16},
    {"AVERAGE_POOL_2D", kU8 | kS8 | kS16},
    {"MEAN", kU8 | kS8 | kS16},
    {"CONCATENATION", kU8 | kS8 | kS16},
    {"RESHAPE", kU8 | kS8 | kS16},
    {"TRANSPOSE", kU8 | kS8 | kS16},
    {"PAD", kU8 | kS8 | kS16},
    {"PADV2", kU8 | kS8 | kS16},
    {"STRIDED_SLICE", kU8 | kS8 | kS16},
    {"GATHER", kU8 | kS8 | kS16},
    {"SOFTMAX", kU8 | kS8 | kS16},
    {"LOGISTIC", kU8 | kS8 | kS16},
    {"TANH", kU8 | kS8},
    {"RELU", kU8 | kS8 | kS16},
    {"RELU6", kU8 | kS8 | kS16},
    {"LEAKY_RELU", kU8 | kS8 | kS16},
    {"MINIMUM", kU8 | kS8 | kS16},
    {"MAXIMUM", kU8 | kS8 | kS16},
    {"RESIZE_BILINEAR", kU8 | kS8 | kS16},
    {"RESIZE_NEAREST_NEIGHBOR", kU8 | kS8 | kS16},
    {"REDUCE_MAX", kU8 | kS8 | kS16},
    {"BROADCAST_TO", 0},
};

std::string StorageName(Storage s) {
  constexpr const char* kNames[] = {"float", "uint8", "int8", "int16", "MX", "another type"};
  return kNames[static_cast<int>(s)];
}

}  // namespace

void CircleLowering::KeptFloat(const Node& node, const std::string& reason) {
  const std::string name = node.name.empty() && node.output() != nullptr ? node.output()->name() : node.name;
  report_.kept_float.push_back(name + " (" + node.op() + "): " + reason);
}

const Value* CircleLowering::OutputOf(const Node& node) const {
  const Node* last = &node;
  if (const auto it = bias_add_.find(last); it != bias_add_.end()) last = it->second;
  if (const auto it = fused_.find(last); it != fused_.end()) last = it->second;
  return last->output();
}

std::string_view CircleLowering::ActivationOf(const Node& node) const {
  const Node* last = &node;
  if (const auto it = bias_add_.find(last); it != bias_add_.end()) last = it->second;
  const auto it = fused_.find(last);
  return it == fused_.end() ? std::string_view("NONE") : activation_.at(it->second);
}

bool CircleLowering::Integer(const Node& node, std::string_view circle_op, std::span<const Value* const> data) {
  const Value* y = OutputOf(node);
  const Storage out = StorageOf(y->type);
  bool any = out != Storage::kFloat, all = out != Storage::kFloat, equal = true, whole = true;
  for (const Value* v : data) {
    const Storage s = StorageOf(v->type);
    any = any || (s != Storage::kFloat && !v->is_constant());
    all = all && s != Storage::kFloat;
    equal = equal && (s == out || (out == Storage::kS16 && s == Storage::kS8 && v->is_constant()));
    whole = whole && s != Storage::kOther;
  }
  if (!any) return false;
  // MX: what is computed needs MX; constants beside it (a bias, a factor) and the result may be float.
  const auto is_mx = [](const Value* v) { return StorageOf(v->type) == Storage::kMx; };
  const bool mx = std::all_of(data.begin(), data.end(),
                              [&](const Value* v) { return is_mx(v) || (v->is_constant() && !v->type.quant); }) &&
                  std::any_of(data.begin(), data.end(), [&](const Value* v) { return is_mx(v) && !v->is_constant(); });
  if (mx && (out == Storage::kMx || out == Storage::kFloat)) return true;
  if (!all) {
    // A computing operator whose other side was left in float by the quantizer.
    if (out != Storage::kFloat ||
        std::any_of(data.begin(), data.end(), [](const Value* v) { return v->type.quant && !v->is_constant(); })) {
      KeptFloat(node, "an input or the output is float");
    }
    return false;
  }
  if (!equal || !whole) {
    KeptFloat(node, "its inputs and its output are not of one type");
    return false;
  }
  if (out == Storage::kMx) return true;
  if (out == Storage::kS16) {
    const auto shifted = [](const Value* v) {
      const auto& zero = v->type.quant->affine.zero_point;
      if (!zero) return false;
      const std::vector<std::int64_t> zeros = zero->ToInts();
      return std::any_of(zeros.begin(), zeros.end(), [](std::int64_t z) { return z != 0; });
    };
    if (shifted(y) || std::any_of(data.begin(), data.end(), shifted)) {
      KeptFloat(node, "int16 with a zero point has no kernel");
      return false;
    }
  }
  const unsigned bit = out == Storage::kU8 ? kU8 : out == Storage::kS8 ? kS8 : kS16;
  for (const Kernel& k : kKernels) {
    if (k.op != circle_op) continue;
    if ((k.storages & bit) != 0) return true;
    break;
  }
  KeptFloat(node, "no consumer has " + std::string(circle_op) + " in " + StorageName(out));
  return false;
}

Type CircleLowering::OutType(const Node& node, Layout layout, bool integer) {
  const Value* y = OutputOf(node);
  const Dims& dims = DimsOf(y);
  const bool last = layout == Layout::kLast && dims.size() >= 3;
  Type type = MakeType(y->type.quant ? DType::kF32 : y->type.dtype, last ? Permuted(dims, ToLast(dims.size())) : dims);
  if (IsFloat(type.dtype)) type.dtype = DType::kF32;
  if (integer && y->type.quant) type.quant = last ? PermutedQuant(*y->type.quant, ToLast(dims.size())) : *y->type.quant;
  return type;
}

void CircleLowering::Finish(const Node& node, Layout layout, Value* result, bool integer) {
  const Value* y = OutputOf(node);
  if (DimsOf(y).size() < 3) layout = Layout::kFirst;
  if (integer)
    ++report_.integer_operators;
  else
    ++report_.float_operators;
  if (!y->type.quant) {
    if (result->type.quant) {  // an operator that moves codes, before a float output
      Type type = result->type;
      type.quant.reset();
      result = Emit("DEQUANTIZE", {result}, y->name(), std::move(type));
    }
    Set(y, layout, false, result);
    return;
  }
  const Type wanted = OutType(node, layout, true);
  if (!SameQuant(result->type, wanted)) {
    // The float numbers are not handed on: whoever reads y reads it rounded.
    result = Quantize(result, *wanted.quant, y->name());
  }
  Set(y, layout, false, result);
}

const TensorRef* CircleLowering::ConstantData(const Node& node, std::size_t i) const {
  const Value* v = node.input(i);
  return v != nullptr && v->is_constant() && v->data && !v->type.quant ? &*v->data : nullptr;
}

std::vector<std::int64_t> CircleLowering::RequireInts(const Node& node, std::size_t i, const char* what) const {
  const TensorRef* data = ConstantData(node, i);
  if (data == nullptr) Refuse(node, std::string(what) + " is not a constant");
  if (!IsInteger(data->dtype)) Refuse(node, std::string(what) + " is not of an integer type");
  return data->ToInts();
}

std::int64_t CircleLowering::Axis(const Node& node, std::int64_t axis, std::size_t rank) const {
  const auto r = static_cast<std::int64_t>(rank);
  if (axis < 0) axis += r;
  if (axis < 0 || axis >= r) Refuse(node, "its axis is outside of its input");
  return axis;
}

std::int64_t CircleLowering::MapAxis(std::int64_t axis, Layout layout, std::size_t rank) const {
  if (layout == Layout::kFirst || rank < 3 || axis == 0) return axis;
  return axis == 1 ? static_cast<std::int64_t>(rank) - 1 : axis - 1;
}

// ------------------------------------------------------------------------------------------------------------ the run

CircleReport CircleLowering::Run() {
  UnifySigns();
  CastBeforeExpand();
  AddAxis();
  FindFusions();
  for (const Value* input : old_.inputs()) {
    if (input->data) {
      ThrowUnsupported("a graph input with a default value has no form in Circle", "input '" + input->name() + "'");
    }
    if (!input->type.opaque.empty())
      ThrowUnsupported("a graph input that is no tensor", "input '" + input->name() + "'");
    Type type = MakeType(input->type.dtype, DimsOf(input));
    Set(input, Layout::kFirst, false, new_->AddInput(input->name(), std::move(type)));
  }
  const auto& handlers = Handlers();
  for (const Node* node = old_.first(); node != nullptr; node = node->next()) {
    if (absorbed_.contains(node)) continue;
    const bool used = std::any_of(node->outputs().begin(), node->outputs().end(),
                                  [](const Value* v) { return v != nullptr && !v->dead(); });
    if (!used) continue;
    if (const auto it = gelu_.find(node); it != gelu_.end()) {
      Gelu(*node);
      continue;
    }
    const std::string_view key = node->op();
    if (node->domain() != kIrDomain && !node->domain().empty() && node->domain() != "ai.onnx" &&
        node->domain() != "com.microsoft") {
      Refuse(*node, node->domain() == "octavo" ? "its attributes do not become a type, as the warning says"
                                               : "its domain '" + node->domain() + "' is not known");
    }
    const auto it = handlers.find(key);
    if (it == handlers.end()) Refuse(*node, "the operator is not lowered");
    (this->*it->second)(*node);
  }
  std::unordered_set<const Value*> taken;
  for (const Value* old : old_.outputs()) {
    Value* y = Get(old, Layout::kFirst, true);
    if (!taken.insert(y).second || y->kind() != ValueKind::kResult) {
      // A copy: an output is a tensor of its own.
      y = Emit("RESHAPE", {y, Int32s(ShapeOf(y), old->name() + "_shape")}, old->name(), y->type);
      taken.insert(y);
    }
    if (y->name() != old->name()) {
      Value* other = new_->FindValue(old->name());
      if (other == nullptr) {
        new_->Rename(y, old->name());
      } else if (other->kind() != ValueKind::kInput && !other->is_graph_output()) {
        new_->SwapNames(y, other);
      }
    }
    new_->AddOutput(y);
  }
  new_->EraseDead();
  for (const Node* node = new_->first(); node != nullptr; node = node->next()) ++report_.operators[node->op()];
  model_.graph = std::move(new_);
  return std::move(report_);
}

}  // namespace internal

bool LowersToCircle(std::string_view op) { return internal::CircleLowering::Handlers().contains(op); }

CircleReport LowerToCircle(Model& model) { return internal::CircleLowering(model).Run(); }

}  // namespace octavo
