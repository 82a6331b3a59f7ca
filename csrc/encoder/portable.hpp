// The kernel in plain C++, for every machine.
//
// Its loops are written so that compilers find the sums of products of int16 in them, which even
// the oldest x86-64 and 64-bit Arm processors add up in vectors.
//
// Always holds: shifts to the right of negative values round down, as on every compiler that is
// known (C++20 demands it).
#pragma once

#include <algorithm>

#include "kernel.hpp"

namespace encoder {
namespace portable {

inline int16_t saturated(int32_t value) {
  return static_cast<int16_t>(std::min(std::max(value, int32_t{INT16_MIN}), int32_t{INT16_MAX}));
}

// A shift is 32 at least, and 32-bit processors shift by 32 for nothing.
inline int32_t requantised(int32_t sum, int32_t multiplier, int shift) {
  const int64_t half = int64_t{1} << (shift - 1);
  return static_cast<int32_t>((int64_t{sum} * multiplier + half) >> kMinShift) >>
         (shift - static_cast<int>(kMinShift));
}

inline int16_t gelu_of(int16_t value, const Gelu& gelu) {
  const uint32_t size = static_cast<uint32_t>(value < 0 ? -int32_t{value} : int32_t{value});
  const uint32_t index = std::min(size >> gelu.shift, static_cast<uint32_t>(kGeluEntries - 1));
  return static_cast<int16_t>(std::max<int32_t>(value, 0) - gelu.table[index]);
}

template <size_t kStride, size_t kRows, size_t kLength, size_t kOutputs>
inline void convolve_row(const Packed& packed, const void* inputs, size_t row_stride,
                         size_t columns, int16_t* out) {
  const int16_t* at = static_cast<const int16_t*>(inputs);
  for (size_t output = 0; output < kOutputs; ++output) {
    const int16_t* weights = static_cast<const int16_t*>(packed.weights) + output * kRows * kLength;
    for (size_t column = 0; column < columns; ++column) {
      int32_t sum = packed.biases[output];
      for (size_t row = 0; row < kRows; ++row) {
        const int16_t* a = at + column * kStride + row * row_stride;
        const int16_t* b = weights + row * kLength;
        for (size_t i = 0; i < kLength; ++i) sum += int32_t{a[i]} * int32_t{b[i]};
      }
      out[column * kOutputs + output] =
          saturated(requantised(sum, packed.multipliers[output], packed.shift));
    }
  }
}

inline void gelu_row(const int16_t* in, size_t count, const Gelu& gelu, int16_t* out) {
  for (size_t i = 0; i < count; ++i) out[i] = gelu_of(in[i], gelu);
}

inline void activate_row(const int16_t* in, size_t count, const Gelu& gelu,
                         const Rounding& rounding, void* out) {
  int16_t* to = static_cast<int16_t*>(out);
  for (size_t i = 0; i < count; ++i) {
    const int32_t scaled = (gelu_of(in[i], gelu) * rounding.multiplier + (1 << 14)) >> 15;
    to[i] =
        static_cast<int16_t>(std::min(std::max(rounding.zero + scaled, int32_t{0}), int32_t{255}));
  }
}

inline void add_row(int16_t* values, const int16_t* more, size_t count) {
  for (size_t i = 0; i < count; ++i) values[i] = saturated(values[i] + more[i]);
}

inline constexpr Kernel kKernel = {"portable",
                                   [] { return true; },
                                   1,  // all inputs of an output lie side by side
                                   2,
                                   2,
                                   false,
                                   0,
                                   convolve_row<3 * kPatch, kPatch, 3 * kPatch, kChannels>,
                                   convolve_row<kChannels, 3, 3 * kChannels, kHidden>,
                                   convolve_row<kHidden, 3, 3 * kHidden, kChannels>,
                                   convolve_row<kChannels, 1, kChannels, kLatent>,
                                   gelu_row,
                                   activate_row,
                                   add_row};

}  // namespace portable
}  // namespace encoder
