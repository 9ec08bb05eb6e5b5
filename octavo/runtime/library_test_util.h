// Tests run the library that the build names, unless the environment names one already.
#pragma once

#include <cstdlib>

namespace octavo::testing {

[[maybe_unused]] inline const bool g_library_set = [] {
#ifdef OCTAVO_TEST_ORT_LIBRARY
  ::setenv("OCTAVO_ORT_LIBRARY", OCTAVO_TEST_ORT_LIBRARY, 0);
#endif
  return true;
}();

}  // namespace octavo::testing
