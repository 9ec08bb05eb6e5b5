target_link_libraries(octavo_numerics PRIVATE ${HWY_LIBRARY})
