// What the printer and the parser of the textual form share.
#pragma once

#include <string_view>

namespace octavo::text {

inline constexpr int kMaxNesting = 64;
inline constexpr std::size_t kBlobDigits = 16;

inline bool IsDigit(char c) { return c >= '0' && c <= '9'; }
inline bool IsLetter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
// Words: operators, attributes, keywords, symbolic dimensions.
inline bool IsWordChar(char c) { return IsLetter(c) || IsDigit(c) || c == '.'; }
// Names after % and @. A double slash starts a comment, so it is not part of a bare name.
inline bool IsNameChar(char c) { return IsWordChar(c) || c == '/'; }

// Whether a word or a name can stand without quotes.
inline bool IsBareWord(std::string_view s) {
  if (s.empty() || !IsLetter(s[0]) || s == "_") return false;
  for (const char c : s) {
    if (!IsWordChar(c)) return false;
  }
  return true;
}
inline bool IsBareName(std::string_view s) {
  for (const char c : s) {
    if (!IsNameChar(c)) return false;
  }
  return !s.empty() && s.find("//") == std::string_view::npos;
}

}  // namespace octavo::text
