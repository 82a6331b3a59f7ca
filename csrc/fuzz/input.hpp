// What fuzz targets are made of: the fuzzer's bytes as numbers, and a check that ends the program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

// Gives the fuzzer's bytes one after the other, then zeros. Does not own them.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}
  uint32_t byte() { return at_ == end_ ? 0 : *at_++; }
  uint32_t below(uint32_t limit) {
    const uint32_t value = byte() | byte() << 8 | byte() << 16;
    return value % limit;
  }
  size_t left() const { return static_cast<size_t>(end_ - at_); }
  const uint8_t* rest() const { return at_; }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
};

using Target = void (*)(Input&);

}  // namespace
