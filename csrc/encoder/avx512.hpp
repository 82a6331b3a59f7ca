// The kernel for AVX-512 with VNNI: 64 products of uint8 and int8 an instruction, exact.
//
// 14 columns by 32 outputs take 28 of the 32 registers. An image of 224 pixels has 28 columns.
#pragma once

#include "avx2.hpp"

#if defined(ENCODER_X86)

// GCC warns of the undefined register that its own headers pass to instructions with a mask.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace encoder {
namespace avx512 {

#define ENCODER_FEATURES "avx2,avx512f,avx512bw,avx512vl,avx512vnni"
#define ENCODER_TARGET __attribute__((target(ENCODER_FEATURES)))
#define ENCODER_INLINE __attribute__((target(ENCODER_FEATURES), always_inline)) inline

inline bool is_available() {
  return avx2::is_available() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
}

inline constexpr size_t kLanes = 16, kColumns = 14, kGroup = 4;
inline constexpr int32_t kOffset = 0;
inline constexpr bool kApart = false;
using Value = uint8_t;
using Sums = __m512i;
using Halves = __m512i;

ENCODER_INLINE Sums load_sums(const void* at) { return _mm512_loadu_si512(at); }
ENCODER_INLINE Halves load_halves(const void* at) { return _mm512_loadu_si512(at); }
ENCODER_INLINE void store_halves(void* at, Halves values) { _mm512_storeu_si512(at, values); }
ENCODER_INLINE Sums broadcast(const void* at) {
  int32_t value;
  std::memcpy(&value, at, sizeof value);
  return _mm512_set1_epi32(value);
}
// Assembler: with the intrinsics, GCC 12 copies sums between registers and runs out of them, which
// takes twice the time.
ENCODER_INLINE Sums dot8(Sums sums, Sums inputs, Sums weights) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(inputs), "v"(weights));
  return sums;
}
ENCODER_INLINE Sums dot16(Sums sums, Sums inputs, Sums weights) {
  asm("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(inputs), "v"(weights));
  return sums;
}
ENCODER_INLINE Halves pack(Sums low, Sums high) { return _mm512_packs_epi32(low, high); }
ENCODER_INLINE Halves add_saturated(Halves a, Halves b) { return _mm512_adds_epi16(a, b); }

ENCODER_INLINE Sums requantise(Sums sums, Sums multipliers, int shift) {
  const __m512i half = _mm512_set1_epi64(int64_t{1} << (shift - 1));
  const __m512i even = _mm512_add_epi64(_mm512_mul_epi32(sums, multipliers), half);
  const __m512i odd = _mm512_add_epi64(
      _mm512_mul_epi32(_mm512_srli_epi64(sums, 32), _mm512_srli_epi64(multipliers, 32)), half);
  // The high halves of the products, then the rest of the shift.
  const __m512i high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
  return _mm512_sra_epi32(high, _mm_cvtsi32_si128(shift - 32));
}

// A permutation looks up 64 entries of 16 bits by the low six bits of an index.
ENCODER_INLINE Halves gelu_of(Halves values, const Gelu& gelu) {
  const __m512i size = _mm512_srl_epi16(_mm512_abs_epi16(values), _mm_cvtsi32_si128(gelu.shift));
  const __m512i index = _mm512_min_epu16(size, _mm512_set1_epi16(kGeluEntries - 1));
  const auto quarter = [&](size_t which) __attribute__((target(ENCODER_FEATURES), always_inline)) {
    const uint16_t* entries = gelu.table + 64 * which;
    return _mm512_permutex2var_epi16(load_halves(entries), index, load_halves(entries + 32));
  };
  const __mmask32 odd = _mm512_test_epi16_mask(index, _mm512_set1_epi16(64)),
                  upper = _mm512_test_epi16_mask(index, _mm512_set1_epi16(128));
  const __m512i below =
      _mm512_mask_blend_epi16(upper, _mm512_mask_blend_epi16(odd, quarter(0), quarter(1)),
                              _mm512_mask_blend_epi16(odd, quarter(2), quarter(3)));
  return _mm512_sub_epi16(_mm512_max_epi16(values, _mm512_setzero_si512()), below);
}

ENCODER_INLINE void store_quantised(Value* at, Halves values, const Rounding& rounding) {
  const __m512i scaled =
      _mm512_mulhrs_epi16(values, _mm512_set1_epi16(static_cast<int16_t>(rounding.multiplier)));
  const __m512i shifted =
      _mm512_adds_epi16(scaled, _mm512_set1_epi16(static_cast<int16_t>(rounding.zero)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(at),
                      _mm512_cvtusepi16_epi8(_mm512_max_epi16(shifted, _mm512_setzero_si512())));
}

#include "rows.ipp"

inline constexpr Kernel kKernel = make_kernel("avx512vnni");

#undef ENCODER_INLINE
#undef ENCODER_TARGET
#undef ENCODER_FEATURES

}  // namespace avx512
}  // namespace encoder

#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif
