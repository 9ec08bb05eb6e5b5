# The tests read models and run real sessions. Without OCTAVO_ORT_LIBRARY they search as the program does.
target_link_libraries(test_rewrite PRIVATE octavo_import)
if(OCTAVO_ORT_LIBRARY)
  target_compile_definitions(test_rewrite PRIVATE OCTAVO_TEST_ORT_LIBRARY="${OCTAVO_ORT_LIBRARY}")
endif()
