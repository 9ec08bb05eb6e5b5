// The textual form of the IR: for tests (text in, text out), for `octavo inspect --ir`, for people. See docs/ir.md.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "octavo/ir/graph.h"

namespace octavo {

struct PrintOptions {
  // Constants with at most this many elements are printed as literals, larger ones as `blob<sha256 prefix>`, which
  // parses to zeros. `full` prints every literal, so that Parse(Print(m)) == m exactly.
  std::uint64_t max_literal_elements = 16;
  bool full = false;
};

std::string Print(const Model& model, const PrintOptions& options = {});
std::string Print(const Graph& graph, const PrintOptions& options = {});

struct ParseOptions {
  // `blob` and `splat` literals make tensors that are larger than their text: all of a model together, at most so much.
  std::uint64_t max_fill_bytes = std::uint64_t{1} << 30;
};

// Parses what Print writes; `where` names the text in messages and becomes Model::source. A model for a test may leave
// out everything but the graph. Errors: Error(kBadInput) with line and column (bytes, from 1). Bounds nesting (64) and
// sizes: safe on hostile text. Does not verify: values may be used before their definition.
Model Parse(std::string_view text, std::string_view where = "<text>", const ParseOptions& options = {});

}  // namespace octavo
