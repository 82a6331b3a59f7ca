// The narrow part's two lanes: busy channels symbol by symbol, other channels in runs of their
// mode.
//
// `lane` and the shared Writer or Reader are copied to local variables, which compilers keep in
// registers, and written back at the end.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#if defined(__SSE2__) || defined(_M_X64)  // MSVC has no __SSE2__, and every x86-64 has SSE2
#define RANS_SSE2 1
#include <emmintrin.h>
#endif

#include "values.hpp"

namespace rans {

// Symbol i of a row is coded in lane i mod 2.
template <class AnyChannel, class Symbol>
inline void push_narrow(uint32_t* lane, const AnyChannel& channel, const Symbol* values, size_t row,
                        Writer& writer) {
  uint32_t even = lane[0], odd = lane[1];
  size_t i = row;
  if (i % 2) push_value(even, values[--i], channel, writer);
  for (; i > 0; i -= 2) {
    push_value(odd, values[i - 1], channel, writer);
    push_value(even, values[i - 2], channel, writer);
  }
  lane[0] = even, lane[1] = odd;
}

template <class AnyChannel>
inline Status pop_narrow(uint32_t* lane, const AnyChannel& channel, Reader& shared, int16_t* values,
                         size_t row) {
  Reader reader = shared;
  uint32_t even = lane[0], odd = lane[1];
  Status status = Status::ok;
  for (size_t i = 0; i < row && status == Status::ok; ++i) {
    status = pop_value(even, channel, reader, values[i]);
    if (++i < row && status == Status::ok) status = pop_value(odd, channel, reader, values[i]);
    if (reader.past_end()) status = Status::truncated;
  }
  lane[0] = even, lane[1] = odd;
  shared = reader;
  return status;
}

constexpr size_t kGroup = 64;

// Bit i is set if values[i] is not `mode`; `count` is at most kGroup. `Symbol` is int16_t, or
// int8_t where there is little memory.
template <class Symbol>
inline uint64_t other_than(int16_t mode, const Symbol* values, size_t count) {
  uint64_t others = 0;
  size_t i = 0;
#if defined(RANS_SSE2)
  if constexpr (sizeof(Symbol) == 2) {
    const __m128i modes = _mm_set1_epi16(mode);
    for (; i + 16 <= count; i += 16) {
      const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + i));
      const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + i + 8));
      const int same = _mm_movemask_epi8(
          _mm_packs_epi16(_mm_cmpeq_epi16(low, modes), _mm_cmpeq_epi16(high, modes)));
      others |= uint64_t{0xffff ^ static_cast<uint32_t>(same)} << i;
    }
  }
#endif
  for (; i + 16 <= count; i += 16) {
    uint16_t any = 0;  // compilers vectorise this loop
    for (size_t j = 0; j < 16; ++j) any |= static_cast<uint16_t>(values[i + j] ^ mode);
    for (size_t j = 0; any && j < 16; ++j) others |= uint64_t{values[i + j] != mode} << (i + j);
  }
  for (; i < count; ++i) others |= uint64_t{values[i] != mode} << i;
  return others;
}

// `run` modes in a row. `ended`: by another symbol, and not by the row's end.
template <class AnyChannel>
inline void push_run(uint32_t& state, size_t run, bool ended, const AnyChannel& channel,
                     Writer& writer) {
  const size_t max_run = channel.max_run();
  size_t full = 0;  // runs of max_run, which a decoder reads before the rest
  if (run >= max_run) full = run / max_run, run %= max_run;
  const auto& entry = channel.runs[run];
  if (ended)
    push_entry<true>(state, entry, writer);
  else if (run)
    push_entry(state, std::decay_t<decltype(entry)>{entry.start, kOne - entry.start}, writer);
  for (; full; --full) push_entry(state, channel.runs[max_run], writer);
}

// Lane 0 codes the number of modes before the next other symbol, lane 1 that symbol. A run that
// reaches max_run or the row's end is coded as "so many modes or more". After max_run modes another
// run follows, unless the row is full.
template <class AnyChannel, class Symbol>
inline void push_runs(uint32_t* lane, const AnyChannel& channel, const Symbol* values, size_t row,
                      Writer& writer) {
  uint32_t run_lane = lane[0], value_lane = lane[1];
  const int16_t mode = static_cast<int16_t>(channel.offset + static_cast<int32_t>(channel.mode));
  size_t stop = row;   // symbols from here on are coded
  bool ended = false;  // whether values[stop] is a symbol that ended a run, not the row's end
  const auto push_other = [&](size_t i) {
    push_run(run_lane, stop - i - 1, ended, channel, writer);
    push_value(value_lane, values[i], channel, writer);
    stop = i;
    ended = true;
  };
  for (size_t end = row; end > 0;) {
    const size_t begin = (end - 1) / kGroup * kGroup;
    for (uint64_t others = other_than(mode, values + begin, end - begin); others;) {
      const uint32_t last = highest_bit(others);
      others ^= uint64_t{1} << last;
      push_other(begin + last);
    }
    end = begin;
  }
  push_run(run_lane, stop, ended, channel, writer);
  lane[0] = run_lane, lane[1] = value_lane;
}

// Inverse of push_runs.
template <class AnyChannel>
inline Status pop_runs(uint32_t* lane, const AnyChannel& channel, Reader& shared, int16_t* values,
                       size_t row) {
  std::fill(values, values + row,
            static_cast<int16_t>(channel.offset + static_cast<int32_t>(channel.mode)));
  Reader reader = shared;
  uint32_t run_lane = lane[0], value_lane = lane[1];
  const uint32_t max_run = channel.max_run();
  Status status = Status::ok;
  for (size_t i = 0; i < row;) {
    const uint32_t most = static_cast<uint32_t>(std::min<size_t>(max_run, row - i));
    const uint32_t start = channel.runs[most].start;
    if ((run_lane & 0xffff) >= start) {
      pop_entry(run_lane, start, kOne - start, reader);
      i += most;
    } else {
      const uint32_t run = find(run_lane, channel.runs);
      pop_entry(run_lane, channel.runs[run].start, channel.runs[run].frequency, reader);
      i += run;
      status = pop_value(value_lane, channel, reader, values[i]);
      if (status != Status::ok) break;
      ++i;
    }
    if (reader.past_end()) {
      status = Status::truncated;
      break;
    }
  }
  lane[0] = run_lane, lane[1] = value_lane;
  shared = reader;
  return status;
}

}  // namespace rans
