#include "octavo/quantize/tables.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "octavo/base/interrupt.h"
#include "octavo/base/thread_pool.h"
#include "octavo/numerics/affine.h"
#include "octavo/numerics/reduce.h"
#include "octavo/ops/op_table.h"
#include "octavo/quantize/placement.h"
#include "octavo/quantize/weights.h"

namespace octavo {

bool IsTable(const Value& table) {
  constexpr std::size_t kLeastBytes = std::size_t{64} << 10;
  if (!table.is_constant() || !table.data || table.data->dtype != DType::kF32) return false;
  if (table.type.quant || table.is_graph_output()) return false;
  if (table.data->dims.size() != 2 || table.data->bytes.size() < kLeastBytes || table.uses().empty()) return false;
  return std::all_of(table.uses().begin(), table.uses().end(), [&](const Use& use) {
    return use.node->Is("Gather") && use.index == 0 && use.node->graph() == table.graph() &&
           use.node->IntAttribute("axis", 0) == 0 && use.node->output() != nullptr;
  });
}

EncodedTable EncodeTable(const TensorRef& table, int threads) {
  const auto rows = static_cast<std::size_t>(table.dims[0]), width = static_cast<std::size_t>(table.dims[1]);
  const std::size_t run = std::max<std::size_t>(1, (std::size_t{64} << 10) / (width * sizeof(float)));
  EncodedTable out;
  out.codes = SpillBuffer(rows * width);
  out.scales.resize(rows);
  std::vector<std::pair<double, double>> sums(rows);  // error and power; added up in order, whatever the threads
  ParallelFor((rows + run - 1) / run, threads, [&](std::size_t r) {
    CheckInterrupt();
    const std::size_t first = r * run, count = std::min(run, rows - first);
    TensorRef block = table;
    block.dims[0] = static_cast<std::int64_t>(count);
    block.bytes = table.bytes.subspan(first * width * sizeof(float), count * width * sizeof(float));
    std::vector<float> converted;
    const std::span<const float> values = FloatView(block, converted);
    const QuantizedWeight q = QuantizeWeight(block, 0, {.storage = DType::kS8, .per_channel = true, .symmetric = true});
    std::copy_n(q.codes.data(), count * width, out.codes.data() + first * width);
    for (std::size_t i = 0; i < count; ++i) {
      const std::span<const float> row = values.subspan(i * width, width);
      out.scales[first + i] = q.params[i].scale;
      sums[first + i] = {QuantizationSquaredError(row, q.params[i], DType::kS8), LaneSumSquares(row)};
    }
    if (table.file != nullptr) table.file->DropPages(block.bytes);  // not needed again
  });
  out.codes.Release();
  for (const auto& [row_error, row_power] : sums) {
    out.error += row_error;
    out.power += row_power;
  }
  return out;
}

std::vector<StoredTable> FindTables(const Model& model, double noise,
                                    const std::function<EncodedTable(const TensorRef&)>& encode,
                                    const std::function<bool(const Value&)>& wanted) {
  std::vector<StoredTable> tables;
  for (Value* table : model.graph->constants()) {
    if (!IsTable(*table) || !wanted(*table)) continue;
    EncodedTable encoded = encode(*table->data);
    if (std::isfinite(encoded.power) && encoded.error <= noise * encoded.power) {
      tables.push_back({table, std::move(encoded)});
    }
  }
  return tables;
}

std::vector<std::string> StoreTables(Model& model, std::vector<StoredTable>& tables) {
  Graph& graph = *model.graph;
  std::vector<std::string> names;
  for (StoredTable& t : tables) {
    Value* table = t.table;
    const Dims dims = table->data->dims;
    const std::string name = table->name();
    Value* codes =
        graph.AddConstant(name + "_codes", TensorRef::FromBuffer(DType::kS8, dims, std::move(t.encoded.codes)));
    Value* scale = graph.AddConstant(name + "_scale", TensorRef::FromFloats({dims[0], 1}, t.encoded.scales));
    const std::vector<Use> uses(table->uses().begin(), table->uses().end());
    for (const Use& use : uses) {
      Node* gather = use.node;
      names.push_back(NodeName(*gather));
      Value* y = gather->output();
      const std::string base = y->name();
      Type code_type = y->type, float_type = y->type, scale_type = y->type;
      // The rows may be quantized already, for a product that reads nothing else: only the last node writes that type.
      for (Type* type : {&code_type, &float_type, &scale_type}) type->quant.reset();
      code_type.dtype = DType::kS8;
      float_type.dtype = scale_type.dtype = DType::kF32;
      if (scale_type.shape && !scale_type.shape->empty()) scale_type.shape->back() = {1, {}};
      Node* g = graph.AddNode("Gather", "", {codes, gather->input(1)}, {{base + "_codes", code_type}}, gather);
      Node* f = graph.AddNode("Cast", "", {g->output()}, {{base + "_cast", float_type}}, gather);
      f->SetAttribute("to", static_cast<std::int64_t>(DType::kF32));
      Node* s = graph.AddNode("Gather", "", {scale, gather->input(1)}, {{base + "_scale", scale_type}}, gather);
      for (Node* node : {g, f, s}) node->name = node->output()->name();
      gather->SetOp("Mul");
      gather->RemoveAttribute("axis");
      gather->SetInput(0, f->output());
      gather->SetInput(1, s->output());
    }
    graph.Erase(table);
  }
  return names;
}

}  // namespace octavo
