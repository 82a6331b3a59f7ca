// The two convolutions of ours_n0, with weights read where they lie in edge.weights.
//
// Cortex-M4, M7 and M33 add two products of 16 bits in one instruction (SMLAD). Weights of two
// outputs and inputs of two columns are loaded once for four such sums, which stay in registers.
//
// Always holds: the values are those of the portable kernel (csrc/encoder/portable.hpp). The order
// of summation does not matter, because read_weights has checked that no sum can overflow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../../csrc/encoder/portable.hpp"

#if defined(__ARM_FEATURE_SIMD32)
#include <arm_acle.h>
#endif

namespace cortex {

// Four values of 16 bits, in two words.
struct Four {
  uint32_t low, high;
};

inline Four load(const int16_t* at) {
  uint64_t both;  // one instruction for both words
  std::memcpy(&both, __builtin_assume_aligned(at, 4), sizeof both);
  return {static_cast<uint32_t>(both), static_cast<uint32_t>(both >> 32)};
}

inline int32_t add_products(int32_t sum, Four a, Four b) {
#if defined(__ARM_FEATURE_SIMD32)
  sum = __smlad(static_cast<int16x2_t>(a.low), static_cast<int16x2_t>(b.low), sum);
  return __smlad(static_cast<int16x2_t>(a.high), static_cast<int16x2_t>(b.high), sum);
#else
  const auto product = [](uint32_t x, uint32_t y) {
    return static_cast<int16_t>(x) * static_cast<int16_t>(y) +
           static_cast<int16_t>(x >> 16) * static_cast<int16_t>(y >> 16);
  };
  return sum + product(a.low, b.low) + product(a.high, b.high);
#endif
}

// Outputs `output` and `output` + 1 of kColumns columns.
template <size_t kInputs, size_t kOutputs, size_t kColumns>
inline void convolve_tile(const encoder::Packed& packed, const int16_t* inputs, size_t output,
                          int16_t* out) {
  const int16_t* weights = static_cast<const int16_t*>(packed.weights) + output * kInputs;
  int32_t first[kColumns], second[kColumns];
  for (size_t c = 0; c < kColumns; ++c)
    first[c] = packed.biases[output], second[c] = packed.biases[output + 1];
#pragma GCC unroll 8
  for (size_t i = 0; i < kInputs; i += 4) {
    const Four a = load(weights + i), b = load(weights + kInputs + i);
    for (size_t c = 0; c < kColumns; ++c) {
      const Four values = load(inputs + c * kInputs + i);
      first[c] = add_products(first[c], values, a);
      second[c] = add_products(second[c], values, b);
    }
  }
  const auto rounded = [&](int32_t sum, size_t which) {
    return encoder::portable::saturated(
        encoder::portable::requantised(sum, packed.multipliers[which], packed.shift));
  };
  for (size_t c = 0; c < kColumns; ++c) {
    out[c * kOutputs + output] = rounded(first[c], output);
    out[c * kOutputs + output + 1] = rounded(second[c], output + 1);
  }
}

// Inputs int16 [columns][kInputs] to outputs int16 [columns][kOutputs]. The weights are
// [kOutputs][kInputs], as in the file. Inputs and weights lie at multiples of four bytes.
template <size_t kInputs, size_t kOutputs>
inline void convolve(const encoder::Packed& packed, const int16_t* inputs, size_t columns,
                     int16_t* out) {
  static_assert(kInputs % 16 == 0 && kOutputs % 2 == 0);
  for (size_t output = 0; output < kOutputs; output += 2) {
    size_t column = 0;
    for (; column + 2 <= columns; column += 2)
      convolve_tile<kInputs, kOutputs, 2>(packed, inputs + column * kInputs, output,
                                          out + column * kOutputs);
    if (column < columns)
      convolve_tile<kInputs, kOutputs, 1>(packed, inputs + column * kInputs, output,
                                          out + column * kOutputs);
  }
}

}  // namespace cortex
