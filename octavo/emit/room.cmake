# The generated Circle schema and the flatbuffers headers: only .cc files of this room see them.
include(${PROJECT_SOURCE_DIR}/cmake/circle.cmake)
add_dependencies(octavo_emit octavo_circle_schema)
target_include_directories(octavo_emit SYSTEM PRIVATE ${OCTAVO_GENERATED})
