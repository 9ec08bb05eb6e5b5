#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <unordered_set>

#include "octavo/base/error.h"
#include "octavo/ir/text.h"
#include "octavo/ir/text_syntax.h"

namespace octavo {
namespace {

enum class Tok : std::uint8_t { kEnd, kPunct, kWord, kNumber, kString, kValueName, kGraphName };

struct Token {
  Tok kind = Tok::kEnd;
  std::string text;  // unquoted; for punctuation the characters
  bool quoted = false;
  std::size_t offset = 0;
};

class Parser {
 public:
  Parser(std::string_view text, std::string_view where, const ParseOptions& options)
      : text_(text), where_(where), fill_left_(options.max_fill_bytes) {
    Next();
  }

  Model Run() {
    Model model;
    model.source = std::string(where_);
    while (!(Word() && cur_.text == "graph")) Header(model);
    model.graph = ParseGraph(nullptr, 1);
    if (cur_.kind != Tok::kEnd) Fail("expected the end of the text");
    Resolve();
    return model;
  }

 private:
  // A name used before everything is defined: looked up at the end, so that definitions may come in any order.
  struct Pending {
    Graph* graph;
    Node* node;  // null: a graph output
    std::size_t index;
    std::string name;
    std::size_t offset;
  };

  struct Definition {
    std::string name;  // "" for an absent output
    std::optional<Type> type;
    std::string extras;
    std::size_t offset = 0;
  };

  // ---- errors

  [[noreturn]] void FailAt(std::size_t offset, const std::string& what) const {
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
  [[noreturn]] void Fail(const std::string& what) const {
    std::string found = cur_.kind == Tok::kEnd ? "the end" : "'" + cur_.text.substr(0, 40) + "'";
    FailAt(cur_.offset, what + ", found " + found);
  }

  // ---- tokens

  char At(std::size_t i) const { return i < text_.size() ? text_[i] : '\0'; }

  void SkipSpace() {
    for (;;) {
      while (pos_ < text_.size() && std::strchr(" \t\r\n", text_[pos_]) != nullptr && text_[pos_] != '\0') ++pos_;
      if (At(pos_) != '/' || At(pos_ + 1) != '/') return;
      while (pos_ < text_.size() && text_[pos_] != '\n') ++pos_;
    }
  }

  void Next() {
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
    } else if (text::IsLetter(c)) {
      cur_.kind = Tok::kWord;
      cur_.text = Run(text::IsWordChar);
    } else if (text::IsDigit(c) || (c == '-' && (text::IsDigit(At(pos_ + 1)) || At(pos_ + 1) == 'i'))) {
      cur_.kind = Tok::kNumber;
      cur_.text = NumberText();
    } else {
      cur_.kind = Tok::kPunct;
      const bool two = (c == '-' && At(pos_ + 1) == '>') || (c == ':' && At(pos_ + 1) == ':');
      cur_.text = std::string(text_.substr(pos_, two ? 2 : 1));
      pos_ += cur_.text.size();
    }
  }

  std::string Run(bool (*accept)(char)) {
    const std::size_t start = pos_;
    while (pos_ < text_.size() && accept(text_[pos_])) ++pos_;
    return std::string(text_.substr(start, pos_ - start));
  }

  std::string NumberText() {
    const std::size_t start = pos_;
    if (text_[pos_] == '-') ++pos_;
    const bool hex = At(pos_) == '0' && At(pos_ + 1) == 'x';
    while (pos_ < text_.size()) {
      const char c = text_[pos_];
      const bool exponent_sign = !hex && (c == '-' || c == '+') && (text_[pos_ - 1] == 'e' || text_[pos_ - 1] == 'E');
      if (!text::IsWordChar(c) && !exponent_sign) break;
      ++pos_;
    }
    return std::string(text_.substr(start, pos_ - start));
  }

  std::string NameText() {
    if (At(pos_) == '"') {
      cur_.quoted = true;
      return QuotedText();
    }
    const std::size_t start = pos_;
    while (pos_ < text_.size() && text::IsNameChar(text_[pos_]) && !(text_[pos_] == '/' && At(pos_ + 1) == '/')) ++pos_;
    return std::string(text_.substr(start, pos_ - start));
  }

  static int HexDigit(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
  }

  std::string QuotedText() {
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

  bool Punct(std::string_view p) const { return cur_.kind == Tok::kPunct && cur_.text == p; }
  bool Word() const { return cur_.kind == Tok::kWord; }
  bool Word(std::string_view w) const { return cur_.kind == Tok::kWord && cur_.text == w; }

  bool Accept(std::string_view p) {
    if (!Punct(p)) return false;
    Next();
    return true;
  }
  void Expect(std::string_view p) {
    if (!Accept(p)) Fail("expected '" + std::string(p) + "'");
  }
  void ExpectWord(std::string_view w) {
    if (!Word(w)) Fail("expected '" + std::string(w) + "'");
    Next();
  }

  std::string TakeString(const char* what) {
    if (cur_.kind != Tok::kString) Fail(std::string("expected ") + what + " in quotes");
    std::string out = std::move(cur_.text);
    Next();
    return out;
  }
  std::string TakeWordOrString(const char* what) {
    if (cur_.kind != Tok::kString && cur_.kind != Tok::kWord) Fail(std::string("expected ") + what);
    std::string out = std::move(cur_.text);
    Next();
    return out;
  }
  std::string TakeValueName() {
    if (cur_.kind != Tok::kValueName) Fail("expected a value");
    if (cur_.text.empty()) Fail("expected a name after '%'");
    std::string out = std::move(cur_.text);
    Next();
    return out;
  }

  static std::optional<std::int64_t> Int(std::string_view s) {
    std::int64_t v = 0;
    const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), v);
    return error == std::errc() && end == s.data() + s.size() ? std::optional(v) : std::nullopt;
  }
  std::int64_t TakeInt() {
    const auto v = cur_.kind == Tok::kNumber ? Int(cur_.text) : std::nullopt;
    if (!v) Fail("expected an integer");
    Next();
    return *v;
  }

  // hex"0a0b"
  std::string TakeHex() {
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

  // ---- model

  void Header(Model& model) {
    if (Word("ir_version")) {
      Next();
      Expect("=");
      model.ir_version = TakeInt();
    } else if (Word("opset")) {
      Next();
      std::string domain = TakeString("a domain");
      Expect("=");
      model.opsets.push_back({std::move(domain), TakeInt()});
    } else if (Word("metadata")) {
      Next();
      const std::size_t offset = cur_.offset;
      std::string key = TakeString("a key");
      Expect("=");
      if (!model.metadata.emplace(std::move(key), TakeString("a value")).second) FailAt(offset, "metadata key twice");
    } else if (Word("function")) {
      Next();
      model.function_ids.push_back(TakeString("a function id"));
      Expect("=");
      model.functions.push_back(TakeHex());
    } else if (Word("extras")) {
      Next();
      Expect("=");
      model.extras = TakeHex();
    } else {
      Fail("expected ir_version, opset, metadata, function, extras or graph");
    }
  }

  std::unique_ptr<Graph> ParseGraph(Graph* parent, int depth) {
    if (depth > text::kMaxNesting) Fail("graphs nested deeper than " + std::to_string(text::kMaxNesting));
    ExpectWord("graph");
    auto graph = std::make_unique<Graph>(parent);
    if (cur_.kind == Tok::kGraphName) {
      graph->name = std::move(cur_.text);
      Next();
    }
    Expect("(");
    while (!Accept(")")) {
      Definition d = ParseDefinition();
      if (!d.type) FailAt(d.offset, "an input needs a type");
      CheckFree(*graph, d);
      Value* v = graph->AddInput(std::move(d.name), std::move(*d.type));
      v->extras = std::move(d.extras);
      if (Accept("=")) v->data = ParseTensor();
      if (!Punct(")")) Expect(",");
    }
    Expect("->");
    Expect("(");
    std::size_t outputs = 0;
    while (!Accept(")")) {
      const std::size_t offset = cur_.offset;
      pending_.push_back({graph.get(), nullptr, outputs++, TakeValueName(), offset});
      if (!Punct(")")) Expect(",");
    }
    if (Word("extras")) graph->extras = TakeExtras();
    Expect("{");
    while (!Accept("}")) Statement(*graph, depth);
    return graph;
  }

  std::string TakeExtras() {
    ExpectWord("extras");
    Expect("=");
    return TakeHex();
  }

  void CheckFree(const Graph& graph, const Definition& d) const {
    if (graph.NameTaken(d.name)) FailAt(d.offset, "value '" + d.name + "' is defined twice");
  }

  Definition ParseDefinition() {
    Definition d;
    d.offset = cur_.offset;
    d.name = TakeValueName();
    if (Accept(":")) d.type = ParseType();
    if (Word("extras")) d.extras = TakeExtras();
    return d;
  }

  void Statement(Graph& graph, int depth) {
    std::vector<Definition> defs;
    if (Accept("(")) {
      Expect(")");
    } else {
      do {
        if (Word("_")) {
          Next();
          defs.emplace_back();
        } else {
          defs.push_back(ParseDefinition());
        }
      } while (Accept(","));
    }
    Expect("=");
    if (Word("constant")) {
      if (defs.size() != 1 || defs[0].name.empty()) Fail("a constant defines one value");
      Next();
      CheckFree(graph, defs[0]);
      TensorRef data = ParseTensor();
      Type type = defs[0].type ? std::move(*defs[0].type) : TypeOf(data);
      graph.AddConstant(std::move(defs[0].name), std::move(data), std::move(type))->extras = std::move(defs[0].extras);
      return;
    }
    const bool quoted = cur_.kind == Tok::kString;
    std::string op = TakeWordOrString("an operator");
    std::string domain;
    if (Accept("::")) {
      domain = std::move(op);
      op = TakeWordOrString("an operator");
    } else if (!quoted && (op == kQuantize || op == kDequantize || op == kRequantize || op == kStorageCast)) {
      domain = kIrDomain;
    }
    Expect("(");
    std::vector<Pending> inputs;
    std::size_t count = 0;
    while (!Accept(")")) {
      if (Word("_")) {
        Next();
      } else {
        const std::size_t offset = cur_.offset;
        inputs.push_back({&graph, nullptr, count, TakeValueName(), offset});
      }
      ++count;
      if (!Punct(")")) Expect(",");
    }
    std::vector<Attribute> attributes;
    std::unordered_set<std::string> seen;
    if (Accept("{")) {
      while (!Accept("}")) {
        const std::size_t offset = cur_.offset;
        std::string name = TakeWordOrString("an attribute");
        if (!seen.insert(name).second) FailAt(offset, "attribute '" + name + "' twice");
        Expect("=");
        attributes.push_back({std::move(name), ParseAttribute(graph, depth)});
        if (!Punct("}")) Expect(",");
      }
    }
    std::vector<Graph::OutputSpec> specs;
    for (Definition& d : defs) {
      if (!d.name.empty()) CheckFree(graph, d);
      specs.push_back({d.name, d.type ? std::move(*d.type) : Type{}});
    }
    Node* node = graph.AddNode(std::move(op), std::move(domain), {}, std::move(specs));
    for (std::size_t i = 0; i < defs.size(); ++i) {
      if (defs[i].name.empty()) continue;
      // A name that another output of this node has taken was made unique; here that is an error.
      if (node->output(i)->name() != defs[i].name) {
        FailAt(defs[i].offset, "value '" + defs[i].name + "' is defined twice");
      }
      node->output(i)->extras = std::move(defs[i].extras);
    }
    node->attributes() = std::move(attributes);
    node->ResizeInputs(count);
    for (Pending& p : inputs) {
      p.node = node;
      pending_.push_back(std::move(p));
    }
    NodeSuffix(*node);
  }

  void NodeSuffix(Node& node) {
    if (cur_.kind == Tok::kGraphName) {
      node.name = std::move(cur_.text);
      Next();
    }
    if (Word("overload")) {
      Next();
      Expect("=");
      node.overload = TakeString("an overload");
    }
    if (Word("form")) {
      Next();
      Expect("=");
      if (Word("qdq")) {
        node.form = QuantForm::kQdq;
      } else if (Word("qlinear")) {
        node.form = QuantForm::kQLinear;
      } else {
        Fail("expected qdq or qlinear");
      }
      Next();
    }
    if (Word("extras")) node.extras = TakeExtras();
  }

  void Resolve() {
    for (const Pending& p : pending_) {
      Value* v = p.graph->Lookup(p.name);
      if (v == nullptr) FailAt(p.offset, "no value '" + p.name + "' is visible here");
      if (p.node != nullptr) {
        p.node->SetInput(p.index, v);
      } else {
        p.graph->AddOutput(v);
      }
    }
  }

  // ---- types

  DType TakeDType() {
    const auto dtype = Word() || Punct("?") ? ParseDType(cur_.text) : std::nullopt;
    if (!dtype) Fail("expected an element type");
    Next();
    return *dtype;
  }

  Type ParseType() {
    Type t;
    t.dtype = TakeDType();
    Expect("[");
    if (Accept("*")) {
      Expect("]");
    } else {
      t.shape.emplace();
      while (!Accept("]")) {
        Dim d;
        if (cur_.kind == Tok::kNumber) {
          d.value = TakeInt();
          if (d.value < 0) FailAt(cur_.offset, "negative dimension");
        } else if (!Accept("?")) {
          d.symbol = TakeWordOrString("a dimension");
        }
        t.shape->push_back(std::move(d));
        if (!Punct("]")) Expect(",");
      }
    }
    if (Accept("#")) t.quant = ParseQuant();
    if (Word("opaque")) {
      Next();
      Expect("=");
      t.opaque = TakeHex();
    }
    return t;
  }

  QuantType ParseQuant() {
    QuantType q;
    if (Word("ggml") || Word("mx")) {
      const bool ggml = cur_.text == "ggml";
      q.kind = ggml ? QuantType::Kind::kGgml : QuantType::Kind::kMx;
      Next();
      Expect("(");
      (ggml ? q.ggml.format : q.mx.format) = TakeWordOrString("a format");
      while (!Accept(")")) {
        Expect(",");
        if (Word("axis")) {
          Next();
          Expect("=");
          (ggml ? q.ggml.axis : q.mx.axis) = TakeInt();
        } else if (!ggml && Word("block")) {
          Next();
          Expect("=");
          q.mx.block = TakeInt();
        } else {
          Fail(ggml ? "expected axis" : "expected axis or block");
        }
      }
      return q;
    }
    const std::size_t offset = cur_.offset;
    Affine& a = q.affine;
    a.storage = TakeDType();
    if (!IsInteger(a.storage) && !IsFloat(a.storage)) FailAt(offset, "not a storage type");
    Expect("(");
    bool scale = false;
    while (!Accept(")")) {
      const std::string key = TakeWordOrString("axis, block, scale or zero");
      Expect("=");
      if (key == "axis") {
        a.axis = TakeInt();
      } else if (key == "block") {
        a.block = TakeInt();
      } else if (key == "scale") {
        a.scale = ParseParameter(DType::kF32);
        scale = true;
      } else if (key == "zero") {
        a.zero_point = ParseParameter(a.storage);
      } else {
        FailAt(offset, "unknown quantization parameter '" + key + "'");
      }
      if (!Punct(")")) Expect(",");
    }
    if (!scale) FailAt(offset, "quantization without a scale");
    return q;
  }

  TensorRef ParseParameter(DType usual) {
    if (cur_.kind != Tok::kNumber && !Word("nan") && !Word("inf")) return ParseTensor();
    return Filled(usual, {}, ParseElement(usual), 1);
  }

  // ---- tensors

  // The bits of one element.
  std::uint64_t ParseElement(DType dtype) {
    const std::size_t offset = cur_.offset;
    const int width = BitWidth(dtype);
    if (width == 0 || width > 64 || dtype == DType::kC64) Fail("this element type has no literals; use hex");
    const std::uint64_t mask = width == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << width) - 1;
    if (dtype == DType::kBool && (Word("true") || Word("false"))) {
      const bool v = cur_.text == "true";
      Next();
      return v ? 1 : 0;
    }
    if (Word("nan")) {
      Next();
      if (!Accept("(")) return DefaultNaN(dtype, offset);
      const std::uint64_t bits = TakeBits(mask);
      Expect(")");
      return bits;
    }
    if (Word("inf")) {
      Next();
      return Encode(dtype, std::numeric_limits<double>::infinity(), offset);
    }
    if (cur_.kind != Tok::kNumber) Fail("expected a number");
    if (cur_.text.starts_with("0x")) return TakeBits(mask);
    if (IsFloat(dtype)) {
      if (cur_.text == "-inf") {
        Next();
        return Encode(dtype, -std::numeric_limits<double>::infinity(), offset);
      }
      return TakeFloat(dtype);
    }
    return TakeInteger(dtype, mask);
  }

  std::uint64_t TakeBits(std::uint64_t mask) {
    std::uint64_t bits = 0;
    const std::string& s = cur_.text;
    bool ok = cur_.kind == Tok::kNumber && s.size() > 2 && s.starts_with("0x");
    if (ok) {
      const auto [end, error] = std::from_chars(s.data() + 2, s.data() + s.size(), bits, 16);
      ok = error == std::errc() && end == s.data() + s.size() && (bits & ~mask) == 0;
    }
    if (!ok) Fail("expected hexadecimal bits that fit the element type");
    Next();
    return bits;
  }

  std::uint64_t DefaultNaN(DType dtype, std::size_t offset) const {
    return Encode(dtype, std::numeric_limits<double>::quiet_NaN(), offset);
  }

  std::uint64_t Encode(DType dtype, double v, std::size_t offset) const {
    switch (dtype) {
      case DType::kF64:
        return std::bit_cast<std::uint64_t>(v);
      case DType::kF32:
      case DType::kF16:
      case DType::kBF16:
        return FloatToBits(dtype, static_cast<float>(v));
      default:
        FailAt(offset, std::string("a literal of ") + std::string(Name(dtype)) + " is its bits, as 0x3c");
    }
  }

  // f32 and narrower round once to float (from_chars is exact), so shortest decimals read back to the same bits.
  std::uint64_t TakeFloat(DType dtype) {
    const std::size_t offset = cur_.offset;
    const char* begin = cur_.text.data();
    const char* stop = begin + cur_.text.size();
    std::uint64_t bits = 0;
    bool ok = false;
    if (dtype == DType::kF64) {
      double v = 0;
      const auto [end, error] = std::from_chars(begin, stop, v);
      ok = error == std::errc() && end == stop;
      if (ok) bits = Encode(dtype, v, offset);
    } else {
      float v = 0;
      const auto [end, error] = std::from_chars(begin, stop, v);
      ok = error == std::errc() && end == stop;
      if (ok) bits = Encode(dtype, static_cast<double>(v), offset);
    }
    if (!ok) Fail("expected a number within the range of " + std::string(Name(dtype)));
    Next();
    return bits;
  }

  std::uint64_t TakeInteger(DType dtype, std::uint64_t mask) {
    const char* begin = cur_.text.data();
    const char* stop = begin + cur_.text.size();
    std::uint64_t bits = 0;
    bool ok = false;
    if (IsSignedInteger(dtype)) {
      std::int64_t v = 0;
      const auto [end, error] = std::from_chars(begin, stop, v);
      ok = error == std::errc() && end == stop;
      if (BitWidth(dtype) <= 32) ok = ok && v >= IntegerMin(dtype) && v <= IntegerMax(dtype);
      bits = static_cast<std::uint64_t>(v) & mask;
    } else {
      const auto [end, error] = std::from_chars(begin, stop, bits);
      ok = error == std::errc() && end == stop && bits <= mask;
    }
    if (!ok) Fail("expected an integer within the range of " + std::string(Name(dtype)));
    Next();
    return bits;
  }

  static void Store(std::vector<std::byte>& data, DType dtype, std::uint64_t i, std::uint64_t bits) {
    const auto width = static_cast<std::uint64_t>(BitWidth(dtype));
    if (width < 8) {
      const std::uint64_t per_byte = 8 / width;
      data[i / per_byte] |= static_cast<std::byte>(bits << (i % per_byte * width));
    } else {
      std::memcpy(data.data() + i * (width / 8), &bits, width / 8);
    }
  }

  TensorRef Filled(DType dtype, Dims dims, std::uint64_t bits, std::uint64_t n) {
    std::vector<std::byte> data(*ByteSize(dtype, n));
    if (bits != 0) {
      for (std::uint64_t i = 0; i < n; ++i) Store(data, dtype, i, bits);
    }
    return TensorRef::FromBytes(dtype, std::move(dims), std::move(data));
  }

  void Charge(std::uint64_t bytes, std::size_t offset) {
    if (bytes > fill_left_) FailAt(offset, "blob and splat literals are too large together");
    fill_left_ -= bytes;
  }

  TensorRef ParseTensor() {
    const std::size_t offset = cur_.offset;
    const DType dtype = TakeDType();
    Dims dims;
    Expect("[");
    while (!Accept("]")) {
      dims.push_back(TakeInt());
      if (!Punct("]")) Expect(",");
    }
    std::uint64_t n = 0;
    try {
      n = ElementCount(dims);
    } catch (const Error& e) {
      FailAt(offset, e.reason());
    }
    const bool strings = dtype == DType::kString;
    const auto size = strings ? std::optional<std::uint64_t>(0) : ByteSize(dtype, n);
    if (!size) FailAt(offset, "a tensor needs an element type and a size in bytes");
    if (Word("hex") && !strings) {
      const std::string bytes = TakeHex();
      if (bytes.size() != *size) {
        FailAt(offset, std::to_string(bytes.size()) + " bytes for a tensor of " + std::to_string(*size));
      }
      std::vector<std::byte> data(bytes.size());
      if (!data.empty()) std::memcpy(data.data(), bytes.data(), bytes.size());
      return TensorRef::FromBytes(dtype, std::move(dims), std::move(data));
    }
    if (Word("blob")) {
      Next();
      Expect("<");
      const bool word = cur_.kind == Tok::kWord || cur_.kind == Tok::kNumber;
      if (!word || cur_.text.size() != text::kBlobDigits ||
          !std::all_of(cur_.text.begin(), cur_.text.end(), [](char c) { return HexDigit(c) >= 0; })) {
        Fail("expected 16 hexadecimal digits");
      }
      Next();
      Expect(">");
      if (strings) {
        if (n > fill_left_ / sizeof(std::string)) FailAt(offset, "blob and splat literals are too large together");
        Charge(n * sizeof(std::string), offset);
        return Strings(std::move(dims), std::vector<std::string>(n));
      }
      Charge(*size, offset);
      return Filled(dtype, std::move(dims), 0, n);
    }
    if (Word("splat") && !strings) {
      Next();
      Expect("(");
      const std::uint64_t bits = ParseElement(dtype);
      Expect(")");
      Charge(*size, offset);
      return Filled(dtype, std::move(dims), bits, n);
    }
    return ParseElements(dtype, std::move(dims), n, offset);
  }

  static TensorRef Strings(Dims dims, std::vector<std::string> list) {
    TensorRef t;
    t.dtype = DType::kString;
    t.dims = std::move(dims);
    t.strings = std::make_shared<const std::vector<std::string>>(std::move(list));
    return t;
  }

  TensorRef ParseElements(DType dtype, Dims dims, std::uint64_t n, std::size_t offset) {
    // An element takes at least one character and a comma, so the text bounds what is allocated.
    if (n > text_.size()) FailAt(offset, "fewer elements than the dimensions say");
    const bool strings = dtype == DType::kString;
    std::vector<std::string> list;
    std::vector<std::byte> data(strings ? 0 : *ByteSize(dtype, n));
    const bool bracket = !dims.empty();
    if (bracket) Expect("[");
    std::uint64_t i = 0;
    while (bracket ? !Accept("]") : i == 0) {
      if (i == n) Fail("more elements than the dimensions say");
      if (strings) {
        list.push_back(TakeString("an element"));
      } else {
        Store(data, dtype, i, ParseElement(dtype));
      }
      ++i;
      if (bracket && !Punct("]")) Expect(",");
    }
    if (i != n) FailAt(offset, "fewer elements than the dimensions say");
    if (strings) return Strings(std::move(dims), std::move(list));
    return TensorRef::FromBytes(dtype, std::move(dims), std::move(data));
  }

  // ---- attributes

  static bool LooksFloat(const Token& t) {
    if (t.kind == Tok::kWord) return t.text == "nan" || t.text == "inf";
    return t.kind == Tok::kNumber && !t.text.starts_with("0x") && t.text.find_first_of(".eEn") != std::string::npos;
  }

  float TakeAttributeFloat() { return std::bit_cast<float>(static_cast<std::uint32_t>(ParseElement(DType::kF32))); }

  AttributeValue ParseAttribute(Graph& graph, int depth) {
    if (LooksFloat(cur_)) return TakeAttributeFloat();
    if (cur_.kind == Tok::kNumber) return TakeInt();
    if (cur_.kind == Tok::kString) return TakeString("a string");
    if (Punct("[")) return ParseList("");
    if (Word("ints") || Word("floats") || Word("strings")) {
      const std::string kind = cur_.text;
      Next();
      return ParseList(kind);
    }
    if (Word("graph")) return ParseGraph(&graph, depth + 1);
    if (Word("opaque")) {
      Next();
      return OpaqueAttribute{TakeHex()};
    }
    if ((Word() || Punct("?")) && ParseDType(cur_.text)) return ParseTensor();
    Fail("expected an attribute's value");
  }

  // `kind` is ints, floats, strings, or "" where the first element tells.
  AttributeValue ParseList(std::string kind) {
    Expect("[");
    std::vector<std::int64_t> ints;
    std::vector<float> floats;
    std::vector<std::string> strings;
    if (kind.empty()) {
      if (Punct("]")) Fail("an empty list says its kind, as ints[]");
      kind = cur_.kind == Tok::kString ? "strings" : LooksFloat(cur_) ? "floats" : "ints";
    }
    while (!Accept("]")) {
      if (kind == "strings") {
        strings.push_back(TakeString("a string"));
      } else if (kind == "floats") {
        floats.push_back(TakeAttributeFloat());
      } else if (LooksFloat(cur_)) {
        Fail("expected an integer; the first element of a list tells its kind");
      } else {
        ints.push_back(TakeInt());
      }
      if (!Punct("]")) Expect(",");
    }
    if (kind == "strings") return strings;
    if (kind == "floats") return floats;
    return ints;
  }

  std::string_view text_;
  std::string_view where_;
  std::uint64_t fill_left_;
  std::size_t pos_ = 0;
  Token cur_;
  std::vector<Pending> pending_;
};

}  // namespace

Model Parse(std::string_view text, std::string_view where, const ParseOptions& options) {
  return Parser(text, where, options).Run();
}

}  // namespace octavo
