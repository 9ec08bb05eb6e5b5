#include <algorithm>

#include "octavo/base/error.h"
#include "octavo/base/log.h"
#include "octavo/emit/onnx.h"
#include "octavo/rewrite/passes.h"
#include "octavo/rewrite/rules/rules.h"

namespace octavo {

std::vector<PassCount> FusePatterns(Model& model, bool quantized) {
  RuleSet rules;
  rules.push_back(OneHotProduct());
  if (quantized) rules.push_back(FuseLayerNorm());
  rules.push_back(FuseFastLayerNorm());
  if (quantized) {
    rules.push_back(FuseGelu());
    rules.push_back(FuseSoftmax());
    rules.push_back(FuseHardSwish());
    rules.push_back(FuseLinear());
    rules.push_back(ScaleOfProduct());
  }
  rules.push_back(GatherNdToGather());
  rules.push_back(GatherAll());
  rules.push_back(GatherByMatrix());
  rules.push_back(Col2ImToTiles());
  rules.push_back(MaxPoolOfVolume());
  rules.push_back(GlobalMaxOfVolume());
  rules.push_back(PadsThatCount());
  rules.push_back(FewerDimsElementwise());
  rules.push_back(FewerDimsNorm());
  rules.push_back(FewerDimsProduct());
  rules.push_back(FewerDimsTranspose());
  rules.push_back(ReshapeTwice());
  rules.push_back(OneAxisLayerNorm());
  rules.push_back(TriluToWhere());
  rules.push_back(PlainPad());
  rules.push_back(PadRight());
  rules.push_back(FewOperands());
  rules.push_back(FloatExponent());
  rules.push_back(PlainGemm());
  rules.push_back(FlatMatMul());
  rules.push_back(ReciprocalToDiv());
  rules.push_back(RemoveInfiniteBound());
  rules.push_back(MaxToRelu());
  rules.push_back(AverageToGlobal());
  rules.push_back(FarTapsToSlices());
  rules.push_back(ScaleLog());
  // 20: of Gelu, the youngest of the operators that come in. 21: a GroupNormalization has scales a channel.
  const std::vector<Node*> nodes = model.graph->nodes();
  const bool groups =
      std::any_of(nodes.begin(), nodes.end(), [](const Node* n) { return n->Is("GroupNormalization"); });
  const std::int64_t opset = groups ? 21 : 20;
  if (model.OpsetVersion() < opset) {
    Model raised = Clone(model);
    try {
      RaiseOpset(raised, opset,
                 "operator set " + std::to_string(opset) + ", which LayerNormalization, Gelu and HardSwish need");
      model = std::move(raised);
    } catch (const Error& error) {
      LogWarning(std::string("patterns of operators stay as they are: ") + error.what());
      return {};
    }
  }
  InferTypes(model);
  rules.push_back(NearestToGather(model.OpsetVersion()));
  rules.push_back(LinearResizeOfVolume(model.OpsetVersion()));
  rules.push_back(ResizeByFraction(model.OpsetVersion()));
  std::vector<PassCount> counts;
  const auto run = [&](const RuleSet& set) {
    for (const RuleCount& count : RunRules(model, set, RuleClass::kImproves).rules) {
      if (count.applied > 0) counts.push_back({count.rule, count.applied});
    }
  };
  // First: what they write has the patterns of the others.
  run(ContribRules());
  if (!counts.empty()) MergeEqual(*model.graph);  // each Attention has written the same mask
  run(rules);
  model.graph->EraseDead();
  InferMissingTypes(model);
  return counts;
}

}  // namespace octavo
