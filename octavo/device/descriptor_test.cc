#include "octavo/device/descriptor.h"

#include <gtest/gtest.h>

#include "octavo/ops/op_table.h"

namespace octavo {
namespace {

TEST(Device, CpuIsBuiltAndTheOthersAreNot) {
  ASSERT_NE(FindDevice("cpu"), nullptr);
  EXPECT_EQ(FindDevice("cpu")->ep, "CPUExecutionProvider");
  for (const char* name : {"qnn", "openvino", "dml", "CPU", ""}) EXPECT_EQ(FindDevice(name), nullptr) << name;
}

TEST(Device, EveryRowNamesAnOperatorOfTheTableAndGivesAReason) {
  for (const DeviceDescriptor& device : Devices()) {
    for (const OpSupport& row : device.ops) {
      EXPECT_TRUE(KnownOp(row.op, row.domain)) << row.op;
      EXPECT_FALSE(row.reason.empty()) << row.op;
    }
  }
}

TEST(Device, CpuSupport) {
  const DeviceDescriptor& cpu = *FindDevice("cpu");
  EXPECT_EQ(cpu.Support("Conv", ""), QuantSupport::kInteger);
  EXPECT_EQ(cpu.Support("MatMul", "ai.onnx"), QuantSupport::kIntegerFloatOut);
  EXPECT_EQ(cpu.Support("Reshape", ""), QuantSupport::kPassThrough);
  EXPECT_EQ(cpu.Support("ConvTranspose", ""), QuantSupport::kFloatOnly);
  EXPECT_EQ(cpu.Support("Nonsense", "x"), QuantSupport::kFloatOnly);
  EXPECT_NE(cpu.Reason("Nonsense", "x"), "");
  // The exact choice of the target, never of the building machine.
  EXPECT_EQ(cpu.weight8_int8, DType::kU8);
}

}  // namespace
}  // namespace octavo
