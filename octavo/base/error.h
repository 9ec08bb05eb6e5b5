// The one error type of Octavo, and the exit codes it maps to.
#pragma once

#include <stdexcept>
#include <string>

namespace octavo {

// Process exit codes. A contract with users' scripts: never renumber.
enum class ExitCode : int {
  kOk = 0,
  kInternal = 1,     // a bug in Octavo
  kUsage = 2,        // bad flag, bad configuration, conflicting options
  kBadInput = 3,     // missing, corrupt or wrongly shaped input file
  kUnsupported = 4,  // well-formed, but not something this build or device can do
  kGate = 5,         // a quality gate failed (--min-sqnr, compare threshold)
  kInterrupted = 130,
};

// Every failure a user can cause is one of these. It prints as one line,
// `<what>: <where>: <how>`; empty parts are left out, newlines are flattened.
//   what  - what is wrong ("truncated protobuf field", "unknown option")
//   where - file, node, tensor, option or byte offset
//   how   - what the user can do next
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, std::string what, std::string where = {}, std::string how = {});

  ExitCode code() const { return code_; }
  const std::string& reason() const { return reason_; }
  const std::string& where() const { return where_; }
  const std::string& how() const { return how_; }

 private:
  ExitCode code_;
  std::string reason_, where_, how_;
};

// Setting quantization both for the build and inside its compile section.
class ConfigConflictError : public Error {
 public:
  explicit ConfigConflictError(std::string what, std::string where = {}, std::string how = {})
      : Error(ExitCode::kUsage, std::move(what), std::move(where), std::move(how)) {}
};

// Shorthands; each throws.
[[noreturn]] void ThrowUsage(std::string what, std::string where = {}, std::string how = {});
[[noreturn]] void ThrowBadInput(std::string what, std::string where = {}, std::string how = {});
[[noreturn]] void ThrowUnsupported(std::string what, std::string where = {}, std::string how = {});
// Bad input: a file that cannot be opened for reading, with the reason in `error` (an errno).
[[noreturn]] void ThrowCannotOpen(const std::string& path, int error);
[[noreturn]] void ThrowInternal(std::string what, std::string where = {});

}  // namespace octavo
