// Importance matrices as llama.cpp writes them: for each weight, the mean square of each element of its input.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace octavo {

// Name of a tensor -> importance of each element of a row, one row after another where the tensor is a stack of
// matrices (ne[2] of them). Finite, not negative.
using Imatrix = std::map<std::string, std::vector<float>>;

// Reads both forms: GGUF (tensors NAME.in_sum2 and NAME.counts) and the older binary file (.dat). A matrix that was
// never run counts as equally important everywhere (1). Errors: kBadInput naming file and entry.
Imatrix ReadImatrix(const std::filesystem::path& path);

}  // namespace octavo
