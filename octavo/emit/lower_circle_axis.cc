// Operators of one spatial dimension, in those of two: no consumer has the others.
#include "octavo/emit/lower_circle.h"

namespace octavo::internal {

namespace {

// [batch, channels, n] -> [batch, channels, 1, n]
Dims WithHeight(Dims dims) {
  dims.insert(dims.begin() + 2, 1);
  return dims;
}

// Window attributes of one dimension: those of a height of 1 before them. Pads hold the beginnings, then the ends.
void AddHeight(Node& node) {
  for (const auto& [name, of_height] :
       {std::pair{"kernel_shape", 1}, {"strides", 1}, {"dilations", 1}, {"output_padding", 0}, {"output_shape", 1}}) {
    const std::vector<std::int64_t>* list = node.IntsAttribute(name);
    if (list != nullptr && list->size() == 1) node.SetAttribute(name, std::vector<std::int64_t>{of_height, (*list)[0]});
  }
  const std::vector<std::int64_t>* pads = node.IntsAttribute("pads");
  if (pads != nullptr && pads->size() == 2)
    node.SetAttribute("pads", std::vector<std::int64_t>{0, (*pads)[0], 0, (*pads)[1]});
}

}  // namespace

// Before:  %y = Conv(%x : [n, c, w], %k : [o, c, k])
// After:   %a = Reshape(%x) : [n, c, 1, w];  %b = Conv(%a, %k' : [o, c, 1, k]);  %y = Reshape(%b)
// and so for ConvTranspose, MaxPool and AveragePool. Codes and their parameters stay.
void CircleLowering::AddAxis() {
  bool any = false;
  for (Node* node : old_.nodes()) {
    const bool weighted = node->Is("Conv") || node->Is("ConvTranspose");
    if (!weighted && !node->Is("MaxPool") && !node->Is("AveragePool")) continue;
    Value *x = node->input(0), *y = node->output();
    if (x == nullptr || y == nullptr || node->outputs().size() != 1) continue;
    const std::optional<Dims> from = StaticShape(x->type), to = StaticShape(y->type);
    if (!from || !to || from->size() != 3 || to->size() != 3) continue;
    if (weighted) {
      const Value* w = node->input(1);
      if (w == nullptr || !w->is_constant() || !w->data || w->data->dims.size() != 3) continue;
      TensorRef data = *w->data;
      data.dims = WithHeight(data.dims);
      const Dims dims = data.dims;
      Type type = MakeType(w->type.quant ? w->type.dtype : data.dtype, dims, w->type.quant);
      if (type.quant && type.quant->kind == QuantType::Kind::kMx && type.quant->mx.axis >= 2) ++type.quant->mx.axis;
      if (type.quant && type.quant->kind == QuantType::Kind::kAffine) {
        Affine& affine = type.quant->affine;
        if (affine.block != 0) affine.scale.dims = WithHeight(affine.scale.dims);
        if (affine.block != 0 && affine.zero_point) affine.zero_point->dims = affine.scale.dims;
        if (affine.axis && *affine.axis >= 2) ++*affine.axis;
      }
      node->SetInput(1, old_.AddConstant(old_.UniqueName(w->name()), std::move(data), std::move(type)));
    }
    const auto reshape = [&](Value* v, const Dims& dims, Node* before) {
      Value* shape = old_.AddConstant(old_.UniqueName(v->name() + "_dims"),
                                      TensorRef::FromInts(DType::kS64, {static_cast<std::int64_t>(dims.size())}, dims));
      return old_.AddNode("Reshape", "", {v, shape},
                          {{old_.UniqueName(v->name() + "_axis"), MakeType(v->type.dtype, dims, v->type.quant)}},
                          before);
    };
    node->SetInput(0, reshape(x, WithHeight(*from), node)->output());
    AddHeight(*node);
    const Type flat = y->type;
    y->type = MakeType(flat.dtype, WithHeight(*to), flat.quant);
    Node* back = reshape(y, *to, node->next());
    if (y->is_graph_output()) old_.SwapNames(y, back->output());
    old_.ReplaceAllUses(y, back->output(), back);
    any = true;
  }
  if (any) old_.EraseDead();
}

}  // namespace octavo::internal
