// A thread of control with a stack of its own, entered and left at will.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_emulation {

class Fibre {
 public:
  Fibre() = default;
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  // Gets ready to run `body`, which must not throw, from its beginning. What ran before is forgotten.
  void start(std::function<void()> body);
  // From outside: runs the fibre until it leaves or ends.
  void enter();
  // From inside: back to where it was entered.
  void leave();
  bool ended() const { return ended_; }
  // Whether the body never reached the last bytes of its stack.
  bool stack_sufficed() const;

 private:
  static void run();
  void switch_in();
  void switch_out();

  std::function<void()> body_;
  std::unique_ptr<unsigned char[]> stack_;
  bool ended_ = true;
#if defined(__x86_64__)
  void* inside_ = nullptr;
  void* outside_ = nullptr;
#else
  ucontext_t inside_;
  ucontext_t outside_;
#endif
  // For AddressSanitizer, which must know whose stack is whose.
  void* fake_inside_ = nullptr;
  const void* outer_stack_ = nullptr;
  std::size_t outer_size_ = 0;
};

}  // namespace cuda_emulation
