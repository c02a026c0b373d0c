#include "cpu/thread_pool.hpp"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

namespace ensemblead::cpu {
namespace {

class ThreadPool {
 public:
  // False, and nothing is called, while another call is under way: of another thread, or around this one.
  bool run(int parts, const std::function<void(int)>& part) {
    if (busy_.exchange(true)) return false;
    std::unique_lock<std::mutex> lock(mutex_);
    start(parts - 1);
    part_ = &part;
    next_ = 0;
    parts_ = unfinished_ = parts;
    for (int i = 0; i < workers_ && i < parts - 1; ++i) wake_.notify_one();
    take_parts(lock);
    done_.wait(lock, [this] { return unfinished_ == 0; });
    busy_ = false;
    return true;
  }

 private:
  void start(int wanted) {
    try {
      for (; workers_ < wanted; ++workers_) std::thread([this] { serve(); }).detach();
    } catch (const std::exception&) {
      // The system grants no more threads, or no memory for one: those that there are do the work.
    }
  }

  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return next_ < parts_; });
      take_parts(lock);
    }
  }

  // A part and its number are taken under the lock, so a thread that wakes late takes none of a call that is over.
  void take_parts(std::unique_lock<std::mutex>& lock) {
    while (next_ < parts_) {
      const std::function<void(int)>& part = *part_;
      const int number = next_++;
      lock.unlock();
      part(number);
      lock.lock();
      if (--unfinished_ == 0) done_.notify_one();
    }
  }

  std::atomic<bool> busy_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  const std::function<void(int)>* part_ = nullptr;
  int next_ = 0;
  int parts_ = 0;
  int unfinished_ = 0;
  int workers_ = 0;
};

}  // namespace

void run_parts(int parts, const std::function<void(int)>& part) {
  // Never destroyed: its threads sleep in it until the process ends.
  static ThreadPool& pool = *new ThreadPool;
  if (pool.run(parts, part)) return;
  for (int number = 0; number < parts; ++number) part(number);
}

}  // namespace ensemblead::cpu
