// Arbitrary text into the IR's parser: refused in one sentence, or a model whose full print is a fixed point.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "octavo/base/error.h"
#include "octavo/ir/compare.h"
#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"

namespace {

void Require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "fuzz_ir_text: %s\n", what);
  std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace octavo;  // NOLINT: one function
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const ParseOptions bounds{.max_fill_bytes = 1 << 20};
  Model model;
  try {
    model = Parse(text, "fuzz", bounds);
  } catch (const Error& e) {
    Require(e.code() == ExitCode::kBadInput, "refused with another code than bad input");
    return 0;
  }
  // From here on nothing may throw: the text was accepted.
  const PrintOptions full{.max_literal_elements = 16, .full = true};
  const std::string first = Print(model, full);
  const Model again = Parse(first, "fuzz", bounds);
  Require(Difference(model, again).empty(), "the full print parses to another model");
  Require(Print(again, full) == first, "the full print is no fixed point");
  Require(Difference(model, Clone(model)).empty(), "a clone differs");
  const bool sound = Verify(model).empty();
  Require(sound == Verify(again).empty(), "the verifier disagrees about a reprinted model");
  try {
    model.graph->EraseDead();
    model.graph->SortTopologically();
  } catch (const Error& e) {
    Require(e.code() == ExitCode::kBadInput && !sound, "edits refuse a sound model");
    return 0;
  }
  Require(!sound || Verify(model).empty(), "edits broke a sound model");
  return 0;
}
