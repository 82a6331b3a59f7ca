// The steps of a lane: an entry of a table, or some bits as they are; and the words that they move.
//
// A decoder's step may look at words before it is known whether they are there: its input is a copy
// with room behind. Whoever steps checks Reader::past_end before what was decoded is used.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#if defined(_MSC_VER) && !defined(__GNUC__)
#include <intrin.h>
#endif

namespace rans {

constexpr uint32_t kOne = 1u << 16;         // a table's frequencies sum to 2^16
constexpr uint32_t kLowerBound = 1u << 16;  // a lane's state lies in [2^16, 2^32)
constexpr size_t kNarrowLanes = 2;          // lane 0 codes runs, lane 1 what ends them
constexpr size_t kWideLanes = 16;           // symbol i of a row belongs to wide lane i mod 16
constexpr size_t kWideSymbols =
    16384;  // fewer symbols than this are not worth sixteen lanes' bytes
constexpr uint32_t kRunFrequency = 57344;  // a mode of 7/8 or more is coded in runs
constexpr uint32_t kMaxRun = 256;          // modes that one step can code
constexpr int32_t kNotASymbol = -32768;    // the edge graph's mark for a NaN latent
constexpr size_t kMaxSymbolWords = 4;  // words one symbol can take: a run's, its own, its escape's
constexpr size_t kSlack = 32;          // bytes before the words that a vector may overwrite

// Symbols that a table lacks are coded as its last entry, then their distance from the table in
// base 128, least significant digit first, each digit in 8 bits whose top bit says "more follows".
// distance = 2 * (symbol - end of table) above it, 2 * (start of table - 1 - symbol) + 1 below it.
constexpr uint32_t kMoreDigits = 128;
constexpr int kMaxDigits = 3;  // 2^17 distances at most

// Small payloads: the table of a symbol is chosen by the levels of the symbols above and to the
// left.
constexpr size_t kLevels = 5;
constexpr size_t kContexts = kLevels * kLevels;
constexpr size_t kManyContexts =
    16;  // channels with context tables that are worth four lanes' bytes
constexpr size_t kMaxContextEntries = 256;  // of a channel that has context tables

enum class Status {
  ok,
  truncated,   // the payload ends before the symbols do
  trailing,    // the symbols end before the payload does
  bad_state,   // a lane begins or ends in a state that the encoder does not leave
  bad_escape,  // an escaped symbol lies in the table, out of range, or is not in shortest form
};

inline uint32_t highest_bit(uint64_t bits) {
#if defined(__GNUC__)
  return 63u - static_cast<uint32_t>(__builtin_clzll(bits));
#elif defined(_MSC_VER) && defined(_WIN64)
  unsigned long place = 0;
  _BitScanReverse64(&place, bits);
  return place;
#else
  uint32_t place = 0;
  while (bits >>= 1) ++place;
  return place;
#endif
}

// What a step needs of one entry: of a table, or of a channel's runs.
struct Entry {
  uint64_t reciprocal;  // ceil(2^48 / frequency)
  uint32_t start, frequency;

  // For x < frequency * 2^16, (x * ceil(2^48 / f)) >> 48 is floor(x / f) exactly: rounding the
  // reciprocal up adds less than x / 2^48 < 2^-16 to the quotient, and x / f is never nearer
  // than 1 / f >= 2^-16 to the next integer. The product stays below 2^64 because f <= 2^16.
  Entry(uint32_t start, uint32_t frequency)
      : reciprocal(((uint64_t{1} << 48) + frequency - 1) / frequency),
        start(start),
        frequency(frequency) {}
};

// Words are written from the buffer's end to its beginning, so that the decoder reads forwards.
struct Writer {
  uint8_t* at;
  void push(uint16_t word) {
    at -= 2;
    at[0] = static_cast<uint8_t>(word);
    at[1] = static_cast<uint8_t>(word >> 8);
  }
  uint16_t take() {  // the decoder's first word
    const uint16_t word = static_cast<uint16_t>(at[0] | at[1] << 8);
    at += 2;
    return word;
  }
};

// May look at most kBehind bytes past its end, where zeros are; whoever steps checks `past_end`.
struct Reader {
  uint8_t* at;
  uint8_t* end;
  bool past_end() const { return at > end; }
  uint32_t word() const { return static_cast<uint32_t>(at[0] | at[1] << 8); }
  uint32_t pop() {
    const uint32_t first = word();
    at += 2;
    return first;
  }
  void give_back(uint16_t word) {
    at -= 2;
    at[0] = static_cast<uint8_t>(word);
    at[1] = static_cast<uint8_t>(word >> 8);
  }
  // `evenly`: without a branch, which compilers make of a choice. For many lanes side by side,
  // where a wrong guess costs more than a longer chain.
  template <bool evenly = false>
  void refill(uint32_t& state) {
    const uint32_t due = state < kLowerBound, refilled = state << 16 | word();
    if (evenly) {
      state ^= (state ^ refilled) & (0u - due);
      at += 2 * due;
    } else {
      state = due ? refilled : state;
      at += due ? 2 : 0;
    }
  }
};

// A copy of a payload with room on both sides: in front for the words that the wide lanes give
// back, behind so that a step may look at words before it is known whether they are there.
struct Copy {
  static constexpr size_t kFront = 2 * kWideLanes, kBehind = 2 * kWideLanes * (1 + 2 * kMaxDigits);
  size_t size;
  std::unique_ptr<uint8_t[]> bytes;
  Copy(const uint8_t* payload, size_t size)
      : size(size), bytes(new uint8_t[kFront + size + kBehind]) {
    if (size) std::memcpy(bytes.get() + kFront, payload, size);
    std::memset(bytes.get() + kFront + size, 0, kBehind);
  }
  Reader reader() const { return {bytes.get() + kFront, bytes.get() + kFront + size}; }
};

// `evenly`: as in Reader::refill.
template <bool evenly = false>
inline void push_entry(uint32_t& state, const Entry& entry, Writer& writer) {
  // Keep the state below 2^32 after the step: at most one word leaves.
  const bool full = (state >> 16) >= entry.frequency;
  writer.at[-2] = static_cast<uint8_t>(state);
  writer.at[-1] = static_cast<uint8_t>(state >> 8);
  if (evenly) {
    writer.at -= 2 * static_cast<uint32_t>(full);
    state >>= 16 * static_cast<uint32_t>(full);
  } else {
    writer.at -= full ? 2 : 0;
    state = full ? state >> 16 : state;
  }
  // state = quotient * 2^16 + remainder + start, the remainder being state - quotient * frequency
  const uint32_t quotient = static_cast<uint32_t>((state * entry.reciprocal) >> 48);
  state += quotient * (kOne - entry.frequency) + entry.start;
}

inline void pop_entry(uint32_t& state, uint32_t start, uint32_t frequency, Reader& reader) {
  state = frequency * (state >> 16) + (state & 0xffff) - start;
  reader.refill(state);
}

// Bits as they are, up to 16 of them.
inline void push_bits(uint32_t& state, uint32_t count, uint32_t bits, Writer& writer) {
  if (uint64_t{state} << count >> 32) {
    writer.push(static_cast<uint16_t>(state));
    state >>= 16;
  }
  state = state << count | bits;
}

inline uint32_t pop_bits(uint32_t& state, uint32_t count, Reader& reader) {
  const uint32_t bits = state & ((1u << count) - 1);
  state >>= count;
  reader.refill(state);
  return bits;
}

// The lanes' last states, from the last lane to the first: the low half of each as a word, the
// high half, which has as many bits as it has, in the lane before it. Lane 0 is written whole.
template <size_t lanes>
inline void push_states(uint32_t (&lane)[lanes], Writer& writer) {
  for (size_t l = lanes - 1; l > 0; --l) {
    writer.push(static_cast<uint16_t>(lane[l]));
    const uint32_t high = lane[l] >> 16, bits = highest_bit(high);
    push_bits(lane[l - 1], bits, high ^ 1u << bits, writer);
    push_bits(lane[l - 1], 4, bits, writer);
  }
  writer.push(static_cast<uint16_t>(lane[0] >> 16));
  writer.push(static_cast<uint16_t>(lane[0]));
}

template <size_t lanes>
inline Status pop_states(uint32_t (&lane)[lanes], Reader& reader) {
  lane[0] = reader.pop();
  lane[0] |= reader.pop() << 16;
  for (size_t l = 1; l < lanes; ++l) {
    if (lane[l - 1] < kLowerBound) break;
    const uint32_t bits = pop_bits(lane[l - 1], 4, reader);
    lane[l] = (1u << bits | pop_bits(lane[l - 1], bits, reader)) << 16;
    lane[l] |= reader.pop();
  }
  if (reader.past_end()) return Status::truncated;
  return lane[0] < kLowerBound ? Status::bad_state : Status::ok;
}

template <size_t lanes>
inline Status end_of(const uint32_t (&lane)[lanes], const Reader& reader) {
  for (const uint32_t state : lane)
    if (state != kLowerBound) return Status::bad_state;
  return reader.at == reader.end ? Status::ok : Status::trailing;
}

}  // namespace rans
