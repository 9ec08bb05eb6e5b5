// Random well-formed models for property tests, of every feature that the IR has: subgraphs with captures, absent
// inputs and outputs, all attribute kinds, all dtypes, quantized types, names of arbitrary bytes. Same seed, same
// model.
#pragma once

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "octavo/ir/graph.h"

namespace octavo::testing {

class RandomModel {
 public:
  explicit RandomModel(std::uint64_t seed) : rng_(seed) {}

  // About `nodes` nodes in the main graph. Verify() of the result is empty.
  Model Make(int nodes) {
    Model m;
    m.ir_version = Int(3, 12);
    m.SetOpsetVersion("", Int(7, 25));
    for (int i = Int(0, 2); i > 0; --i) m.SetOpsetVersion("domain." + Bytes(4), Int(1, 3));
    for (int i = Int(0, 2); i > 0; --i) m.metadata[Bytes(6)] = Bytes(12);
    for (int i = Int(0, 2); i > 0; --i) {
      m.functions.push_back(Bytes(20));
      m.function_ids.push_back("local:" + Bytes(3));
    }
    if (Chance(3)) m.extras = Bytes(10);
    m.graph = std::make_unique<Graph>();
    std::vector<Value*> visible;
    Fill(*m.graph, visible, nodes, 0);
    return m;
  }

  int Int(int low, int high) { return low + static_cast<int>(rng_() % static_cast<unsigned>(high - low + 1)); }
  bool Chance(int one_in) { return Int(1, one_in) == 1; }

  // Any bytes, mostly letters.
  std::string Bytes(int max) {
    std::string out;
    for (int i = Int(0, max); i > 0; --i) {
      out += Chance(3) ? static_cast<char>(Int(0, 255)) : static_cast<char>(Int('a', 'z'));
    }
    return out;
  }

  TensorRef Tensor(DType dtype, Dims dims) {
    const std::uint64_t n = ElementCount(dims);
    if (dtype == DType::kString) {
      std::vector<std::string> list;
      for (std::uint64_t i = 0; i < n; ++i) list.push_back(Bytes(5));
      TensorRef t;
      t.dtype = dtype;
      t.dims = std::move(dims);
      t.strings = std::make_shared<const std::vector<std::string>>(std::move(list));
      return t;
    }
    // Arbitrary bits: NaNs with payloads, infinities, subnormals, padding of packed types.
    std::vector<std::byte> data(*ByteSize(dtype, n));
    const int style = Int(0, 3);
    const auto same = static_cast<std::byte>(Int(0, 255));
    for (std::byte& b : data) b = style == 0 ? same : style == 1 ? std::byte{0} : static_cast<std::byte>(Int(0, 255));
    return TensorRef::FromBytes(dtype, std::move(dims), std::move(data));
  }

 private:
  DType AnyDType() { return static_cast<DType>(Int(1, kDTypeCount - 1)); }

  Dims SmallDims() {
    Dims d;
    for (int i = Int(0, 3); i > 0; --i) d.push_back(Int(0, 5));
    return d;
  }

  std::string AnyName() { return Chance(2) ? "layer." + std::to_string(Int(0, 99)) + "/x" : "n" + Bytes(8); }

  std::vector<Dim> Shape(const Dims& dims) {
    std::vector<Dim> out;
    for (const std::int64_t d : dims) {
      Dim dim;
      if (!Chance(4)) {
        dim.value = d;
      } else if (Chance(2)) {
        dim.symbol = "s" + Bytes(5);
      }
      out.push_back(dim);
    }
    return out;
  }

  TensorRef Scales(Dims dims) {
    std::vector<float> v(ElementCount(dims));
    for (float& s : v) s = std::ldexp(static_cast<float>(Int(1, 1 << 20)), -Int(10, 40));
    if (Chance(3)) {  // f16: any positive normal bits
      std::vector<std::byte> data(v.size() * 2);
      for (std::size_t i = 0; i < v.size(); ++i) {
        const auto bits = static_cast<std::uint16_t>(Int(0x0400, 0x7BFF));
        std::memcpy(data.data() + 2 * i, &bits, 2);
      }
      return TensorRef::FromBytes(DType::kF16, std::move(dims), std::move(data));
    }
    return TensorRef::FromFloats(std::move(dims), v);
  }

  QuantType Quant(const Dims& dims) {
    QuantType q;
    const auto rank = static_cast<int>(dims.size());
    if (rank > 0 && Chance(4)) {
      q.kind = QuantType::Kind::kGgml;
      q.ggml.format = "Q4_" + Bytes(2);
      q.ggml.axis = Int(0, rank - 1);
      return q;
    }
    if (rank > 0 && Chance(4)) {
      q.kind = QuantType::Kind::kMx;
      q.mx.format = "MXFP4";
      q.mx.axis = Int(0, rank - 1);
      q.mx.block = Int(1, 64);
      return q;
    }
    static constexpr DType kStorage[] = {DType::kU8,  DType::kS8, DType::kU16, DType::kS16,      DType::kS32,
                                         DType::kU32, DType::kU4, DType::kS4,  DType::kF8E4M3FN, DType::kU2};
    q.affine.storage = kStorage[Int(0, 9)];
    Dims params;
    if (rank > 0 && Chance(2)) {
      const int axis = Int(0, rank - 1);
      q.affine.axis = axis;
      params = {dims[static_cast<std::size_t>(axis)]};
      if (Chance(2)) {
        q.affine.block = Int(1, 4);
        params = dims;
        std::int64_t& d = params[static_cast<std::size_t>(axis)];
        d = (d + q.affine.block - 1) / q.affine.block;
      }
    } else if (Chance(2)) {
      params = {1};
    }
    q.affine.scale = Scales(params);
    if (Chance(2)) q.affine.zero_point = Tensor(q.affine.storage, params);
    return q;
  }

  Type AnyType() {
    Type t;
    if (Chance(6)) return t;
    t.dtype = AnyDType();
    const Dims dims = SmallDims();
    if (!Chance(5)) t.shape = Shape(dims);
    if (t.shape && Chance(3)) {
      t.dtype = DType::kF32;
      t.quant = Quant(dims);
    }
    if (Chance(12)) t.opaque = Bytes(8);
    return t;
  }

  void AddConstant(Graph& g, std::vector<Value*>& visible) {
    const Dims dims = SmallDims();
    Value* v = nullptr;
    if (Chance(3)) {
      Type type;
      type.dtype = DType::kF32;
      if (!Chance(3)) type.shape = Shape(dims);
      type.quant = Quant(dims);
      const bool affine = type.quant->kind == QuantType::Kind::kAffine;
      v = g.AddConstant(AnyName(), Tensor(affine ? type.quant->affine.storage : DType::kU8, dims), type);
    } else {
      v = g.AddConstant(AnyName(), Tensor(AnyDType(), dims));
    }
    if (Chance(5)) v->extras = Bytes(5);
    visible.push_back(v);
  }

  AttributeValue AnyAttribute(Graph& g, const std::vector<Value*>& visible, int depth) {
    const auto list = [&](auto make) {
      std::vector<decltype(make())> out;
      for (int i = Int(0, 3); i > 0; --i) out.push_back(make());
      return out;
    };
    const auto any_int = [&] { return Chance(2) ? std::int64_t{Int(-5, 5)} : static_cast<std::int64_t>(rng_()); };
    const auto any_float = [&] {
      if (Chance(2)) return static_cast<float>(Int(-3, 3));
      const auto bits = static_cast<std::uint32_t>(rng_());
      float f;
      std::memcpy(&f, &bits, sizeof f);
      return f;
    };
    switch (Int(0, depth < 3 ? 9 : 7)) {
      case 0:
        return any_int();
      case 1:
        return any_float();
      case 2:
        return Bytes(8);
      case 3:
        return Tensor(AnyDType(), SmallDims());
      case 4:
        return list(any_int);
      case 5:
        return list(any_float);
      case 6:
        return list([&] { return Bytes(4); });
      case 7:
        return OpaqueAttribute{Bytes(6)};
      default: {
        auto sub = std::make_unique<Graph>(&g);
        std::vector<Value*> inner = visible;
        Fill(*sub, inner, Int(0, 4), depth + 1);
        return sub;
      }
    }
  }

  void Fill(Graph& g, std::vector<Value*>& visible, int nodes, int depth) {
    g.name = Bytes(6);
    if (Chance(5)) g.extras = Bytes(6);
    for (int i = Int(0, 3); i > 0; --i) {
      Value* v = g.AddInput(AnyName(), AnyType());
      if (Chance(4)) {
        const Dims dims = SmallDims();
        v->data = Tensor(AnyDType(), dims);
        v->type = TypeOf(*v->data);
      }
      if (Chance(5)) v->extras = Bytes(5);
      visible.push_back(v);
    }
    for (int i = Int(0, 3); i > 0; --i) AddConstant(g, visible);
    for (int i = 0; i < nodes; ++i) AddNode(g, visible, depth);
    for (int i = Int(0, 3); i > 0 && !visible.empty(); --i) g.AddOutput(Pick(visible));
  }

  Value* Pick(const std::vector<Value*>& visible) {
    return visible[static_cast<std::size_t>(Int(0, static_cast<int>(visible.size()) - 1))];
  }

  void AddNode(Graph& g, std::vector<Value*>& visible, int depth) {
    static constexpr const char* kOps[] = {"Conv", "Relu", "Quantize", "constant", "graph", "_", "odd op\n"};
    static constexpr const char* kDomains[] = {"", "com.microsoft", "a \"domain\"", "hex"};
    std::vector<Value*> inputs;
    for (int i = Int(0, 4); i > 0; --i) inputs.push_back(visible.empty() || Chance(5) ? nullptr : Pick(visible));
    std::vector<Graph::OutputSpec> outputs;
    for (int i = Int(0, 3); i > 0; --i) {
      outputs.push_back(Chance(5) ? Graph::OutputSpec{} : Graph::OutputSpec{AnyName(), AnyType()});
    }
    Node* n = g.AddNode(kOps[Int(0, 6)], kDomains[Int(0, 3)], inputs, outputs);
    if (Chance(2)) n->name = Bytes(10);
    if (Chance(6)) n->overload = Bytes(4);
    if (Chance(6)) n->extras = Bytes(4);
    n->form = static_cast<QuantForm>(Int(0, 2));
    for (int i = Int(0, 3); i > 0; --i) n->SetAttribute("a" + Bytes(3), AnyAttribute(g, visible, depth));
    for (Value* v : n->outputs()) {
      if (v == nullptr) continue;
      if (Chance(6)) v->extras = Bytes(4);
      visible.push_back(v);
    }
    if (!visible.empty() && Chance(3)) AddIrNode(g, visible);
  }

  void AddIrNode(Graph& g, std::vector<Value*>& visible) {
    Type x;
    x.dtype = DType::kF32;
    const Dims dims = SmallDims();
    x.shape = Shape(dims);
    Type y = x;
    y.quant = Quant(dims);
    Value* source = g.AddNode("Make", "", {}, {{AnyName(), x}})->output();
    Value* q = g.AddNode(std::string(kQuantize), std::string(kIrDomain), {source}, {{AnyName(), y}})->output();
    visible.push_back(q);
    visible.push_back(g.AddNode(std::string(kDequantize), std::string(kIrDomain), {q}, {{AnyName(), x}})->output());
  }

  std::mt19937_64 rng_;
};

}  // namespace octavo::testing
