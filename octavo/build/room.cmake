target_link_libraries(octavo_build PRIVATE nlohmann_json::nlohmann_json)
target_compile_definitions(octavo_build PRIVATE OCTAVO_VERSION="${PROJECT_VERSION}")
