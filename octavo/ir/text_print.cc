#include <bit>
#include <charconv>
#include <cmath>

#include "octavo/base/sha256.h"
#include "octavo/ir/text.h"
#include "octavo/ir/text_syntax.h"

namespace octavo {
namespace {

// Splats are printed only where they save something.
constexpr std::uint64_t kMinSplat = 17;

// Length of the valid, printable UTF-8 sequence at the start of `s`, 0 if there is none. C1 controls count as not
// printable: a name must not drive the reader's terminal.
std::size_t Utf8Length(std::string_view s) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char c = byte(0);
  const std::size_t n = c >= 0xC2 && c <= 0xDF ? 2 : c >= 0xE0 && c <= 0xEF ? 3 : c >= 0xF0 && c <= 0xF4 ? 4 : 0;
  if (n == 0 || s.size() < n) return 0;
  for (std::size_t i = 1; i < n; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  const unsigned char d = byte(1);
  const bool bad = (c == 0xC2 && d < 0xA0) || (c == 0xE0 && d < 0xA0) || (c == 0xED && d > 0x9F) ||
                   (c == 0xF0 && d < 0x90) || (c == 0xF4 && d > 0x8F);
  return bad ? 0 : n;
}

class Printer {
 public:
  explicit Printer(const PrintOptions& options) : options_(options) {}

  std::string Take() { return std::move(out_); }

  void PrintModel(const Model& m) {
    out_ += "ir_version = ";
    Number(m.ir_version);
    out_ += '\n';
    for (const OpsetImport& o : m.opsets) {
      out_ += "opset ";
      Quoted(o.domain);
      out_ += " = ";
      Number(o.version);
      out_ += '\n';
    }
    for (const auto& [key, value] : m.metadata) {
      out_ += "metadata ";
      Quoted(key);
      out_ += " = ";
      Quoted(value);
      out_ += '\n';
    }
    for (std::size_t i = 0; i < m.functions.size() && i < m.function_ids.size(); ++i) {
      out_ += "function ";
      Quoted(m.function_ids[i]);
      out_ += " = ";
      Hex(m.functions[i]);
      out_ += '\n';
    }
    if (!m.extras.empty()) {
      out_ += "extras = ";
      Hex(m.extras);
      out_ += '\n';
    }
    if (m.graph != nullptr) {
      PrintGraph(*m.graph, 0);
      out_ += '\n';
    }
  }

  void PrintGraph(const Graph& g, int indent) {
    out_ += "graph @";
    NameText(g.name);
    out_ += '(';
    bool first = true;
    for (const Value* v : g.inputs()) {
      if (!first) out_ += ", ";
      first = false;
      Definition(*v, true);
      if (v->data) {
        out_ += " = ";
        Tensor(*v->data);
      }
    }
    out_ += ") -> (";
    first = true;
    for (const Value* v : g.outputs()) {
      if (!first) out_ += ", ";
      first = false;
      Reference(v);
    }
    out_ += ") ";
    Extras(g.extras);
    out_ += "{\n";
    for (const Value* c : g.constants()) {
      Indent(indent + 1);
      const bool plain = c->data && SameType(c->type, TypeOf(*c->data));
      Definition(*c, !plain);
      out_ += " = constant ";
      if (c->data) {
        Tensor(*c->data);
      } else {
        out_ += "none";
      }
      out_ += '\n';
    }
    for (const Node* n = g.first(); n != nullptr; n = n->next()) {
      Indent(indent + 1);
      PrintNode(*n, indent + 1);
      out_ += '\n';
    }
    Indent(indent);
    out_ += '}';
  }

 private:
  void Indent(int n) { out_.append(static_cast<std::size_t>(n) * 2, ' '); }

  template <typename T>
  void Number(T v) {
    char buffer[40];
    out_.append(buffer, std::to_chars(buffer, buffer + sizeof buffer, v).ptr);
  }

  void HexNumber(std::uint64_t v) {
    char buffer[20];
    out_ += "0x";
    out_.append(buffer, std::to_chars(buffer, buffer + sizeof buffer, v, 16).ptr);
  }

  // Shortest decimal that reads back to the same bits; NaNs carry their bits.
  template <typename Float, typename Bits>
  void FloatNumber(Float x, Bits bits) {
    if (std::isnan(x)) {
      out_ += "nan(";
      HexNumber(bits);
      out_ += ')';
    } else if (std::isinf(x)) {
      out_ += x < 0 ? "-inf" : "inf";
    } else {
      Number(x);
    }
  }

  // An attribute has no dtype beside it: a float must look like one.
  void AttributeFloat(float x) {
    const std::size_t at = out_.size();
    FloatNumber(x, std::bit_cast<std::uint32_t>(x));
    if (out_.find_first_of(".en", at) == std::string::npos) out_ += ".0";
  }

  void Quoted(std::string_view s) {
    constexpr char kDigits[] = "0123456789abcdef";
    out_ += '"';
    while (!s.empty()) {
      const auto c = static_cast<unsigned char>(s[0]);
      std::size_t n = 1;
      if (c == '"' || c == '\\') {
        out_ += '\\';
        out_ += s[0];
      } else if (c == '\n') {
        out_ += "\\n";
      } else if (c == '\t') {
        out_ += "\\t";
      } else if (c >= 0x20 && c < 0x7F) {
        out_ += s[0];
      } else if (const std::size_t utf8 = c < 0x80 ? 0 : Utf8Length(s); utf8 != 0) {
        out_.append(s.substr(0, utf8));
        n = utf8;
      } else {
        out_ += "\\x";
        out_ += kDigits[c >> 4];
        out_ += kDigits[c & 15];
      }
      s.remove_prefix(n);
    }
    out_ += '"';
  }

  template <typename Bytes>
  void Hex(const Bytes& bytes) {
    constexpr char kDigits[] = "0123456789abcdef";
    out_ += "hex\"";
    for (const auto b : bytes) {
      const auto c = static_cast<unsigned char>(b);
      out_ += kDigits[c >> 4];
      out_ += kDigits[c & 15];
    }
    out_ += '"';
  }

  void Word(std::string_view s) { text::IsBareWord(s) ? void(out_ += s) : Quoted(s); }
  void NameText(std::string_view s) { text::IsBareName(s) ? void(out_ += s) : Quoted(s); }

  void Reference(const Value* v) {
    if (v == nullptr) {
      out_ += '_';
      return;
    }
    out_ += '%';
    NameText(v->name());
  }

  void Extras(const std::string& extras) {
    if (extras.empty()) return;
    out_ += "extras=";
    Hex(extras);
    out_ += ' ';
  }

  static bool Unset(const Type& t) { return t.dtype == DType::kUndefined && !t.shape && !t.quant && t.opaque.empty(); }

  void Definition(const Value& v, bool with_type) {
    Reference(&v);
    // An input always says its type; elsewhere no annotation is the type that says nothing, or that of the data.
    if (with_type && (!Unset(v.type) || v.kind() != ValueKind::kResult)) {
      out_ += ": ";
      PrintType(v.type);
    }
    if (!v.extras.empty()) {
      out_ += ' ';
      Extras(v.extras);
      out_.pop_back();
    }
  }

  void PrintType(const Type& t) {
    out_ += Name(t.dtype);
    out_ += '[';
    if (!t.shape) {
      out_ += '*';
    } else {
      bool first = true;
      for (const Dim& d : *t.shape) {
        if (!first) out_ += ',';
        first = false;
        if (d.known()) {
          Number(d.value);
        } else if (d.symbol.empty()) {
          out_ += '?';
        } else {
          Word(d.symbol);
        }
      }
    }
    out_ += ']';
    if (t.quant) {
      out_ += " # ";
      Quant(*t.quant);
    }
    if (!t.opaque.empty()) {
      out_ += " opaque=";
      Hex(t.opaque);
    }
  }

  void Quant(const QuantType& q) {
    switch (q.kind) {
      case QuantType::Kind::kGgml:
        out_ += "ggml(";
        Word(q.ggml.format);
        out_ += ", axis=";
        Number(q.ggml.axis);
        break;
      case QuantType::Kind::kMx:
        out_ += "mx(";
        Word(q.mx.format);
        out_ += ", axis=";
        Number(q.mx.axis);
        out_ += ", block=";
        Number(q.mx.block);
        break;
      case QuantType::Kind::kAffine: {
        const Affine& a = q.affine;
        out_ += Name(a.storage);
        out_ += '(';
        if (a.axis) {
          out_ += "axis=";
          Number(*a.axis);
          out_ += ", ";
        }
        if (a.block != 0) {
          out_ += "block=";
          Number(a.block);
          out_ += ", ";
        }
        out_ += "scale=";
        Parameter(a.scale, DType::kF32);
        if (a.zero_point) {
          out_ += ", zero=";
          Parameter(*a.zero_point, a.storage);
        }
        break;
      }
    }
    out_ += ')';
  }

  // A scalar of the usual type is a bare number.
  void Parameter(const TensorRef& t, DType usual) {
    if (t.dtype == usual && t.dims.empty() && t.bytes.size() == ByteSize(usual, 1) && !NeedsHex(t, 1)) {
      Element(t, 0);
    } else {
      Tensor(t);
    }
  }

  // Data that a list of elements would not give back bit by bit.
  static bool NeedsHex(const TensorRef& t, std::uint64_t n) {
    const int bits = BitWidth(t.dtype);
    if (t.bytes.size() != ByteSize(t.dtype, n) || bits > 64 || t.dtype == DType::kC64) return true;
    const std::uint64_t used = bits < 8 ? n * static_cast<unsigned>(bits) % 8 : 0;
    return used != 0 && (std::to_integer<unsigned>(t.bytes.back()) >> used) != 0;
  }

  void Element(const TensorRef& t, std::uint64_t i) {
    const std::uint64_t bits = ElementBits(t, i);
    switch (t.dtype) {
      case DType::kF32:
      case DType::kF16:
      case DType::kBF16:
        FloatNumber(BitsToFloat(t.dtype, static_cast<std::uint32_t>(bits)), bits);
        return;
      case DType::kF64:
        FloatNumber(std::bit_cast<double>(bits), bits);
        return;
      default:
        break;
    }
    if (IsFloat(t.dtype)) {
      HexNumber(bits);
    } else if (IsSignedInteger(t.dtype)) {
      const int shift = 64 - BitWidth(t.dtype);
      Number(static_cast<std::int64_t>(bits << shift) >> shift);
    } else {
      Number(bits);
    }
  }

  void Tensor(const TensorRef& t) {
    out_ += Name(t.dtype);
    out_ += '[';
    for (std::size_t i = 0; i < t.dims.size(); ++i) {
      if (i > 0) out_ += ',';
      Number(t.dims[i]);
    }
    out_ += "] ";
    const bool strings = t.dtype == DType::kString;
    // Of a broken tensor, too: printing is for looking at what the verifier refused.
    const std::uint64_t n = strings ? (t.strings ? t.strings->size() : 0)
                            : t.dtype == DType::kUndefined
                                ? 0
                                : t.bytes.size() * 8 / static_cast<unsigned>(BitWidth(t.dtype));
    std::uint64_t said = 1;
    bool broken = false;
    for (const std::int64_t d : t.dims) {
      broken = broken || d < 0 || (d > 0 && said > (std::uint64_t{1} << 62) / static_cast<std::uint64_t>(d));
      if (!broken) said *= static_cast<std::uint64_t>(d);
    }
    broken = broken || (strings ? said != n : ByteSize(t.dtype, said) != t.bytes.size());
    if (broken) {
      Hex(t.bytes);
      return;
    }
    if (!strings && Splat(t, said)) return;
    if (!options_.full && said > options_.max_literal_elements) {
      Blob(t);
      return;
    }
    if (!strings && NeedsHex(t, said)) {
      Hex(t.bytes);
      return;
    }
    if (!t.dims.empty()) out_ += '[';
    for (std::uint64_t i = 0; i < said; ++i) {
      if (i > 0) out_ += ", ";
      if (strings) {
        Quoted((*t.strings)[i]);
      } else {
        Element(t, i);
      }
    }
    if (!t.dims.empty()) out_ += ']';
  }

  bool Splat(const TensorRef& t, std::uint64_t n) {
    if (n < kMinSplat || NeedsHex(t, n)) return false;
    const std::uint64_t bits = ElementBits(t, 0);
    for (std::uint64_t i = 1; i < n; ++i) {
      if (ElementBits(t, i) != bits) return false;
    }
    out_ += "splat(";
    Element(t, 0);
    out_ += ')';
    return true;
  }

  void Blob(const TensorRef& t) {
    Sha256 hash;
    hash.Update(t.bytes);
    if (t.strings) {
      for (const std::string& s : *t.strings) {
        hash.Update(std::to_string(s.size()) + ":");  // so that ["ab"] and ["a", "b"] differ
        hash.Update(s);
      }
    }
    out_ += "blob<" + hash.HexDigest().substr(0, text::kBlobDigits) + ">";
  }

  void PrintNode(const Node& n, int indent) {
    if (n.outputs().empty()) out_ += "()";
    for (std::size_t i = 0; i < n.outputs().size(); ++i) {
      if (i > 0) out_ += ", ";
      if (n.output(i) == nullptr) {
        out_ += '_';
      } else {
        Definition(*n.output(i), true);
      }
    }
    out_ += " = ";
    Operator(n);
    out_ += '(';
    for (std::size_t i = 0; i < n.inputs().size(); ++i) {
      if (i > 0) out_ += ", ";
      Reference(n.input(i));
    }
    out_ += ')';
    if (!n.attributes().empty()) {
      out_ += " {";
      for (std::size_t i = 0; i < n.attributes().size(); ++i) {
        if (i > 0) out_ += ", ";
        Word(n.attributes()[i].name);
        out_ += '=';
        PrintAttribute(n.attributes()[i].value, indent);
      }
      out_ += '}';
    }
    if (!n.name.empty()) {
      out_ += " @";
      NameText(n.name);
    }
    if (!n.overload.empty()) {
      out_ += " overload=";
      Quoted(n.overload);
    }
    if (n.form != QuantForm::kNone) out_ += n.form == QuantForm::kQdq ? " form=qdq" : " form=qlinear";
    if (!n.extras.empty()) {
      out_ += " extras=";
      Hex(n.extras);
    }
  }

  void Operator(const Node& n) {
    const bool ir = n.op() == kQuantize || n.op() == kDequantize || n.op() == kRequantize || n.op() == kStorageCast;
    // The IR's own operators go bare; an ONNX operator of that name says its domain, and `constant` its quotes.
    const bool bare = ir ? n.domain() == kIrDomain : n.domain().empty();
    if (!bare) {
      Word(n.domain());
      out_ += "::";
    }
    if (bare && n.op() == "constant") {
      Quoted(n.op());
    } else {
      Word(n.op());
    }
  }

  template <typename T, typename Fn>
  void List(const std::vector<T>& list, std::string_view kind, const Fn& item) {
    if (list.empty()) out_ += kind;
    out_ += '[';
    for (std::size_t i = 0; i < list.size(); ++i) {
      if (i > 0) out_ += ", ";
      item(list[i]);
    }
    out_ += ']';
  }

  void PrintAttribute(const AttributeValue& value, int indent) {
    std::visit(
        [&](const auto& v) {
          using T = std::decay_t<decltype(v)>;
          if constexpr (std::is_same_v<T, std::int64_t>) {
            Number(v);
          } else if constexpr (std::is_same_v<T, float>) {
            AttributeFloat(v);
          } else if constexpr (std::is_same_v<T, std::string>) {
            Quoted(v);
          } else if constexpr (std::is_same_v<T, TensorRef>) {
            Tensor(v);
          } else if constexpr (std::is_same_v<T, std::vector<std::int64_t>>) {
            List(v, "ints", [&](std::int64_t x) { Number(x); });
          } else if constexpr (std::is_same_v<T, std::vector<float>>) {
            List(v, "floats", [&](float x) { AttributeFloat(x); });
          } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
            List(v, "strings", [&](const std::string& x) { Quoted(x); });
          } else if constexpr (std::is_same_v<T, std::unique_ptr<Graph>>) {
            if (v != nullptr) PrintGraph(*v, indent);
          } else {
            out_ += "opaque ";
            Hex(v.bytes);
          }
        },
        value);
  }

  const PrintOptions& options_;
  std::string out_;
};

}  // namespace

std::string Print(const Model& model, const PrintOptions& options) {
  Printer printer(options);
  printer.PrintModel(model);
  return printer.Take();
}

std::string Print(const Graph& graph, const PrintOptions& options) {
  Printer printer(options);
  printer.PrintGraph(graph, 0);
  return printer.Take() + "\n";
}

}  // namespace octavo
