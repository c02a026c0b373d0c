// Copies from global to shared memory that run beside the thread (cp.async). Here they are done no sooner
// than the thread waits for them, so that a missing wait shows.
#pragma once

#include "emulation/scheduler.h"

inline void __pipeline_memcpy_async(void* to, const void* from, std::size_t bytes,
                                    std::size_t zero_fill = 0) {
  cuda_emulation::copy_later(to, from, bytes, zero_fill);
}
inline void __pipeline_commit() { cuda_emulation::commit_copies(); }
inline void __pipeline_wait_prior(unsigned newest_groups_left) {
  cuda_emulation::wait_for_copies(newest_groups_left);
}
