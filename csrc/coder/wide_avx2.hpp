// The SIMD kernel for AVX2; see window.hpp. It needs GCC's or Clang's `target` attribute, so that
// one build has the kernels of several instruction sets.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define RANS_AVX2 1

// GCC 12 warns of the undefined registers inside its own intrinsics.
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

inline bool is_available() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt");
}

// The halves of all sixteen states.
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
  // AVX2 packs each half of a register by itself: this puts the result in order.
  static RANS_INLINE __m256i in_order(__m256i packed) {
    return _mm256_permute4x64_epi64(packed, 0xd8);
  }
};

RANS_INLINE __m256i broadcast(const uint8_t* bytes) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
}
// A column for look-ups by byte shuffles, which work on each half of a register by itself: all low
// bytes in both halves of one register, all high bytes in both halves of another.
struct Lookup {
  __m256i low, high;
  RANS_INLINE explicit Lookup(const Window::Column& column)
      : low(broadcast(column.bytes.data())), high(broadcast(column.bytes.data() + 16)) {}
};
// Sixteen indexes for look-ups. A byte shuffle uses the last four bits of an index byte, and gives
// 0 if its top bit is set. So `low` has the top bit set in the upper byte of each 16-bit place, to
// give the values' low bytes, and `high` in the lower byte.
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
  // Returns each entry's index in both bytes, with kUpper added in the upper one. `low` has the
  // slots less 2^15.
  static constexpr int kUpper = 0x90;
  RANS_INLINE __m256i operator()(__m256i low) const {
    // A comparison that holds gives -1 in both bytes, so subtracting it counts. The upper bytes
    // begin with kUpper / 4, which is 4 modulo 16 to look up the high bytes of `places`, and
    // becomes kUpper when it is multiplied by 4.
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
// a >= b, unsigned.
RANS_INLINE __m256i at_least(__m256i a, __m256i b) {
  return _mm256_cmpeq_epi16(_mm256_max_epu16(a, b), a);
}
// Bits of the lanes where `mask` holds: lanes 0-7 in bits 0-7, lanes 8-15 in bits 16-23.
RANS_INLINE uint32_t lane_set(__m256i mask) {
  return static_cast<uint32_t>(
      _mm256_movemask_epi8(_mm256_packs_epi16(mask, _mm256_setzero_si256())));
}
RANS_INLINE __m128i gather(__m128i words, uint32_t set) {
  return _mm_shuffle_epi8(
      words, _mm_load_si128(reinterpret_cast<const __m128i*>(kGather.shuffles[set].data())));
}
// The upper 32 bits of the products of 32-bit values.
RANS_INLINE __m256i high_products(__m256i a, __m256i b) {
  const __m256i evens = _mm256_srli_epi64(_mm256_mul_epu32(a, b), 32);
  const __m256i odds = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
  return _mm256_blend_epi32(evens, odds, 0xaa);
}

// In both bytes of each lane, twice the number of lanes up to and with this one where `due` holds.
RANS_INLINE __m256i twice_running_count(__m256i due) {
  __m256i count = _mm256_and_si256(due, _mm256_set1_epi8(2));
  count = _mm256_add_epi8(count, _mm256_slli_si256(count, 2));
  count = _mm256_add_epi8(count, _mm256_slli_si256(count, 4));
  count = _mm256_add_epi8(count, _mm256_slli_si256(count, 8));
  // So far each half of the register by itself: the upper half lacks the lower half's total.
  const __m256i lower_half = _mm256_permute2x128_si256(count, count, 0x08);
  return _mm256_add_epi8(count, _mm256_shuffle_epi8(lower_half, _mm256_set1_epi8(15)));
}

// The speed is that of the chain from one group's states to the next group's. So the lanes that
// need a word are found before the new states are known, words come by shuffles from two early
// loads rather than from computed addresses, and instructions off the chain come last, because a
// processor starts the oldest ready instruction first.
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
  // The n-th lane that needs a word takes the bytes 2n - 2 and 2n - 1 of the input. These are added
  // to 2n to give shuffle indexes. Lanes 0-7 only take words 1 to 8. For lanes 8-15, `to_own` sets
  // the index's top bit for n <= 8, and `to_first` for n > 8: one of the two shuffles gives the
  // word and the other 0.
  const __m256i to_first = _mm256_set1_epi16(0x6f6e);
  const __m256i to_own = _mm256_set_m128i(_mm_set1_epi16(static_cast<int16_t>(0xefee)),
                                          _mm_set1_epi16(static_cast<int16_t>(0xfffe)));
  // AVX2 has signed comparisons only, so `low` and what is computed from it are kept less 2^15.
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
    const __m256i place = twice_running_count(due);
    const __m256i words =
        _mm256_or_si256(_mm256_shuffle_epi8(own_words, _mm256_add_epi8(place, to_own)),
                        _mm256_shuffle_epi8(first_words, _mm256_add_epi8(place, to_first)));
    if (_mm256_movemask_epi8(_mm256_cmpgt_epi16(_mm256_sub_epi16(low, begin), last))) break;
    at += __builtin_popcount(static_cast<uint32_t>(_mm256_movemask_epi8(due)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + i),
                        _mm256_add_epi16(_mm256_srli_epi16(index.low, 8), first));
    // state = frequency * high + slot - start, in halves with a carry. Where a word is due the high
    // half is 0; the low half moves into it, and the word takes its place.
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
    // The words that leave go right before those already written. The stores also overwrite bytes
    // before them, which are not in use yet.
    const uint32_t set = lane_set(full), lower = set & 0xff, upper = set >> 16;
    const __m128i words_low = gather(_mm256_castsi256_si128(lanes.low), lower);
    const __m128i words_high = gather(_mm256_extracti128_si256(lanes.low, 1), upper);
    uint8_t* middle = at - 2 * __builtin_popcount(upper);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at - 16), words_high);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(middle - 16), words_low);
    at -= 2 * __builtin_popcount(set);
    const __m256i low = _mm256_blendv_epi8(lanes.low, lanes.high, full);
    const __m256i high = _mm256_andnot_si256(full, lanes.high);
    // quotient = state * floor(2^32 / frequency) / 2^32 is exact or one too small.
    const __m256i r_low = index.of(reciprocal_low), r_high = index.of(reciprocal_high);
    const __m256i quotient = _mm256_packus_epi32(
        high_products(_mm256_unpacklo_epi16(low, high), _mm256_unpacklo_epi16(r_low, r_high)),
        high_products(_mm256_unpackhi_epi16(low, high), _mm256_unpackhi_epi16(r_low, r_high)));
    // remainder = state - quotient * frequency, in halves with a borrow. If it is frequency or
    // more, the quotient is one too small.
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
