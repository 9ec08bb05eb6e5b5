#include "octavo/build/read_model.h"

#include <algorithm>

#include "octavo/import/circle.h"
#include "octavo/import/onnx.h"
#include "octavo/rewrite/raise_circle.h"

namespace octavo {

Model ReadModelFile(const std::filesystem::path& path) {
  std::shared_ptr<const MappedFile> file = MappedFile::Open(path);
  if (!LooksLikeCircle(file->bytes())) return ReadOnnx(path);
  Model model = ReadCircle(std::move(file));
  RaiseCircle(model);
  return model;
}

}  // namespace octavo
