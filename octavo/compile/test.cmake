# The tests run real sessions. Without OCTAVO_ORT_LIBRARY they search as the program does, and fail if there is none.
set(OCTAVO_ORT_LIBRARY "" CACHE FILEPATH "libonnxruntime.so that the tests load")
if(OCTAVO_ORT_LIBRARY)
  target_compile_definitions(test_compile PRIVATE OCTAVO_TEST_ORT_LIBRARY="${OCTAVO_ORT_LIBRARY}")
endif()
