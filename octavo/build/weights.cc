#include "octavo/build/weights.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <utility>

#include "octavo/base/error.h"
#include "octavo/base/mapped_file.h"
#include "octavo/base/names.h"
#include "octavo/base/output.h"
#include "octavo/base/spill.h"
#include "octavo/import/gguf.h"
#include "octavo/import/safetensors.h"
#include "octavo/numerics/ggml.h"
#include "octavo/quantize/weight_only.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxMapBytes = std::size_t{64} << 20;

// A tensor of the file: `dims` in row-major order; `format` set for blocks, whose rows run along the last dimension.
struct Source {
  TensorRef data;  // blocks: u8 bytes
  Dims dims;
  const GgmlFormat* format = nullptr;
};

std::optional<DType> PlainType(const GgufType& type) {
  if (type.name.starts_with("i")) {
    const std::string signed_name = "s" + std::string(type.name.substr(1));
    return ParseDType(signed_name);
  }
  return type.quantized() ? std::nullopt : ParseDType(type.name);
}

// Tensors by name. Those that cannot be decoded have no format and no data: they are refused when they are wanted.
std::map<std::string, Source> ReadSources(const fs::path& path) {
  std::map<std::string, Source> out;
  const std::shared_ptr<const MappedFile> head = MappedFile::Open(path);
  if (LooksLikeSafetensors(head->bytes())) {
    for (SafeTensor& tensor : ReadSafetensors(path)) {
      Source source;
      source.dims = tensor.data.dims;
      source.data = std::move(tensor.data);
      out.emplace(std::move(tensor.name), std::move(source));
    }
    return out;
  }
  if (!IsGguf(path)) ThrowBadInput("neither a GGUF nor a safetensors file", path.string(), "give --weights W.gguf");
  const Gguf file = Gguf::Open(path);
  for (const GgufTensor& tensor : file.tensors) {
    Source source;
    source.dims = tensor.dims();
    source.data.bytes = file.Data(tensor);
    source.data.file = file.files[tensor.part];
    source.data.owner = source.data.file;
    if (const std::optional<DType> plain = PlainType(*tensor.type)) {
      source.data.dtype = *plain;
      source.data.dims = source.dims;
    } else {
      source.data.dtype = DType::kU8;
      source.data.dims = {static_cast<std::int64_t>(tensor.bytes)};
      source.format = FindGgmlFormat(tensor.type->id);
      if (source.format == nullptr) {
        source.data = TensorRef{};
        source.data.strings = std::make_shared<std::vector<std::string>>(1, std::string(tensor.type->name));
      }
    }
    out.emplace(tensor.name, std::move(source));
  }
  return out;
}

std::map<std::string, std::string> ReadMap(const fs::path& path) {
  std::map<std::string, std::string> out;
  if (path.empty()) return out;
  nlohmann::ordered_json json;
  std::set<std::string> keys;
  try {
    json = nlohmann::ordered_json::parse(
        ReadTextFile(path, kMaxMapBytes),
        [&](int depth, nlohmann::ordered_json::parse_event_t event, nlohmann::ordered_json& parsed) {
          if (depth > 2) throw std::runtime_error("nested too deep");
          if (event == nlohmann::ordered_json::parse_event_t::key && !keys.insert(parsed.get<std::string>()).second) {
            throw std::runtime_error("'" + parsed.get<std::string>() + "' appears twice");
          }
          return true;
        });
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    ThrowUsage(std::string("not a JSON object (") + error.what() + ")", path.string());
  }
  if (!json.is_object()) ThrowUsage("not a JSON object of initializer: tensor", path.string());
  for (const auto& [name, tensor] : json.items()) {
    if (!tensor.is_string()) ThrowUsage("'" + name + "' is not a tensor's name", path.string());
    out.emplace(name, tensor.get<std::string>());
  }
  return out;
}

Dims WithoutLeadingOnes(const Dims& dims) {
  const auto first = std::find_if(dims.begin(), dims.end(), [](std::int64_t d) { return d != 1; });
  return {first, dims.end()};
}

std::string Text(const Dims& dims) {
  std::string out = "[";
  for (std::size_t i = 0; i < dims.size(); ++i) out += (i ? ", " : "") + std::to_string(dims[i]);
  return out + "]";
}

// [rows, columns] -> [columns, rows], elements of `size` bytes.
TensorRef Transposed(const TensorRef& data, const Dims& dims) {
  const auto rows = static_cast<std::size_t>(dims[0]), columns = static_cast<std::size_t>(dims[1]);
  const auto size = static_cast<std::size_t>(BitWidth(data.dtype)) / 8;
  SpillBuffer out(data.bytes.size());
  constexpr std::size_t kTile = 32;
  for (std::size_t r0 = 0; r0 < rows; r0 += kTile) {
    for (std::size_t c0 = 0; c0 < columns; c0 += kTile) {
      for (std::size_t r = r0; r < std::min(rows, r0 + kTile); ++r) {
        for (std::size_t c = c0; c < std::min(columns, c0 + kTile); ++c) {
          std::memcpy(out.data() + (c * rows + r) * size, data.bytes.data() + (r * columns + c) * size, size);
        }
      }
    }
  }
  return TensorRef::FromBuffer(data.dtype, {dims[1], dims[0]}, std::move(out));
}

bool Convertible(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 || dtype == DType::kF64;
}

}  // namespace

WeightReplacement WeightReplacement::Take(Model& model, const fs::path& weights, const fs::path& map_path) {
  const std::map<std::string, Source> sources = ReadSources(weights);
  const std::map<std::string, std::string> map = ReadMap(map_path);
  std::vector<std::string> source_names;
  for (const auto& [name, source] : sources) source_names.push_back(name);
  Graph& graph = *model.graph;
  std::vector<std::string> names;
  for (const Value* v : graph.constants()) names.push_back(v->name());
  for (const auto& [name, tensor] : map) {
    if (sources.count(tensor) == 0) {
      ThrowUsage("'" + tensor + "' is no tensor of " + weights.string(), map_path.string(),
                 DidYouMean(tensor, source_names));
    }
    const Value* v = graph.FindValue(name);
    if (v == nullptr || !v->is_constant()) {
      ThrowUsage("'" + name + "' is no initializer of the model", map_path.string(), DidYouMean(name, names));
    }
  }
  WeightReplacement out;
  std::set<std::string> used;
  std::string square, untransposed;  // names: of a weight that fits both ways, of one that fits only as it is
  std::vector<Value*> replaced;
  for (Value* v : graph.constants()) {
    if (!v->data) continue;
    const auto mapped = map.find(v->name());
    const auto found = sources.find(mapped == map.end() ? v->name() : mapped->second);
    if (found == sources.end()) continue;
    const Source& source = found->second;
    const std::string where = weights.string() + ", tensor " + found->first;
    if (source.data.strings) {
      ThrowUnsupported("blocks of " + source.data.strings->front() + " cannot be decoded", where,
                       "leave the tensor out, or quantize it to another format");
    }
    if (v->type.quant) {
      ThrowUnsupported("the initializer is quantized already", where, "give a float model");
    }
    const Dims& dims = v->data->dims;
    const std::optional<std::int64_t> axis = WeightRows(*v).axis;
    const bool as_is = WithoutLeadingOnes(source.dims) == WithoutLeadingOnes(dims);
    const bool matrix = dims.size() == 2 && source.dims.size() == 2;
    const bool reversed = matrix && source.dims[0] == dims[1] && source.dims[1] == dims[0];
    if (!as_is && !reversed) {
      ThrowBadInput("its shape is " + Text(source.dims) + ", that of initializer " + v->name() + " " + Text(dims),
                    where, "weights of another model?");
    }
    const bool transposed = reversed && (!as_is || axis == std::optional<std::int64_t>(0));
    if (matrix && axis == std::optional<std::int64_t>(0)) {
      if (as_is && reversed && square.empty()) square = found->first;
      if (as_is && !reversed && untransposed.empty()) untransposed = found->first;
    }
    Item item;
    item.name = v->name();
    item.expressed = TypeOf(*v->data);
    item.type = item.expressed;
    if (source.format != nullptr) {
      if (!IsFloat(v->data->dtype)) {
        ThrowBadInput("blocks of " + std::string(source.format->name) + " cannot replace " +
                          std::string(Name(v->data->dtype)) + " numbers",
                      where);
      }
      QuantType quant;
      quant.kind = QuantType::Kind::kGgml;
      quant.ggml.format = std::string(source.format->name);
      quant.ggml.axis = transposed ? 0 : static_cast<std::int64_t>(dims.size()) - 1;
      item.type.quant = std::move(quant);
      item.data = source.data;
    } else {
      const DType dtype = source.data.dtype;
      if (dtype != v->data->dtype && !(Convertible(dtype) && Convertible(v->data->dtype))) {
        ThrowBadInput("its type is " + std::string(Name(dtype)) + ", that of initializer " + v->name() + " " +
                          std::string(Name(v->data->dtype)),
                      where);
      }
      item.data = transposed ? Transposed(source.data, source.dims) : source.data;
      item.data.dims = dims;
      item.type = TypeOf(item.data);
    }
    used.insert(found->first);
    out.items_.push_back(std::move(item));
    replaced.push_back(v);
  }
  if (!square.empty() && !untransposed.empty()) {
    ThrowBadInput("its orientation cannot be told: it is square, and " + untransposed +
                      " is not stored with its rows along the summed dimension",
                  weights.string() + ", tensor " + square, "store all weights the same way");
  }
  if (replaced.empty()) {
    const std::string how = source_names.empty() ? "" : DidYouMean(source_names.front(), names);
    ThrowBadInput("no tensor has the name of an initializer", weights.string(),
                  how.empty() ? "give --weight-map F.json" : how + " or give --weight-map F.json");
  }
  out.unused_ = sources.size() - used.size();
  out.replaced_ = replaced.size();
  std::vector<Item> blocks;
  for (std::size_t i = 0; i < replaced.size(); ++i) {
    Value* v = replaced[i];
    Item& item = out.items_[i];
    if (item.type.quant) {
      const std::string name = v->name();
      Value* input = graph.AddInput(name, item.expressed);
      graph.ReplaceAllUses(v, input);
      graph.Erase(v);
      graph.Rename(input, name);
      blocks.push_back(std::move(item));
    } else if (item.type.dtype == item.expressed.dtype) {
      v->data = std::move(item.data);
    } else {
      const std::string name = v->name();
      Value* constant = graph.AddConstant(name, std::move(item.data), std::move(item.type));
      Node* cast = graph.AddNode("Cast", "", {constant}, {{name + "_cast", item.expressed}}, graph.first());
      cast->SetAttribute("to", static_cast<std::int64_t>(item.expressed.dtype));
      graph.ReplaceAllUses(v, cast->output());
      graph.Erase(v);
      graph.Rename(constant, name);
    }
  }
  out.items_ = std::move(blocks);
  return out;
}

void WeightReplacement::Put(Model& model) const {
  Graph& graph = *model.graph;
  for (const Item& item : items_) {
    Value* input = graph.FindValue(item.name);
    if (input == nullptr || input->kind() != ValueKind::kInput) continue;  // nothing used it any more
    Value* constant = graph.AddConstant(item.name, item.data, item.type);
    graph.ReplaceAllUses(input, constant);
    graph.EraseInput(input);
    graph.Rename(constant, item.name);
  }
}

RowsOfWeight WeightRows(Value& constant) {
  RowsOfWeight out;
  const DType dtype = constant.data ? constant.data->dtype : DType::kUndefined;
  if (dtype != DType::kF32 && dtype != DType::kF16 && dtype != DType::kBF16) return out;
  constant.data->dtype = DType::kF32;  // sites are found by structure, in f32; other float types have the same ones
  const auto look = [&](const auto& self, const Value& v, int depth) -> void {
    for (const Use& use : v.uses()) {
      if (use.node->Is("Transpose") && depth < 8) {
        if (use.node->output() != nullptr) self(self, *use.node->output(), depth + 1);
        continue;
      }
      const auto found = FindWeightSite(*use.node, 1);
      const auto* site = std::get_if<WeightSite>(&found);
      if (site == nullptr || site->weight != &constant) continue;
      out.conflict = out.conflict || (out.axis && *out.axis != site->axis);
      out.axis = site->axis;
    }
  };
  look(look, constant, 0);
  constant.data->dtype = dtype;
  if (out.conflict) out.axis.reset();
  return out;
}

std::vector<fs::path> WeightFiles(const fs::path& weights) {
  std::vector<fs::path> out;
  if (!IsGguf(weights)) return {weights};
  for (const auto& file : Gguf::Open(weights).files) out.push_back(file->path());
  return out;
}

}  // namespace octavo
