// The wide part's groups of sixteen symbols with AVX2: see window.hpp.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define RANS_AVX2 1

// GCC 12 takes the undefined registers of its own intrinsics for mistakes, wherever they are used.
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <cstddef>
#include <cstdint>

#include "window.hpp"

namespace rans {
namespace avx2 {

#define RANS_TARGET __attribute__((target("avx2,popcnt")))
#define RANS_INLINE __attribute__((target("avx2,popcnt"), always_inline)) inline

inline bool is_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt"); }

struct Lanes {
  __m256i low, high;

  RANS_INLINE void load(const uint32_t* lane) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lane)),
                  b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lane + 8));
    const __m256i below = _mm256_set1_epi32(0xffff);
    low = in_order(_mm256_packus_epi32(_mm256_and_si256(a, below), _mm256_and_si256(b, below)));
    high = in_order(_mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16)));
  }
  RANS_INLINE void store(uint32_t* lane) const {
    const __m256i a = _mm256_unpacklo_epi16(low, high), b = _mm256_unpackhi_epi16(low, high);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lane), _mm256_permute2x128_si256(a, b, 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lane + 8),
                        _mm256_permute2x128_si256(a, b, 0x31));
  }
  // AVX2 packs each half of a register by itself.
  static RANS_INLINE __m256i in_order(__m256i packed) {
    return _mm256_permute4x64_epi64(packed, 0xd8);
  }
};

RANS_INLINE __m256i broadcast(const uint8_t* bytes) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
}
// Sixteen 16-bit values to be looked up by byte shuffles: one byte of each, in both halves of a
// register.
struct Lookup {
  __m256i low, high;
  RANS_INLINE explicit Lookup(const Window::Column& column)
      : low(broadcast(column.bytes.data())), high(broadcast(column.bytes.data() + 16)) {}
};
// Looks up sixteen indexes. A byte shuffle sees the last four bits of each byte, and gives 0 where
// its top bit is set: `low` has the indexes in the lower bytes of its places and top bits in the
// upper ones; or the other way round in `high`.
struct Index {
  __m256i low, high;
  RANS_INLINE explicit Index(__m256i low)
      : low(low), high(_mm256_xor_si256(low, _mm256_set1_epi8(static_cast<char>(0x80)))) {}
  RANS_INLINE __m256i of(const Lookup& table) const {
    return _mm256_or_si256(_mm256_shuffle_epi8(table.low, low),
                           _mm256_shuffle_epi8(table.high, high));
  }
};

// Finds the entries of sixteen slots that lie in the window.
struct Search {
  __m256i quarters[3], places[3];

  RANS_INLINE explicit Search(const Window& window) {
    for (size_t j = 0; j < 3; ++j) {
      quarters[j] = _mm256_set1_epi16(window.quarters[j]);
      places[j] = broadcast(window.places[j].data());
    }
  }
  // Indexes, to which kUpper is added in the upper bytes. `low`: slots less 2^15.
  static constexpr int kUpper = 0x90;
  RANS_INLINE __m256i operator()(__m256i low) const {
    // A comparison gives -1 in both bytes where it holds. The upper bytes begin with 4, to find the
    // high bytes of places, and with what makes kUpper of that when it is multiplied by 4.
    const __m256i quarter = _mm256_sub_epi8(
        _mm256_sub_epi8(_mm256_set1_epi16(kUpper / 4 << 8), _mm256_cmpgt_epi16(low, quarters[0])),
        _mm256_add_epi8(_mm256_cmpgt_epi16(low, quarters[1]),
                        _mm256_cmpgt_epi16(low, quarters[2])));
    __m256i passed[3];
    for (size_t j = 0; j < 3; ++j)
      passed[j] = _mm256_cmpgt_epi16(low, _mm256_shuffle_epi8(places[j], quarter));
    return _mm256_sub_epi8(_mm256_sub_epi8(_mm256_slli_epi16(quarter, 2), passed[0]),
                           _mm256_add_epi8(passed[1], passed[2]));
  }
};
RANS_INLINE __m256i at_least(__m256i a, __m256i b) {
  return _mm256_cmpeq_epi16(_mm256_max_epu16(a, b), a);
}  // unsigned
// Lanes 0-7 in bits 0-7, lanes 8-15 in bits 16-23.
RANS_INLINE uint32_t lane_set(__m256i mask) {
  return static_cast<uint32_t>(
      _mm256_movemask_epi8(_mm256_packs_epi16(mask, _mm256_setzero_si256())));
}
RANS_INLINE __m128i gather(__m128i words, uint32_t set) {
  return _mm_shuffle_epi8(
      words, _mm_load_si128(reinterpret_cast<const __m128i*>(kGather.shuffles[set].data())));
}
RANS_INLINE __m256i high_products(__m256i a, __m256i b) {  // of 32-bit lanes
  const __m256i evens = _mm256_srli_epi64(_mm256_mul_epu32(a, b), 32);
  const __m256i odds = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
  return _mm256_blend_epi32(evens, odds, 0xaa);
}

// What counts is how soon a group's states follow from those before. So who needs a word is known
// before the new states are, the words come from two early loads by shuffles, not from an address,
// and the instructions that nothing waits for stand last, as a processor begins with the oldest.
RANS_TARGET inline size_t pop_groups(uint32_t* lane, const Window& window, int32_t offset,
                                     const uint8_t*& shared, const uint8_t* end, int16_t* values,
                                     size_t count) {
  Lanes lanes;
  lanes.load(lane);
  const uint8_t* at = shared;
  const Lookup start(window.start), frequency(window.frequency), due_high(window.due_high),
      due_slot(window.due_slot);
  const __m256i bias = _mm256_set1_epi16(static_cast<int16_t>(0x8000));
  const __m256i first = _mm256_set1_epi16(
      static_cast<int16_t>(static_cast<int32_t>(window.first) + offset - Search::kUpper));
  const __m256i begin = _mm256_set1_epi16(static_cast<int16_t>(window.begin));
  const __m256i last = _mm256_set1_epi16(Window::signed_order(window.end - window.begin - 1));
  const Search search(window);
  // Lanes 0-7 take a word of the first eight, lanes 8-15 of all sixteen: byte indexes for either
  // half of those, less 2 for a count that begins at 1. Of the second half an index below 0 gives
  // 0, of the first one of 0x80 or more.
  const __m256i to_first = _mm256_set1_epi16(0x6f6e);
  const __m256i to_own = _mm256_set_m128i(_mm_set1_epi16(static_cast<int16_t>(0xefee)),
                                          _mm_set1_epi16(static_cast<int16_t>(0xfffe)));
  const __m256i two = _mm256_set1_epi8(2);
  // Slots are compared as signed, and so kept less 2^15: `low` and what is made of it are.
  __m256i low = _mm256_xor_si256(lanes.low, bias), high = lanes.high;
  size_t i = 0;
  for (; i + 16 <= count && at <= end; i += 16) {
    const __m256i own_words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
    const __m256i first_words =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    const Index index(search(low));
    const __m256i below = _mm256_cmpgt_epi16(index.of(due_slot), low);
    const __m256i due = _mm256_cmpgt_epi16(index.of(due_high),
                                           _mm256_add_epi16(_mm256_xor_si256(high, bias), below));
    // In both bytes, twice the count of lanes due up to this one: within each half, then over both.
    __m256i place = _mm256_and_si256(due, two);
    place = _mm256_add_epi8(place, _mm256_slli_si256(place, 2));
    place = _mm256_add_epi8(place, _mm256_slli_si256(place, 4));
    place = _mm256_add_epi8(place, _mm256_slli_si256(place, 8));
    place = _mm256_add_epi8(
        place,
        _mm256_shuffle_epi8(_mm256_permute2x128_si256(place, place, 0x08), _mm256_set1_epi8(15)));
    const __m256i words =
        _mm256_or_si256(_mm256_shuffle_epi8(own_words, _mm256_add_epi8(place, to_own)),
                        _mm256_shuffle_epi8(first_words, _mm256_add_epi8(place, to_first)));
    if (_mm256_movemask_epi8(_mm256_cmpgt_epi16(_mm256_sub_epi16(low, begin), last))) break;
    at += __builtin_popcount(static_cast<uint32_t>(_mm256_movemask_epi8(due)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + i),
                        _mm256_add_epi16(_mm256_srli_epi16(index.low, 8), first));
    // state = frequency * high + slot - start, in halves with a carry; the high half is 0 where a
    // word is due
    const __m256i f = index.of(frequency), rest = _mm256_sub_epi16(low, index.of(start));
    const __m256i next = _mm256_add_epi16(_mm256_mullo_epi16(f, high), rest);
    const __m256i carry = _mm256_cmpgt_epi16(rest, next);
    const __m256i moved = _mm256_and_si256(due, _mm256_xor_si256(next, bias));
    high = _mm256_or_si256(_mm256_sub_epi16(_mm256_mulhi_epu16(f, high), carry), moved);
    low = _mm256_xor_si256(_mm256_and_si256(due, words), _mm256_xor_si256(next, moved));
  }
  lanes.low = _mm256_xor_si256(low, bias);
  lanes.high = high;
  lanes.store(lane);
  shared = at;
  return i;
}

RANS_TARGET inline size_t push_groups(uint32_t* lane, const Window& window, int32_t offset,
                                      uint8_t*& shared, const int16_t* values, size_t count) {
  Lanes lanes;
  lanes.load(lane);
  uint8_t* at = shared;
  const Lookup start(window.start), frequency(window.frequency);
  const Lookup reciprocal_low(window.reciprocal_low), reciprocal_high(window.reciprocal_high);
  const __m256i zero = _mm256_setzero_si256();
  const __m256i first =
      _mm256_set1_epi16(static_cast<int16_t>(static_cast<int32_t>(window.first) + offset));
  const __m256i last = _mm256_set1_epi16(static_cast<int16_t>(window.count - 1));
  while (count > 0) {
    const __m256i k = _mm256_sub_epi16(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + count - 16)), first);
    if (_mm256_movemask_epi8(at_least(last, k)) != -1) break;
    count -= 16;
    const Index index(_mm256_or_si256(_mm256_or_si256(k, _mm256_slli_epi16(k, 8)),
                                      _mm256_set1_epi16(static_cast<int16_t>(0x8000))));
    const __m256i f = index.of(frequency);
    const __m256i full = at_least(lanes.high, f);
    // The words that leave, right before those that are there; what is written before them is not
    // yet used.
    const uint32_t set = lane_set(full), lower = set & 0xff, upper = set >> 16;
    const __m128i words_low = gather(_mm256_castsi256_si128(lanes.low), lower);
    const __m128i words_high = gather(_mm256_extracti128_si256(lanes.low, 1), upper);
    uint8_t* middle = at - 2 * __builtin_popcount(upper);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at - 16), words_high);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(middle - 16), words_low);
    at -= 2 * __builtin_popcount(set);
    const __m256i low = _mm256_blendv_epi8(lanes.low, lanes.high, full);
    const __m256i high = _mm256_andnot_si256(full, lanes.high);
    // quotient = state * floor(2^32 / frequency) / 2^32 is right, or one too small.
    const __m256i r_low = index.of(reciprocal_low), r_high = index.of(reciprocal_high);
    const __m256i quotient = _mm256_packus_epi32(
        high_products(_mm256_unpacklo_epi16(low, high), _mm256_unpacklo_epi16(r_low, r_high)),
        high_products(_mm256_unpackhi_epi16(low, high), _mm256_unpackhi_epi16(r_low, r_high)));
    // remainder = state - quotient * frequency, in halves with a borrow; frequency or more if the
    // quotient is too small
    const __m256i product = _mm256_mullo_epi16(quotient, f);
    const __m256i remainder = _mm256_sub_epi16(low, product);
    const __m256i borrow = _mm256_andnot_si256(at_least(low, product), _mm256_set1_epi16(1));
    const __m256i above =
        _mm256_sub_epi16(_mm256_sub_epi16(high, _mm256_mulhi_epu16(quotient, f)), borrow);
    const __m256i fits =
        _mm256_andnot_si256(at_least(remainder, f), _mm256_cmpeq_epi16(above, zero));
    const __m256i small = _mm256_cmpeq_epi16(fits, zero);
    lanes.high = _mm256_sub_epi16(quotient, small);
    lanes.low =
        _mm256_add_epi16(_mm256_sub_epi16(remainder, _mm256_and_si256(small, f)), index.of(start));
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
