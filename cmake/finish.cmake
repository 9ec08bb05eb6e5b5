# From all rooms: the one library `octavo`, the command `octavo`, and their installation.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# --- the library: the objects of every room in one archive
set(octavo_objects)
foreach(room ${OCTAVO_ROOMS})
  list(APPEND octavo_objects $<TARGET_OBJECTS:${room}>)
endforeach()
add_library(octavo STATIC ${octavo_objects})
set_target_properties(octavo PROPERTIES LINKER_LANGUAGE CXX ARCHIVE_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})
target_compile_features(octavo PUBLIC cxx_std_20)
target_include_directories(octavo PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}> $<INSTALL_INTERFACE:include>)
# What the rooms link privately; the installed package looks Threads, ZLIB and Highway up again (octavoConfig.cmake).
target_link_libraries(octavo PUBLIC Threads::Threads ZLIB::ZLIB ${CMAKE_DL_LIBS}
                      $<BUILD_INTERFACE:${HWY_LIBRARY}> $<INSTALL_INTERFACE:octavo::hwy>)

# --- the command: build/octavo, which finds ONNX Runtime in <prefix>/lib/octavo or beside itself
file(GLOB cli_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cli/*.cc)
add_executable(octavo_cli ${cli_sources})
target_link_libraries(octavo_cli PRIVATE octavo)
target_include_directories(octavo_cli PRIVATE ${PROJECT_SOURCE_DIR})
# CLI11 stays in one translation unit, as a system header: its warnings are not ours.
get_target_property(cli11_include CLI11::CLI11 INTERFACE_INCLUDE_DIRECTORIES)
if(cli11_include)
  target_include_directories(octavo_cli SYSTEM PRIVATE ${cli11_include})
endif()
set_target_properties(octavo_cli PROPERTIES OUTPUT_NAME octavo RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})

# --- the operators of domain `octavo` for other programs that use ONNX Runtime: build/liboctavo_ops.so
add_library(octavo_ops_library SHARED ${PROJECT_SOURCE_DIR}/ops_library/register.cc)
target_include_directories(octavo_ops_library SYSTEM PRIVATE ${OCTAVO_ORT_INCLUDE})
target_link_libraries(octavo_ops_library PRIVATE octavo_runtime)
target_link_options(octavo_ops_library PRIVATE -Wl,--exclude-libs,ALL -Wl,--gc-sections)
set_target_properties(octavo_ops_library PROPERTIES OUTPUT_NAME octavo_ops CXX_VISIBILITY_PRESET hidden LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})

# --- installation
set(OCTAVO_ORT_LIBRARY "" CACHE FILEPATH "libonnxruntime.so that is installed beside the command")
install(TARGETS octavo_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS octavo_ops_library LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS octavo EXPORT octavoTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/octavo DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
if(OCTAVO_ORT_LIBRARY)
  # The command looks beside itself: build/octavo runs as it is.
  get_filename_component(ort_name "${OCTAVO_ORT_LIBRARY}" NAME)
  file(CREATE_LINK "${OCTAVO_ORT_LIBRARY}" "${PROJECT_BINARY_DIR}/${ort_name}" SYMBOLIC)
  # The library and what lies beside it (the providers_shared library that it loads by itself). lib, not lib64: the
  # command looks in <prefix>/lib/octavo.
  get_filename_component(ort_file "${OCTAVO_ORT_LIBRARY}" REALPATH)
  get_filename_component(ort_folder "${ort_file}" DIRECTORY)
  install(PROGRAMS ${ort_file} DESTINATION lib/octavo)
  if(EXISTS ${ort_folder}/libonnxruntime_providers_shared.so)
    install(PROGRAMS ${ort_folder}/libonnxruntime_providers_shared.so DESTINATION lib/octavo)
  endif()
endif()
set(octavo_package ${CMAKE_INSTALL_LIBDIR}/cmake/octavo)
install(EXPORT octavoTargets NAMESPACE octavo:: DESTINATION ${octavo_package})
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/octavoConfig.cmake.in ${PROJECT_BINARY_DIR}/octavoConfig.cmake
                              INSTALL_DESTINATION ${octavo_package})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/octavoConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/octavoConfig.cmake ${PROJECT_BINARY_DIR}/octavoConfigVersion.cmake
        DESTINATION ${octavo_package})

# --- a stranger's project that uses the installed library
if(OCTAVO_TESTS)
  add_test(NAME find_package
           COMMAND ${CMAKE_COMMAND} -DBUILD_DIR=${PROJECT_BINARY_DIR} -DSOURCE_DIR=${PROJECT_SOURCE_DIR}/tests/find_package
                   -DGENERATOR=${CMAKE_GENERATOR} "-DFLAGS=${CMAKE_CXX_FLAGS}" "-DSANITIZE=${OCTAVO_SANITIZE}"
                   -DCXX=${CMAKE_CXX_COMPILER} -DVERSION=${PROJECT_VERSION}
                   -P ${PROJECT_SOURCE_DIR}/tests/find_package/run.cmake)
  set_tests_properties(find_package PROPERTIES TIMEOUT 300)
endif()
