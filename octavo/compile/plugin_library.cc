#include "octavo/compile/plugin_library.h"

#include <cstdlib>
#include <system_error>
#include <vector>

#include "octavo/runtime/session.h"

namespace octavo {

namespace fs = std::filesystem;

FoundLibrary FindPluginLibrary(const PluginLibrary& plugin) {
  std::error_code error;
  const std::string variable(plugin.environment);
  if (const char* env = std::getenv(variable.c_str()); env != nullptr && *env != '\0') {
    if (fs::is_regular_file(env, error)) return {fs::absolute(env), {}};
    return {{}, variable + " names '" + env + "', which is no file"};
  }
  const fs::path runtime = fs::weakly_canonical(OrtLibraryPath(), error).parent_path();
  std::vector<fs::path> places = {runtime, runtime / plugin.folder,
                                  runtime.parent_path().parent_path() / plugin.folder};
  if (const fs::path self = fs::read_symlink("/proc/self/exe", error); !error) {
    places.push_back(self.parent_path().parent_path() / "lib" / "octavo" / plugin.folder);
  }
  std::string tried;
  for (const fs::path& place : places) {
    if (fs::is_regular_file(place / plugin.file, error)) return {place / plugin.file, {}};
    tried += (tried.empty() ? "none in " : ", ") + place.string();
  }
  return {{}, tried};
}

}  // namespace octavo
