// Memory of the encoder: one aligned block that is allocated once and never throws.
//
// Always holds: a block begins at a multiple of kAlignment, and is freed with its owner. A failed
// allocation leaves the owner empty and is told by `false`, so that the encoder can stand behind an
// interface without exceptions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <utility>

namespace encoder {

inline constexpr size_t kAlignment = 64;

// `size` rounded up to a multiple of kAlignment.
constexpr size_t aligned(size_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

// Owns a block of bytes, which are not initialised.
class Block {
 public:
  Block() = default;
  Block(Block&& other) noexcept
      : memory_(std::exchange(other.memory_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Block& operator=(Block&& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Block() { std::free(memory_); }

  // Makes room for `size` bytes; the old contents are lost unless they have that room already.
  bool reserve(size_t size) {
    if (size <= size_ && memory_) return true;
    std::free(memory_);
    memory_ = std::malloc(size + kAlignment);
    size_ = memory_ ? size : 0;
    return memory_ != nullptr;
  }
  uint8_t* data() const {
    const uintptr_t at = reinterpret_cast<uintptr_t>(memory_);
    return static_cast<uint8_t*>(memory_) + ((kAlignment - at % kAlignment) % kAlignment);
  }
  size_t size() const { return size_; }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};

}  // namespace encoder
