# fuzz/fuzz_X.cc -> program fuzz_X: the target with its own mutation driver (any compiler). Seeds: fuzz/seeds/X.
file(GLOB fuzz_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/fuzz/fuzz_*.cc)
foreach(source ${fuzz_sources})
  get_filename_component(target ${source} NAME_WE)
  add_executable(${target} ${source} ${PROJECT_SOURCE_DIR}/fuzz/driver.cc)
  target_link_libraries(${target} PRIVATE octavo_build)
endforeach()
