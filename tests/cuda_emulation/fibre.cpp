#include "fibre.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulation {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStackBytes = 256 * 1024;
#else
constexpr std::size_t kStackBytes = 64 * 1024;
#endif
constexpr std::size_t kGuardBytes = 64;
constexpr unsigned char kGuard = 0xa5;

// The one that is being entered for the first time. All fibres run on one thread at a time, but a kernel must
// not fill it with rubbish as it does with thread-local memory.
Fibre* starting = nullptr;

}  // namespace

#if defined(__x86_64__)
// Saves the registers that a call keeps and the stack pointer in *from, and goes on where `to` was saved.
extern "C" void ensemblead_switch_stack(void** from, void* to);
asm(R"(
.pushsection .text
.type ensemblead_switch_stack, @function
.hidden ensemblead_switch_stack
.globl ensemblead_switch_stack
ensemblead_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ensemblead_switch_stack, .-ensemblead_switch_stack
.popsection
)");
#endif

void Fibre::start(std::function<void()> body) {
  body_ = std::move(body);
  if (!stack_)
    stack_.reset(new unsigned char[kStackBytes]);  // uninitialised: pages that are not used cost nothing
  std::fill_n(stack_.get(), kGuardBytes, kGuard);
  ended_ = false;
  fake_inside_ = nullptr;
#if defined(__x86_64__)
  const auto end = reinterpret_cast<std::uintptr_t>(stack_.get() + kStackBytes) & ~std::uintptr_t{15};
  // At a function's first instruction the stack is 8 bytes past a multiple of 16, as after a call.
  auto* top = reinterpret_cast<void**>(end) - 1;
  *top = nullptr;
  *--top = reinterpret_cast<void*>(&Fibre::run);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  inside_ = top;
#else
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = stack_.get();
  inside_.uc_stack.ss_size = kStackBytes;
  inside_.uc_link = nullptr;
  makecontext(&inside_, &Fibre::run, 0);
#endif
}

void Fibre::run() {
  Fibre& self = *starting;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self.outer_stack_, &self.outer_size_);
#endif
  self.body_();
  self.ended_ = true;
  self.switch_out();
  std::abort();  // nobody enters a fibre that has ended
}

void Fibre::enter() {
  starting = this;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stack_.get(), kStackBytes);
  switch_in();
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  switch_in();
#endif
}

void Fibre::leave() { switch_out(); }

void Fibre::switch_in() {
#if defined(__x86_64__)
  ensemblead_switch_stack(&outside_, inside_);
#else
  swapcontext(&outside_, &inside_);
#endif
}

void Fibre::switch_out() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(ended_ ? nullptr : &fake_inside_, outer_stack_, outer_size_);
#endif
#if defined(__x86_64__)
  ensemblead_switch_stack(&inside_, outside_);
#else
  swapcontext(&inside_, &outside_);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_inside_, &outer_stack_, &outer_size_);
#endif
}

bool Fibre::stack_sufficed() const {
  return std::all_of(stack_.get(), stack_.get() + kGuardBytes, [](unsigned char c) { return c == kGuard; });
}

}  // namespace cuda_emulation
