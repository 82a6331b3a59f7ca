// The coder's two steps (an entry of a table, or raw bits), and the 16-bit words that they move
// between a lane's state and the payload.
//
// Always holds: a step of the decoder may read words past the payload's end, where PaddedCopy has
// zeros. The caller checks Reader::past_end before it uses what was decoded.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#if defined(_MSC_VER) && !defined(__GNUC__)
#include <intrin.h>
#endif

namespace rans {

// These numbers belong to the format: docs/FORMAT.md, section 3.
constexpr uint32_t kOne = 1u << 16;         // sum of a table's frequencies
constexpr uint32_t kLowerBound = 1u << 16;  // a lane's state lies in [2^16, 2^32)
constexpr size_t kNarrowLanes = 2;          // lane 0 codes runs, lane 1 the symbols that end them
constexpr size_t kWideLanes = 16;           // symbol i of a row belongs to wide lane i mod 16
constexpr size_t kWideSymbols = 16384;      // sixteen lanes cost bytes: not for fewer symbols
constexpr uint32_t kRunFrequency = 57344;   // 7/8: from this frequency of the mode on, runs
constexpr uint32_t kMaxRun = 256;           // modes that one step can code
constexpr int32_t kNotASymbol = -32768;     // the edge graph's mark for a NaN latent

// An escape is a table's last entry, then the symbol's distance from the table in base 128, least
// significant digit first. A digit is 8 bits; the top bit is set if another digit follows.
// distance = 2 * (symbol - end of table) above it, 2 * (start of table - 1 - symbol) + 1 below it.
constexpr uint32_t kMoreDigits = 128;
constexpr int kMaxDigits = 3;  // a distance is less than 2^17

// Small payloads: the levels of the symbols above and to the left choose a symbol's table.
constexpr size_t kLevels = 5;
constexpr size_t kContexts = kLevels * kLevels;
constexpr size_t kManyContexts = 16;        // four lanes cost bytes: not for fewer such channels
constexpr size_t kMaxContextEntries = 256;  // of a table of a channel with context tables

// These follow from the format, and bound buffers.
constexpr size_t kMaxSymbolWords = 4;  // words of one symbol: a run's, its own, two of an escape
constexpr size_t kSlack = 32;  // bytes before the payload's words that a vector store may overwrite

enum class Status {
  ok,
  truncated,   // the payload ends before the symbols do
  trailing,    // the symbols end before the payload does
  bad_state,   // a lane begins or ends in a state that the encoder does not leave
  bad_escape,  // an escaped symbol is out of range, or its digits are not in shortest form
};

// Why a payload is refused, for users: "the payload is damaged, REASON". "" for ok.
inline const char* reason(Status status) {
  switch (status) {
    case Status::truncated: return "it ends before its symbols do";
    case Status::trailing: return "bytes are left over after its last symbol";
    case Status::bad_state: return "the state of a lane is invalid";
    case Status::bad_escape: return "an escaped symbol is invalid";
    case Status::ok: break;
  }
  return "";
}

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

// An entry of a table or of a channel's runs: its part [start, start + frequency) of 2^16.
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

// Writes words from the buffer's end to its beginning: rANS decodes in reverse order, and so the
// decoder reads forwards. Does not own the buffer.
struct Writer {
  uint8_t* at;
  void push(uint16_t word) {
    at -= 2;
    at[0] = static_cast<uint8_t>(word);
    at[1] = static_cast<uint8_t>(word >> 8);
  }
  // Removes the word that was written last, which the decoder would read first.
  uint16_t take() {
    const uint16_t word = static_cast<uint16_t>(at[0] | at[1] << 8);
    at += 2;
    return word;
  }
};

// Reads the words of a PaddedCopy, and does not own it. May read up to PaddedCopy::kBehind bytes
// past `end`, all zeros; the caller checks `past_end`.
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
  // Takes a word if the state needs one. `branchless`: in arithmetic, because compilers may turn a
  // conditional into a branch. With many lanes side by side a mispredicted branch costs more than
  // a longer chain of dependent instructions.
  template <bool branchless = false>
  void refill(uint32_t& state) {
    const uint32_t due = state < kLowerBound, refilled = state << 16 | word();
    if (branchless) {
      state ^= (state ^ refilled) & (0u - due);
      at += 2 * due;
    } else {
      state = due ? refilled : state;
      at += due ? 2 : 0;
    }
  }
};

// A copy of a payload with room on both sides. In front: the words that the wide lanes give back.
// Behind: the zeros that sixteen symbols with all their digits may read before `past_end` is
// checked.
struct PaddedCopy {
  static constexpr size_t kFront = 2 * kWideLanes, kBehind = 2 * kWideLanes * (1 + 2 * kMaxDigits);
  size_t size;
  std::unique_ptr<uint8_t[]> bytes;
  PaddedCopy(const uint8_t* payload, size_t size)
      : size(size), bytes(new uint8_t[kFront + size + kBehind]) {
    if (size) std::memcpy(bytes.get() + kFront, payload, size);
    std::memset(bytes.get() + kFront + size, 0, kBehind);
  }
  Reader reader() const { return {bytes.get() + kFront, bytes.get() + kFront + size}; }
};

// One step of the encoder. `branchless`: as in Reader::refill.
template <bool branchless = false>
inline void push_entry(uint32_t& state, const Entry& entry, Writer& writer) {
  // A word leaves if the state would reach 2^32. It is stored in any case, and kept only then.
  const bool full = (state >> 16) >= entry.frequency;
  writer.at[-2] = static_cast<uint8_t>(state);
  writer.at[-1] = static_cast<uint8_t>(state >> 8);
  if (branchless) {
    writer.at -= 2 * static_cast<uint32_t>(full);
    state >>= 16 * static_cast<uint32_t>(full);
  } else {
    writer.at -= full ? 2 : 0;
    state = full ? state >> 16 : state;
  }
  // state = quotient * 2^16 + remainder + start, where remainder = state - quotient * frequency
  const uint32_t quotient = static_cast<uint32_t>((state * entry.reciprocal) >> 48);
  state += quotient * (kOne - entry.frequency) + entry.start;
}

// An entry without its reciprocal, for tables that are read in place.
struct Part {
  uint32_t start, frequency;
};

// The same step with a division.
template <bool = false>
inline void push_entry(uint32_t& state, Part entry, Writer& writer) {
  if ((state >> 16) >= entry.frequency) {
    writer.push(static_cast<uint16_t>(state));
    state >>= 16;
  }
  const uint32_t quotient = state / entry.frequency;
  state += quotient * (kOne - entry.frequency) + entry.start;
}

inline void pop_entry(uint32_t& state, uint32_t start, uint32_t frequency, Reader& reader) {
  state = frequency * (state >> 16) + (state & 0xffff) - start;
  reader.refill(state);
}

// `count` raw bits, at most 16.
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

// The encoder's last states, from the last lane to the first. A lane's low half is a word. Its high
// half goes into the lane before it, as raw bits without the leading one, then their number. Lane 0
// is written whole.
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

// Inverse of push_states.
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

// Whether a decoder ended as it must: all lanes in the encoder's first state, no word left.
template <size_t lanes>
inline Status check_end(const uint32_t (&lane)[lanes], const Reader& reader) {
  for (const uint32_t state : lane)
    if (state != kLowerBound) return Status::bad_state;
  return reader.at == reader.end ? Status::ok : Status::trailing;
}

}  // namespace rans
