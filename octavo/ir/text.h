// The textual form of the IR: for tests (text in, text out), for `octavo inspect --ir`, for people. See docs/ir.md.
#pragma once

#include <string>
#include <string_view>

#include "octavo/ir/graph.h"

namespace octavo {

struct PrintOptions {
  // Constants with at most this many elements are printed as literals, larger ones as `blob<sha256 prefix>`, which
  // parses to zeros. kFull prints every literal, so that Parse(Print(m)) == m exactly.
  std::uint64_t max_literal_elements = 16;
  bool full = false;
};

std::string Print(const Model& model, const PrintOptions& options = {});
std::string Print(const Graph& graph, const PrintOptions& options = {});

// Parses what Print writes. Errors: Error(kBadInput) with line and column. Bounds nesting and sizes: safe on hostile
// text.
Model Parse(std::string_view text, std::string_view where = "<text>");

}  // namespace octavo
