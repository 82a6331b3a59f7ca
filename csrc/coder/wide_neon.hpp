// The SIMD kernel for NEON, which every 64-bit Arm processor has; see window.hpp.
//
// A register holds halves of eight states, so everything is done twice. The code is not tuned: it
// was tested only under an emulator.
#pragma once

#if defined(__aarch64__) && defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define RANS_NEON 1
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "window.hpp"

namespace rans {
namespace neon {

inline bool is_available() { return true; }

// Looks up a column's values at eight indexes. An index is in both bytes of its 16-bit place, with
// 16 added in the upper one, where a column has the high bytes.
struct Lookup {
  uint8x16x2_t bytes;
  explicit Lookup(const Window::Column& column)
      : bytes{{vld1q_u8(column.bytes.data()), vld1q_u8(column.bytes.data() + 16)}} {}
  uint16x8_t at(uint8x16_t index) const { return vreinterpretq_u16_u8(vqtbl2q_u8(bytes, index)); }
};

// Finds the entries of eight slots that lie in the window, as indexes for a Lookup.
struct Search {
  int16x8_t quarters[3];
  uint8x16_t places[3];

  explicit Search(const Window& window) {
    for (size_t j = 0; j < 3; ++j)
      quarters[j] = vdupq_n_s16(window.quarters[j]), places[j] = vld1q_u8(window.places[j].data());
  }
  // `slots` are less 2^15. A comparison that holds gives -1 in both bytes, so subtracting it
  // counts.
  uint8x16_t operator()(int16x8_t slots) const {
    uint8x16_t quarter = vreinterpretq_u8_u16(vdupq_n_u16(0x0400));
    for (size_t j = 0; j < 3; ++j)
      quarter = vsubq_u8(quarter, vreinterpretq_u8_u16(vcgtq_s16(slots, quarters[j])));
    uint8x16_t index = vshlq_n_u8(quarter, 2);
    for (size_t j = 0; j < 3; ++j)
      index = vsubq_u8(index, vreinterpretq_u8_u16(vcgtq_s16(
                                  slots, vreinterpretq_s16_u8(vqtbl1q_u8(places[j], quarter)))));
    return index;
  }
};

inline size_t pop_groups(uint32_t* lane, const Window& window, int32_t offset,
                         const uint8_t*& shared, const uint8_t* end, int16_t* values,
                         size_t count) {
  const uint8_t* at = shared;
  const Lookup start(window.start), frequency(window.frequency);
  const Search search(window);
  const uint16x8_t zero = vdupq_n_u16(0), bias = vdupq_n_u16(0x8000);
  const uint16x8_t begin = vdupq_n_u16(static_cast<uint16_t>(window.begin)),
                   size = vdupq_n_u16(static_cast<uint16_t>(window.end - window.begin));
  const int16x8_t first =
      vdupq_n_s16(static_cast<int16_t>(static_cast<int32_t>(window.first) + offset - 16));
  uint16x8_t low[2], high[2];
  for (size_t h = 0; h < 2; ++h) {
    const uint16x8_t a = vreinterpretq_u16_u32(vld1q_u32(lane + 8 * h)),
                     b = vreinterpretq_u16_u32(vld1q_u32(lane + 8 * h + 4));
    low[h] = vuzp1q_u16(a, b), high[h] = vuzp2q_u16(a, b);
  }
  size_t i = 0;
  for (; i + 16 <= count && at <= end; i += 16) {
    const uint16x8_t inside = vandq_u16(vcltq_u16(vsubq_u16(low[0], begin), size),
                                        vcltq_u16(vsubq_u16(low[1], begin), size));
    if (vminvq_u16(inside) == 0) break;
    for (size_t h = 0; h < 2; ++h) {
      const uint8x16_t k = search(vreinterpretq_s16_u16(veorq_u16(low[h], bias)));
      vst1q_s16(values + i + 8 * h,
                vaddq_s16(vreinterpretq_s16_u16(vshrq_n_u16(vreinterpretq_u16_u8(k), 8)), first));
      // state = frequency * high + slot - start
      const uint16x8_t f = frequency.at(k), rest = vsubq_u16(low[h], start.at(k));
      const uint16x8_t a = vreinterpretq_u16_u32(
          vmlal_u16(vmovl_u16(vget_low_u16(rest)), vget_low_u16(f), vget_low_u16(high[h])));
      const uint16x8_t b = vreinterpretq_u16_u32(vmlal_high_u16(vmovl_high_u16(rest), f, high[h]));
      const uint16x8_t next = vuzp1q_u16(a, b), above = vuzp2q_u16(a, b), due = vceqzq_u16(above);
      // A running count of the lanes that need a word: the n-th of them takes the bytes 2n - 2 and
      // 2n - 1 of the input.
      const uint16x8_t one = vshrq_n_u16(due, 15);
      uint16x8_t place = vaddq_u16(one, vextq_u16(zero, one, 7));
      place = vaddq_u16(place, vextq_u16(zero, place, 6));
      place = vaddq_u16(place, vextq_u16(zero, place, 4));
      const uint8x16_t bytes =
          vreinterpretq_u8_u16(vsubq_u16(vmulq_n_u16(place, 0x0202), vdupq_n_u16(0x0102)));
      low[h] = vbslq_u16(due, vreinterpretq_u16_u8(vqtbl1q_u8(vld1q_u8(at), bytes)), next);
      high[h] = vbslq_u16(due, next, above);
      at += 2 * vaddvq_u16(one);
    }
  }
  for (size_t h = 0; h < 2; ++h) {
    vst1q_u32(lane + 8 * h, vreinterpretq_u32_u16(vzip1q_u16(low[h], high[h])));
    vst1q_u32(lane + 8 * h + 4, vreinterpretq_u32_u16(vzip2q_u16(low[h], high[h])));
  }
  shared = at;
  return i;
}

// One step of four lanes, whose states are less than frequency * 2^16.
inline uint32x4_t push_step(uint32x4_t state, uint32x4_t start, uint32x4_t frequency,
                            uint32x4_t reciprocal) {
  // quotient = state * floor(2^32 / frequency) / 2^32 is exact or one too small.
  const uint32x2_t lower =
      vshrn_n_u64(vmull_u32(vget_low_u32(state), vget_low_u32(reciprocal)), 32);
  const uint32x4_t quotient = vshrn_high_n_u64(lower, vmull_high_u32(state, reciprocal), 32);
  const uint32x4_t remainder = vmlsq_u32(state, quotient, frequency),
                   small = vcgeq_u32(remainder, frequency);
  const uint32x4_t sum = vaddq_u32(vshlq_n_u32(vsubq_u32(quotient, small), 16),
                                   vsubq_u32(remainder, vandq_u32(small, frequency)));
  return vaddq_u32(sum, start);
}

inline size_t push_groups(uint32_t* lane, const Window& window, int32_t offset, uint8_t*& shared,
                          const int16_t* values, size_t count) {
  uint8_t* at = shared;
  const Lookup start(window.start), frequency(window.frequency),
      reciprocal_low(window.reciprocal_low), reciprocal_high(window.reciprocal_high);
  const uint16x8_t first =
      vdupq_n_u16(static_cast<uint16_t>(static_cast<int32_t>(window.first) + offset));
  const uint16x8_t entries = vdupq_n_u16(static_cast<uint16_t>(window.count));
  const uint16_t lane_bits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  const uint16x8_t bits = vld1q_u16(lane_bits);
  for (; count > 0; count -= 16) {
    uint16x8_t k[2];
    for (size_t h = 0; h < 2; ++h)
      k[h] = vsubq_u16(vreinterpretq_u16_s16(vld1q_s16(values + count - 16 + 8 * h)), first);
    if (vminvq_u16(vandq_u16(vcltq_u16(k[0], entries), vcltq_u16(k[1], entries))) == 0) break;
    for (size_t h = 2; h-- > 0;) {
      const uint8x16_t index =
          vreinterpretq_u8_u16(vaddq_u16(vmulq_n_u16(k[h], 0x0101), vdupq_n_u16(0x1000)));
      const uint16x8_t f = frequency.at(index), s = start.at(index),
                       r_low = reciprocal_low.at(index), r_high = reciprocal_high.at(index);
      const uint16x8_t a = vreinterpretq_u16_u32(vld1q_u32(lane + 8 * h)),
                       b = vreinterpretq_u16_u32(vld1q_u32(lane + 8 * h + 4));
      const uint16x8_t low = vuzp1q_u16(a, b), high = vuzp2q_u16(a, b), full = vcgeq_u16(high, f);
      // The words that leave go right before those already written. The store also overwrites bytes
      // before them, which are not in use yet.
      const uint32_t set = vaddvq_u16(vandq_u16(full, bits));
      vst1q_u8(at - 16,
               vqtbl1q_u8(vreinterpretq_u8_u16(low), vld1q_u8(kGather.shuffles[set].data())));
      at -= 2 * __builtin_popcount(set);
      const uint16x8_t below = vbslq_u16(full, high, low), above = vbicq_u16(high, full);
      const uint32x4_t x = vreinterpretq_u32_u16(vzip1q_u16(below, above)),
                       y = vreinterpretq_u32_u16(vzip2q_u16(below, above));
      vst1q_u32(lane + 8 * h, push_step(x, vmovl_u16(vget_low_u16(s)), vmovl_u16(vget_low_u16(f)),
                                        vreinterpretq_u32_u16(vzip1q_u16(r_low, r_high))));
      vst1q_u32(lane + 8 * h + 4, push_step(y, vmovl_high_u16(s), vmovl_high_u16(f),
                                            vreinterpretq_u32_u16(vzip2q_u16(r_low, r_high))));
    }
  }
  shared = at;
  return count;
}

}  // namespace neon
}  // namespace rans
#endif
