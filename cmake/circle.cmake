# circle_generated.h from our subset of the Circle schema. Only the rooms that include this see it.
if(NOT TARGET octavo_circle_schema)
  find_program(FLATC flatc REQUIRED)
  set(OCTAVO_GENERATED ${PROJECT_BINARY_DIR}/generated CACHE INTERNAL "")
  add_custom_command(
    OUTPUT ${OCTAVO_GENERATED}/circle_generated.h
    COMMAND ${FLATC} --cpp --cpp-std c++17 --scoped-enums --reflect-names -o ${OCTAVO_GENERATED}
            ${PROJECT_SOURCE_DIR}/octavo/emit/circle.fbs
    DEPENDS ${PROJECT_SOURCE_DIR}/octavo/emit/circle.fbs
    VERBATIM)
  add_custom_target(octavo_circle_schema DEPENDS ${OCTAVO_GENERATED}/circle_generated.h)
endif()
