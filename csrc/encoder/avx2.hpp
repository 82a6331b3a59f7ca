// The kernel for AVX2 without VNNI: sixteen products of int16 an instruction.
//
// AVX2 multiplies uint8 by int8 as well, but adds pairs of products in 16 bits, which 2 x 255 x 127
// exceeds. Weights of seven bits would fit. They would halve the precision of every weight, for all
// machines, because all compute the same. So inputs and weights are widened to 16 bits when they
// are stored. That takes as many multiplications: with eight bits a second one is needed to add the
// pairs up in 32 bits.
//
// 6 columns by 16 outputs take 12 of the 16 registers.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "kernel.hpp"

#if defined(__x86_64__) && defined(__GNUC__)
#define ENCODER_X86 1
#include <immintrin.h>

namespace encoder {
namespace avx2_common {

#define ENCODER_TARGET __attribute__((target("avx2")))
#define ENCODER_INLINE __attribute__((target("avx2"), always_inline)) inline

inline constexpr size_t kLanes = 8, kColumns = 6;
inline constexpr int32_t kOffset = 0;
inline constexpr bool kApart = false;
using Sums = __m256i;
using Halves = __m256i;

ENCODER_INLINE __m256i load_sums(const void* at) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(at));
}
ENCODER_INLINE Halves load_halves(const void* at) { return load_sums(at); }
ENCODER_INLINE void store_halves(void* at, Halves values) {
  _mm256_storeu_si256(static_cast<__m256i*>(at), values);
}
ENCODER_INLINE Sums broadcast(const void* at) {
  int32_t value;
  std::memcpy(&value, at, sizeof value);
  return _mm256_set1_epi32(value);
}
ENCODER_INLINE Halves pack(Sums low, Sums high) { return _mm256_packs_epi32(low, high); }
ENCODER_INLINE Halves add_saturated(Halves a, Halves b) { return _mm256_adds_epi16(a, b); }

ENCODER_INLINE Sums requantise(Sums sums, Sums multipliers, int shift) {
  const __m256i half = _mm256_set1_epi64x(int64_t{1} << (shift - 1));
  const __m256i even = _mm256_add_epi64(_mm256_mul_epi32(sums, multipliers), half);
  const __m256i odd = _mm256_add_epi64(
      _mm256_mul_epi32(_mm256_srli_epi64(sums, 32), _mm256_srli_epi64(multipliers, 32)), half);
  // The high halves of the products, then the rest of the shift.
  const __m256i high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
  return _mm256_sra_epi32(high, _mm_cvtsi32_si128(shift - 32));
}

ENCODER_INLINE Halves gelu_of(Halves values, const Gelu& gelu) {
  const __m256i size = _mm256_srl_epi16(_mm256_abs_epi16(values), _mm_cvtsi32_si128(gelu.shift));
  const __m256i index = _mm256_min_epu16(size, _mm256_set1_epi16(kGeluEntries - 1));
  // Each gather reads eight entries of 16 bits, with the entry behind it in the upper half.
  const int* table = reinterpret_cast<const int*>(gelu.table);
  const __m256i low_bits = _mm256_set1_epi32(0xffff);
  const __m256i even = _mm256_i32gather_epi32(table, _mm256_and_si256(index, low_bits), 2);
  const __m256i odd = _mm256_i32gather_epi32(table, _mm256_srli_epi32(index, 16), 2);
  const __m256i below =
      _mm256_or_si256(_mm256_and_si256(even, low_bits), _mm256_slli_epi32(odd, 16));
  return _mm256_sub_epi16(_mm256_max_epi16(values, _mm256_setzero_si256()), below);
}

ENCODER_INLINE Halves quantised(Halves values, const Rounding& rounding) {
  return _mm256_adds_epi16(
      _mm256_mulhrs_epi16(values, _mm256_set1_epi16(static_cast<int16_t>(rounding.multiplier))),
      _mm256_set1_epi16(static_cast<int16_t>(rounding.zero)));
}

}  // namespace avx2_common

namespace avx2 {

using namespace avx2_common;

inline bool is_available() { return __builtin_cpu_supports("avx2"); }

inline constexpr size_t kGroup = 2;
using Value = int16_t;

// Assembler: with the intrinsic, GCC 12 copies sums between registers and runs out of them, which
// takes half as long again.
ENCODER_INLINE Sums dot16(Sums sums, Sums inputs, Sums weights) {
  const __m256i products = _mm256_madd_epi16(inputs, weights);
  asm("vpaddd %1, %0, %0" : "+x"(sums) : "x"(products));
  return sums;
}
ENCODER_INLINE Sums dot8(Sums sums, Sums inputs, Sums weights) {
  return dot16(sums, inputs, weights);
}
ENCODER_INLINE void store_quantised(Value* at, Halves values, const Rounding& rounding) {
  store_halves(
      at, _mm256_min_epi16(_mm256_max_epi16(quantised(values, rounding), _mm256_setzero_si256()),
                           _mm256_set1_epi16(255)));
}

#include "rows.ipp"

inline constexpr Kernel kKernel = make_kernel("avx2");

#undef ENCODER_INLINE
#undef ENCODER_TARGET

}  // namespace avx2
}  // namespace encoder
#endif
