// Threads that share the rows of an image.
//
// A layer takes a fraction of a millisecond, and every row of it must be done before the next layer
// starts. So between the layers of one image threads wait in a loop for a while before they sleep.
// Between images they sleep.
//
// Always holds: one call at a time. All threads end with their Team. Which thread computes a row
// does not change its values.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

namespace encoder {

class Team {
 public:
  // `threads` with the calling one; fewer if the system refuses more. May throw std::bad_alloc.
  explicit Team(size_t threads) : others_(threads > 1 ? new std::thread[threads - 1] : nullptr) {
    for (; threads_ < threads; ++threads_) {
      try {
        others_[threads_ - 1] = std::thread(&Team::follow, this, threads_);
      } catch (const std::system_error&) {
        break;
      }
    }
  }
  ~Team() {
    if (threads_ > 1) start(nullptr, nullptr, 0);
    for (size_t i = 0; i + 1 < threads_; ++i) others_[i].join();
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  size_t threads() const { return threads_; }

  // As OneThread: calls work(begin, end, thread) in all threads, and returns when they are done.
  template <class Work>
  void operator()(size_t rows, const Work& work) {
    if (threads_ == 1) return work(size_t{0}, rows, size_t{0});
    left_.store(threads_ - 1, std::memory_order_relaxed);
    start(
        [](const void* what, size_t begin, size_t end, size_t thread) {
          (*static_cast<const Work*>(what))(begin, end, thread);
        },
        &work, rows);
    part(0);
    wait([this] { return left_.load(std::memory_order_acquire) == 0; });
  }

 private:
  using Call = void (*)(const void* work, size_t begin, size_t end, size_t thread);
  static constexpr int kTurns = 4000;  // of the loop before a thread sleeps: some 50 microseconds

  // Waits in a loop, then asleep, until `ready` gives true.
  template <class Ready>
  void wait(const Ready& ready) {
    for (int turn = 0; turn < kTurns; ++turn) {
      if (ready()) return;
      pause();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, ready);
  }
  // Tells all threads that sleep. They check under the lock, so none of them misses it.
  void tell() {
    { std::lock_guard<std::mutex> lock(mutex_); }
    changed_.notify_all();
  }
  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#else
    std::this_thread::yield();
#endif
  }

  void start(Call call, const void* work, size_t rows) {
    call_ = call, work_ = work, rows_ = rows;
    round_.fetch_add(1, std::memory_order_release);
    tell();
  }
  void part(size_t thread) const {
    const size_t begin = rows_ * thread / threads_, end = rows_ * (thread + 1) / threads_;
    if (begin < end) call_(work_, begin, end, thread);
  }
  void follow(size_t thread) {
    for (size_t seen = 0;;) {
      wait([&] { return round_.load(std::memory_order_acquire) != seen; });
      ++seen;
      if (!call_) return;
      part(thread);
      if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) tell();
    }
  }

  std::unique_ptr<std::thread[]> others_;
  size_t threads_ = 1;
  std::atomic<size_t> round_{0}, left_{0};
  Call call_ = nullptr;
  const void* work_ = nullptr;
  size_t rows_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace encoder
