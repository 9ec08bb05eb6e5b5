#include "octavo/validate/json_writer.h"

#include <gtest/gtest.h>

#include <limits>

#include "octavo/base/error.h"

namespace octavo {
namespace {

TEST(JsonWriter, WritesNestedValuesInOrder) {
  JsonWriter json;
  json.BeginObject().Field("b", 1).Field("a", "x").Key("list").BeginArray().Int(-3).Bool(true).Null().EndArray();
  json.Key("empty").BeginObject().EndObject().EndObject();
  EXPECT_EQ(json.Take(),
            "{\n  \"b\": 1,\n  \"a\": \"x\",\n  \"list\": [\n    -3,\n    true,\n    null\n  ],\n  \"empty\": {}\n}\n");
}

TEST(JsonWriter, NumbersReadBackAndInfinityIsNull) {
  JsonWriter json;
  json.BeginArray().Number(0.1).Number(1e300).Number(std::numeric_limits<double>::infinity());
  json.Number(std::numeric_limits<double>::quiet_NaN()).Uint(18446744073709551615u).EndArray();
  EXPECT_EQ(json.Take(), "[\n  0.1,\n  1e+300,\n  null,\n  null,\n  18446744073709551615\n]\n");
}

TEST(JsonWriter, EscapesAndRepairsText) {
  JsonWriter json;
  json.BeginArray().String("a\"\\\n\x01").String("caf\xC3\xA9").String("\xC3(").String("\xED\xA0\x80").EndArray();
  EXPECT_EQ(json.Take(),
            "[\n  \"a\\\"\\\\\\n\\u0001\",\n  \"caf\xC3\xA9\",\n  \"\xEF\xBF\xBD(\",\n"
            "  \"\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\"\n]\n");
}

TEST(JsonWriter, RawTextIsIndented) {
  JsonWriter json;
  json.BeginObject().Key("c").Raw("{\n  \"d\": 1\n}\n").EndObject();
  EXPECT_EQ(json.Take(), "{\n  \"c\": {\n    \"d\": 1\n  }\n}\n");
}

TEST(JsonWriter, RefusesToEndInside) {
  JsonWriter json;
  json.BeginObject();
  EXPECT_THROW(json.Take(), Error);
}

}  // namespace
}  // namespace octavo
