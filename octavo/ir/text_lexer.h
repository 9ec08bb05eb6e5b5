// The words of the textual form: what stands between Parse and the characters. Of use to the parser only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace octavo::text {

enum class Tok : std::uint8_t { kEnd, kPunct, kWord, kNumber, kString, kValueName, kGraphName };

struct Token {
  Tok kind = Tok::kEnd;
  std::string text;  // unquoted; for punctuation the characters
  bool quoted = false;
  std::size_t offset = 0;
};

// Reads one token ahead. Take* return what the current token says and step over it. Every error is bad input that
// names `where`, line and column.
class Lexer {
 public:
  Lexer(std::string_view text, std::string_view where) : text_(text), where_(where) { Next(); }

 protected:
  [[noreturn]] void FailAt(std::size_t offset, const std::string& what) const;
  [[noreturn]] void Fail(const std::string& what) const;  // at the current token, which the message shows

  void Next();
  bool Punct(std::string_view p) const { return cur_.kind == Tok::kPunct && cur_.text == p; }
  bool Word() const { return cur_.kind == Tok::kWord; }
  bool Word(std::string_view w) const { return cur_.kind == Tok::kWord && cur_.text == w; }
  bool Accept(std::string_view p);  // steps over this punctuation if it is there
  void Expect(std::string_view p);
  void ExpectWord(std::string_view w);
  std::string TakeString(const char* what);
  std::string TakeWordOrString(const char* what);
  std::string TakeValueName();
  std::int64_t TakeInt();
  std::string TakeHex();  // hex"0a0b"

  static int HexDigit(char c);  // -1: it is none
  std::size_t size() const { return text_.size(); }
  std::string_view where() const { return where_; }

  Token cur_;

 private:
  char At(std::size_t i) const { return i < text_.size() ? text_[i] : '\0'; }
  void SkipSpace();
  std::string WordText();
  std::string NumberText();
  std::string NameText();
  std::string QuotedText();

  std::string_view text_;
  std::string_view where_;
  std::size_t pos_ = 0;
};

}  // namespace octavo::text
