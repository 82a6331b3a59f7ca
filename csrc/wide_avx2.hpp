// The wide part's groups of sixteen symbols with AVX2, byte for byte what rans.hpp does without.
//
// A lane's state is held as two 16-bit halves, so that one register has a half of all sixteen. What
// belongs to a symbol comes from byte shuffles, without a gather.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define RANS_AVX2 1
#include <immintrin.h>

#include "window.hpp"

namespace rans {
namespace avx2 {

#define RANS_TARGET __attribute__((target("avx2,popcnt")))
#define RANS_INLINE __attribute__((target("avx2,popcnt"), always_inline)) inline

inline bool is_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt"); }

struct Lanes {
  __m256i low, high;

  // Packing and unpacking work in halves of a register: qwords 0, 2, 1, 3 are then in order.
  RANS_INLINE void load(const uint32_t* lane) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lane)), b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lane + 8));
    const __m256i low_bits = _mm256_set1_epi32(0xffff);
    low = _mm256_permute4x64_epi64(_mm256_packus_epi32(_mm256_and_si256(a, low_bits), _mm256_and_si256(b, low_bits)), 0xd8);
    high = _mm256_permute4x64_epi64(_mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16)), 0xd8);
  }
  RANS_INLINE void store(uint32_t* lane) const {
    const __m256i a = _mm256_permute4x64_epi64(low, 0xd8), b = _mm256_permute4x64_epi64(high, 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lane), _mm256_unpacklo_epi16(a, b));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lane + 8), _mm256_unpackhi_epi16(a, b));
  }
};

RANS_INLINE __m256i broadcast(const std::array<uint8_t, 16>& bytes) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes.data())));
}
// Looks up sixteen indexes: a byte shuffle gives 0 where an index byte's top bit is set.
struct Index {
  __m256i low, high;
  RANS_INLINE explicit Index(__m256i k)
      : low(_mm256_or_si256(k, _mm256_set1_epi16(static_cast<int16_t>(0x8000)))),
        high(_mm256_or_si256(_mm256_slli_epi16(k, 8), _mm256_set1_epi16(0x0080))) {}
  RANS_INLINE __m256i of(__m256i table_low, __m256i table_high) const {
    return _mm256_or_si256(_mm256_shuffle_epi8(table_low, low), _mm256_shuffle_epi8(table_high, high));
  }
};
RANS_INLINE __m256i at_least(__m256i a, __m256i b) { return _mm256_cmpeq_epi16(_mm256_max_epu16(a, b), a); }  // unsigned
// Lanes 0-7 in bits 0-7, lanes 8-15 in bits 16-23.
RANS_INLINE uint32_t lane_set(__m256i mask) {
  return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_packs_epi16(mask, _mm256_setzero_si256())));
}
RANS_INLINE __m128i shuffle_of(const std::array<std::array<uint8_t, 16>, 256>& shuffles, uint32_t set) {
  return _mm_load_si128(reinterpret_cast<const __m128i*>(shuffles[set].data()));
}
RANS_INLINE __m256i high_products(__m256i a, __m256i b) {  // of 32-bit lanes
  const __m256i evens = _mm256_srli_epi64(_mm256_mul_epu32(a, b), 32);
  const __m256i odds = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
  return _mm256_blend_epi32(evens, odds, 0xaa);
}

// Looks up sixteen indexes, each in both bytes of its 16 bits.
struct Pairs {
  __m256i low, high;
  RANS_INLINE explicit Pairs(__m256i k)
      : low(_mm256_or_si256(k, _mm256_set1_epi16(static_cast<int16_t>(0x8000)))), high(_mm256_or_si256(k, _mm256_set1_epi16(0x0080))) {}
  RANS_INLINE __m256i of(const Lookup& table) const {
    return _mm256_or_si256(_mm256_shuffle_epi8(broadcast(table.low), low), _mm256_shuffle_epi8(broadcast(table.high), high));
  }
};

RANS_INLINE __m256i greater(__m256i a, __m256i b) { return _mm256_cmpgt_epi16(a, b); }

template <size_t thresholds>
RANS_TARGET inline size_t pop_groups_of(uint32_t* lane, const Window& window, int32_t offset, const uint8_t*& shared, const uint8_t* end,
                                     int16_t* values, size_t count) {
  Lanes lanes;
  lanes.load(lane);
  const uint8_t* at = shared;
  const __m256i bias = _mm256_set1_epi16(static_cast<int16_t>(0x8000)), zero = _mm256_setzero_si256();
  const __m256i first = _mm256_set1_epi16(static_cast<int16_t>(static_cast<int32_t>(window.first) + offset));
  const __m256i begin = _mm256_set1_epi16(static_cast<int16_t>(window.begin - 0x8000));
  const __m256i last = _mm256_set1_epi16(static_cast<int16_t>(window.end - 1 - 0x8000));
  const bool whole = window.begin == 0 && window.end == 0x10000;
  const __m256i places = _mm256_set1_epi16(static_cast<int16_t>(0xfffe));  // bytes -2 and -1
  // Slots are compared as signed, and so kept less 2^15: `low` and what is made of it are.
  __m256i low = _mm256_xor_si256(lanes.low, bias), high = lanes.high;
  size_t i = 0;
  for (; i + 16 <= count && at <= end; i += 16) {
    if (!whole && _mm256_movemask_epi8(_mm256_or_si256(_mm256_cmpgt_epi16(begin, low), _mm256_cmpgt_epi16(low, last)))) break;
    const __m256i words_low = _mm256_xor_si256(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))), bias);
    const __m256i words_high = _mm256_xor_si256(_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 16))), bias);
    // A comparison gives -1 in both bytes where it holds: so many entries begin at or before the slot.
    __m256i passed[4] = {zero, zero, zero, zero};
#pragma GCC unroll 16
    for (size_t t = 0; t < thresholds; ++t)
      passed[t % 4] = _mm256_sub_epi8(passed[t % 4], _mm256_cmpgt_epi16(low, _mm256_load_si256(reinterpret_cast<const __m256i*>(window.before[t].data()))));
    const __m256i k = _mm256_add_epi8(_mm256_add_epi8(passed[0], passed[1]), _mm256_add_epi8(passed[2], passed[3]));
    const Pairs pairs(k);
    // Whether a word is due is known before the multiplications are done.
    const __m256i least = _mm256_add_epi16(high, _mm256_cmpgt_epi16(pairs.of(window.bound), low));
    const __m256i due = _mm256_cmpeq_epi16(_mm256_min_epu16(least, pairs.of(window.quotient)), least);
    // In each half, -2 for each lane up to this one that takes a word; in the high half those of the low half as well.
    __m256i rank = _mm256_add_epi8(due, due);
    rank = _mm256_add_epi8(rank, _mm256_slli_si256(rank, 2));
    rank = _mm256_add_epi8(rank, _mm256_slli_si256(rank, 4));
    rank = _mm256_add_epi8(rank, _mm256_slli_si256(rank, 8));
    const __m256i others = _mm256_shuffle_epi8(_mm256_permute2x128_si256(rank, rank, 0x08), _mm256_set1_epi8(15));
    const __m256i place = _mm256_sub_epi8(_mm256_sub_epi8(places, rank), others);
    // A byte shuffle gives 0 where an index byte's top bit is set.
    const __m256i words = _mm256_or_si256(_mm256_shuffle_epi8(words_low, _mm256_adds_epu8(place, _mm256_set1_epi8(0x70))),
                                          _mm256_shuffle_epi8(words_high, _mm256_sub_epi8(place, _mm256_set1_epi8(16))));
    at += __builtin_popcount(static_cast<uint32_t>(_mm256_movemask_epi8(due)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + i), _mm256_add_epi16(_mm256_and_si256(k, _mm256_set1_epi16(0xff)), first));
    // state = frequency * high + slot - start, in halves with a carry
    const __m256i frequency = pairs.of(window.frequency);
    const __m256i rest = _mm256_sub_epi16(low, pairs.of(window.start));
    const __m256i next = _mm256_add_epi16(_mm256_mullo_epi16(frequency, high), rest);
    const __m256i carry = _mm256_cmpgt_epi16(rest, next);
    // Where a word is due the high half is 0, and where not the word is.
    high = _mm256_or_si256(_mm256_sub_epi16(_mm256_mulhi_epu16(frequency, high), carry), _mm256_and_si256(due, _mm256_xor_si256(next, bias)));
    low = _mm256_or_si256(_mm256_andnot_si256(due, next), _mm256_and_si256(due, words));
  }
  lanes.low = _mm256_xor_si256(low, bias);
  lanes.high = high;
  lanes.store(lane);
  shared = at;
  return i;
}

inline size_t pop_groups(uint32_t* lane, const Window& window, int32_t offset, const uint8_t*& at, const uint8_t* end, int16_t* values, size_t count) {
  return by_thresholds(window, pop_groups_of<3>, pop_groups_of<7>, pop_groups_of<11>, pop_groups_of<15>)(lane, window, offset, at, end, values, count);
}

RANS_TARGET inline size_t push_groups(uint32_t* lane, const Window& window, int32_t offset, uint8_t*& shared, const int16_t* values, size_t count) {
  Lanes lanes;
  lanes.load(lane);
  uint8_t* at = shared;
  const __m256i start_low = broadcast(window.start.low), start_high = broadcast(window.start.high);
  const __m256i frequency_low = broadcast(window.frequency.low), frequency_high = broadcast(window.frequency.high);
  const __m256i ll = broadcast(window.reciprocal_low.low), lh = broadcast(window.reciprocal_low.high);
  const __m256i hl = broadcast(window.reciprocal_high.low), hh = broadcast(window.reciprocal_high.high);
  const __m256i zero = _mm256_setzero_si256();
  const __m256i first = _mm256_set1_epi16(static_cast<int16_t>(static_cast<int32_t>(window.first) + offset));
  const __m256i last = _mm256_set1_epi16(static_cast<int16_t>(window.count - 1));
  while (count > 0) {
    const __m256i k = _mm256_sub_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + count - 16)), first);
    if (_mm256_movemask_epi8(at_least(last, k)) != -1) break;
    count -= 16;
    const Index index(k);
    const __m256i frequency = index.of(frequency_low, frequency_high);
    const __m256i full = at_least(lanes.high, frequency);
    // The words that leave, right before those that are there; what is written before them is not yet used.
    const uint32_t set = lane_set(full), lower = set & 0xff, upper = set >> 16;
    const __m128i words_low = _mm_shuffle_epi8(_mm256_castsi256_si128(lanes.low), shuffle_of(kShuffles.gather, lower));
    const __m128i words_high = _mm_shuffle_epi8(_mm256_extracti128_si256(lanes.low, 1), shuffle_of(kShuffles.gather, upper));
    uint8_t* middle = at - 2 * __builtin_popcount(upper);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at - 16), words_high);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(middle - 16), words_low);
    at -= 2 * __builtin_popcount(set);
    const __m256i low = _mm256_blendv_epi8(lanes.low, lanes.high, full);
    const __m256i high = _mm256_andnot_si256(full, lanes.high);
    // quotient = state * floor(2^32 / frequency) / 2^32 is right, or one too small.
    const __m256i reciprocal_low = index.of(ll, lh), reciprocal_high = index.of(hl, hh);
    const __m256i quotient =
        _mm256_packus_epi32(high_products(_mm256_unpacklo_epi16(low, high), _mm256_unpacklo_epi16(reciprocal_low, reciprocal_high)),
                            high_products(_mm256_unpackhi_epi16(low, high), _mm256_unpackhi_epi16(reciprocal_low, reciprocal_high)));
    // remainder = state - quotient * frequency, in halves with a borrow; frequency or more if the quotient is too small
    const __m256i product = _mm256_mullo_epi16(quotient, frequency);
    const __m256i remainder = _mm256_sub_epi16(low, product);
    const __m256i borrow = _mm256_andnot_si256(at_least(low, product), _mm256_set1_epi16(1));
    const __m256i above = _mm256_sub_epi16(_mm256_sub_epi16(high, _mm256_mulhi_epu16(quotient, frequency)), borrow);
    const __m256i fits = _mm256_andnot_si256(at_least(remainder, frequency), _mm256_cmpeq_epi16(above, zero));
    const __m256i small = _mm256_cmpeq_epi16(fits, zero);
    lanes.high = _mm256_sub_epi16(quotient, small);
    lanes.low = _mm256_add_epi16(_mm256_sub_epi16(remainder, _mm256_and_si256(small, frequency)), index.of(start_low, start_high));
  }
  lanes.store(lane);
  shared = at;
  return count;
}

#undef RANS_INLINE
#undef RANS_TARGET

}  // namespace avx2
}  // namespace rans
#endif
