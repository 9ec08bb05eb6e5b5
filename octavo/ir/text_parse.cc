#include <bit>
#include <unordered_set>

#include "octavo/ir/text.h"
#include "octavo/ir/text_literals.h"
#include "octavo/ir/text_syntax.h"

namespace octavo {
namespace {

using text::Tok;
using text::Token;

class Parser : private text::LiteralReader {
 public:
  Parser(std::string_view text, std::string_view where, const ParseOptions& options)
      : LiteralReader(text, where, options.max_fill_bytes) {}

  Model Run() {
    Model model;
    model.source = std::string(where());
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

  std::vector<Pending> pending_;
};

}  // namespace

Model Parse(std::string_view text, std::string_view where, const ParseOptions& options) {
  return Parser(text, where, options).Run();
}

}  // namespace octavo
