// Selecting things by name: globs, and "did you mean" for a selector that matches nothing.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {

// Shell-style match of the whole text: * ? [abc] [!a-z], backslash escapes; '/' is an ordinary character.
bool GlobMatch(std::string_view pattern, std::string_view text);

// The up to `count` names closest to `wanted` (edit distance, prefix and substring matches first), best first.
std::vector<std::string> NearestNames(std::string_view wanted, std::span<const std::string> names,
                                      std::size_t count = 3);

// "did you mean 'a', 'b'?" or, with no candidate, "".
std::string DidYouMean(std::string_view wanted, std::span<const std::string> names);

}  // namespace octavo
