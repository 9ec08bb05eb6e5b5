// Along which axis the inputs of layers are summed, for the calibration.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/calibrate/calibrate.h"

namespace octavo {

// An input that is read along two axes has no sums: those of one would be wrong for the other.
class ChannelAxes {
 public:
  void Add(const std::string& input, int axis) {
    const auto [at, fresh] = axes_.emplace(input, axis);
    if (!fresh && at->second && *at->second != axis) at->second.reset();
  }

  // By name: the order is the same for every build of the library.
  std::vector<ObserveSpec> Specs() const {
    std::vector<ObserveSpec> specs;
    for (const auto& [name, axis] : axes_) {
      if (!axis) continue;
      ObserveSpec spec;
      spec.value = name;
      spec.channel_axis = axis;
      specs.push_back(std::move(spec));
    }
    return specs;
  }

 private:
  std::map<std::string, std::optional<int>> axes_;  // none: several
};

}  // namespace octavo
