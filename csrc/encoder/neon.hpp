// The kernels for NEON, which every 64-bit Arm processor has: "neon-dot" with the dot product of
// eight bits (Armv8.2), and "neon" without, on inputs that were widened to 16 bits.
//
// The dot product is of signed numbers, so inputs are stored less 128. The code is not tuned: it
// was tested only under an emulator.
//
// 14 columns by 8 outputs take 28 of the 32 registers.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "kernel.hpp"

#if defined(__aarch64__) && defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define ENCODER_NEON 1
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace encoder {
namespace neon_common {

#define ENCODER_INLINE __attribute__((always_inline)) inline

inline constexpr size_t kLanes = 4, kColumns = 14;
using Sums = int32x4_t;
using Halves = int16x8_t;

ENCODER_INLINE Sums load_sums(const void* at) { return vld1q_s32(static_cast<const int32_t*>(at)); }
ENCODER_INLINE Halves load_halves(const int16_t* at) { return vld1q_s16(at); }
ENCODER_INLINE void store_halves(int16_t* at, Halves values) { vst1q_s16(at, values); }
ENCODER_INLINE Sums broadcast(const void* at) {
  int32_t value;
  std::memcpy(&value, at, sizeof value);
  return vdupq_n_s32(value);
}
// The weights of the group's first inputs come first, then those of its second ones.
ENCODER_INLINE Sums dot16(Sums sums, Sums inputs, Sums weights) {
  const int16x4_t pair = vget_low_s16(vreinterpretq_s16_s32(inputs));
  const int16x8_t both = vreinterpretq_s16_s32(weights);
  return vmlal_lane_s16(vmlal_lane_s16(sums, vget_low_s16(both), pair, 0), vget_high_s16(both),
                        pair, 1);
}
ENCODER_INLINE Halves pack(Sums low, Sums high) { return vqmovn_high_s32(vqmovn_s32(low), high); }
ENCODER_INLINE Halves add_saturated(Halves a, Halves b) { return vqaddq_s16(a, b); }

ENCODER_INLINE Sums requantise(Sums sums, Sums multipliers, int shift) {
  const int64x2_t half = vdupq_n_s64(int64_t{1} << (shift - 1));
  const int64x2_t low = vaddq_s64(vmull_s32(vget_low_s32(sums), vget_low_s32(multipliers)), half);
  const int64x2_t high = vaddq_s64(vmull_high_s32(sums, multipliers), half);
  // The high halves of the products, then the rest of the shift.
  return vshlq_s32(vshrn_high_n_s64(vshrn_n_s64(low, 32), high, 32), vdupq_n_s32(32 - shift));
}

// One of the 256 bytes of a table, by eight indexes: an index beyond a quarter gives 0 in it.
ENCODER_INLINE uint8x8_t look_up(const uint8_t* table, uint8x8_t index) {
  uint8x8_t found = vqtbl4_u8(vld1q_u8_x4(table), index);
  for (int quarter = 1; quarter < 4; ++quarter)
    found = vqtbx4_u8(found, vld1q_u8_x4(table + 64 * quarter),
                      vsub_u8(index, vdup_n_u8(static_cast<uint8_t>(64 * quarter))));
  return found;
}

ENCODER_INLINE Halves gelu_of(Halves values, const Gelu& gelu) {
  const uint16x8_t size = vshlq_u16(vreinterpretq_u16_s16(vabsq_s16(values)),
                                    vdupq_n_s16(static_cast<int16_t>(-gelu.shift)));
  const uint8x8_t index = vmovn_u16(vminq_u16(size, vdupq_n_u16(kGeluEntries - 1)));
  const uint16x8_t below = vorrq_u16(vmovl_u8(look_up(gelu.low, index)),
                                     vshll_n_u8(look_up(gelu.low + kGeluEntries, index), 8));
  return vsubq_s16(vmaxq_s16(values, vdupq_n_s16(0)), vreinterpretq_s16_u16(below));
}

ENCODER_INLINE Halves quantised(Halves values, const Rounding& rounding) {
  return vqaddq_s16(vqrdmulhq_s16(values, vdupq_n_s16(static_cast<int16_t>(rounding.multiplier))),
                    vdupq_n_s16(static_cast<int16_t>(rounding.zero)));
}

#undef ENCODER_INLINE

}  // namespace neon_common

namespace neon {

#define ENCODER_TARGET
#define ENCODER_INLINE __attribute__((always_inline)) inline

using namespace neon_common;

inline bool is_available() { return true; }

inline constexpr size_t kGroup = 2;
inline constexpr int32_t kOffset = 0;
inline constexpr bool kApart = true;
using Value = int16_t;

ENCODER_INLINE Sums dot8(Sums sums, Sums inputs, Sums weights) {
  return dot16(sums, inputs, weights);
}
ENCODER_INLINE void store_quantised(Value* at, Halves values, const Rounding& rounding) {
  store_halves(at,
               vminq_s16(vmaxq_s16(quantised(values, rounding), vdupq_n_s16(0)), vdupq_n_s16(255)));
}

#include "rows.ipp"

inline constexpr Kernel kKernel = make_kernel("neon");

#undef ENCODER_INLINE
#undef ENCODER_TARGET

}  // namespace neon

namespace neon_dot {

#if defined(__clang__)
#define ENCODER_TARGET __attribute__((target("dotprod")))
#define ENCODER_INLINE __attribute__((target("dotprod"), always_inline)) inline
#else
#define ENCODER_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#define ENCODER_INLINE __attribute__((target("arch=armv8.2-a+dotprod"), always_inline)) inline
#endif

using namespace neon_common;

inline bool is_available() {
#if defined(__ARM_FEATURE_DOTPROD)
  return true;
#elif defined(__linux__)
  return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#else
  return false;
#endif
}

inline constexpr size_t kGroup = 4;
inline constexpr int32_t kOffset = 128;
inline constexpr bool kApart = true;
using Value = int8_t;

ENCODER_INLINE Sums dot8(Sums sums, Sums inputs, Sums weights) {
  return vdotq_s32(sums, vreinterpretq_s8_s32(weights), vreinterpretq_s8_s32(inputs));
}
ENCODER_INLINE void store_quantised(Value* at, Halves values, const Rounding& rounding) {
  const uint8x8_t bytes = vqmovun_s16(quantised(values, rounding));
  vst1_s8(at, vreinterpret_s8_u8(veor_u8(bytes, vdup_n_u8(128))));
}

#include "rows.ipp"

inline constexpr Kernel kKernel = make_kernel("neon-dot");

#undef ENCODER_INLINE
#undef ENCODER_TARGET

}  // namespace neon_dot
}  // namespace encoder
#endif
