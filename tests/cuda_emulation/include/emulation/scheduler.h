// How device functions wait for each other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace cuda_emulation {

using Body = std::function<void()>;

// Where in the source a thread waits, so that two barriers are told apart.
struct Place {
  const char* what;
  const char* file;
  int line;
};

// Waits for all threads of the block; gives what `combine` makes of everyone's `value`.
enum class Combine { kNothing, kCount, kAnd, kOr };
int wait_for_block(Place place, Combine combine, int value);

// Waits for the lanes of `mask`, leaves `value` for them, and shows the values of all 32 lanes (those outside
// the mask hold rubbish). The values are the reader's own copy.
struct Exchange {
  std::uint64_t values[32];
  unsigned lane;
};
Exchange wait_for_warp(Place place, std::uint32_t mask, std::uint64_t value);

// The dynamic shared memory of the running block, aligned to 16 bytes as on a device.
void* dynamic_shared_memory();

// Copies that become visible to their own thread when it waits for them.
void copy_later(void* to, const void* from, std::size_t bytes, std::size_t zero_fill);
void commit_copies();
void wait_for_copies(unsigned newest_groups_left);

}  // namespace cuda_emulation
