// Circle and TFLite flatbuffers -> IR: operators of the domain `circle` as emit/circle.h describes them (what
// LowerToCircle makes). RaiseCircle (rewrite/raise_circle.h) turns them into ONNX operators.
#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

#include "octavo/ir/graph.h"

namespace octavo {

// True for a file that begins as a Circle ("CIR0") or TFLite ("TFL3") flatbuffer.
bool LooksLikeCircle(std::span<const std::byte> head);

// Reads the first subgraph, and as graphs of their nodes the branches of its IF operators; constants are views into the
// mapped file, sparse ones become dense. A variable that keeps its value from run to run becomes a graph input (its
// name) and a graph output (its name + "_next"). Dimensions that a file leaves open are those that it holds, with a
// warning. Operators and options that the subset of the schema has not are refused by name. Errors: kBadInput for a
// file that the flatbuffers verifier refuses or whose indices, shapes or buffers do not fit (safe on hostile bytes);
// kUnsupported for loops, subgraphs used twice, variables that do not begin with zeros and what the subset lacks.
Model ReadCircle(const std::filesystem::path& path);
Model ReadCircle(std::shared_ptr<const MappedFile> file);
Model ReadCircle(std::span<const std::byte> bytes, const std::string& where);  // copies constants

}  // namespace octavo
