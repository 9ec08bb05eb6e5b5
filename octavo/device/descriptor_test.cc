#include "octavo/device/descriptor.h"

#include <gtest/gtest.h>

#include "octavo/ops/op_table.h"

namespace octavo {
namespace {

TEST(Device, KnownByTheirNamesOnly) {
  ASSERT_NE(FindDevice("cpu"), nullptr);
  EXPECT_EQ(FindDevice("cpu")->ep, "CPUExecutionProvider");
  for (const char* name : {"qnn", "openvino", "dml"}) EXPECT_NE(FindDevice(name), nullptr) << name;
  for (const char* name : {"CPU", "npu", ""}) EXPECT_EQ(FindDevice(name), nullptr) << name;
}

TEST(Device, AWholeGraphDeviceIsStaticAndHasACompiler) {
  const DeviceDescriptor& qnn = *FindDevice("qnn");
  EXPECT_TRUE(qnn.whole_graph && qnn.static_shapes && qnn.compiles);
  ASSERT_NE(qnn.plugin, nullptr);
  EXPECT_EQ(qnn.Support("Softmax", ""), QuantSupport::kInteger);
  EXPECT_EQ(qnn.Support("Transpose", ""), QuantSupport::kPassThrough);
  // s8 weights leave a LayerNormalization on the CPU.
  ASSERT_NE(qnn.Row("LayerNormalization", ""), nullptr);
  EXPECT_TRUE(qnn.Row("LayerNormalization", "")->unsigned_weight);
  EXPECT_TRUE(qnn.Row("MatMul", "")->per_channel);
  EXPECT_FALSE(qnn.Row("ConvTranspose", "")->per_channel);
  EXPECT_EQ(qnn.Row("Nonsense", "x"), nullptr);
}

TEST(Device, DefaultsOfOptionsAreAmongTheirChoices) {
  for (const DeviceDescriptor& device : Devices()) {
    for (const EpOption& option : device.options) {
      EXPECT_FALSE(option.meaning.empty()) << option.name;
      if (option.value.empty() || option.choices.empty() || option.choices == "#") continue;
      const std::string choices = "|" + std::string(option.choices) + "|";
      EXPECT_NE(choices.find("|" + std::string(option.value) + "|"), std::string::npos) << option.name;
    }
  }
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
