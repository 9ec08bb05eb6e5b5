#include "octavo/import/project_ops.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/names.h"
#include "octavo/numerics/mx.h"

namespace octavo {
namespace {

constexpr std::string_view kDomain = "octavo";
constexpr const char* kAffineOp = "FakeQuantize";
// Numbers up to here are exact in f32, in which the operator clamps.
constexpr std::int64_t kLargestCode = std::int64_t{1} << 23;

std::vector<std::string> Operators() { return {"MXFakeQuantize", "QuantizeMx", "DequantizeMx", kAffineOp}; }

// `axis` of a tensor with `rank` dimensions, from the front; nullopt where it is outside.
std::optional<std::size_t> Resolve(std::int64_t axis, std::size_t rank) {
  const auto n = static_cast<std::int64_t>(rank);
  if (axis < -n || axis >= n) return std::nullopt;
  return static_cast<std::size_t>(axis < 0 ? axis + n : axis);
}

class Checker {
 public:
  Checker(const Model& model, const std::string& file) : model_(model), file_(file) {}

  void Run();

 private:
  std::string Where(const std::string& part) const {
    return file_ + ", node '" + node_->name + "' (" + node_->op() + ")" + (part.empty() ? "" : ", " + part);
  }
  [[noreturn]] void Bad(std::string what, const std::string& part, std::string how = {}) const {
    ThrowBadInput(std::move(what), Where(part), std::move(how));
  }

  void CheckDomain() const;
  void CheckArity(std::size_t most) const;
  template <typename T>
  const T* Read(const std::string& name) const;
  void CheckNames(const std::vector<std::string>& allowed) const;
  // The type of a value, where it can be believed.
  const Type* KnownType(const Value* value) const;
  const std::vector<Dim>* KnownShape(const Value* value) const;
  void CheckFloat(const Value* value, const char* what) const;
  std::optional<std::size_t> CheckAxis(std::int64_t axis) const;
  void CheckMx();
  void CheckAffine();
  void CheckScales(const Value& scale, bool zero) const;
  void CheckPair();
  void CheckZeroPoints(const Value& zero, std::int64_t low, std::int64_t high) const;

  const Model& model_;
  const std::string& file_;
  const Node* node_ = nullptr;
  // Outputs of the project's operators have the type of their first input, and so of the value that the chain starts
  // with.
  std::unordered_map<const Value*, const Value*> origin_;
  std::unordered_map<const Value*, Type> constants_;
};

template <typename T>
const T* Checker::Read(const std::string& name) const {
  const Attribute* attribute = node_->FindAttribute(name);
  if (attribute == nullptr) return nullptr;
  const T* value = std::get_if<T>(&attribute->value);
  if (value == nullptr) {
    Bad("attribute of another kind", "attribute '" + name + "'",
        std::is_same_v<T, std::int64_t> ? "it is one integer" : "it is a string");
  }
  return value;
}

void Checker::CheckNames(const std::vector<std::string>& allowed) const {
  for (const Attribute& attribute : node_->attributes()) {
    if (std::find(allowed.begin(), allowed.end(), attribute.name) == allowed.end())
      Bad("unknown attribute '" + attribute.name + "'", "", DidYouMean(attribute.name, allowed));
  }
}

const Type* Checker::KnownType(const Value* value) const {
  const auto found = origin_.find(value);
  if (found != origin_.end()) value = found->second;
  if (const auto constant = constants_.find(value); constant != constants_.end()) return &constant->second;
  return value->kind() == ValueKind::kInput ? &value->type : nullptr;
}

const std::vector<Dim>* Checker::KnownShape(const Value* value) const {
  const Type* type = KnownType(value);
  return type == nullptr || !type->shape ? nullptr : &*type->shape;
}

void Checker::CheckFloat(const Value* value, const char* what) const {
  const Type* type = KnownType(value);
  if (type == nullptr || type->dtype == DType::kF32 || type->dtype == DType::kUndefined) return;
  const std::string part = std::string(what) + " '" + value->name() + "'";
  const std::string text = "it is " + std::string(Name(type->dtype)) + ", not f32";
  if (IsFloat(type->dtype)) ThrowUnsupported(text, Where(part), "put a Cast to float32 in front");
  Bad(text, part, "fake quantization rounds float numbers");
}

void Checker::CheckArity(std::size_t most) const {
  const std::size_t least = most == 1 ? 1 : 2;
  for (std::size_t i = 0; i < least; ++i) {
    if (node_->input(i) == nullptr) Bad("a required input is missing", "input " + std::to_string(i));
  }
  if (node_->inputs().size() > most) {
    Bad(std::to_string(node_->inputs().size()) + " inputs", "", "the operator takes " + std::to_string(most));
  }
  if (node_->outputs().size() != 1 || node_->output() == nullptr) Bad("the operator has one output", "");
}

std::optional<std::size_t> Checker::CheckAxis(std::int64_t axis) const {
  const std::vector<Dim>* shape = KnownShape(node_->input(0));
  if (shape == nullptr) return std::nullopt;
  const std::optional<std::size_t> at = Resolve(axis, shape->size());
  if (!at) {
    const std::string rank = std::to_string(shape->size());
    Bad("axis " + std::to_string(axis) + " is outside of a tensor of rank " + rank,
        "input '" + node_->input(0)->name() + "'",
        shape->empty() ? "a scalar has no axis" : "give -" + rank + " to " + std::to_string(shape->size() - 1));
  }
  return at;
}

void Checker::CheckMx() {
  CheckArity(1);
  CheckNames({"elem_format", "axis", "block_size", "rounding", "shared_exponent"});
  std::vector<std::string> formats;
  for (const MxFormat& format : MxFormats()) formats.emplace_back(format.name);
  const auto* format = Read<std::string>("elem_format");
  std::string list;
  for (const std::string& name : formats) list += (list.empty() ? "" : ", ") + name;
  if (format == nullptr) Bad("the attribute 'elem_format' is missing", "", "give one of " + list);
  if (FindMxFormat(*format) == nullptr) Bad("unknown elem_format '" + *format + "'", "", "use one of " + list);
  if (const auto* rounding = Read<std::string>("rounding");
      rounding != nullptr && *rounding != "away" && *rounding != "even") {
    Bad("unknown rounding '" + *rounding + "'", "", "use away or even");
  }
  if (const auto* shared = Read<std::string>("shared_exponent"); shared != nullptr && *shared != "floor")
    Bad("unknown shared_exponent '" + *shared + "'", "", "use floor");
  const auto* block = Read<std::int64_t>("block_size");
  if (block != nullptr && (*block < 1 || *block > std::numeric_limits<std::int32_t>::max())) {
    Bad("block_size is " + std::to_string(*block), "", "it is 1 to 2147483647; 32 is what readers expect");
  }
  CheckFloat(node_->input(0), "input");
  const auto* axis = Read<std::int64_t>("axis");
  CheckAxis(axis == nullptr ? -1 : *axis);
}

// `zero`: of a DequantizeLinear, where a channel of zeros may have the scale 0.
void Checker::CheckScales(const Value& scale, bool zero) const {
  const std::vector<float> values = scale.data->ToFloats();
  const auto wrong = std::find_if(values.begin(), values.end(),
                                  [zero](float s) { return !(s > 0 || (zero && s == 0)) || !std::isfinite(s); });
  if (wrong == values.end()) return;
  Bad("scale " + std::to_string(wrong - values.begin()) + " is " + std::to_string(*wrong), "'" + scale.name() + "'",
      zero ? "scales are finite and not negative" : "scales are finite and above 0");
}

void Checker::CheckZeroPoints(const Value& zero, std::int64_t low, std::int64_t high) const {
  const std::string range = "quant_min " + std::to_string(low) + " and quant_max " + std::to_string(high);
  const auto check = [&](const auto& values) {
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto l = static_cast<std::remove_cvref_t<decltype(values[i])>>(low);
      const auto h = static_cast<std::remove_cvref_t<decltype(values[i])>>(high);
      if (values[i] >= l && values[i] <= h) continue;
      Bad("zero point " + std::to_string(i) + " is " + std::to_string(values[i]), "'" + zero.name() + "'",
          "it has to lie within " + range);
    }
  };
  if (IsInteger(zero.data->dtype))
    check(zero.data->ToInts());
  else
    check(zero.data->ToFloats());
}

void Checker::CheckAffine() {
  CheckArity(3);
  CheckNames({"quant_min", "quant_max", "axis"});
  const auto *min = Read<std::int64_t>("quant_min"), *max = Read<std::int64_t>("quant_max");
  const std::int64_t low = min == nullptr ? 0 : *min, high = max == nullptr ? 255 : *max;
  if (low >= high || low < -kLargestCode || high > kLargestCode) {
    Bad("the codes are " + std::to_string(low) + " to " + std::to_string(high), "attributes quant_min and quant_max",
        "quant_min is below quant_max, and both are at most 2^23 from 0");
  }
  CheckFloat(node_->input(0), "input");
  const Value &scale = *node_->input(1), *zero = node_->input(2);
  CheckFloat(&scale, "scale");
  const auto* axis = Read<std::int64_t>("axis");
  std::optional<std::size_t> at;
  if (axis != nullptr) at = CheckAxis(*axis);
  std::optional<std::int64_t> channels;
  if (at && (*KnownShape(node_->input(0)))[*at].known()) channels = (*KnownShape(node_->input(0)))[*at].value;
  if (const std::vector<Dim>* shape = KnownShape(&scale)) {
    if (shape->size() > 1)
      Bad("scale of " + std::to_string(shape->size()) + " dimensions", "'" + scale.name() + "'",
          "it is one number, or a list of one a channel");
    const std::int64_t count = shape->empty() ? 1 : shape->front().value;
    if (count == 0) Bad("no scale in the list", "'" + scale.name() + "'");
    if (count > 1 && axis == nullptr) {
      Bad(std::to_string(count) + " scales without an axis", "'" + scale.name() + "'",
          "the attribute axis says which dimension they belong to");
    }
    if (count > 1 && channels && count != *channels) {
      Bad(std::to_string(count) + " scales for " + std::to_string(*channels) + " channels", "'" + scale.name() + "'",
          "axis " + std::to_string(*axis) + " needs one scale for each, or one for all");
    }
  }
  if (scale.data && scale.is_constant()) CheckScales(scale, false);
  if (zero == nullptr) return;
  if (const Type* type = KnownType(zero)) {
    constexpr std::array kTypes = {DType::kF32, DType::kS8,  DType::kU8,  DType::kS16,
                                   DType::kU16, DType::kS32, DType::kS64, DType::kUndefined};
    if (std::find(kTypes.begin(), kTypes.end(), type->dtype) == kTypes.end()) {
      ThrowUnsupported("it is " + std::string(Name(type->dtype)), Where("zero point '" + zero->name() + "'"),
                       "use int8, uint8, int16, uint16, int32, int64 or float32");
    }
  }
  if (!zero->is_constant() || !zero->data) return;
  if (scale.is_constant() && scale.data && zero->data->elements() != scale.data->elements()) {
    Bad(std::to_string(zero->data->elements()) + " zero points for " + std::to_string(scale.data->elements()) +
            " scales",
        "'" + zero->name() + "'", "each scale has one");
  }
  CheckZeroPoints(*zero, low, high);
}

// QuantizeLinear and DequantizeLinear with one scale, or a list of one a channel. Those of blocks, and what is
// computed, the runtime checks.
void Checker::CheckPair() {
  const Value *x = node_->input(0), *scale = node_->input(1), *zero = node_->input(2);
  if (x == nullptr || scale == nullptr || !scale->is_constant() || !scale->data || scale->data->dims.size() > 1 ||
      !IsFloat(scale->data->dtype)) {
    return;
  }
  CheckScales(*scale, node_->op() == "DequantizeLinear");
  const std::size_t count = scale->data->elements();
  if (zero != nullptr && zero->is_constant() && zero->data && zero->data->elements() != count) {
    Bad(std::to_string(zero->data->elements()) + " zero points for " + std::to_string(count) + " scales",
        "'" + zero->name() + "'", "each scale has one");
  }
  if (count < 2 || node_->IntAttribute("block_size", 0) != 0) return;
  const std::int64_t axis = node_->IntAttribute("axis", 1);
  const std::optional<std::size_t> at = CheckAxis(axis);
  if (!at || !(*KnownShape(x))[*at].known() || (*KnownShape(x))[*at].value == static_cast<std::int64_t>(count)) return;
  Bad(std::to_string(count) + " scales for " + std::to_string((*KnownShape(x))[*at].value) + " channels",
      "'" + scale->name() + "'", "axis " + std::to_string(axis) + " needs one scale for each, or one for all");
}

void Checker::CheckDomain() const {
  for (const OpsetImport& opset : model_.opsets) {
    if (opset.domain != kDomain) continue;
    if (opset.version == 1) return;
    ThrowUnsupported("version " + std::to_string(opset.version) + " of the domain 'octavo'", file_,
                     "its operators are those of version 1");
  }
  Bad("the model imports no operator set of the domain 'octavo'", "",
      "add onnx.helper.make_opsetid(\"octavo\", 1) to its opset_import");
}

void Checker::Run() {
  std::vector<const Node*> found;
  VisitNodes(*model_.graph, [&](const Node& node) {
    const bool pair = node.op() == "QuantizeLinear" || node.op() == "DequantizeLinear";
    if (node.domain() == kDomain || (pair && (node.domain().empty() || node.domain() == "com.microsoft")))
      found.push_back(&node);
  });
  for (const Node* node : found) {
    node_ = node;
    for (const Value* value : node->inputs()) {
      if (value != nullptr && value->is_constant() && value->data) constants_.try_emplace(value, TypeOf(*value->data));
    }
    if (node->domain() != kDomain) {
      CheckPair();
      continue;
    }
    const std::string id = std::string(kDomain) + ":" + node->op();
    const bool local = std::any_of(model_.function_ids.begin(), model_.function_ids.end(),
                                   [&id](const std::string& f) { return f == id || f.starts_with(id + ":"); });
    if (local) continue;
    const std::vector<std::string> operators = Operators();
    if (std::find(operators.begin(), operators.end(), node->op()) == operators.end()) {
      ThrowUnsupported("the domain 'octavo' has no such operator", Where(""), DidYouMean(node->op(), operators));
    }
    CheckDomain();
    node->op() == kAffineOp ? CheckAffine() : CheckMx();
    const auto from = origin_.find(node->input(0));
    origin_[node->output()] = from == origin_.end() ? node->input(0) : from->second;
  }
}

}  // namespace

void CheckProjectOps(const Model& model, const std::string& file) { Checker(model, file).Run(); }

}  // namespace octavo
