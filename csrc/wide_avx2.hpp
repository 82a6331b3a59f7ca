// The wide part's groups of sixteen symbols with AVX2, byte for byte what rans.hpp does without.
//
// A lane's state is held as two 16-bit halves, so that one register has a half of all sixteen. All
// lanes are under one table, and of it under a window of sixteen entries that has nearly all the
// mass: a symbol is then a count of thresholds passed, and what belongs to it comes from byte
// shuffles, without a gather. A group with a symbol outside the window is left to the caller.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define RANS_AVX2 1
#include <immintrin.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace rans {
namespace avx2 {

#define RANS_TARGET __attribute__((target("avx2,popcnt")))
#define RANS_INLINE __attribute__((target("avx2,popcnt"), always_inline)) inline

inline bool is_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt"); }

// For each set of eight lanes, as byte shuffles: words one after the other to the lanes of the set
// (`spread`), and the words of the set's lanes to the end of the register (`gather`).
struct Shuffles {
  alignas(16) std::array<std::array<uint8_t, 16>, 256> spread{}, gather{};
  constexpr Shuffles() {
    for (unsigned set = 0; set < 256; ++set) {
      unsigned count = 0;
      for (unsigned lane = 0; lane < 8; ++lane) count += set >> lane & 1;
      unsigned seen = 0;
      for (unsigned lane = 0; lane < 8; ++lane) {
        const bool in = set >> lane & 1;
        for (unsigned byte = 0; byte < 2; ++byte) {
          spread[set][2 * lane + byte] = static_cast<uint8_t>(in ? 2 * seen + byte : 0x80);
          if (in) gather[set][2 * (8 - count + seen) + byte] = static_cast<uint8_t>(2 * lane + byte);
        }
        seen += in;
      }
    }
  }
};
inline constexpr Shuffles kShuffles{};

// Sixteen 16-bit values, one byte of each in each half, to be looked up by byte shuffles.
struct Lookup {
  alignas(16) std::array<uint8_t, 16> low{}, high{};
  void set(size_t k, uint32_t value) {
    low[k] = static_cast<uint8_t>(value);
    high[k] = static_cast<uint8_t>(value >> 8);
  }
};

// Up to sixteen entries of a table, side by side.
struct Window {
  static constexpr size_t kEntries = 16;
  uint32_t first = 0, count = 0;   // entries of the table
  uint32_t begin = 0, end = 0;     // slots that they cover
  std::array<int16_t, kEntries - 1> thresholds{};  // starts of all but the first, less 2^15: compared as signed
  Lookup start, frequency, reciprocal_low, reciprocal_high;  // floor(2^32 / frequency), at most 2^32 - 1

  Window() = default;
  // The `count` entries with most mass, of entries[0 .. size).
  template <typename Entry>
  Window(const Entry* entries, size_t size) : count(static_cast<uint32_t>(size < kEntries ? size : kEntries)) {
    uint32_t most = 0;
    for (uint32_t k = 0; k + count <= size; ++k) {
      const uint32_t stop = entries[k + count - 1].start + entries[k + count - 1].frequency;
      if (stop - entries[k].start > most) first = k, begin = entries[k].start, end = stop, most = end - begin;
    }
    for (uint32_t k = 0; k < count; ++k) {
      const Entry& entry = entries[first + k];
      const uint32_t reciprocal = entry.frequency > 1 ? static_cast<uint32_t>((uint64_t{1} << 32) / entry.frequency) : 0xffffffffu;
      if (k > 0) thresholds[k - 1] = static_cast<int16_t>(entry.start - 0x8000u);
      start.set(k, entry.start);
      frequency.set(k, entry.frequency);
      reciprocal_low.set(k, reciprocal & 0xffff);
      reciprocal_high.set(k, reciprocal >> 16);
    }
  }
};

struct Lanes {
  __m256i low, high;

  RANS_INLINE void load(const uint32_t* lane) {
    alignas(32) uint16_t halves[2][16];
    for (size_t l = 0; l < 16; ++l) halves[0][l] = static_cast<uint16_t>(lane[l]), halves[1][l] = static_cast<uint16_t>(lane[l] >> 16);
    low = _mm256_load_si256(reinterpret_cast<const __m256i*>(halves[0]));
    high = _mm256_load_si256(reinterpret_cast<const __m256i*>(halves[1]));
  }
  RANS_INLINE void store(uint32_t* lane) const {
    alignas(32) uint16_t halves[2][16];
    _mm256_store_si256(reinterpret_cast<__m256i*>(halves[0]), low);
    _mm256_store_si256(reinterpret_cast<__m256i*>(halves[1]), high);
    for (size_t l = 0; l < 16; ++l) lane[l] = static_cast<uint32_t>(halves[1][l]) << 16 | halves[0][l];
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

// Pops groups from values[0] on, while all of a group lies in the window and `end` is not passed;
// gives how many symbols. May look 32 bytes past `at`.
RANS_TARGET inline size_t pop_groups(uint32_t* lane, const Window& window, int32_t offset, const uint8_t*& shared, const uint8_t* end,
                                     int16_t* values, size_t count) {
  Lanes lanes;
  lanes.load(lane);
  const uint8_t* at = shared;
  const __m256i start_low = broadcast(window.start.low), start_high = broadcast(window.start.high);
  const __m256i frequency_low = broadcast(window.frequency.low), frequency_high = broadcast(window.frequency.high);
  const __m256i bias = _mm256_set1_epi16(static_cast<int16_t>(0x8000)), zero = _mm256_setzero_si256();
  const __m256i first = _mm256_set1_epi16(static_cast<int16_t>(static_cast<int32_t>(window.first) + offset));
  const __m256i begin = _mm256_set1_epi16(static_cast<int16_t>(window.begin - 0x8000));
  const __m256i last = _mm256_set1_epi16(static_cast<int16_t>(window.end - 1 - 0x8000));
  const bool whole = window.begin == 0 && window.end == 0x10000;
  const size_t thresholds = window.count - 1;
  const __m256i most = _mm256_set1_epi16(static_cast<int16_t>(thresholds));
  __m256i threshold[16];
  for (size_t t = 0; t < 16; ++t) threshold[t] = t < thresholds ? _mm256_set1_epi16(window.thresholds[t]) : bias;  // above no slot
  // Slots are compared as signed, and so kept less 2^15: `low` and what is made of it are.
  __m256i low = _mm256_xor_si256(lanes.low, bias), high = lanes.high;
  size_t i = 0;
  for (; i + 16 <= count && at <= end; i += 16) {
    if (!whole && _mm256_movemask_epi8(_mm256_or_si256(_mm256_cmpgt_epi16(begin, low), _mm256_cmpgt_epi16(low, last)))) break;
    // A comparison gives -1 where it holds: k is the count of those, negated.
    __m256i passed[4] = {zero, zero, zero, zero};
    for (size_t t = 0; t < thresholds; t += 4)
      for (size_t j = 0; j < 4; ++j) passed[j] = _mm256_add_epi16(passed[j], _mm256_cmpgt_epi16(threshold[t + j], low));
    const __m256i above = _mm256_add_epi16(_mm256_add_epi16(passed[0], passed[1]), _mm256_add_epi16(passed[2], passed[3]));
    const __m256i k = _mm256_add_epi16(above, most);
    const Index index(k);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + i), _mm256_add_epi16(k, first));
    // state = frequency * high + slot - start, in halves with a carry
    const __m256i frequency = index.of(frequency_low, frequency_high);
    const __m256i rest = _mm256_sub_epi16(low, index.of(start_low, start_high));
    const __m256i next = _mm256_add_epi16(_mm256_mullo_epi16(frequency, high), rest);
    const __m256i carry = _mm256_cmpgt_epi16(rest, next);
    high = _mm256_sub_epi16(_mm256_mulhi_epu16(frequency, high), carry);
    const __m256i due = _mm256_cmpeq_epi16(high, zero);
    const uint32_t set = lane_set(due), lower = set & 0xff, upper = set >> 16;
    const uint8_t* middle = at + 2 * __builtin_popcount(lower);
    const __m128i words_low = _mm_shuffle_epi8(_mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)), _mm256_castsi256_si128(bias)),
                                               shuffle_of(kShuffles.spread, lower));
    const __m128i words_high = _mm_shuffle_epi8(_mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(middle)), _mm256_castsi256_si128(bias)),
                                                shuffle_of(kShuffles.spread, upper));
    at += 2 * __builtin_popcount(set);
    // Where a word is due the high half is 0, and where not the word is.
    high = _mm256_or_si256(high, _mm256_and_si256(due, _mm256_xor_si256(next, bias)));
    low = _mm256_or_si256(_mm256_andnot_si256(due, next), _mm256_set_m128i(words_high, words_low));
  }
  lanes.low = _mm256_xor_si256(low, bias);
  lanes.high = high;
  lanes.store(lane);
  shared = at;
  return i;
}

// Pushes groups from values[count - 1] down to values[0], count being a multiple of sixteen, while
// all of a group lies in the window; gives how many symbols are left. May write 16 bytes before
// the words.
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
