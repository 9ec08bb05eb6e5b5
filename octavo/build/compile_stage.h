// The compile stage of a build, and `octavo compile`.
#pragma once

#include <filesystem>
#include <string>

#include "octavo/build/config.h"
#include "octavo/build/manifest.h"
#include "octavo/compile/compile.h"
#include "octavo/import/data.h"
#include "octavo/validate/compare.h"

namespace octavo {

// The context of a build: its quantization is the build's, or that of the compile section; none with --no-quant.
// Errors: ConfigConflictError when both hold one.
CompileContext ContextOf(const BuildConfig& config, const DeviceDescriptor& device);

// What is wrong with the compile section for this device, or with what compiles for it, before any work. Errors:
// kUnsupported, kUsage.
void CheckCompile(const BuildConfig& config, const DeviceDescriptor& device);

// Whether a build hands the model to CompileModelFor: the device has a compiler, or is not of this system.
bool GoesToCompiler(const BuildConfig& config, const DeviceDescriptor& device);

// What the report says, for the manifest and people: "1 EPContext, 0 nodes on the CPU".
std::string Describe(const CompileReport& report);
// Takes the report over into the manifest.
void Record(const CompileReport& report, Manifest& manifest);

// The artifact against the source model: on the device (or its emulator) where the report says it was compiled, else on
// the CPU. For a compiled one `portable`, what it was compiled from, is compared on the CPU too, on the same samples
// with optimizations off; its figure goes to the manifest.
void ValidateArtifact(const std::filesystem::path& source, const std::filesystem::path& portable,
                      const CompileReport& report, const DataSource& data, const CompareOptions& options,
                      Manifest& manifest);

// `octavo compile Q.onnx --device D -o OUT/`: a build whose quantization is what the model has. The compile section of
// the configuration may hold a quantization: then the model is quantized first.
std::string ToJson(const CompileReport& report);

}  // namespace octavo
