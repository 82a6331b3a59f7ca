// The wide part's groups of sixteen symbols with AVX-512, byte for byte what rans.hpp does without.
//
// Like wide_avx2.hpp, whose windows it uses, with what AVX-512 has instead of byte shuffles: one
// instruction looks sixteen values up, masks say which lanes move a word, and words are spread to
// those lanes, or packed from them, by one instruction each. In 256 bits, so no core slows its clock.
#pragma once

#include "wide_avx2.hpp"

#if defined(RANS_AVX2)

namespace rans {
namespace avx512 {

#define RANS_TARGET __attribute__((target("avx2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi2")))
#define RANS_INLINE __attribute__((target("avx2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi2"), always_inline)) inline

inline bool is_here() {
  return avx2::is_here() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi2");
}

RANS_INLINE __m256i table(const std::array<uint16_t, 16>& values) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(values.data())); }

template <size_t thresholds>
RANS_TARGET inline size_t pop_groups_of(uint32_t* lane, const Window& window, int32_t offset, const uint8_t*& shared, const uint8_t* end,
                                        int16_t* values, size_t count) {
  avx2::Lanes lanes;
  lanes.load(lane);
  const uint8_t* at = shared;
  const __m256i starts = table(window.start.values), frequencies = table(window.frequency.values);
  const __m256i bounds = table(window.bound.values), quotients = table(window.quotient.values);
  const __m256i bias = _mm256_set1_epi16(static_cast<int16_t>(0x8000)), zero = _mm256_setzero_si256();
  const __m256i first = _mm256_set1_epi16(static_cast<int16_t>(static_cast<int32_t>(window.first) + offset));
  const __m256i begin = _mm256_set1_epi16(static_cast<int16_t>(window.begin - 0x8000));
  const __m256i last = _mm256_set1_epi16(static_cast<int16_t>(window.end - 1 - 0x8000));
  const bool whole = window.begin == 0 && window.end == 0x10000;
  __m256i before[thresholds];
#pragma GCC unroll 16
  for (size_t t = 0; t < thresholds; ++t) before[t] = _mm256_load_si256(reinterpret_cast<const __m256i*>(window.before[t].data()));
  // Slots are compared as signed, and so kept less 2^15: `low` and what is made of it are.
  __m256i low = _mm256_xor_si256(lanes.low, bias), high = lanes.high;
  size_t i = 0;
  for (; i + 16 <= count && at <= end; i += 16) {
    if (!whole && _mm256_cmpgt_epi16_mask(begin, low) | _mm256_cmpgt_epi16_mask(low, last)) break;
    const __m256i words = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)), bias);
    // A comparison gives -1 where it holds: so many entries begin at or before the slot.
    __m256i passed[4] = {zero, zero, zero, zero};
#pragma GCC unroll 16
    for (size_t t = 0; t < thresholds; ++t) passed[t % 4] = _mm256_sub_epi16(passed[t % 4], avx2::greater(low, before[t]));
    const __m256i k = _mm256_add_epi16(_mm256_add_epi16(passed[0], passed[1]), _mm256_add_epi16(passed[2], passed[3]));
    // Whether a word is due is known before the multiplications are done.
    const __m256i least = _mm256_add_epi16(high, avx2::greater(_mm256_permutexvar_epi16(k, bounds), low));
    const __mmask16 due = _mm256_cmple_epu16_mask(least, _mm256_permutexvar_epi16(k, quotients));
    at += 2 * __builtin_popcount(due);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + i), _mm256_add_epi16(k, first));
    // state = frequency * high + slot - start, in halves with a carry
    const __m256i frequency = _mm256_permutexvar_epi16(k, frequencies);
    const __m256i rest = _mm256_sub_epi16(low, _mm256_permutexvar_epi16(k, starts));
    const __m256i next = _mm256_add_epi16(_mm256_mullo_epi16(frequency, high), rest);
    const __m256i carried = _mm256_sub_epi16(_mm256_mulhi_epu16(frequency, high), avx2::greater(rest, next));
    high = _mm256_mask_mov_epi16(carried, due, _mm256_xor_si256(next, bias));
    low = _mm256_mask_expand_epi16(next, due, words);
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

#undef RANS_INLINE
#undef RANS_TARGET

}  // namespace avx512
}  // namespace rans
#endif
