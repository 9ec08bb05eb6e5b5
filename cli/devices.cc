#include <memory>

#include "cli/options.h"
#include "octavo/base/error.h"
#include "octavo/compile/compile.h"
#include "octavo/device/descriptor.h"
#include "octavo/runtime/session.h"
#include "octavo/validate/json_writer.h"

namespace octavo::cli {
namespace {

int Run(const CommonFlags& common) {
  ApplyQuiet(common);
  std::string runtime, missing;
  try {
    runtime = "ONNX Runtime " + OrtVersion() + " (" + OrtLibraryPath() + ")";
  } catch (const Error& error) {
    missing = error.what();
    runtime = "not found: " + missing;
  }
  JsonWriter json;
  json.BeginObject().Field("runtime", runtime).Key("devices").BeginArray();
  std::string text = "runtime   " + runtime + "\n";
  for (const DeviceDescriptor& d : Devices()) {
    DeviceState state;
    if (missing.empty()) {
      state = LookForDevice(d);
    } else {
      state.missing = true;
      state.reason = "the runtime was not found";
    }
    const bool ready = state.reason.empty();
    // Without its compiler a device's model is still quantized, and delivered as it is.
    const bool can_compile = ready && d.compiles;
    std::string say = ready ? (d.compiles ? "compiles and runs here" : "ready") : state.reason;
    if (ready && d.whole_graph) say += " (in its emulator, where the machine is no such device)";
    json.BeginObject().Field("name", d.name).Field("ep", d.ep).Field("can_build", missing.empty());
    json.Field("can_compile", can_compile).Field("can_run", ready).Field("state", say);
    if (!state.ep_version.empty()) json.Field("ep_version", state.ep_version);
    if (!state.library.empty()) json.Field("library", state.library);
    json.Field("whole_graph", d.whole_graph).Field("static_shapes", d.static_shapes);
    json.Key("options").BeginArray();
    text += std::string(d.name) + std::string(10 - std::min<std::size_t>(d.name.size(), 9), ' ') + say + " (" +
            std::string(d.ep) + ")\n";
    for (const EpOption& o : d.options) {
      json.BeginObject().Field("name", o.name).Field("default", o.value).Field("choices", o.choices);
      json.Field("meaning", o.meaning).EndObject();
      text += "            --epoption " + std::string(o.name) + "=" +
              std::string(o.value.empty() ? (o.choices.empty() ? "..." : o.choices) : o.value) + "  " +
              std::string(o.meaning) + "\n";
    }
    json.EndArray().EndObject();
  }
  return Finish(common, json.EndArray().EndObject().Take(), text);
}

}  // namespace

Command DevicesCommand() {
  auto f = std::make_shared<ConfigFlags>();
  Command c;
  c.name = "devices";
  c.summary = "what can be built for and run here, and why not the others";
  c.examples = "  octavo devices\n  octavo devices --json d.json\n";
  AddOptions(c.options, *f, 0);
  c.run = [f] { return Run(f->common); };
  return c;
}

}  // namespace octavo::cli
