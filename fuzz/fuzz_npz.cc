// Data readers on hostile bytes: .npz, .npy, TensorProto, images.
#include <cstddef>
#include <cstdint>
#include <memory>

#include "octavo/base/error.h"
#include "octavo/import/image.h"
#include "octavo/import/npy.h"
#include "octavo/import/npz.h"
#include "octavo/import/onnx_tensor.h"

namespace {

template <typename Fn>
void Try(Fn&& fn) {
  try {
    fn();
  } catch (const octavo::Error& e) {
    if (e.code() == octavo::ExitCode::kInternal) throw;  // an input must never look like a bug of ours
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const octavo::ByteSource source{bytes, nullptr, nullptr, "fuzz"};
  Try([&] {
    const octavo::NpzArchive archive(source);
    for (std::size_t i = 0; i < archive.size() && i < 8; ++i) {
      Try([&] { archive.Read(i); });
      Try([&] {
        const octavo::NpyHeader header = archive.ReadHeader(i);
        if (header.data_bytes > 0) archive.ReadData(i, header.data_bytes / 2, 1);
        archive.ReadData(i, 0, 0);
      });
    }
  });
  Try([&] { octavo::ReadNpy(source); });
  Try([&] {
    octavo::TensorSource tensor;
    tensor.context = {bytes.data(), "fuzz"};
    octavo::ReadOnnxTensor(bytes, tensor, "tensor");
  });
  Try([&] {
    const octavo::Image image = octavo::DecodeImage(bytes, "fuzz");
    if (image.width * image.height < 10000) octavo::ResizeBilinear(image, 7, 5);
  });
  return 0;
}
