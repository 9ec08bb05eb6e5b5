// The compile stage of a build, and `octavo compile`.
#pragma once

#include <filesystem>
#include <string>

#include "octavo/build/config.h"
#include "octavo/build/manifest.h"
#include "octavo/compile/compile.h"
#include "octavo/emit/onnx.h"
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

// CompileModelFor, or what it gave before for the same bytes, options, provider and `versions` (of Octavo and the
// runtime), from the cache. Kept there only where it was compiled.
CompileReport CompileOrReuse(const OnnxFiles& source, const std::filesystem::path& out, const CompileContext& context,
                             const std::string& versions, bool cache, bool& reused);

// The artifact against the source model: on the device (or its emulator) where the report says it was compiled, else on
// the CPU. For a compiled one `portable`, what it was compiled from, is compared on the CPU too, on the same samples
// with optimizations off; its figure goes to the manifest.
void ValidateArtifact(const std::filesystem::path& source, const std::filesystem::path& portable,
                      const CompileReport& report, const DataSource& data, const CompareOptions& options,
                      Manifest& manifest);

}  // namespace octavo
