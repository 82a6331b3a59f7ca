// The kernel for WebAssembly with SIMD of 128 bits: eight products of int16 an instruction.
//
// WebAssembly has no exact product of eight bits, so inputs and weights are widened to 16 bits when
// they are stored, as for AVX2. A module cannot ask whether SIMD is there: an engine without it
// refuses the module. So whoever builds decides, with -msimd128.
//
// 4 columns by 8 outputs, with weights, inputs and a product, take 12 of x86-64's 16 registers. V8
// keeps one for itself, and 6 columns would need all of them: they took 15 % longer in Node.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "kernel.hpp"

#if defined(__wasm_simd128__)
#define ENCODER_WASM 1
#include <wasm_simd128.h>

namespace encoder {
namespace wasm {

#define ENCODER_TARGET
#define ENCODER_INLINE __attribute__((always_inline)) inline

inline bool is_available() { return true; }

inline constexpr size_t kLanes = 4, kColumns = 4, kGroup = 2;
inline constexpr int32_t kOffset = 0;
inline constexpr bool kApart = false;
using Value = int16_t;
using Sums = v128_t;
using Halves = v128_t;

ENCODER_INLINE Sums load_sums(const void* at) { return wasm_v128_load(at); }
ENCODER_INLINE Halves load_halves(const void* at) { return wasm_v128_load(at); }
ENCODER_INLINE void store_halves(void* at, Halves values) { wasm_v128_store(at, values); }
ENCODER_INLINE Sums broadcast(const void* at) { return wasm_v128_load32_splat(at); }
ENCODER_INLINE Halves pack(Sums low, Sums high) { return wasm_i16x8_narrow_i32x4(low, high); }
ENCODER_INLINE Halves add_saturated(Halves a, Halves b) { return wasm_i16x8_add_sat(a, b); }

ENCODER_INLINE Sums dot16(Sums sums, Sums inputs, Sums weights) {
  return wasm_i32x4_add(sums, wasm_i32x4_dot_i16x8(inputs, weights));
}
ENCODER_INLINE Sums dot8(Sums sums, Sums inputs, Sums weights) {
  return dot16(sums, inputs, weights);
}

ENCODER_INLINE Sums requantise(Sums sums, Sums multipliers, int shift) {
  const v128_t half = wasm_i64x2_splat(int64_t{1} << (shift - 1));
  const v128_t low = wasm_i64x2_add(wasm_i64x2_extmul_low_i32x4(sums, multipliers), half);
  const v128_t high = wasm_i64x2_add(wasm_i64x2_extmul_high_i32x4(sums, multipliers), half);
  // The high halves of the products, then the rest of the shift.
  return wasm_i32x4_shr(wasm_i32x4_shuffle(low, high, 1, 3, 5, 7),
                        static_cast<uint32_t>(shift - 32));
}

ENCODER_INLINE Halves gelu_of(Halves values, const Gelu& gelu) {
  const v128_t size = wasm_u16x8_shr(wasm_i16x8_abs(values), static_cast<uint32_t>(gelu.shift));
  const v128_t index = wasm_u16x8_min(size, wasm_i16x8_splat(kGeluEntries - 1));
  const uint16_t* table = gelu.table;
  const v128_t below = wasm_u16x8_make(
      table[wasm_u16x8_extract_lane(index, 0)], table[wasm_u16x8_extract_lane(index, 1)],
      table[wasm_u16x8_extract_lane(index, 2)], table[wasm_u16x8_extract_lane(index, 3)],
      table[wasm_u16x8_extract_lane(index, 4)], table[wasm_u16x8_extract_lane(index, 5)],
      table[wasm_u16x8_extract_lane(index, 6)], table[wasm_u16x8_extract_lane(index, 7)]);
  return wasm_i16x8_sub(wasm_i16x8_max(values, wasm_i16x8_splat(0)), below);
}

ENCODER_INLINE void store_quantised(Value* at, Halves values, const Rounding& rounding) {
  const v128_t scaled =
      wasm_i16x8_q15mulr_sat(values, wasm_i16x8_splat(static_cast<int16_t>(rounding.multiplier)));
  const v128_t moved =
      wasm_i16x8_add_sat(scaled, wasm_i16x8_splat(static_cast<int16_t>(rounding.zero)));
  store_halves(at,
               wasm_i16x8_min(wasm_i16x8_max(moved, wasm_i16x8_splat(0)), wasm_i16x8_splat(255)));
}

#include "rows.ipp"

inline constexpr Kernel kKernel = make_kernel("wasm");

#undef ENCODER_INLINE
#undef ENCODER_TARGET

}  // namespace wasm
}  // namespace encoder
#endif
