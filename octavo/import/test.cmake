target_link_libraries(test_import PRIVATE octavo_emit)  # the writer's wire format makes the reader's inputs
