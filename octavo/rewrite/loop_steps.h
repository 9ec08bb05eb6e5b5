// How many steps a Loop or a Scan takes, and the numbers that count them.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "octavo/ir/graph.h"

namespace octavo {

// Longer loops are left alone: a device's compiler takes minutes for some thousand operators.
inline constexpr std::int64_t kMostLoopSteps = 256;

struct LoopSteps {
  std::string why;  // not empty: the steps are not known, in words that end a sentence about the node
  const Graph* body = nullptr;
  std::int64_t count = 0;
  std::size_t first_input = 0;   // of the node: the initial state
  std::size_t first_state = 0;   // of the body's inputs: 2 behind a Loop's number and condition
  std::size_t first_result = 0;  // of the body's outputs: 1 behind a Loop's condition
  std::size_t states = 0;
  // What inputs of the body, and indices that its Gathers read, are in each step; for states one more, behind the last
  // step. Of at most 64 elements each.
  std::unordered_map<const Value*, std::vector<TensorRef>> known;

  struct Track {  // of a Scan: what is read, or collected, along an axis of the whole
    std::int64_t axis = 0;
    bool backward = false;
  };
  std::vector<Track> reads, collects;  // collects: for a Loop axis 0 each
};

// Follows what the condition of a Loop reads from its first step on: the number of the step, constants, and what is
// handed on from step to step where it is made of those alone, by small element-wise operators (they are run, by the
// runtime). A Scan takes as many steps as what it reads is long.
LoopSteps ReadLoopSteps(const Model& model, const Node& node);

}  // namespace octavo
