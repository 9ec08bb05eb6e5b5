#include "octavo/rewrite/replace_node.h"

#include <string>
#include <utility>

namespace octavo {

void ReplaceNode(Node& node, std::vector<Value*> made) {
  Graph& graph = *node.graph();
  std::vector<std::pair<Value*, std::string>> outputs;
  for (std::size_t i = 0; i < made.size(); ++i) {
    Value* old = node.output(i);
    if (old == nullptr || made[i] == nullptr) continue;
    if (old->is_graph_output()) {
      Value* v = made[i];
      if (v->kind() != ValueKind::kResult || v->graph() != &graph || v->is_graph_output()) {
        made[i] = graph.AddNode("Identity", "", {v}, {{old->name() + "_same", old->type}}, &node)->output();
      }
      made[i]->type = old->type;  // as the model declares it
      made[i]->extras = old->extras;
      outputs.emplace_back(made[i], old->name());
    }
    graph.ReplaceAllUses(old, made[i]);
  }
  graph.Erase(&node);
  for (auto& [value, name] : outputs) graph.Rename(value, name);
}

}  // namespace octavo
