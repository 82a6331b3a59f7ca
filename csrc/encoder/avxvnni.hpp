// The kernel for AVX-VNNI, which processors without AVX-512 have: 32 products of uint8 and int8 an
// instruction, exact.
//
// The instruction is the one of AVX-512 with a shorter code. ENCODER_TEST_AVXVNNI takes the longer
// code, so that processors with AVX-512 can test everything else of this kernel.
#pragma once

#include "avx2.hpp"

#if defined(ENCODER_X86)
#include <cpuid.h>

namespace encoder {
namespace avxvnni {

#if defined(ENCODER_TEST_AVXVNNI)
#define ENCODER_FEATURES "avx2,avx512vl,avx512vnni"
#define ENCODER_VEX "%{evex%} "
#else
#define ENCODER_FEATURES "avx2,avxvnni"
#define ENCODER_VEX "%{vex%} "
#endif
#define ENCODER_TARGET __attribute__((target(ENCODER_FEATURES)))
#define ENCODER_INLINE __attribute__((target(ENCODER_FEATURES), always_inline)) inline

using namespace avx2_common;

inline bool is_available() {
#if defined(ENCODER_TEST_AVXVNNI)
  return avx2::is_available() && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
#else
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
  return avx2::is_available() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
#endif
}

inline constexpr size_t kGroup = 4;
using Value = uint8_t;

// Assembler, as in avx2.hpp.
ENCODER_INLINE Sums dot8(Sums sums, Sums inputs, Sums weights) {
  asm(ENCODER_VEX "vpdpbusd %2, %1, %0" : "+x"(sums) : "x"(inputs), "x"(weights));
  return sums;
}
ENCODER_INLINE Sums dot16(Sums sums, Sums inputs, Sums weights) {
  asm(ENCODER_VEX "vpdpwssd %2, %1, %0" : "+x"(sums) : "x"(inputs), "x"(weights));
  return sums;
}
ENCODER_INLINE void store_quantised(Value* at, Halves values, const Rounding& rounding) {
  const __m256i halves = quantised(values, rounding);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(at),
      _mm_packus_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1)));
}

#include "rows.ipp"

inline constexpr Kernel kKernel = make_kernel("avxvnni");

#undef ENCODER_INLINE
#undef ENCODER_TARGET
#undef ENCODER_VEX
#undef ENCODER_FEATURES

}  // namespace avxvnni
}  // namespace encoder
#endif
