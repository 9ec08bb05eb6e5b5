// Tables whose rows Gather nodes read (embeddings), stored in 8 bits.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "octavo/base/spill.h"
#include "octavo/ir/graph.h"

namespace octavo {

// A table as s8 with a scale a row; its rounding noise and its own power are sums over all of its numbers, not finite
// where the table holds NaN or infinity.
struct EncodedTable {
  SpillBuffer codes;
  std::vector<float> scales;
  double error = 0, power = 0;
};

struct StoredTable {
  Value* table = nullptr;
  EncodedTable encoded;
};

// Whether this is an f32 constant of two dimensions and at least 64 KiB that nothing but Gather nodes along the rows
// reads.
bool IsTable(const Value& table);

// The table is read block by block, each once.
EncodedTable EncodeTable(const TensorRef& table, int threads);

// The tables that are `wanted` and whose rounding noise is at most `noise` of their power, as `encode` encodes them.
// Reads the model only.
std::vector<StoredTable> FindTables(const Model& model, double noise,
                                    const std::function<EncodedTable(const TensorRef&)>& encode,
                                    const std::function<bool(const Value&)>& wanted);

// Stores them; `tables` are consumed.
//   Before:  %y = Gather %table, %ids
//   After:   %c = Gather %codes, %ids; %f = Cast %c; %s = Gather %scales, %ids; %y = Mul %f, %s
// The rows that are read are dequantized, nothing else ever is. Returns the nodes' names.
std::vector<std::string> StoreTables(Model& model, std::vector<StoredTable>& tables);

}  // namespace octavo
