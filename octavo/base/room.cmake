target_link_libraries(octavo_base PUBLIC Threads::Threads)
