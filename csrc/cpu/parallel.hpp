// Parallel loops of the CPU kernels: their number of threads, and exceptions within them.
//
// They run on OpenMP, or without it on the threads of cpu/thread_pool.hpp. docs/design/portability.md says where
// which of them is built.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#else
#include "cpu/thread_pool.hpp"
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

namespace ensemblead::cpu {

// What loops run on, for people: "C++ threads", or OpenMP with the date of its specification, "OpenMP 201511".
const char* threading();

// The most threads that a loop may take: `wanted` of a Work, or OpenMP's default where that is 0. Always 1 in
// a process that was forked with the library loaded: threads do not survive a fork, and a team in the child
// would wait for them for ever.
//
// Without OpenMP the default is OMP_NUM_THREADS, or the number of the machine's hardware threads; a value that
// is no number throws ValueError.
int most_threads(int wanted);

// The least number of values that make it worth while to wake a thread for a pass over them.
constexpr std::int64_t kValuesPerThread = std::int64_t{1} << 17;

// A team that has at least `per_thread` units of `work` for every thread, and one thread in any case.
inline int team_size(int wanted, std::int64_t work, std::int64_t per_thread) {
  return static_cast<int>(std::clamp<std::int64_t>(work / per_thread, 1, most_threads(wanted)));
}

// Keeps the first exception of a parallel region, which would end the process if it left the region, and
// skips the work that follows it.
class FirstException {
 public:
  template <class Function>
  void run(const Function& function) noexcept {
    if (thrown_.load(std::memory_order_relaxed)) return;
    try {
      function();
    } catch (...) {
      if (!thrown_.exchange(true)) exception_ = std::current_exception();
    }
  }

  // Throws the exception that was kept, if any. To be called behind the region.
  void rethrow() const {
    if (exception_) std::rethrow_exception(exception_);
  }

 private:
  std::atomic<bool> thrown_{false};
  std::exception_ptr exception_;
};

enum class Schedule {
  kStatic,   // every thread gets one range of items
  kDynamic,  // every thread takes the next item when it has finished one; its items ascend
};

// Calls body(item, thread) for every item of [0, count), on at most `threads` threads; `thread` is below
// `threads`. An exception of the body reaches the caller, once all threads have stopped.
template <class Body>
void parallel_for(std::int64_t count, int threads, Schedule schedule, const Body& body) {
  if (threads <= 1 || count <= 1) {
    for (std::int64_t item = 0; item < count; ++item) body(item, 0);
    return;
  }
  FirstException exception;
#if defined(_OPENMP)
  if (schedule == Schedule::kDynamic) {
#pragma omp parallel for num_threads(threads) schedule(monotonic : dynamic, 1)
    for (std::int64_t item = 0; item < count; ++item)
      exception.run([&] { body(item, omp_get_thread_num()); });
  } else {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t item = 0; item < count; ++item)
      exception.run([&] { body(item, omp_get_thread_num()); });
  }
#else
  const std::int64_t parts = std::min<std::int64_t>(threads, count);
  std::atomic<std::int64_t> next{0};
  run_parts(static_cast<int>(parts), [&](int part) noexcept {
    if (schedule == Schedule::kDynamic) {
      for (std::int64_t item = next++; item < count; item = next++) exception.run([&] { body(item, part); });
    } else {
      // The first `count % parts` ranges have one item more.
      const std::int64_t size = count / parts, longer = count % parts;
      const std::int64_t begin = part * size + std::min<std::int64_t>(part, longer);
      const std::int64_t end = begin + size + (part < longer ? 1 : 0);
      for (std::int64_t item = begin; item < end; ++item) exception.run([&] { body(item, part); });
    }
  });
#endif
  exception.rethrow();
}

}  // namespace ensemblead::cpu
