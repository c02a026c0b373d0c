#include "bindings/work.hpp"

#include <string>

#include "core/checks.hpp"

namespace ensemblead::bindings {

BorrowedWork::BorrowedWork(const Leading& leading, const WorkArguments& arguments, std::size_t bytes) {
  work_.device = leading.array.device;
  work_.stream = arguments.stream;
  work_.threads = arguments.num_threads;
  if (bytes == 0) return;
  const std::string needed = "scratch must have " + std::to_string(bytes) + " bytes, got ";
  if (arguments.scratch.is_none()) throw ValueError(needed + "None");
  const Array& array = scratch_.emplace(arguments.scratch, "scratch").array();
  check_rank(array, "scratch", 1, "[bytes]");
  check_output(array, "scratch", DType::kUInt8, array.shape);
  check_same_device(array, "scratch", leading.array, leading.argument);
  const auto size = static_cast<std::size_t>(array.size());
  if (size < bytes) throw ValueError(needed + std::to_string(size));
  if (reinterpret_cast<std::uintptr_t>(array.data) % 16 != 0)
    throw ValueError("scratch must start at a multiple of 16 bytes");
  work_.scratch = {array.data, size};
}

}  // namespace ensemblead::bindings
