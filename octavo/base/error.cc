#include "octavo/base/error.h"

#include <cerrno>
#include <cstring>
#include <utility>

namespace octavo {
namespace {

// Untrusted names end up in messages; a control character must not forge a second line.
std::string OneLine(const std::string& text) {
  std::string out;
  out.reserve(text.size());
  for (unsigned char c : text) out.push_back(c < 0x20 || c == 0x7f ? ' ' : static_cast<char>(c));
  return out;
}

std::string Join(const std::string& what, const std::string& where, const std::string& how) {
  std::string out = OneLine(what);
  if (!where.empty()) out += ": " + OneLine(where);
  if (!how.empty()) out += ": " + OneLine(how);
  return out;
}

}  // namespace

Error::Error(ExitCode code, std::string what, std::string where, std::string how)
    : std::runtime_error(Join(what, where, how)),
      code_(code),
      reason_(std::move(what)),
      where_(std::move(where)),
      how_(std::move(how)) {}

void ThrowUsage(std::string what, std::string where, std::string how) {
  throw Error(ExitCode::kUsage, std::move(what), std::move(where), std::move(how));
}
void ThrowBadInput(std::string what, std::string where, std::string how) {
  throw Error(ExitCode::kBadInput, std::move(what), std::move(where), std::move(how));
}
void ThrowUnsupported(std::string what, std::string where, std::string how) {
  throw Error(ExitCode::kUnsupported, std::move(what), std::move(where), std::move(how));
}
void ThrowCannotOpen(const std::string& path, int error) {
  ThrowBadInput(std::string("cannot open file (") + std::strerror(error) + ")", path,
                error == EACCES || error == EPERM ? "check its permissions" : "check the path");
}
void ThrowInternal(std::string what, std::string where) {
  throw Error(ExitCode::kInternal, std::move(what), std::move(where), "this is a bug in octavo; please report it");
}

}  // namespace octavo
