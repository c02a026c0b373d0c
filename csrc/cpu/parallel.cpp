#include "cpu/parallel.hpp"

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include <cstdlib>
#include <string>
#include <thread>

#include "core/checks.hpp"

namespace ensemblead::cpu {
namespace {

std::atomic<bool> forked{false};

#if !defined(_WIN32)
// Registered when the library is loaded. Whether OpenMP had threads at the fork cannot be asked, because
// other libraries of the process may share its runtime.
const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

#if !defined(_OPENMP)
int default_threads() {
  const char* wish = std::getenv("OMP_NUM_THREADS");
  if (wish == nullptr || *wish == '\0')
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  char* end = nullptr;
  const long threads = std::strtol(wish, &end, 10);
  // OpenMP takes a list, whose first number is for loops that are within no other.
  if (end != wish && (*end == '\0' || *end == ',') && threads >= 1 && threads <= 1 << 16)
    return static_cast<int>(threads);
  throw ValueError(std::string("OMP_NUM_THREADS must be a whole number from 1 to 65536, got '") + wish + "'");
}
#endif

}  // namespace

const char* threading() {
#if defined(_OPENMP)
#define ENSEMBLEAD_TEXT(value) #value
#define ENSEMBLEAD_TEXT_OF(macro) ENSEMBLEAD_TEXT(macro)
  return "OpenMP " ENSEMBLEAD_TEXT_OF(_OPENMP);
#else
  return "C++ threads";
#endif
}

int most_threads(int wanted) {
  if (forked) return 1;
  if (wanted > 0) return wanted;
#if defined(_OPENMP)
  return omp_get_max_threads();
#else
  static const int threads = default_threads();
  return threads;
#endif
}

}  // namespace ensemblead::cpu
