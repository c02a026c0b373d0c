// Parallel loops of the CPU kernels: their number of threads, and exceptions within them.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

namespace ensemblead::cpu {

// The most threads that a loop may take: `wanted` of a Work, or OpenMP's default where that is 0. Always 1 in
// a process that was forked with the library loaded: OpenMP's threads do not survive a fork, and a team in
// the child would wait for them for ever.
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
  kDynamic,  // every thread takes the next item when it has finished one
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
  if (schedule == Schedule::kDynamic) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (std::int64_t item = 0; item < count; ++item)
      exception.run([&] { body(item, omp_get_thread_num()); });
  } else {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (std::int64_t item = 0; item < count; ++item)
      exception.run([&] { body(item, omp_get_thread_num()); });
  }
  exception.rethrow();
}

}  // namespace ensemblead::cpu
