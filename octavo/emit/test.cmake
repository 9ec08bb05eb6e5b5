target_link_libraries(test_emit PRIVATE octavo_import)  # what is written is read again
