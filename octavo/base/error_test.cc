#include "octavo/base/error.h"

#include <gtest/gtest.h>

namespace octavo {
namespace {

TEST(Error, OneLineOfNonEmptyParts) {
  EXPECT_STREQ(Error(ExitCode::kUsage, "what", "where", "how").what(), "what: where: how");
  EXPECT_STREQ(Error(ExitCode::kUsage, "what", "", "how").what(), "what: how");
  EXPECT_STREQ(Error(ExitCode::kUsage, "what").what(), "what");
  EXPECT_STREQ(Error(ExitCode::kUsage, "a\nb\x1b", "c\td").what(), "a b : c d");
}

TEST(Error, Codes) {
  const auto code = [](auto fn) {
    try {
      fn("x", "y");
    } catch (const Error& e) {
      return e.code();
    }
    return ExitCode::kOk;
  };
  EXPECT_EQ(code([](auto a, auto b) { ThrowUsage(a, b); }), ExitCode::kUsage);
  EXPECT_EQ(code([](auto a, auto b) { ThrowBadInput(a, b); }), ExitCode::kBadInput);
  EXPECT_EQ(code([](auto a, auto b) { ThrowUnsupported(a, b); }), ExitCode::kUnsupported);
  EXPECT_EQ(code([](auto a, auto b) { ThrowInternal(a, b); }), ExitCode::kInternal);
  EXPECT_EQ(ConfigConflictError("x").code(), ExitCode::kUsage);
}

}  // namespace
}  // namespace octavo
