// The wide part's groups of sixteen symbols with NEON, byte for byte what rans.hpp does without.
//
// Four registers hold the sixteen states. What belongs to a symbol comes from table look-ups of
// bytes, and so do words on their way to lanes and from them.
#pragma once

#if defined(__aarch64__) && defined(__GNUC__) && !defined(__AARCH64EB__)
#define RANS_NEON 1
#include <arm_neon.h>

#include "window.hpp"

namespace rans {
namespace neon {

inline bool is_here() { return true; }  // every AArch64 has it

inline uint16x8_t look_up(const Lookup& table, uint16x8_t k) {
  const uint8x8_t bytes = vmovn_u16(k);
  return vorrq_u16(vmovl_u8(vqtbl1_u8(vld1q_u8(table.low.data()), bytes)), vshll_n_u8(vqtbl1_u8(vld1q_u8(table.high.data()), bytes), 8));
}
inline uint32_t lane_set(uint16x8_t mask) {  // lane l in bit l
  const uint16_t bits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  return vaddvq_u16(vandq_u16(mask, vld1q_u16(bits)));
}
inline uint16x8_t shuffled(uint16x8_t words, const std::array<uint8_t, 16>& shuffle) {
  return vreinterpretq_u16_u8(vqtbl1q_u8(vreinterpretq_u8_u16(words), vld1q_u8(shuffle.data())));
}
inline uint16x8_t low_halves(const uint32x4_t* states) { return vcombine_u16(vmovn_u32(states[0]), vmovn_u32(states[1])); }
inline uint16x8_t high_halves(const uint32x4_t* states) { return vcombine_u16(vshrn_n_u32(states[0], 16), vshrn_n_u32(states[1], 16)); }
inline uint32x4_t widened(uint16x8_t values, size_t half) { return vmovl_u16(half ? vget_high_u16(values) : vget_low_u16(values)); }

inline size_t pop_groups(uint32_t* lane, const Window& window, int32_t offset, const uint8_t*& at, const uint8_t* end, int16_t* values, size_t count) {
  uint32x4_t states[4];
  for (size_t q = 0; q < 4; ++q) states[q] = vld1q_u32(lane + 4 * q);
  const int16x8_t first = vdupq_n_s16(static_cast<int16_t>(static_cast<int32_t>(window.first) + offset));
  const uint16x8_t begin = vdupq_n_u16(static_cast<uint16_t>(window.begin)), last = vdupq_n_u16(static_cast<uint16_t>(window.end - 1));
  size_t i = 0;
  for (; i + 16 <= count && at <= end; i += 16) {
    const uint16x8_t slots[2] = {low_halves(states), low_halves(states + 2)};
    uint16x8_t inside = vdupq_n_u16(0xffff);
    for (const uint16x8_t slot : slots) inside = vandq_u16(inside, vandq_u16(vcgeq_u16(slot, begin), vcleq_u16(slot, last)));
    if (vminvq_u16(inside) == 0) break;
    for (size_t h = 0; h < 2; ++h) {
      // A comparison gives -1 where it holds: so many entries begin at or before the slot.
      const int16x8_t compared = vreinterpretq_s16_u16(veorq_u16(slots[h], vdupq_n_u16(0x8000)));
      uint16x8_t k = vdupq_n_u16(0);
      for (size_t t = 0; t + 1 < window.count; ++t) k = vsubq_u16(k, vcgtq_s16(compared, vld1q_s16(window.before[t].data())));
      vst1q_s16(values + i + 8 * h, vaddq_s16(vreinterpretq_s16_u16(k), first));
      const uint16x8_t frequency = look_up(window.frequency, k), rest = vsubq_u16(slots[h], look_up(window.start, k));
      uint32x4_t* own = states + 2 * h;
      for (size_t q = 0; q < 2; ++q) own[q] = vmlaq_u32(widened(rest, q), widened(frequency, q), vshrq_n_u32(own[q], 16));
      const uint16x8_t due = vceqq_u16(high_halves(own), vdupq_n_u16(0));
      const uint32_t set = lane_set(due);
      const uint16x8_t words = shuffled(vreinterpretq_u16_u8(vld1q_u8(at)), kShuffles.spread[set]);
      at += 2 * __builtin_popcount(set);
      for (size_t q = 0; q < 2; ++q)
        own[q] = vbslq_u32(vceqq_u32(vshrq_n_u32(own[q], 16), vdupq_n_u32(0)), vorrq_u32(vshlq_n_u32(own[q], 16), widened(words, q)), own[q]);
    }
  }
  for (size_t q = 0; q < 4; ++q) vst1q_u32(lane + 4 * q, states[q]);
  return i;
}

inline size_t push_groups(uint32_t* lane, const Window& window, int32_t offset, uint8_t*& at, const int16_t* values, size_t count) {
  uint32x4_t states[4];
  for (size_t q = 0; q < 4; ++q) states[q] = vld1q_u32(lane + 4 * q);
  const int16x8_t first = vdupq_n_s16(static_cast<int16_t>(static_cast<int32_t>(window.first) + offset));
  for (; count > 0; count -= 16) {
    uint16x8_t k[2];
    for (size_t h = 0; h < 2; ++h) k[h] = vreinterpretq_u16_s16(vsubq_s16(vld1q_s16(values + count - 16 + 8 * h), first));
    if (vmaxvq_u16(vmaxq_u16(k[0], k[1])) >= window.count) break;
    for (size_t h = 2; h-- > 0;) {
      uint32x4_t* own = states + 2 * h;
      const uint16x8_t frequency = look_up(window.frequency, k[h]), start = look_up(window.start, k[h]);
      const uint16x8_t reciprocal_low = look_up(window.reciprocal_low, k[h]), reciprocal_high = look_up(window.reciprocal_high, k[h]);
      // The words that leave, right before those that are there; what is written before them is not yet used.
      const uint32_t set = lane_set(vcgeq_u16(high_halves(own), frequency));
      vst1q_u8(at - 16, vreinterpretq_u8_u16(shuffled(low_halves(own), kShuffles.gather[set])));
      at -= 2 * __builtin_popcount(set);
      for (size_t q = 0; q < 2; ++q) {
        const uint32x4_t f = widened(frequency, q), high = vshrq_n_u32(own[q], 16);
        const uint32x4_t state = vbslq_u32(vcgeq_u32(high, f), high, own[q]);
        // quotient = state * floor(2^32 / frequency) / 2^32 is right, or one too small.
        const uint32x4_t reciprocal = vorrq_u32(vshlq_n_u32(widened(reciprocal_high, q), 16), widened(reciprocal_low, q));
        const uint32x4_t quotient = vcombine_u32(vshrn_n_u64(vmull_u32(vget_low_u32(state), vget_low_u32(reciprocal)), 32),
                                                 vshrn_n_u64(vmull_u32(vget_high_u32(state), vget_high_u32(reciprocal)), 32));
        const uint32x4_t remainder = vmlsq_u32(state, quotient, f), small = vcgeq_u32(remainder, f);
        own[q] = vaddq_u32(vaddq_u32(vshlq_n_u32(vsubq_u32(quotient, small), 16), vsubq_u32(remainder, vandq_u32(small, f))), widened(start, q));
      }
    }
  }
  for (size_t q = 0; q < 4; ++q) vst1q_u32(lane + 4 * q, states[q]);
  return count;
}

}  // namespace neon
}  // namespace rans
#endif
