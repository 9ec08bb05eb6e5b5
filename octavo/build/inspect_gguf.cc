#include "octavo/build/inspect_gguf.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <string_view>

#include "octavo/import/gguf.h"
#include "octavo/import/safetensors.h"
#include "octavo/validate/json_writer.h"

namespace octavo {
namespace {

constexpr std::uint64_t kShown = 8;       // elements of an array in the text; JSON has them all
constexpr std::size_t kShownBytes = 120;  // of a string in the text

// Names and texts come from untrusted files: no control character reaches the terminal.
std::string Clean(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, kShownBytes)) {
    if (c == '\n') {
      out += "\\n";
    } else {
      out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
    }
  }
  return text.size() > kShownBytes ? out + "..." : out;
}

class JsonVisitor : public GgufVisitor {
 public:
  explicit JsonVisitor(JsonWriter& json) : json_(json) {}
  void Int(std::int64_t value) override { json_.Int(value); }
  void Uint(std::uint64_t value) override { json_.Uint(value); }
  void Float(double value) override { json_.Number(value); }
  void Bool(bool value) override { json_.Bool(value); }
  void String(std::string_view value) override { json_.String(value); }
  bool BeginArray(GgufValueType, std::uint64_t) override {
    json_.BeginArray();
    return true;
  }
  void EndArray() override { json_.EndArray(); }

 private:
  JsonWriter& json_;
};

class TextVisitor : public GgufVisitor {
 public:
  std::string text;
  void Int(std::int64_t value) override { Put(std::to_string(value)); }
  void Uint(std::uint64_t value) override { Put(std::to_string(value)); }
  void Float(double value) override {
    char number[40];
    std::snprintf(number, sizeof number, "%.9g", value);
    Put(number);
  }
  void Bool(bool value) override { Put(value ? "true" : "false"); }
  void String(std::string_view value) override { Put(depth_ > 0 ? "\"" + Clean(value) + "\"" : Clean(value)); }
  bool BeginArray(GgufValueType element, std::uint64_t count) override {
    if (count > kShown || depth_ > 1) {
      Put(std::to_string(count) + " x " + std::string(Name(element)));
      return false;
    }
    Put("[");
    ++depth_;
    first_ = true;
    return true;
  }
  void EndArray() override {
    text += "]";
    --depth_;
    first_ = false;
  }

 private:
  void Put(const std::string& item) {
    if (depth_ > 0 && !first_) text += ", ";
    text += item;
    first_ = false;
  }
  int depth_ = 0;
  bool first_ = true;
};

struct Stored {
  std::uint64_t tensors = 0, bytes = 0;
};

void PutTotals(const std::map<std::string, Stored>& totals, std::string& text, JsonWriter& json) {
  char line[200];
  text += "stored as\n";
  json.Key("stored").BeginArray();
  for (const auto& [how, s] : totals) {
    std::snprintf(line, sizeof line, "  %-10s %8llu tensors %16llu bytes\n", how.c_str(),
                  static_cast<unsigned long long>(s.tensors), static_cast<unsigned long long>(s.bytes));
    text += line;
    json.BeginObject().Field("stored_as", how).Field("tensors", s.tensors).Field("bytes", s.bytes).EndObject();
  }
  json.EndArray();
}

std::string Line(const std::string& name, std::size_t width, const std::string& shape, std::string_view type,
                 std::uint64_t bytes) {
  char line[160];
  std::snprintf(line, sizeof line, "  %-26s %-9s %16llu\n", shape.c_str(), std::string(type).c_str(),
                static_cast<unsigned long long>(bytes));
  std::string padded = Clean(name);
  padded.resize(std::max(padded.size(), width), ' ');
  return "  " + padded + line;
}

}  // namespace

InspectResult InspectGguf(const std::filesystem::path& path) {
  const Gguf file = Gguf::Open(path);
  InspectResult out;
  JsonWriter json;
  json.BeginObject().Field("kind", "gguf").Field("path", path.string());
  json.Field("version", static_cast<std::int64_t>(file.version)).Field("alignment", file.alignment);
  json.Field("files", static_cast<std::uint64_t>(file.files.size())).Field("bytes", file.file_bytes());
  char line[200];
  std::snprintf(line, sizeof line, "GGUF version %u, %llu bytes%s, %zu metadata fields, %zu tensors\n", file.version,
                static_cast<unsigned long long>(file.file_bytes()),
                file.files.size() > 1 ? (" in " + std::to_string(file.files.size()) + " files").c_str() : "",
                file.fields.size(), file.tensors.size());
  out.text = line;
  out.text += "metadata\n";
  json.Key("metadata").BeginArray();
  for (const GgufField& field : file.fields) {
    TextVisitor text;
    VisitGgufValue(field, text);
    out.text += "  " + Clean(field.key) + " (" + std::string(Name(field.type)) + "): " + text.text + "\n";
    json.BeginObject().Field("key", field.key).Field("type", Name(field.type)).Key("value");
    JsonVisitor value(json);
    VisitGgufValue(field, value);
    json.EndObject();
  }
  json.EndArray().Key("tensors").BeginArray();
  std::map<std::string, Stored> totals;
  std::size_t width = 8;
  for (const GgufTensor& tensor : file.tensors) width = std::max(width, std::min<std::size_t>(tensor.name.size(), 60));
  out.text += "tensors (dimensions in GGML order: elements of a row first)\n";
  for (const GgufTensor& tensor : file.tensors) {
    Stored& stored = totals[std::string(tensor.type->name)];
    ++stored.tensors;
    stored.bytes += tensor.bytes;
    out.text += Line(tensor.name, width, GgufShapeText(tensor.ne), tensor.type->name, tensor.bytes);
    json.BeginObject().Field("name", tensor.name).Field("type", tensor.type->name).Key("shape").BeginArray();
    for (const std::uint64_t n : tensor.ne) json.Uint(n);
    json.EndArray().Field("bytes", tensor.bytes).Field("offset", tensor.offset);
    json.Field("file", file.files[tensor.part]->path().filename().string()).EndObject();
  }
  json.EndArray();
  PutTotals(totals, out.text, json);
  out.json = json.EndObject().Take();
  return out;
}

InspectResult InspectSafetensors(const std::filesystem::path& path) {
  const std::vector<SafeTensor> tensors = ReadSafetensors(path);
  InspectResult out;
  JsonWriter json;
  json.BeginObject().Field("kind", "safetensors").Field("path", path.string()).Key("tensors").BeginArray();
  out.text = "safetensors, " + std::to_string(tensors.size()) + " tensors\n";
  std::map<std::string, Stored> totals;
  std::size_t width = 8;
  for (const SafeTensor& tensor : tensors) width = std::max(width, std::min<std::size_t>(tensor.name.size(), 60));
  for (const SafeTensor& tensor : tensors) {
    const std::string type(Name(tensor.data.dtype));
    Stored& stored = totals[type];
    ++stored.tensors;
    stored.bytes += tensor.data.bytes.size();
    std::string shape = "[";
    json.BeginObject().Field("name", tensor.name).Field("type", type).Key("shape").BeginArray();
    for (const std::int64_t d : tensor.data.dims) {
      shape += (shape.size() > 1 ? ", " : "") + std::to_string(d);
      json.Int(d);
    }
    json.EndArray().Field("bytes", static_cast<std::uint64_t>(tensor.data.bytes.size())).EndObject();
    out.text += Line(tensor.name, width, shape + "]", type, tensor.data.bytes.size());
  }
  json.EndArray();
  PutTotals(totals, out.text, json);
  out.json = json.EndObject().Take();
  return out;
}

}  // namespace octavo
