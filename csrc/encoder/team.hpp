// Threads that share the rows of an image.
//
// A layer takes a fraction of a millisecond, and every row of it must be done before the next layer
// starts. Each thread takes the next row that nobody has taken. So a thread that the system holds
// up delays the others by its row alone, and one that comes late finds nothing to do. Between the
// layers of an image threads wait in a loop for a while before they sleep. Between images they
// sleep.
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
    stop_.store(true, std::memory_order_release);
    tell();
    for (size_t i = 0; i + 1 < threads_; ++i) others_[i].join();
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  size_t threads() const { return threads_; }

  // As OneThread: calls work(begin, end, thread) for all rows, and returns when they are done.
  template <class Work>
  void operator()(size_t rows, const Work& work) {
    if (threads_ == 1 || rows < 2 || rows > kMostRows) return work(size_t{0}, rows, size_t{0});
    call_ = [](const void* what, size_t row, size_t thread) {
      (*static_cast<const Work*>(what))(row, row + 1, thread);
    };
    work_ = &work, rows_ = rows;
    done_.store(0, std::memory_order_relaxed);
    left_.store(rows, std::memory_order_release);
    tell();
    take_rows(0);
    wait([&] { return done_.load(std::memory_order_acquire) == rows; });
  }

 private:
  using Call = void (*)(const void* work, size_t row, size_t thread);
  static constexpr size_t kMostRows = 1u << 30;
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
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }
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

  // Computes rows until none is left. What a row needs is read only once it is taken: it cannot
  // change before that row is done.
  void take_rows(size_t thread) {
    size_t left = left_.load(std::memory_order_acquire);
    while (left > 0) {
      if (!left_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel)) continue;
      const size_t rows = rows_;
      call_(work_, rows - left, thread);
      if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == rows) tell();
      left = left_.load(std::memory_order_acquire);
    }
  }
  void follow(size_t thread) {
    const auto stopped = [this] { return stop_.load(std::memory_order_acquire); };
    while (!stopped()) {
      wait([&] { return left_.load(std::memory_order_acquire) > 0 || stopped(); });
      take_rows(thread);
    }
  }

  std::unique_ptr<std::thread[]> others_;
  size_t threads_ = 1;
  std::atomic<size_t> left_{0}, done_{0};
  std::atomic<bool> stop_{false};
  Call call_ = nullptr;
  const void* work_ = nullptr;
  size_t rows_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace encoder
