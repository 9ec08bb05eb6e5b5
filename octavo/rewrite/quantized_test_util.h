// What the tests of the quantized road's rules share.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/ir/text.h"
#include "octavo/ir/verify.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/quantized.h"
#include "octavo/rewrite/rules/quantized.h"
#include "octavo/rewrite/run_test_util.h"

namespace octavo::testing {

inline const DeviceDescriptor& Cpu() { return *FindDevice("cpu"); }

inline Model ParseIr(const std::string& text, int opset = 21) {
  Model model = Parse("opset \"\" = " + std::to_string(opset) + "\nopset \"com.microsoft\" = 1\n" + text);
  model.ir_version = 10;
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << text;
  return model;
}

// These rules, whatever they may do.
inline QuantizedRewriteOptions Only(std::vector<std::string> rules) {
  QuantizedRewriteOptions options;
  options.rules = std::move(rules);
  options.permitted = RuleClass::kLossy;
  return options;
}

inline std::vector<TensorRef> RunQdq(const Model& source, const std::vector<TensorRef>& inputs) {
  Model model = Clone(source);
  UseQdqForm(model);
  LowerToQdq(model);
  return RunModel(model, inputs);
}

inline std::vector<TensorRef> RunQLinear(Model& model, const std::vector<TensorRef>& inputs) {
  LowerToQLinear(model);
  EXPECT_EQ(Verify(model), std::vector<std::string>{}) << Print(model);
  return RunModel(model, inputs);
}

struct Difference {
  std::int64_t codes = 0;  // largest, of integer outputs
  std::uint64_t differing = 0, total = 0;
  double relative = 0;  // largest |a - b| / (largest |a|), of float outputs
};

inline Difference Compare(const std::vector<TensorRef>& a, const std::vector<TensorRef>& b) {
  Difference d;
  EXPECT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i].dims != b[i].dims) {
      d.codes = 1000;
      continue;
    }
    if (IsFloat(a[i].dtype)) {
      const std::vector<float> x = a[i].ToFloats(), y = b[i].ToFloats();
      double most = 1e-30, worst = 0;
      for (std::size_t k = 0; k < x.size(); ++k) {
        most = std::max(most, std::fabs(static_cast<double>(x[k])));
        worst = std::max(worst, std::fabs(static_cast<double>(x[k]) - y[k]));
        d.differing += x[k] != y[k] ? 1 : 0;
      }
      d.total += x.size();
      d.relative = std::max(d.relative, worst / most);
    } else {
      const std::vector<std::int64_t> x = a[i].ToInts(), y = b[i].ToInts();
      for (std::size_t k = 0; k < x.size(); ++k) {
        d.codes = std::max<std::int64_t>(d.codes, std::abs(x[k] - y[k]));
        d.differing += x[k] != y[k] ? 1 : 0;
      }
      d.total += x.size();
    }
  }
  return d;
}

// What is not within the class of the rule, as a sentence; empty when all is. `few`: the most that may differ at all.
inline std::string Violation(const Difference& d, RuleClass rule_class, double few = 1.0) {
  const auto share = static_cast<double>(d.differing) / static_cast<double>(std::max<std::uint64_t>(d.total, 1));
  if (rule_class == RuleClass::kExact && d.differing > 0) return std::to_string(d.differing) + " values differ";
  if (d.codes > 1) return "codes differ by " + std::to_string(d.codes);
  if (d.relative > 1e-5) return "floats differ by " + std::to_string(d.relative);
  if (share > few) return "a share of " + std::to_string(share) + " differs";
  return {};
}

inline RuleClass ClassOf(const std::string& name) {
  for (const auto& rule : QuantizedRules(Cpu(), 21)) {
    if (rule->name() == name) return rule->rule_class();
  }
  ADD_FAILURE() << name;
  return RuleClass::kExact;
}

inline std::string Ints(std::size_t n, const std::function<std::int64_t(std::size_t)>& f) {
  std::string text = "[";
  for (std::size_t i = 0; i < n; ++i) text += (i ? "," : "") + std::to_string(f(i));
  return text + "]";
}
inline TensorRef Codes(DType type, Dims dims, const std::function<std::int64_t(std::size_t)>& f) {
  std::vector<std::int64_t> v(ElementCount(dims));
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = f(i);
  return TensorRef::FromInts(type, std::move(dims), v);
}

}  // namespace octavo::testing
