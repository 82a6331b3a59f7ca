// The SIMD kernel for AVX-512; see window.hpp.
//
// Decoding works as with AVX2, but one instruction looks up an entry's value, and one distributes
// the words to the lanes that need them. Encoding holds whole 32-bit states; its quotients are
// products of 52 by 52 bits, and exact.
#pragma once

#include "wide_avx2.hpp"

#if defined(RANS_AVX2)

namespace rans {
namespace avx512 {

#define RANS_FEATURES "avx2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2,avx512ifma"
#define RANS_TARGET __attribute__((target(RANS_FEATURES)))
#define RANS_INLINE __attribute__((target(RANS_FEATURES), always_inline)) inline

inline bool is_available() {
  return avx2::is_available() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
         __builtin_cpu_supports("avx512ifma");
}

RANS_INLINE __m256i load(const Window::Column& column) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(column.bytes.data()));
}
// A column's values as 32-bit integers.
RANS_INLINE __m512i widened(const Window::Column& column) {
  const __m128i* halves = reinterpret_cast<const __m128i*>(column.bytes.data());
  return _mm512_or_si512(_mm512_cvtepu8_epi32(_mm_load_si128(halves)),
                         _mm512_slli_epi32(_mm512_cvtepu8_epi32(_mm_load_si128(halves + 1)), 8));
}

RANS_TARGET inline size_t pop_groups(uint32_t* lane, const Window& window, int32_t offset,
                                     const uint8_t*& shared, const uint8_t* end, int16_t* values,
                                     size_t count) {
  const uint8_t* at = shared;
  const __m256i start = load(window.start), frequency = load(window.frequency);
  const __m256i due_high = load(window.due_high), due_slot = load(window.due_slot);
  const __m256i bias = _mm256_set1_epi16(static_cast<int16_t>(0x8000));
  const __m256i first = _mm256_set1_epi16(
      static_cast<int16_t>(static_cast<int32_t>(window.first) + offset - avx2::Search::kUpper));
  const __m256i begin = _mm256_set1_epi16(static_cast<int16_t>(window.begin));
  const __m256i last = _mm256_set1_epi16(Window::signed_order(window.end - window.begin - 1));
  const avx2::Search search(window);
  static_assert(avx2::Search::kUpper % 32 == 16);
  const __m512i states = _mm512_loadu_si512(lane);
  // As with AVX2, `low` and what is computed from it are kept less 2^15.
  __m256i low = _mm256_xor_si256(_mm512_cvtepi32_epi16(states), bias),
          high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(states, 16));
  size_t i = 0;
  for (; i + 16 <= count && at <= end; i += 16) {
    const __m256i words =
        _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)), bias);
    // A permutation uses five bits of an index byte; with kUpper these find a column's high bytes.
    const __m256i k = search(low);
    const __m256i below = _mm256_cmpgt_epi16(_mm256_permutexvar_epi8(k, due_slot), low);
    const __mmask16 due =
        _mm256_cmpgt_epi16_mask(_mm256_permutexvar_epi8(k, due_high),
                                _mm256_add_epi16(_mm256_xor_si256(high, bias), below));
    if (_mm256_cmpgt_epi16_mask(_mm256_sub_epi16(low, begin), last)) break;
    at += 2 * __builtin_popcount(due);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(values + i),
                        _mm256_add_epi16(_mm256_srli_epi16(k, 8), first));
    // state = frequency * high + slot - start, in halves with a carry
    const __m256i f = _mm256_permutexvar_epi8(k, frequency),
                  rest = _mm256_sub_epi16(low, _mm256_permutexvar_epi8(k, start));
    const __m256i next = _mm256_add_epi16(_mm256_mullo_epi16(f, high), rest);
    const __m256i carry = _mm256_cmpgt_epi16(rest, next);
    high = _mm256_mask_mov_epi16(_mm256_sub_epi16(_mm256_mulhi_epu16(f, high), carry), due,
                                 _mm256_xor_si256(next, bias));
    low = _mm256_mask_expand_epi16(next, due, words);
  }
  low = _mm256_xor_si256(low, bias);
  _mm512_storeu_si512(lane, _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                                            _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
  shared = at;
  return i;
}

RANS_TARGET inline size_t push_groups(uint32_t* lane, const Window& window, int32_t offset,
                                      uint8_t*& shared, const int16_t* values, size_t count) {
  uint8_t* at = shared;
  const __m256i first =
      _mm256_set1_epi16(static_cast<int16_t>(static_cast<int32_t>(window.first) + offset));
  const __m256i last = _mm256_set1_epi16(static_cast<int16_t>(window.count - 1));
  const __m512i frequency = widened(window.frequency), limit = _mm512_slli_epi32(frequency, 16);
  const __m512i complement = _mm512_sub_epi32(_mm512_set1_epi32(1 << 16), frequency);
  // For state < frequency * 2^16 the quotient is exact, as with Entry in steps.hpp: rounding the
  // reciprocal up adds less than state / 2^52 < 2^-20. Only for a frequency of 1, where the
  // reciprocal is 2^52 - 1, it is one too small; `start` then has the missing summand.
  const __m512i own_start = widened(window.start);
  const __m512i start = _mm512_mask_add_epi32(
      own_start, _mm512_cmpeq_epi32_mask(frequency, _mm512_set1_epi32(1)), own_start, complement);
  const __m512i reciprocals[2] = {_mm512_load_si512(window.reciprocal.data()),
                                  _mm512_load_si512(window.reciprocal.data() + 8)};
  const __m512i evens = _mm512_set1_epi64(0xffffffff), zero = _mm512_setzero_si512();
  __m512i state = _mm512_loadu_si512(lane);
  while (count > 0) {
    const __m256i index = _mm256_sub_epi16(
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + count - 16)), first);
    if (_mm256_cmpgt_epu16_mask(index, last)) break;
    count -= 16;
    const __m512i k = _mm512_cvtepu16_epi32(index);
    const __mmask16 full = _mm512_cmpge_epu32_mask(state, _mm512_permutexvar_epi32(k, limit));
    const uint32_t words = static_cast<uint32_t>(__builtin_popcount(full));
    at -= 2 * words;
    _mm256_mask_storeu_epi16(at, static_cast<__mmask16>((1u << words) - 1),
                             _mm256_maskz_compress_epi16(full, _mm512_cvtepi32_epi16(state)));
    state = _mm512_mask_srli_epi32(state, full, state, 16);
    // state + quotient * (2^16 - frequency) + start, for even and odd lanes in turn
    const __m512i sum = _mm512_add_epi32(state, _mm512_permutexvar_epi32(k, start)),
                  c = _mm512_permutexvar_epi32(k, complement);
    const __m512i r_even = _mm512_permutex2var_epi64(reciprocals[0], k, reciprocals[1]);
    const __m512i r_odd =
        _mm512_permutex2var_epi64(reciprocals[0], _mm512_srli_epi64(k, 32), reciprocals[1]);
    const __m512i even = _mm512_madd52hi_epu64(zero, _mm512_and_si512(state, evens), r_even);
    const __m512i odd = _mm512_madd52hi_epu64(zero, _mm512_srli_epi64(state, 32), r_odd);
    const __m512i next_even =
        _mm512_madd52lo_epu64(_mm512_and_si512(sum, evens), even, _mm512_and_si512(c, evens));
    const __m512i next_odd =
        _mm512_madd52lo_epu64(_mm512_srli_epi64(sum, 32), odd, _mm512_srli_epi64(c, 32));
    state = _mm512_or_si512(next_even, _mm512_slli_epi64(next_odd, 32));
  }
  _mm512_storeu_si512(lane, state);
  shared = at;
  return count;
}

#undef RANS_FEATURES
#undef RANS_INLINE
#undef RANS_TARGET

}  // namespace avx512
}  // namespace rans
#endif
