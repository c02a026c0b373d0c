// cpu/parallel.hpp as a program, for test_parallel.py: its loops visit every item once, on threads that are told
// apart, and hand exceptions to the caller. It prints what is wrong, and ends with 1 then.
#include "cpu/parallel.hpp"

#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using ensemblead::cpu::parallel_for;
using ensemblead::cpu::Schedule;

namespace {

std::atomic<int> failures{0};

void expect(bool holds, const char* what, std::int64_t count, int threads) {
  if (holds) return;
  ++failures;
  std::printf("%s, with %d items on %d threads\n", what, static_cast<int>(count), threads);
}

void check_items(std::int64_t count, int threads, Schedule schedule) {
  std::vector<int> visits(static_cast<std::size_t>(count), 0);  // plain: two threads at one item are a race
  std::vector<std::int64_t> last(static_cast<std::size_t>(threads), -1);
  std::atomic<bool> in_range{true};
  std::atomic<bool> in_order{true};
  parallel_for(count, threads, schedule, [&](std::int64_t item, int thread) {
    if (thread < 0 || thread >= threads) {
      in_range = false;
      return;
    }
    std::int64_t& before = last[static_cast<std::size_t>(thread)];
    if (before >= item) in_order = false;
    before = item;
    ++visits[static_cast<std::size_t>(item)];
  });
  bool once = true;
  for (const int visit : visits) once = once && visit == 1;
  expect(once, "an item was not visited once", count, threads);
  expect(in_range, "a thread's number is out of range", count, threads);
  expect(in_order, "a thread went back", count, threads);
}

void check_exception(std::int64_t count, int threads, Schedule schedule) {
  std::string said;
  try {
    parallel_for(count, threads, schedule, [&](std::int64_t item, int) {
      if (item == count / 2) throw std::runtime_error("item " + std::to_string(item));
    });
  } catch (const std::runtime_error& error) {
    said = error.what();
  }
  expect(said == "item " + std::to_string(count / 2), "an exception was lost", count, threads);
}

// A loop in every item of a loop.
void check_nested(int threads) {
  std::atomic<std::int64_t> total{0};
  parallel_for(8, threads, Schedule::kDynamic, [&](std::int64_t, int) {
    parallel_for(10, threads, Schedule::kStatic, [&](std::int64_t item, int) { total += item; });
  });
  expect(total == 8 * 45, "a loop within a loop lost items", 80, threads);
}

void check_all(int rounds) {
  for (int round = 0; round < rounds; ++round) {
    for (const Schedule schedule : {Schedule::kStatic, Schedule::kDynamic}) {
      for (const int threads : {1, 2, 3, 8}) {
        for (const std::int64_t count : {0, 1, 2, 7, 8, 1000}) check_items(count, threads, schedule);
        check_exception(100, threads, schedule);
      }
    }
    for (const int threads : {2, 4}) check_nested(threads);
  }
}

}  // namespace

int main() {
  std::printf("%s, %d\n", ensemblead::cpu::threading(), ensemblead::cpu::most_threads(0));
  check_all(5);
  // From several threads at once, as Python's call kernels without its lock.
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) callers.emplace_back([] { check_all(5); });
  for (std::thread& caller : callers) caller.join();
  return failures == 0 ? 0 : 1;
}
