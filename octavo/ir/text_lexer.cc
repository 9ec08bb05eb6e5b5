#include "octavo/ir/text_lexer.h"

#include <charconv>
#include <cstring>
#include <system_error>

#include "octavo/base/error.h"
#include "octavo/ir/text_syntax.h"

namespace octavo::text {

void Lexer::FailAt(std::size_t offset, const std::string& what) const {
  std::size_t line = 1;
  std::size_t start = 0;
  for (std::size_t i = 0; i < offset && i < text_.size(); ++i) {
    if (text_[i] == '\n') {
      ++line;
      start = i + 1;
    }
  }
  ThrowBadInput(what, std::string(where_) + ":" + std::to_string(line) + ":" + std::to_string(offset - start + 1));
}

void Lexer::Fail(const std::string& what) const {
  std::string found = cur_.kind == Tok::kEnd ? "the end" : "'" + cur_.text.substr(0, 40) + "'";
  FailAt(cur_.offset, what + ", found " + found);
}

void Lexer::SkipSpace() {
  for (;;) {
    while (pos_ < text_.size() && std::strchr(" \t\r\n", text_[pos_]) != nullptr && text_[pos_] != '\0') ++pos_;
    if (At(pos_) != '/' || At(pos_ + 1) != '/') return;
    while (pos_ < text_.size() && text_[pos_] != '\n') ++pos_;
  }
}

void Lexer::Next() {
  SkipSpace();
  cur_ = Token();
  cur_.offset = pos_;
  if (pos_ >= text_.size()) return;
  const char c = text_[pos_];
  if (c == '"') {
    cur_.kind = Tok::kString;
    cur_.quoted = true;
    cur_.text = QuotedText();
  } else if (c == '%' || c == '@') {
    ++pos_;
    cur_.kind = c == '%' ? Tok::kValueName : Tok::kGraphName;
    cur_.text = NameText();
  } else if (IsLetter(c)) {
    cur_.kind = Tok::kWord;
    cur_.text = WordText();
  } else if (IsDigit(c) || (c == '-' && (IsDigit(At(pos_ + 1)) || At(pos_ + 1) == 'i'))) {
    cur_.kind = Tok::kNumber;
    cur_.text = NumberText();
  } else {
    cur_.kind = Tok::kPunct;
    const bool two = (c == '-' && At(pos_ + 1) == '>') || (c == ':' && At(pos_ + 1) == ':');
    cur_.text = std::string(text_.substr(pos_, two ? 2 : 1));
    pos_ += cur_.text.size();
  }
}

std::string Lexer::WordText() {
  const std::size_t start = pos_;
  while (pos_ < text_.size() && IsWordChar(text_[pos_])) ++pos_;
  return std::string(text_.substr(start, pos_ - start));
}

std::string Lexer::NumberText() {
  const std::size_t start = pos_;
  if (text_[pos_] == '-') ++pos_;
  const bool hex = At(pos_) == '0' && At(pos_ + 1) == 'x';
  while (pos_ < text_.size()) {
    const char c = text_[pos_];
    const bool exponent_sign = !hex && (c == '-' || c == '+') && (text_[pos_ - 1] == 'e' || text_[pos_ - 1] == 'E');
    if (!IsWordChar(c) && !exponent_sign) break;
    ++pos_;
  }
  return std::string(text_.substr(start, pos_ - start));
}

std::string Lexer::NameText() {
  if (At(pos_) == '"') {
    cur_.quoted = true;
    return QuotedText();
  }
  const std::size_t start = pos_;
  while (pos_ < text_.size() && IsNameChar(text_[pos_]) && !(text_[pos_] == '/' && At(pos_ + 1) == '/')) ++pos_;
  return std::string(text_.substr(start, pos_ - start));
}

int Lexer::HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string Lexer::QuotedText() {
  const std::size_t start = pos_++;
  std::string out;
  for (;;) {
    if (pos_ >= text_.size()) FailAt(start, "string without an end");
    const char c = text_[pos_++];
    if (c == '"') return out;
    if (c != '\\') {
      out += c;
      continue;
    }
    const char e = At(pos_++);
    if (e == 'n') {
      out += '\n';
    } else if (e == 't') {
      out += '\t';
    } else if (e == '"' || e == '\\') {
      out += e;
    } else if (e == 'x' && HexDigit(At(pos_)) >= 0 && HexDigit(At(pos_ + 1)) >= 0) {
      out += static_cast<char>(HexDigit(text_[pos_]) * 16 + HexDigit(text_[pos_ + 1]));
      pos_ += 2;
    } else {
      FailAt(pos_ - 2, "unknown escape in a string");
    }
  }
}

bool Lexer::Accept(std::string_view p) {
  if (!Punct(p)) return false;
  Next();
  return true;
}

void Lexer::Expect(std::string_view p) {
  if (!Accept(p)) Fail("expected '" + std::string(p) + "'");
}

void Lexer::ExpectWord(std::string_view w) {
  if (!Word(w)) Fail("expected '" + std::string(w) + "'");
  Next();
}

std::string Lexer::TakeString(const char* what) {
  if (cur_.kind != Tok::kString) Fail(std::string("expected ") + what + " in quotes");
  std::string out = std::move(cur_.text);
  Next();
  return out;
}

std::string Lexer::TakeWordOrString(const char* what) {
  if (cur_.kind != Tok::kString && cur_.kind != Tok::kWord) Fail(std::string("expected ") + what);
  std::string out = std::move(cur_.text);
  Next();
  return out;
}

std::string Lexer::TakeValueName() {
  if (cur_.kind != Tok::kValueName) Fail("expected a value");
  if (cur_.text.empty()) Fail("expected a name after '%'");
  std::string out = std::move(cur_.text);
  Next();
  return out;
}

std::int64_t Lexer::TakeInt() {
  std::int64_t v = 0;
  const char* stop = cur_.text.data() + cur_.text.size();
  const auto [end, error] = std::from_chars(cur_.text.data(), stop, v);
  if (cur_.kind != Tok::kNumber || error != std::errc() || end != stop) Fail("expected an integer");
  Next();
  return v;
}

std::string Lexer::TakeHex() {
  ExpectWord("hex");
  const std::size_t offset = cur_.offset;
  const std::string digits = TakeString("hexadecimal digits");
  if (digits.size() % 2 != 0) FailAt(offset, "odd number of hexadecimal digits");
  std::string out;
  out.reserve(digits.size() / 2);
  for (std::size_t i = 0; i < digits.size(); i += 2) {
    const int high = HexDigit(digits[i]);
    const int low = HexDigit(digits[i + 1]);
    if (high < 0 || low < 0) FailAt(offset, "not a hexadecimal digit");
    out += static_cast<char>(high * 16 + low);
  }
  return out;
}

}  // namespace octavo::text
