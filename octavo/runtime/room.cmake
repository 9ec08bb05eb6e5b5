# ONNX Runtime is opened at run time (dlopen): only its headers are needed here, and only this room sees them.
if(NOT EXISTS "${OCTAVO_ORT_INCLUDE}/onnxruntime_c_api.h")
  message(FATAL_ERROR "onnxruntime_c_api.h was not found in OCTAVO_ORT_INCLUDE='${OCTAVO_ORT_INCLUDE}': "
                      "pass -DOCTAVO_ORT_INCLUDE=<directory of the ONNX Runtime headers, API 23 or newer>")
endif()
target_include_directories(octavo_runtime SYSTEM PRIVATE ${OCTAVO_ORT_INCLUDE})
target_link_libraries(octavo_runtime PUBLIC ${CMAKE_DL_LIBS})
