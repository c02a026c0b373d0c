#include "scheduler.hpp"

#include <link.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fibre.hpp"

uint3 threadIdx{};
uint3 blockIdx{};
dim3 blockDim;
dim3 gridDim;

namespace cuda_emulation {
namespace {

constexpr unsigned kWarp = 32;
constexpr int kPoison = 0xff;  // NaN as a float, -1 as an integer

enum class State { kReady, kAtBlockBarrier, kAtWarpBarrier, kEnded };

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
  std::size_t zero_fill;
};

struct Thread {
  Fibre fibre;
  uint3 index{};
  State state = State::kReady;
  Place place{};
  Combine combine = Combine::kNothing;
  int block_value = 0;
  std::uint32_t mask = 0;
  std::uint64_t warp_value = 0;
  Exchange exchange{};
  std::exception_ptr error;
  std::vector<Copy> uncommitted;
  std::deque<std::vector<Copy>> groups;
};

std::string text(const uint3& v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}
std::string text(const Place& place) {
  return std::string(place.what) + " at " + place.file + ":" + std::to_string(place.line);
}
std::string text(const Thread& thread) {
  const std::string who = "thread " + text(thread.index);
  if (thread.state == State::kEnded) return who + " has ended";
  return who + " waits for " + text(thread.place);
}
bool same(const Place& a, const Place& b) {
  return a.line == b.line && std::strcmp(a.what, b.what) == 0 && std::strcmp(a.file, b.file) == 0;
}

// --- the shared memory of a block: the thread-local memory of this module, on a thread that does nothing
// else ------

thread_local char anchor;

struct Segment {
  unsigned char* begin = nullptr;
  std::size_t size = 0;
};

int find_anchor(dl_phdr_info* info, std::size_t, void* result) {
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
    auto* begin = static_cast<unsigned char*>(info->dlpi_tls_data);
    const auto* wanted = reinterpret_cast<unsigned char*>(&anchor);
    if (begin == nullptr || wanted < begin || wanted >= begin + info->dlpi_phdr[i].p_memsz) continue;
    *static_cast<Segment*>(result) = {begin, info->dlpi_phdr[i].p_memsz};
    return 1;
  }
  return 0;
}

Segment static_shared_memory() {
  Segment segment;
  anchor = 1;
  dl_iterate_phdr(find_anchor, &segment);
  if (segment.begin == nullptr) throw std::logic_error("the emulation cannot find its thread-local memory");
  return segment;
}

// --- one block ---

class Block {
 public:
  Block(const cudaLaunchConfig_t& config, Order order, const Body& body)
      : body_(body), order_(order), random_(order), dynamic_((config.dynamicSmemBytes + 15) / 16 + 1) {
    const dim3 size = config.blockDim;
    for (unsigned i = 0; i < size.x * size.y * size.z; ++i) {
      threads_.push_back(std::make_unique<Thread>());
      threads_.back()->index = {i % size.x, i / size.x % size.y, i / (size.x * size.y)};
    }
    turns_.resize(threads_.size());
    std::iota(turns_.begin(), turns_.end(), 0u);
    if (order == 1) std::reverse(turns_.begin(), turns_.end());
  }

  void run() {
    const Segment shared = static_shared_memory();
    std::memset(shared.begin, kPoison, shared.size);
    std::memset(dynamic_.data(), kPoison, dynamic_.size() * sizeof(ulonglong2));
    for (auto& thread : threads_) {
      Thread* const self = thread.get();
      self->state = State::kReady;
      self->uncommitted.clear();
      self->groups.clear();
      self->fibre.start([self, this] {
        try {
          body_();
        } catch (...) {
          self->error = std::current_exception();
        }
        self->state = State::kEnded;
      });
    }
    while (step()) {
    }
  }

  Thread& current() { return *threads_[current_]; }
  unsigned lane() const { return static_cast<unsigned>(current_ % kWarp); }
  void* dynamic() { return dynamic_.data(); }

 private:
  // Every thread that can goes on as far as it can; then those that waited for each other are let go.
  bool step() {
    if (order_ > 1) std::shuffle(turns_.begin(), turns_.end(), random_);
    for (const unsigned turn : turns_) {
      current_ = turn;
      Thread& thread = current();
      if (thread.state != State::kReady) continue;
      threadIdx = thread.index;
      thread.fibre.enter();
      if (thread.error) std::rethrow_exception(thread.error);
      if (!thread.fibre.stack_sufficed()) throw std::runtime_error("a kernel overflowed its emulated stack");
    }
    bool progress = false;
    for (std::size_t first = 0; first < threads_.size(); first += kWarp) progress |= release_warp(first);
    if (progress) return true;
    if (all_in(State::kEnded)) return false;
    release_block();
    return true;
  }

  bool all_in(State state) const {
    return std::all_of(threads_.begin(), threads_.end(), [&](const auto& t) { return t->state == state; });
  }

  bool release_warp(std::size_t first) {
    bool progress = false;
    const std::size_t lanes = std::min<std::size_t>(kWarp, threads_.size() - first);
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      const Thread& thread = *threads_[first + lane];
      if (thread.state != State::kAtWarpBarrier || !complete(thread, first, lanes)) continue;
      Exchange exchange{};
      for (std::size_t other = 0; other < lanes; ++other)
        exchange.values[other] = threads_[first + other]->warp_value;
      for (std::size_t other = 0; other < lanes; ++other) {
        if (((thread.mask >> other) & 1u) == 0) continue;
        Thread& member = *threads_[first + other];
        member.exchange = exchange;
        member.exchange.lane = static_cast<unsigned>(other);
        member.state = State::kReady;
      }
      progress = true;
    }
    return progress;
  }

  bool complete(const Thread& thread, std::size_t first, std::size_t lanes) const {
    for (std::size_t lane = 0; lane < kWarp; ++lane) {
      if (((thread.mask >> lane) & 1u) == 0) continue;
      if (lane >= lanes)
        throw std::runtime_error(text(thread) + " with a mask that names lanes which its warp lacks");
      const Thread& other = *threads_[first + lane];
      if (other.state != State::kAtWarpBarrier || other.mask != thread.mask ||
          !same(other.place, thread.place))
        return false;
    }
    return true;
  }

  void release_block() {
    const auto waits = [](const auto& t) { return t->state != State::kEnded; };
    const Thread& first = **std::find_if(threads_.begin(), threads_.end(), waits);
    int count = 0;
    for (const auto& thread : threads_) {
      if (thread->state != State::kAtBlockBarrier || first.state != State::kAtBlockBarrier ||
          !same(thread->place, first.place))
        throw std::runtime_error("divergent barrier in block " + text(blockIdx) + ": " + text(first) +
                                 " while " +
                                 text(*(thread.get() == &first ? other_than(first) : thread.get())));
      count += thread->block_value != 0;
    }
    const int size = static_cast<int>(threads_.size());
    for (const auto& thread : threads_) {
      switch (thread->combine) {
        case Combine::kAnd:
          thread->block_value = count == size;
          break;
        case Combine::kOr:
          thread->block_value = count > 0;
          break;
        default:
          thread->block_value = count;
      }
      thread->state = State::kReady;
    }
  }

  const Thread* other_than(const Thread& first) const {
    for (const auto& thread : threads_)
      if (thread.get() != &first && (thread->state != first.state || !same(thread->place, first.place)))
        return thread.get();
    return &first;
  }

  const Body& body_;
  Order order_;
  std::mt19937 random_;
  std::vector<ulonglong2> dynamic_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<unsigned> turns_;
  std::size_t current_ = 0;
};

Block* running = nullptr;

void carry_out(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    std::memcpy(copy.to, copy.from, copy.bytes - copy.zero_fill);
    std::memset(static_cast<char*>(copy.to) + copy.bytes - copy.zero_fill, 0, copy.zero_fill);
  }
}

}  // namespace

int wait_for_block(Place place, Combine combine, int value) {
  Thread& self = running->current();
  self.place = place;
  self.combine = combine;
  self.block_value = value;
  self.state = State::kAtBlockBarrier;
  self.fibre.leave();
  return self.block_value;
}

Exchange wait_for_warp(Place place, std::uint32_t mask, std::uint64_t value) {
  Thread& self = running->current();
  if (((mask >> running->lane()) & 1u) == 0)
    throw std::runtime_error("thread " + text(self.index) + " calls " + text(place) +
                             " with a mask without itself");
  self.place = place;
  self.mask = mask;
  self.warp_value = value;
  self.state = State::kAtWarpBarrier;
  self.fibre.leave();
  return self.exchange;
}

void* dynamic_shared_memory() { return running->dynamic(); }

void copy_later(void* to, const void* from, std::size_t bytes, std::size_t zero_fill) {
  if (bytes != 4 && bytes != 8 && bytes != 16)
    throw std::runtime_error("__pipeline_memcpy_async copies 4, 8 or 16 bytes");
  if ((reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from)) % bytes != 0)
    throw std::runtime_error("__pipeline_memcpy_async of a misaligned address");
  running->current().uncommitted.push_back({to, from, bytes, zero_fill});
}

void commit_copies() {
  Thread& self = running->current();
  self.groups.push_back(std::move(self.uncommitted));
  self.uncommitted.clear();
}

void wait_for_copies(unsigned newest_groups_left) {
  Thread& self = running->current();
  for (; self.groups.size() > newest_groups_left; self.groups.pop_front()) carry_out(self.groups.front());
}

void run_grid(const cudaLaunchConfig_t& config, Order order, const Body& body) {
  blockDim = config.blockDim;
  gridDim = config.gridDim;
  Block block(config, order, body);
  running = &block;
  const std::uint64_t plane = std::uint64_t{gridDim.x} * gridDim.y;
  const std::uint64_t blocks = plane * gridDim.z;
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const std::uint64_t at = order == 1 ? blocks - 1 - i : i;
    blockIdx = {static_cast<unsigned>(at % gridDim.x), static_cast<unsigned>(at / gridDim.x % gridDim.y),
                static_cast<unsigned>(at / plane)};
    block.run();
  }
}

}  // namespace cuda_emulation
