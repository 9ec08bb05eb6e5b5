#include "octavo/build/write_checked.h"

#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "octavo/base/error.h"
#include "octavo/base/interrupt.h"
#include "octavo/base/output.h"
#include "octavo/base/thread_pool.h"
#include "octavo/import/onnx.h"
#include "octavo/runtime/session.h"

namespace octavo {
namespace fs = std::filesystem;

// As the file's users will load it.
static void LoadAndRun(const OnnxFiles& files, const DataSource* data, int threads) {
  std::error_code error;
  std::uintmax_t bytes = 0;
  for (const fs::path& file : files.data) bytes += fs::file_size(file, error);
  bytes += fs::file_size(files.model, error);
  SessionOptions options;
  options.intra_op_threads = threads;
  options.config.emplace_back("session.intra_op.allow_spinning", "0");  // the file is synced meanwhile
  const bool big = 2 * bytes > kMostPrepackedBytes;                     // loading copies weights and packs them beside
  OnnxSkeleton skeleton;
  if (big) {  // read as we read models: its weights stay mapped, where loading would copy them
    options.disable_prepacking = true;
    if (bytes > kMostPrepackedBytes) options.optimization = GraphOptimization::kNone;
    options.arena = false;
    skeleton = SerializeSkeleton(ReadOnnx(files.model));
  }
  const Session session =
      big ? Session(skeleton.bytes, std::move(skeleton.externals), options) : Session(files.model, options);
  if (data == nullptr || data->size() == 0) return;
  const Sample sample = data->Read(0);
  session.Run(sample.tensors, session.TensorOutputs());
}

OnnxFiles WriteChecked(std::unique_ptr<Model> model, const fs::path& out, const DataSource* data, int threads) {
  std::error_code error;
  const fs::file_status status = fs::status(out, error);
  if (fs::exists(status) && !fs::is_regular_file(status)) {
    ThrowBadInput("a model is written to a file, and this is none", out.string(), "name a file");
  }
  OutputDirectory staged(out);
  OnnxFiles files = WriteOnnx(*model, staged.path() / staged.target().filename(), {.durable = false});
  ParallelFor(2, 2, [&](std::size_t i) {  // the disk works while the model is tried
    if (i == 0) return LoadAndRun(files, data, threads);
    model.reset();
    for (const fs::path& file : files.data) SyncFile(file);
    SyncFile(files.model);
  });
  CheckInterrupt();
  for (fs::path& file : files.data) {
    staged.MoveOut(file.filename().string());
    file = staged.target().parent_path() / file.filename();
  }
  staged.MoveOut(files.model.filename().string());
  files.model = out;
  return files;
}

}  // namespace octavo
