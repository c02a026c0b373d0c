#include "cpu/parallel.hpp"

#include <pthread.h>

namespace ensemblead::cpu {
namespace {

std::atomic<bool> forked{false};

// Registered when the library is loaded. Whether OpenMP had threads at the fork cannot be asked, because
// other libraries of the process may share its runtime.
const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

int most_threads(int wanted) {
  if (forked) return 1;
  return wanted > 0 ? wanted : omp_get_max_threads();
}

}  // namespace ensemblead::cpu
