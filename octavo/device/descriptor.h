// What a device can take, as data: read by placement, rewriting and the compile report; nobody has a second list.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/ir/dtype.h"

namespace octavo {

// How an operator runs when its tensors are quantized on this device.
enum class QuantSupport {
  kInteger,          // an integer kernel exists for the QDQ group
  kIntegerFloatOut,  // integer inputs, float output (MatMulIntegerToFloat): no Q needed behind it
  kPassThrough,      // data movement in integers
  kFloatOnly,        // computes in float (on an NPU: on the CPU beside it): quantizing around it only costs
};

struct OpSupport {
  std::string_view op, domain;
  QuantSupport support;
  std::string_view reason;  // why not integer, or which constraint applies
  // Whole-graph devices only.
  bool per_channel = false;      // takes weights with a scale a channel
  bool unsigned_weight = false;  // takes u8 weights only, whatever the precision says
};

// An option of the execution provider that Octavo passes on: its default, and what it may be.
struct EpOption {
  std::string_view name;
  std::string_view value;    // the default; empty: not set unless the user does
  std::string_view choices;  // separated by '|'; "#": a number; empty: anything
  std::string_view meaning;
};

// The plugin library of an execution provider (ONNX Runtime's EP ABI).
struct PluginLibrary {
  std::string_view file;            // "libonnxruntime_providers_qnn.so"
  std::string_view environment;     // names the library: "OCTAVO_QNN_LIBRARY"
  std::string_view folder;          // where it is looked for beside the runtime: "qnn-2.7.0/onnxruntime_qnn"
  std::string_view backend;         // a library beside it that the option `backend_option` names; empty: none
  std::string_view backend_option;  // "backend_path"
  int least_minor;                  // of the runtime: 1.<least_minor>
  std::string_view how;             // to get it
};

struct DeviceDescriptor {
  std::string_view name;                           // "cpu"
  std::string_view ep;                             // "CPUExecutionProvider"
  DType activation8, weight8_uint8, weight8_int8;  // 8-bit types that are exact here, for precision uint8 and int8
  // "int8" weights are symmetric per channel; stored as `weight8_int8`, u8 with zero point 128 where s8 is not exact.
  bool per_channel_int8;
  bool one_zero_point_per_weight;  // all channels of a u8 weight share one zero point: the middle one
  std::string_view weight_note;    // the reason of weight8_int8, for the manifest
  std::span<const OpSupport> ops;  // an operator not listed is kFloatOnly

  // An NPU: only a graph in which every float tensor has parameters stays in one piece. Placement then quantizes all
  // that the device takes, not only what gains.
  bool whole_graph = false;
  bool static_shapes = false;         // symbolic dimensions are refused
  bool compiles = false;              // the Compile API makes an EPContext
  bool integer_bias16 = false;        // int32 bias beside 16-bit activations too
  bool weights4 = false;              // s4 weights, symmetric, where an operator takes a scale a channel
  bool unsigned_activations = false;  // s8 and s16 as u8 and u16: the codes and zero points plus the middle
  // Beside 16-bit activations weights have their zero point in the middle: what corrects for another is inexact.
  bool symmetric_weights16 = false;
  // input scale * weight scale / output scale that rescaling takes at least; 0: any
  float least_rescale = 0;
  const PluginLibrary* plugin = nullptr;   // null: the provider is in the runtime
  std::span<const EpOption> options = {};  // others are refused: providers ignore what they do not know
  std::string_view system = {};            // the one system that has the provider ("Windows"); empty: this one
  std::string_view float_note = {};        // how f32 and f16 models run here, where that is not as they are

  QuantSupport Support(std::string_view op, std::string_view domain) const;
  std::string_view Reason(std::string_view op, std::string_view domain) const;
  const OpSupport* Row(std::string_view op, std::string_view domain) const;  // null: not listed
};

// Built devices; null for a name that is not known.
const DeviceDescriptor* FindDevice(std::string_view name);
std::span<const DeviceDescriptor> Devices();

}  // namespace octavo
