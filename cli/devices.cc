#include <memory>

#include "cli/options.h"
#include "octavo/base/error.h"
#include "octavo/device/descriptor.h"
#include "octavo/runtime/session.h"
#include "octavo/validate/json_writer.h"

namespace octavo::cli {
namespace {

struct Row {
  std::string name, ep, state;
  bool can_build = false, can_run = false;
};

int Run(const CommonFlags& common) {
  ApplyQuiet(common);
  std::string runtime, missing;
  try {
    runtime = "ONNX Runtime " + OrtVersion() + " (" + OrtLibraryPath() + ")";
  } catch (const Error& error) {
    missing = error.what();
    runtime = "not found: " + missing;
  }
  std::vector<Row> rows;
  for (const DeviceDescriptor& d : Devices()) {
    const bool here = missing.empty();
    rows.push_back({std::string(d.name), std::string(d.ep), here ? "ready" : "the runtime was not found", here, here});
  }
  rows.push_back({"qnn", "QNNExecutionProvider", "not built yet", false, false});
  rows.push_back({"openvino", "OpenVINOExecutionProvider", "not built yet", false, false});
  rows.push_back({"dml", "DmlExecutionProvider", "not built yet", false, false});
  JsonWriter json;
  json.BeginObject().Field("runtime", runtime).Key("devices").BeginArray();
  std::string text = "runtime   " + runtime + "\n";
  for (const Row& r : rows) {
    json.BeginObject().Field("name", r.name).Field("ep", r.ep).Field("can_build", r.can_build);
    json.Field("can_run", r.can_run).Field("state", r.state).EndObject();
    text += r.name + std::string(10 - std::min<std::size_t>(r.name.size(), 9), ' ') + r.state + " (" + r.ep + ")\n";
  }
  WriteJson(common, json.EndArray().EndObject().Take());
  Print(text);
  return 0;
}

}  // namespace

Command DevicesCommand() {
  auto f = std::make_shared<CommonFlags>();
  Command c;
  c.name = "devices";
  c.summary = "what can be built for and run here, and why not the others";
  c.examples = "  octavo devices\n  octavo devices --json d.json\n";
  AddCommonOptions(c.options, *f, 0);
  std::erase_if(c.options, [](const Option& o) { return o.names == "--threads"; });
  c.run = [f] { return Run(*f); };
  return c;
}

}  // namespace octavo::cli
