target_link_libraries(octavo_import PRIVATE ZLIB::ZLIB)  # compressed npz members
# The generated Circle schema and the flatbuffers headers: only .cc files of this room see them.
include(${PROJECT_SOURCE_DIR}/cmake/circle.cmake)
add_dependencies(octavo_import octavo_circle_schema)
target_include_directories(octavo_import SYSTEM PRIVATE ${OCTAVO_GENERATED})
