// Loaded before everything else (LD_PRELOAD): an allocator of C++ objects that fails once, at a given call.
// test_out_of_memory.py turns it on through ctypes.
#include <atomic>
#include <cstdlib>
#include <new>

namespace {

std::atomic<bool> armed{false};
std::atomic<bool> failed{false};
std::atomic<long> calls{0};
std::atomic<long> failing_call{0};

bool fails() {
  if (!armed.load(std::memory_order_relaxed) || calls.fetch_add(1) != failing_call) return false;
  failed = true;
  return true;
}

}  // namespace

extern "C" {

// The call with this number, counted from 0, will fail.
void fail_allocation(long number) {
  calls = 0;
  failed = false;
  failing_call = number;
  armed = true;
}

// Returns the number of allocations since fail_allocation; none fails any more.
long stop_failing() {
  armed = false;
  return calls;
}

int allocation_failed() { return failed ? 1 : 0; }

void* aligned_alloc(std::size_t alignment, std::size_t size) {
  void* memory = nullptr;
  return fails() || posix_memalign(&memory, alignment, size) != 0 ? nullptr : memory;
}

}  // extern "C"

void* operator new(std::size_t size) {
  void* memory = fails() ? nullptr : std::malloc(size > 0 ? size : 1);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new[](std::size_t size) { return operator new(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
