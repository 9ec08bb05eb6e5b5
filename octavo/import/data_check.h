// Checks of samples against what the model takes, and name order: shared by the data readers.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>

#include "octavo/import/data.h"

namespace octavo {

// "file2" before "file10"; runs of digits compare as numbers, equal numbers by fewer leading zeros, else by bytes.
bool NaturalLess(std::string_view a, std::string_view b);

// "f32[1,3,?,width]"
std::string ToString(const InputSpec& input);
std::string ToString(DType dtype, std::span<const std::int64_t> dims);

// Element types and shapes of one sample. `symbols` collects the sizes of symbols within it.
class SampleChecker {
 public:
  // Throws kBadInput unless a tensor of this type fits; `where` names the file.
  void Check(const InputSpec& input, DType dtype, std::span<const std::int64_t> dims, const std::string& where);

 private:
  struct Seen {
    std::int64_t size;
    std::string input;
  };
  std::map<std::string, Seen> symbols_;
};

// Throws kBadInput when a floating-point tensor (f16, bf16, f32, f64) holds a NaN or an infinity, naming its position.
void CheckFinite(const TensorRef& tensor, const InputSpec& input, const std::string& where);

}  // namespace octavo
