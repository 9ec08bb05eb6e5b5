// Matrix products.
#include <algorithm>
#include <numeric>

#include "octavo/emit/stablehlo_lowering.h"

namespace octavo::stablehlo {
namespace {

// Few rows: a packed weight is read once, row by row, when it stands on the left; on the right it takes IREE twenty
// times as long.
constexpr std::uint64_t kFewRows = 8;

// IREE (3.13) cuts the rows (of a batch of products the columns too) into tiles that divide them, and is three to
// fifteen times slower where there are none: where no number from 8 to 32 divides them that has no prime factor
// above 7. A transformer's 257 rows (with 256 patches and one for the class) are such.
bool CutsIntoTiles(std::uint64_t rows) {
  for (std::uint64_t tile = 8; tile <= 32; ++tile) {
    std::uint64_t rest = tile;
    for (const std::uint64_t prime : {2, 3, 5, 7}) {
      while (rest % prime == 0) rest /= prime;
    }
    if (rest == 1 && rows % tile == 0) return true;
  }
  return false;
}

// x with zeros behind a dimension of a product's result that cuts badly.
Tensor Tiled(Builder& b, const Tensor& x, std::size_t axis) {
  constexpr std::int64_t kTile = 8;
  const std::int64_t n = x.dims[axis];
  if (n <= static_cast<std::int64_t>(kFewRows) || !IsFloat(x.dtype) || CutsIntoTiles(static_cast<std::uint64_t>(n))) {
    return x;
  }
  Dims none(x.rank(), 0), behind(x.rank(), 0);
  behind[axis] = (kTile - n % kTile) % kTile;
  return b.Pad(x, b.Splat(x.dtype, {}, 0), none, behind);
}

// a: [.., K]; w: a matrix whose dimension `k` is K.
Tensor RowsTimes(Builder& b, const Tensor& a, const Tensor& w, std::int64_t k) {
  const std::int64_t inner = a.dims.back(), contract_rows[] = {1}, contract_w[] = {k};
  const auto rows = inner > 0 ? static_cast<std::int64_t>(ElementCount(a.dims)) / inner : 0;
  if (rows <= static_cast<std::int64_t>(kFewRows) || CutsIntoTiles(static_cast<std::uint64_t>(rows))) {
    const std::int64_t contract_a[] = {static_cast<std::int64_t>(a.rank()) - 1};
    return b.Dot(a, w, {}, {}, contract_a, contract_w);
  }
  Dims dims(a.dims.begin(), a.dims.end() - 1);
  dims.push_back(w.dims[k == 0 ? 1 : 0]);
  const Tensor y = b.Dot(Tiled(b, b.Reshape(a, {rows, inner}), 0), w, {}, {}, contract_rows, contract_w);
  return b.Reshape(b.SliceAxis(y, 0, 0, rows), std::move(dims));
}

// numpy.matmul of operands that have at least two dimensions.
Tensor Product(Emitter& e, const Node& node, const Tensor& a, const Tensor& b) {
  const std::size_t ra = a.rank(), rb = b.rank();
  if (a.dims[ra - 1] != b.dims[rb - 2]) e.Misfit(node, "inner dimensions differ: " + a.type() + " and " + b.type());
  if (a.dtype != b.dtype) e.Refuse(node, "its inputs differ in type");
  const Dims batch_a(a.dims.begin(), a.dims.end() - 2), batch_b(b.dims.begin(), b.dims.end() - 2);
  if (ElementCount(batch_b) == 1) {  // one matrix for all: no batch
    const Tensor matrix = e.b.Reshape(b, {b.dims[rb - 2], b.dims[rb - 1]});
    const Tensor y = RowsTimes(e.b, a, matrix, 0);
    Dims dims = *BroadcastShape(batch_a, batch_b);
    dims.push_back(a.dims[ra - 2]);
    dims.push_back(b.dims[rb - 1]);
    return e.b.Reshape(y, std::move(dims));
  }
  const std::optional<Dims> batch = BroadcastShape(batch_a, batch_b);
  if (!batch) e.Misfit(node, "batch dimensions do not broadcast: " + a.type() + " and " + b.type());
  Dims full_a = *batch, full_b = *batch;
  full_a.insert(full_a.end(), a.dims.end() - 2, a.dims.end());
  full_b.insert(full_b.end(), b.dims.end() - 2, b.dims.end());
  Dims axes(batch->size());
  std::iota(axes.begin(), axes.end(), 0);
  const auto last = static_cast<std::int64_t>(batch->size());
  const std::int64_t contract_a[] = {last + 1}, contract_b[] = {last};
  const std::size_t rows = batch->size(), columns = rows + 1;
  const Tensor left = Tiled(e.b, e.b.BroadcastTo(a, full_a), rows);
  const Tensor right = Tiled(e.b, e.b.BroadcastTo(b, full_b), columns);
  const Tensor y = e.b.Dot(left, right, axes, axes, contract_a, contract_b);
  return e.b.SliceAxis(e.b.SliceAxis(y, rows, 0, full_a[rows]), columns, 0, full_b[columns]);
}

void MatMul(Emitter& e, const Node& node) {
  const Value* av = node.input(0);
  const Value* bv = node.input(1);
  if (av == nullptr || bv == nullptr) e.Refuse(node, "an input is missing");
  const auto multiply = [&](Tensor a, Tensor b) {
    if (a.rank() == 0 || b.rank() == 0) e.Refuse(node, "an input is a scalar");
    const bool row = a.rank() == 1, column = b.rank() == 1;
    if (row) a = e.b.Reshape(a, {1, a.dims[0]});
    if (column) b = e.b.Reshape(b, {b.dims[0], 1});
    Tensor y = Product(e, node, a, b);
    Dims dims = y.dims;
    if (column) dims.pop_back();
    if (row) dims.erase(dims.end() - (column ? 1 : 2));
    return e.b.Reshape(y, std::move(dims));
  };
  if (const auto pair = e.UniformOperands(*av, *bv); pair && pair->first.rank() >= 2 && pair->second.rank() == 2) {
    const auto& [x, w] = *pair;
    if (x.dims.back() != w.dims[0]) e.Refuse(node, "inner dimensions differ");
    const std::int64_t contract_a[] = {static_cast<std::int64_t>(x.rank()) - 1}, contract_b[] = {0};
    return e.Out(node, 0, e.b.UniformDequantize(e.b.Dot(x, w, {}, {}, contract_a, contract_b)));
  }
  const Tensor a = e.In(node, 0);
  if (const std::optional<Tensor> rows = e.WeightRows(*bv); rows && a.rank() >= 2 && a.dtype == rows->dtype) {
    // rows: [N, K] of a blocked weight that means [K, N]
    const auto k_axis = static_cast<std::int64_t>(a.rank()) - 1;
    if (a.dims.back() != rows->dims[1]) e.Refuse(node, "inner dimensions differ");
    const std::int64_t contract_a[] = {k_axis}, contract_w[] = {1};
    if (ElementCount(a.dims) / static_cast<std::uint64_t>(std::max<std::int64_t>(a.dims.back(), 1)) > kFewRows) {
      return e.Out(node, 0, RowsTimes(e.b, a, *rows, 1));
    }
    const Tensor y = e.b.Dot(*rows, a, {}, {}, contract_w, contract_a);  // [N, batch.., M]
    Dims permutation(y.rank());
    std::iota(permutation.begin(), permutation.end() - 1, 1);
    permutation.back() = 0;
    return e.Out(node, 0, e.b.Transpose(y, permutation));
  }
  e.Out(node, 0, multiply(a, e.In(node, 1)));
}

// alpha A' B' + beta C
void Gemm(Emitter& e, const Node& node) {
  Tensor a = e.In(node, 0);
  const Value* bv = node.input(1);
  if (bv == nullptr) e.Refuse(node, "an input is missing");
  const bool ta = node.IntAttribute("transA", 0) != 0, tb = node.IntAttribute("transB", 0) != 0;
  Tensor w;
  bool rows = false;
  if (const std::optional<Tensor> blocked = tb ? std::nullopt : e.WeightRows(*bv)) {
    w = *blocked;
    rows = true;
  } else {
    w = e.In(node, 1);
    rows = tb;
  }
  if (a.rank() != 2 || w.rank() != 2 || a.dtype != w.dtype) e.Refuse(node, "its inputs are not matrices of one type");
  const std::int64_t contract_a[] = {ta ? 0 : 1}, contract_w[] = {rows ? 1 : 0};
  if (a.dims[ta ? 0 : 1] != w.dims[rows ? 1 : 0]) e.Refuse(node, "inner dimensions differ");
  Tensor y;
  const std::int64_t m = a.dims[ta ? 1 : 0];
  if (bv->type.quant && bv->type.quant->kind != QuantType::Kind::kAffine && rows &&
      m <= static_cast<std::int64_t>(kFewRows)) {
    const std::int64_t swap[] = {1, 0};
    y = e.b.Transpose(e.b.Dot(w, a, {}, {}, contract_w, contract_a), swap);
  } else {
    y = ta ? e.b.Dot(a, w, {}, {}, contract_a, contract_w) : RowsTimes(e.b, a, w, contract_w[0]);
  }
  const float alpha = node.FloatAttribute("alpha", 1), beta = node.FloatAttribute("beta", 1);
  if (alpha != 1) y = e.b.Mul(y, alpha);
  if (e.Has(node, 2)) {
    Tensor c = e.In(node, 2);
    if (beta != 1) c = e.b.Mul(c, beta);
    if (BroadcastShape(y.dims, c.dims) != y.dims || c.dtype != y.dtype) e.Refuse(node, "C does not fit the product");
    y = e.b.Add(y, c);
  }
  e.Out(node, 0, y);
}

// A tensor whose dimensions have letters.
struct Lettered {
  Tensor tensor;
  std::string letters;
  std::size_t Find(char c) const { return letters.find(c); }
  bool Has(char c) const { return Find(c) != std::string::npos; }
};

// Dimensions that nothing else names are summed up.
Lettered WithoutLone(Emitter& e, const Lettered& x, const std::string& needed) {
  Lettered out{x.tensor, {}};
  std::vector<std::int64_t> lone;
  for (std::size_t i = 0; i < x.letters.size(); ++i) {
    if (needed.find(x.letters[i]) == std::string::npos) {
      lone.push_back(static_cast<std::int64_t>(i));
    } else {
      out.letters += x.letters[i];
    }
  }
  out.tensor = e.b.Reduce(x.tensor, lone, Reduction::kAdd);
  return out;
}

Lettered Contract(Emitter& e, const Node& node, const Lettered& a, const Lettered& b, const std::string& needed) {
  std::vector<std::int64_t> batch[2], contract[2];
  std::string order, free;
  for (const char c : a.letters) {
    const bool stays = needed.find(c) != std::string::npos;
    if (!b.Has(c)) {
      free += c;
      continue;
    }
    if (a.tensor.dims[a.Find(c)] != b.tensor.dims[b.Find(c)]) {
      e.Refuse(node, std::string("dimension '") + c + "' has two sizes");
    }
    (stays ? batch : contract)[0].push_back(static_cast<std::int64_t>(a.Find(c)));
    (stays ? batch : contract)[1].push_back(static_cast<std::int64_t>(b.Find(c)));
    if (stays) order += c;
  }
  for (const char c : b.letters) {
    if (!a.Has(c)) free += c;
  }
  return {e.b.Dot(a.tensor, b.tensor, batch[0], batch[1], contract[0], contract[1]), order + free};
}

// From left to right.
void Einsum(Emitter& e, const Node& node) {
  std::string equation = node.StringAttribute("equation", "");
  std::erase(equation, ' ');
  const std::size_t arrow = equation.find("->");
  if (arrow == std::string::npos || equation.find('.') != std::string::npos) {
    e.Refuse(node, "an equation without an arrow, or with an ellipsis: '" + equation + "'");
  }
  const std::string result = equation.substr(arrow + 2);
  const auto distinct = [](std::string letters) {
    std::sort(letters.begin(), letters.end());
    return std::adjacent_find(letters.begin(), letters.end()) == letters.end();
  };
  std::vector<Lettered> operands;
  std::string rest = equation.substr(0, arrow) + ",";
  for (std::size_t i = 0; i < node.inputs().size(); ++i) {
    const std::size_t comma = rest.find(',');
    if (comma == std::string::npos) e.Refuse(node, "its equation does not fit its inputs");
    operands.push_back({e.In(node, i), rest.substr(0, comma)});
    rest.erase(0, comma + 1);
    if (operands.back().letters.size() != operands.back().tensor.rank()) {
      e.Refuse(node, "its equation does not fit its inputs");
    }
    if (!distinct(operands.back().letters) || !distinct(result))
      e.Refuse(node, "a letter that stands twice in one term");
  }
  if (operands.empty() || !rest.empty()) e.Refuse(node, "its equation does not fit its inputs");
  const auto needed_behind = [&](std::size_t i) {  // what the result and the operands behind i name
    std::string letters = result;
    for (std::size_t k = i + 1; k < operands.size(); ++k) letters += operands[k].letters;
    return letters;
  };
  Lettered y = WithoutLone(e, operands[0], needed_behind(0));
  for (std::size_t i = 1; i < operands.size(); ++i) {
    const std::string needed = needed_behind(i);
    y = Contract(e, node, y, WithoutLone(e, operands[i], needed + y.letters), needed);
  }
  Dims permutation;
  for (const char c : result) {
    if (!y.Has(c)) e.Refuse(node, std::string("no input has the letter '") + c + "'");
    permutation.push_back(static_cast<std::int64_t>(y.Find(c)));
  }
  e.Out(node, 0, e.b.Transpose(y.tensor, permutation));
}

constexpr Lowering kTable[] = {
    {"MatMul", "", MatMul, ""},
    {"Einsum", "", Einsum, "an ellipsis, an equation without an arrow, a letter twice in a term"},
    {"Gemm", "", Gemm, ""},
};

}  // namespace

std::span<const Lowering> MatMulLowerings() { return kTable; }

}  // namespace octavo::stablehlo
