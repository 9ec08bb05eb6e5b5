target_link_libraries(octavo_import PRIVATE ZLIB::ZLIB)  # compressed npz members
