#include "octavo/base/names.h"

#include <algorithm>
#include <cstddef>
#include <numeric>
#include <tuple>

namespace octavo {
namespace {

// One pattern element at pattern[p] (not '*') against one character. Sets `next` to the element after it.
bool MatchOne(std::string_view pattern, std::size_t p, char c, std::size_t& next) {
  const char k = pattern[p];
  if (k == '?') {
    next = p + 1;
    return true;
  }
  if (k == '\\' && p + 1 < pattern.size()) {
    next = p + 2;
    return pattern[p + 1] == c;
  }
  if (k == '[') {
    std::size_t i = p + 1;
    const bool negated = i < pattern.size() && (pattern[i] == '!' || pattern[i] == '^');
    if (negated) ++i;
    bool hit = false;
    // A ']' that stands first is a member, as in a shell.
    for (const std::size_t first = i; i < pattern.size() && (i == first || pattern[i] != ']'); ++i) {
      if (pattern[i] == '\\' && i + 1 < pattern.size()) ++i;
      const auto low = static_cast<unsigned char>(pattern[i]);
      auto high = low;
      if (i + 2 < pattern.size() && pattern[i + 1] == '-' && pattern[i + 2] != ']') {
        i += 2;
        if (pattern[i] == '\\' && i + 1 < pattern.size()) ++i;
        high = static_cast<unsigned char>(pattern[i]);
      }
      const auto u = static_cast<unsigned char>(c);
      hit = hit || (low <= u && u <= high);
    }
    if (i < pattern.size()) {
      next = i + 1;
      return hit != negated;
    }
    // Without its ']' the bracket stands for itself.
  }
  next = p + 1;
  return k == c;
}

std::string Lower(std::string_view text) {
  std::string out(text.substr(0, 200));  // bounds the quadratic edit distance
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

// Levenshtein distance, two rows.
std::size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t up = row[j];
      row[j] = std::min({up + 1, row[j - 1] + 1, diagonal + (a[i - 1] == b[j - 1] ? 0 : 1)});
      diagonal = up;
    }
  }
  return row[b.size()];
}

}  // namespace

bool GlobMatch(std::string_view pattern, std::string_view text) {
  std::size_t p = 0, t = 0;
  std::size_t star = std::string_view::npos, star_text = 0;  // where to go on when the part after a '*' fails
  while (t < text.size()) {
    std::size_t next = 0;
    if (p < pattern.size() && pattern[p] == '*') {
      star = ++p;
      star_text = t;
    } else if (p < pattern.size() && MatchOne(pattern, p, text[t], next)) {
      p = next;
      ++t;
    } else if (star != std::string_view::npos) {
      p = star;
      t = ++star_text;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

std::vector<std::string> NearestNames(std::string_view wanted, std::span<const std::string> names, std::size_t count) {
  std::string key = Lower(wanted);
  std::erase_if(key, [](char c) { return c == '*' || c == '?'; });  // a glob: compare what it spells out
  using Ranked = std::tuple<int, std::size_t, std::size_t>;         // class, distance, position
  std::vector<Ranked> ranked;
  ranked.reserve(names.size());
  for (std::size_t i = 0; i < names.size(); ++i) {
    const std::string name = Lower(names[i]);
    if (name.empty()) continue;
    const std::size_t distance = EditDistance(key, name);
    // One typing error beats a containment: "conv2" is meant for "conv1", not for "conv2_long_other_name".
    int rank = 3;
    if (distance <= 1) {
      rank = 0;
    } else if (!key.empty() && (name.starts_with(key) || key.starts_with(name))) {
      rank = 1;
    } else if (!key.empty() && (name.find(key) != std::string::npos || key.find(name) != std::string::npos)) {
      rank = 2;
    }
    ranked.emplace_back(rank, distance, i);
  }
  const std::size_t take = std::min(count, ranked.size());
  std::partial_sort(ranked.begin(), ranked.begin() + static_cast<std::ptrdiff_t>(take), ranked.end());
  std::vector<std::string> out;
  for (std::size_t i = 0; i < take; ++i) out.push_back(names[std::get<2>(ranked[i])]);
  return out;
}

std::string DidYouMean(std::string_view wanted, std::span<const std::string> names) {
  std::string out;
  for (const std::string& name : NearestNames(wanted, names)) out += (out.empty() ? "'" : ", '") + name + "'";
  return out.empty() ? out : "did you mean " + out + "?";
}

}  // namespace octavo
