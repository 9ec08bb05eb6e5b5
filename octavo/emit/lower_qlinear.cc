#include <algorithm>
#include <cstring>
#include <unordered_map>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/emit/clip_codes.h"
#include "octavo/emit/onnx.h"
#include "octavo/emit/scales.h"
#include "octavo/emit/stablehlo_blocks.h"
#include "octavo/numerics/affine.h"
#include "octavo/numerics/half.h"

namespace octavo {
namespace {

constexpr const char* kMs = "com.microsoft";

const Affine* AffineOf(const Value* value) {
  if (value == nullptr || !value->type.quant || value->type.quant->kind != QuantType::Kind::kAffine) return nullptr;
  return &value->type.quant->affine;
}

class QLinearLowering {
 public:
  explicit QLinearLowering(Model& model) : model_(model) {}

  void Run() {
    std::vector<Node*> nodes;
    VisitNodes(*model_.graph, [&](Node& node) {
      if (node.form == QuantForm::kQLinear && node.domain() != kIrDomain) nodes.push_back(&node);
    });
    for (Node* node : nodes) Lower(*node);
    nodes.clear();
    VisitNodes(*model_.graph, [&](Node& node) {
      if (IsQ4_0Product(node) || IsQ4_0Lookup(node)) nodes.push_back(&node);
    });
    for (Node* node : nodes) Q4_0(*node);
    if (!nodes.empty()) model_.graph->EraseDead();
  }

 private:
  struct Params {
    Value* scale = nullptr;
    Value* zero = nullptr;
  };

  // Raw codes of a quantized value; any other value as it is.
  Value* Codes(Value* value) {
    if (value == nullptr || !value->type.quant) return value;
    Type raw = value->type;
    raw.dtype = AffineOf(value)->storage;
    raw.quant.reset();
    Node* cast = graph_->AddNode(std::string(kStorageCast), std::string(kIrDomain), {value},
                                 {{value->name() + "_codes", std::move(raw)}}, before_);
    return cast->output();
  }

  Params ParamsOf(const Value* value) {
    Params& p = params_[value];
    if (p.scale != nullptr) return p;
    const Affine* affine = AffineOf(value);
    if (affine == nullptr) ThrowInternal("an integer operator of a value without affine parameters", value->name());
    Graph& home = *value->graph();
    p.scale = affine->block > 0 ? AddScales(home, value->name() + "_scale", affine->scale, *affine->axis)
                                : home.AddConstant(value->name() + "_scale", affine->scale);
    TensorRef zero;
    if (affine->zero_point) {
      zero = *affine->zero_point;
    } else {
      const std::vector<std::int64_t> zeros(affine->scale.elements(), 0);
      zero = TensorRef::FromInts(affine->storage, affine->scale.dims, zeros);
    }
    p.zero = home.AddConstant(value->name() + "_zero_point", std::move(zero));
    return p;
  }

  // The operator that stands for node_, with its attributes; results become quantized values (or floats) of the old
  // names.
  Node* Emit(std::string op, std::string domain, std::vector<Value*> inputs) {
    if (!domain.empty() && model_.OpsetVersion(domain) == 0) model_.SetOpsetVersion(domain, 1);
    std::vector<Graph::OutputSpec> outputs;
    for (const Value* v : node_->outputs()) {
      if (v == nullptr) {
        outputs.push_back({});
        continue;
      }
      Type type = v->type;
      if (const Affine* affine = AffineOf(v)) {
        type.dtype = affine->storage;
        type.quant.reset();
      }
      outputs.push_back({graph_->UniqueName(v->name() + (v->type.quant ? "_quantized" : "_float")), std::move(type)});
    }
    while (!inputs.empty() && inputs.back() == nullptr) inputs.pop_back();
    Node* fresh = graph_->AddNode(std::move(op), std::move(domain), std::move(inputs), std::move(outputs), before_);
    fresh->name = node_->name;
    fresh->extras = node_->extras;
    return fresh;
  }

  void CopyAttributes(Node& to, std::initializer_list<std::string_view> except = {}) {
    for (Attribute& a : node_->attributes()) {
      if (std::find(except.begin(), except.end(), a.name) != except.end()) continue;
      to.SetAttribute(a.name, std::move(a.value));
    }
  }

  void Replace(Node& fresh) {
    std::vector<std::pair<Value*, std::string>> names;
    for (std::size_t i = 0; i < node_->outputs().size(); ++i) {
      Value* old = node_->output(i);
      if (old == nullptr) continue;
      Value* made = fresh.output(i);
      if (old->type.quant) {
        Node* cast = graph_->AddNode(std::string(kStorageCast), std::string(kIrDomain), {made},
                                     {{old->name() + "_typed", old->type}}, before_);
        made = cast->output();
        const auto known = params_.find(old);
        if (known != params_.end()) {
          params_[made] = known->second;
          params_.erase(known);
        }
      }
      made->extras = old->extras;
      names.emplace_back(made, old->name());
      graph_->ReplaceAllUses(old, made);
    }
    graph_->Erase(node_);
    for (auto& [value, name] : names) graph_->Rename(value, std::move(name));
  }

  // Attributes, inputs as they are but for codes: operators that move codes.
  void OnCodes() {
    std::vector<Value*> inputs;
    for (Value* v : node_->inputs()) inputs.push_back(Codes(v));
    Node* fresh = Emit(node_->op(), "", std::move(inputs));
    CopyAttributes(*fresh);
    Replace(*fresh);
  }

  void Clip() {
    const Affine& a = *AffineOf(node_->output());
    const float scale = a.scale.ToFloats()[0];
    const auto zero = static_cast<std::int32_t>(a.zero_point ? a.zero_point->ToInts()[0] : 0);
    const std::optional<ClipCodes> codes = ClipCodesOf(*node_, scale, zero, a.storage);
    if (!codes) ThrowInternal("a Clip on codes whose bounds are not constant", node_->name);
    const auto bound = [&](std::int64_t code, const char* suffix) {
      return graph_->AddConstant(node_->output()->name() + suffix, TensorRef::FromInts(a.storage, {}, {&code, 1}));
    };
    std::vector<Value*> inputs = {Codes(node_->input(0))};
    const bool low = codes->low > IntegerMin(a.storage), high = codes->high < IntegerMax(a.storage);
    inputs.push_back(low ? bound(codes->low, "_min") : nullptr);
    inputs.push_back(high ? bound(codes->high, "_max") : nullptr);
    Replace(*Emit("Clip", "", std::move(inputs)));
  }

  void Pad() {
    const Affine& a = *AffineOf(node_->output());
    std::vector<Value*> inputs;
    for (Value* v : node_->inputs()) inputs.push_back(v == node_->input(0) ? Codes(v) : v);
    if (node_->StringAttribute("mode", "constant") == "constant") {
      if (inputs.size() < 3) inputs.resize(3);
      const Value* v = node_->input(2);
      std::int64_t code = a.zero_point ? a.zero_point->ToInts()[0] : 0;
      if (v != nullptr && v->type.quant) {
        code = v->data->ToInts()[0];
      } else if (v != nullptr) {
        code = QuantizeOne(v->data->ToFloats()[0], a.scale.ToFloats()[0], static_cast<std::int32_t>(code), a.storage);
      }
      inputs[2] = graph_->AddConstant(node_->output()->name() + "_pad", TensorRef::FromInts(a.storage, {}, {&code, 1}));
    } else if (inputs.size() > 2) {
      inputs[2] = nullptr;  // a number that is not read, and has the type of the floats
    }
    Node* fresh = Emit("Pad", "", std::move(inputs));
    CopyAttributes(*fresh);
    Replace(*fresh);
  }

  // A convolution with a float result: ConvInteger, Cast, Mul by the scale of its products, Add of its bias.
  void ConvInteger() {
    const Affine &x = *AffineOf(node_->input(0)), &w = *AffineOf(node_->input(1));
    const Params from = ParamsOf(node_->input(0));
    const std::string& name = node_->output()->name();
    const std::int64_t zero = w.zero_point ? w.zero_point->ToInts()[0] : 0;
    Value* weight_zero =
        graph_->AddConstant(node_->input(1)->name() + "_zero_point", TensorRef::FromInts(w.storage, {}, {&zero, 1}));
    std::vector<float> scales = w.scale.ToFloats();
    for (float& s : scales) s *= x.scale.ToFloats()[0];
    const std::size_t spatial = node_->input(1)->type.shape ? node_->input(1)->type.shape->size() - 2 : 0;
    Dims dims;
    if (scales.size() > 1) {
      dims.assign(spatial + 1, 1);
      dims[0] = std::ssize(scales);
    }
    Type type = node_->output()->type;
    type.dtype = DType::kS32;
    Node* sums =
        graph_->AddNode("ConvInteger", "", {Codes(node_->input(0)), Codes(node_->input(1)), from.zero, weight_zero},
                        {{name + "_sums", type}}, before_);
    sums->name = node_->name;
    CopyAttributes(*sums);
    type.dtype = DType::kF32;
    Node* cast = graph_->AddNode("Cast", "", {sums->output()}, {{name + "_sums_float", type}}, before_);
    cast->SetAttribute("to", std::int64_t{1});
    std::vector<Value*> product{cast->output(),
                                graph_->AddConstant(name + "_scale", TensorRef::FromFloats(dims, scales))};
    const Value* bias = node_->input(2);
    if (bias == nullptr) {
      node_->name.clear();
      return Replace(*Emit("Mul", "", std::move(product)));
    }
    std::vector<float> numbers;
    if (const Affine* b = AffineOf(bias)) {
      const std::vector<float> steps = b->scale.ToFloats();
      for (const std::int64_t code : bias->data->ToInts()) {
        numbers.push_back(static_cast<float>(code) * steps[steps.size() == 1 ? 0 : numbers.size()]);
      }
    } else {
      numbers = bias->data->ToFloats();
    }
    Dims shape(spatial + 1, 1);
    shape[0] = std::ssize(numbers);
    Node* mul = graph_->AddNode("Mul", "", std::move(product), {{name + "_scaled", type}}, before_);
    node_->name.clear();
    Replace(
        *Emit("Add", "", {mul->output(), graph_->AddConstant(name + "_bias", TensorRef::FromFloats(shape, numbers))}));
  }

  void Conv() {
    if (!node_->output()->type.quant) return ConvInteger();
    const Params x = ParamsOf(node_->input(0)), w = ParamsOf(node_->input(1)), y = ParamsOf(node_->output());
    Node* fresh = Emit("QLinearConv", "",
                       {Codes(node_->input(0)), x.scale, x.zero, Codes(node_->input(1)), w.scale, w.zero, y.scale,
                        y.zero, Codes(node_->input(2))});
    CopyAttributes(*fresh);
    Replace(*fresh);
  }

  void MatMul() {
    const Params a = ParamsOf(node_->input(0)), b = ParamsOf(node_->input(1));
    Value *x = Codes(node_->input(0)), *w = Codes(node_->input(1));
    if (!node_->output()->type.quant) {
      Replace(*Emit("MatMulIntegerToFloat", kMs, {x, w, a.scale, b.scale, a.zero, b.zero}));
      return;
    }
    const Params y = ParamsOf(node_->output());
    Replace(*Emit("QLinearMatMul", "", {x, a.scale, a.zero, w, b.scale, b.zero, y.scale, y.zero}));
  }

  void Gemm() {
    const Params a = ParamsOf(node_->input(0)), b = ParamsOf(node_->input(1));
    std::vector<Value*> inputs = {Codes(node_->input(0)), a.scale, a.zero, Codes(node_->input(1)), b.scale, b.zero,
                                  Codes(node_->input(2))};
    if (node_->output()->type.quant) {
      const Params y = ParamsOf(node_->output());
      inputs.push_back(y.scale);
      inputs.push_back(y.zero);
    }
    Node* fresh = Emit("QGemm", kMs, std::move(inputs));
    CopyAttributes(*fresh, {"beta"});
    Replace(*fresh);
  }

  void Binary() {
    const Params a = ParamsOf(node_->input(0)), b = ParamsOf(node_->input(1)), y = ParamsOf(node_->output());
    Replace(*Emit("QLinear" + node_->op(), kMs,
                  {Codes(node_->input(0)), a.scale, a.zero, Codes(node_->input(1)), b.scale, b.zero, y.scale, y.zero}));
  }

  void Unary(bool signals_opset) {
    const Params x = ParamsOf(node_->input(0)), y = ParamsOf(node_->output());
    Node* fresh = Emit("QLinear" + node_->op(), kMs, {Codes(node_->input(0)), x.scale, x.zero, y.scale, y.zero});
    CopyAttributes(*fresh, {"dilations"});
    if (signals_opset) fresh->SetAttribute("opset", model_.OpsetVersion());
    Replace(*fresh);
  }

  bool SameParamsAll() const {
    const Affine* y = AffineOf(node_->output());
    for (const Value* v : node_->inputs()) {
      if (const Affine* x = AffineOf(v); x != nullptr && !SameParams(*x, *y)) return false;
    }
    return true;
  }

  void Concat() {
    // Scales that run along an axis are joined as the codes are.
    if (const Affine* y = AffineOf(node_->output()); SameParamsAll() || (y != nullptr && y->axis)) return OnCodes();
    const Params y = ParamsOf(node_->output());
    std::vector<Value*> inputs = {y.scale, y.zero};
    for (Value* v : node_->inputs()) {
      const Params p = ParamsOf(v);
      inputs.insert(inputs.end(), {Codes(v), p.scale, p.zero});
    }
    Node* fresh = Emit("QLinearConcat", kMs, std::move(inputs));
    CopyAttributes(*fresh);
    Replace(*fresh);
  }

  void Where() {
    if (SameParamsAll()) return OnCodes();
    const Params a = ParamsOf(node_->input(1)), b = ParamsOf(node_->input(2)), y = ParamsOf(node_->output());
    Replace(*Emit("QLinearWhere", kMs,
                  {node_->input(0), Codes(node_->input(1)), a.scale, a.zero, Codes(node_->input(2)), b.scale, b.zero,
                   y.scale, y.zero}));
  }

  // Before: %w : s4(axis=0, block) [K, N]       After: u8 [N, blocks, block / 2], codes + 8, low nibble first
  void MatMulNBits() {
    const Value* w = node_->input(1);
    const Affine& a = *AffineOf(w);
    const std::int64_t k = w->data->dims[0], n = w->data->dims[1], blocks = (k + a.block - 1) / a.block;
    const auto flip = static_cast<std::uint64_t>(a.storage == DType::kS4 ? 8 : 0);
    std::vector<std::byte> packed(static_cast<std::size_t>(n * blocks * a.block / 2), std::byte{0x88});
    const TensorRef& data = *w->data;
    for (std::int64_t i = 0; i < k; ++i) {
      for (std::int64_t j = 0; j < n; ++j) {
        const auto code = static_cast<unsigned>(ElementBits(data, static_cast<std::uint64_t>(i * n + j)) ^ flip);
        std::byte& byte = packed[static_cast<std::size_t>((j * blocks * a.block + i) / 2)];
        byte = i % 2 == 0 ? (byte & std::byte{0xF0}) | static_cast<std::byte>(code)
                          : (byte & std::byte{0x0F}) | static_cast<std::byte>(code << 4);
      }
    }
    const std::vector<float> from = a.scale.ToFloats();
    std::vector<float> scales(from.size());
    for (std::int64_t b = 0; b < blocks; ++b) {
      for (std::int64_t j = 0; j < n; ++j) {
        scales[static_cast<std::size_t>(j * blocks + b)] = from[static_cast<std::size_t>(b * n + j)];
      }
    }
    NBits(w, k, n, a.block, std::move(packed), scales);
  }

  // packed: u8 [N, blocks, block / 2]; scales: [N, blocks]. The product's inputs stay floats.
  void NBits(const Value* w, std::int64_t k, std::int64_t n, std::int64_t block, std::vector<std::byte> packed,
             const std::vector<float>& scales) {
    const std::int64_t blocks = (k + block - 1) / block;
    Params& shared = params_[w];  // one packing for all its users
    if (shared.scale == nullptr) {
      shared.zero = graph_->AddConstant(w->name() + "_blocks",
                                        TensorRef::FromBytes(DType::kU8, {n, blocks, block / 2}, std::move(packed)));
      shared.scale = AddScales(*graph_, w->name() + "_scales", TensorRef::FromFloats({n, blocks}, scales), 1);
    }
    Node* fresh = Emit("MatMulNBits", kMs, {node_->input(0), shared.zero, shared.scale});
    fresh->SetAttribute("K", k);
    fresh->SetAttribute("N", n);
    fresh->SetAttribute("bits", std::int64_t{4});
    fresh->SetAttribute("block_size", block);
    fresh->SetAttribute("accuracy_level", std::int64_t{0});
    Replace(*fresh);
  }

  // A Q4_0 weight of two dimensions whose rows run along `axis`.
  static bool IsQ4_0(const Value* w, std::int64_t axis) {
    if (w == nullptr || !w->is_constant() || !w->type.quant || w->type.quant->kind != QuantType::Kind::kGgml)
      return false;
    const GgmlBlock& ggml = w->type.quant->ggml;
    const std::optional<Dims> dims = StaticShape(w->type);
    return ggml.format == "q4_0" && ggml.axis == axis && w->type.dtype == DType::kF32 && dims && dims->size() == 2;
  }
  // What the runtime computes on the codes themselves: a product along the blocks, and rows that are looked up.
  static bool IsQ4_0Product(const Node& node) {
    if (!node.Is("MatMul") || node.inputs().size() != 2) return false;
    const Value* x = node.input(0);
    return x != nullptr && x->type.shape && x->type.shape->size() >= 2 && !x->type.quant && IsQ4_0(node.input(1), 0);
  }
  static bool IsQ4_0Lookup(const Node& node) {
    return node.Is("Gather") && node.IntAttribute("axis", 0) == 0 && IsQ4_0(node.input(0), 1);
  }

  // Before: %w : q4_0(axis=0) [K, N], N rows of blocks      After: MatMulNBits of the same codes and f32 scales
  // Before: %w : q4_0(axis=1) [V, K]                        After: GatherBlockQuantized of s4 [V, K]
  void Q4_0(Node& node) {
    node_ = before_ = &node;
    graph_ = node.graph();
    const bool lookup = node.Is("Gather");
    const Value* w = node.input(lookup ? 0 : 1);
    const Dims dims = *StaticShape(w->type);
    const stablehlo::BlockForm& form = *stablehlo::FindBlockForm("q4_0");
    stablehlo::BlockParts parts = stablehlo::TakeApart(form, w->data->bytes);
    std::vector<float> scales(parts.d.size() / 2);
    for (std::size_t i = 0; i < scales.size(); ++i) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, parts.d.data() + 2 * i, 2);
      scales[i] = HalfToFloat(bits);
    }
    if (!lookup) {
      for (std::byte& code : parts.codes) code = static_cast<std::byte>(static_cast<int>(code) + 8) & std::byte{15};
      return NBits(w, dims[0], dims[1], form.block, PackNibbles(parts.codes), scales);
    }
    Params& shared = params_[w];
    if (shared.scale == nullptr) {
      shared.zero =
          graph_->AddConstant(w->name() + "_codes", TensorRef::FromBytes(DType::kS4, dims, PackNibbles(parts.codes)));
      shared.scale =
          AddScales(*graph_, w->name() + "_scales", TensorRef::FromFloats({dims[0], dims[1] / form.block}, scales), 1);
    }
    Node* fresh = Emit("GatherBlockQuantized", kMs, {shared.zero, node.input(1), shared.scale});
    SetGatherBlocks(*fresh, form.block);
    Replace(*fresh);
  }

  static void SetGatherBlocks(Node& node, std::int64_t block) {
    node.SetAttribute("gather_axis", std::int64_t{0});
    node.SetAttribute("quantize_axis", std::int64_t{1});
    node.SetAttribute("block_size", block);
  }

  void GatherBlocks() {
    Value* w = node_->input(0);
    const Affine& a = *AffineOf(w);
    const Params p = ParamsOf(w);
    const std::int64_t block = a.block;
    // s4 has zero point 0 where none is given; u4 has 8.
    Value* zero = a.storage == DType::kS4 ? nullptr : p.zero;
    Node* fresh = Emit("GatherBlockQuantized", kMs, {Codes(w), node_->input(1), p.scale, zero});
    if (zero == nullptr && p.zero->dead()) {
      p.zero->graph()->Erase(p.zero);
      params_.erase(w);
    }
    SetGatherBlocks(*fresh, block);
    Replace(*fresh);
  }

  void Lower(Node& node) {
    node_ = before_ = &node;
    graph_ = node.graph();
    const std::string& op = node.op();
    const bool blocks = (op == "MatMul" && AffineOf(node.input(1)) != nullptr && AffineOf(node.input(1))->block > 0) ||
                        (op == "Gather" && AffineOf(node.input(0)) != nullptr && AffineOf(node.input(0))->block > 0);
    if (blocks) return op == "Gather" ? GatherBlocks() : MatMulNBits();
    if (op == "Conv") return Conv();
    if (op == "MatMul") return MatMul();
    if (op == "Gemm") return Gemm();
    if (op == "Add" || op == "Mul") return Binary();
    if (op == "Concat") return Concat();
    if (op == "Where") return Where();
    if (op == "Softmax") return Unary(true);
    if (op == "Sigmoid" || op == "LeakyRelu" || op == "AveragePool" || op == "GlobalAveragePool") return Unary(false);
    if (op == "Relu" || op == "Clip") return Clip();
    if (op == "Pad") return Pad();
    const Affine* x = AffineOf(node.input(0));
    if (x == nullptr || AffineOf(node.output()) == nullptr) ThrowInternal("no integer operator for " + op, node.name);
    OnCodes();
  }

  Model& model_;
  std::unordered_map<const Value*, Params> params_;
  Node* node_ = nullptr;
  Node* before_ = nullptr;
  Graph* graph_ = nullptr;
};

}  // namespace

void LowerToQLinear(Model& model) {
  QLinearLowering(model).Run();
  LowerToQdq(model);
  model.graph->EraseDead();
}

}  // namespace octavo
