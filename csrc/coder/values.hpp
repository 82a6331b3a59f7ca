// One symbol's steps under the table of its channel, and what follows from a table
// (docs/FORMAT.md, section 3.1).
//
// `AnyChannel` is Channel of channel.hpp, or a type with the same members that reads its table in
// place, as examples/cortex-m does. So nothing here allocates memory, and nothing throws but
// AnyChannel::refuse_not_a_symbol.
#pragma once

#include <cstddef>
#include <cstdint>

#include "steps.hpp"

namespace rans {

// The mode of a table, and whether its channel is coded in runs of it.
struct Mode {
  uint32_t entry = 0, frequency = 0;  // the most frequent entry but the escape, the first of equals
  bool in_runs() const { return frequency >= kRunFrequency; }

  // `cdf` has `count` + 1 values; the last entry is the escape.
  Mode(const uint32_t* cdf, size_t count) {
    for (uint32_t k = 0; k + 1 < count; ++k)
      if (cdf[k + 1] - cdf[k] > frequency) entry = k, frequency = cdf[k + 1] - cdf[k];
  }

  // cdf[k] in the table without the mode, which is scaled to 2^16: the distribution of a symbol,
  // given that it is not the mode. Of channels in runs only. Scaling multiplies frequencies by
  // 2^16 / other >= 8, so none becomes 0; and the product is below 2^13 * 2^16.
  uint32_t scaled(const uint32_t* cdf, size_t k) const {
    return (cdf[k] - (k > entry ? frequency : 0)) * kOne / (kOne - frequency);
  }

  // Writes the starts of the entries of `runs`, at most kMaxRun + 1, and returns max_run.
  // `survival` is the probability of k or more modes in a row, the k-th power of the mode's, with
  // 47 fractional bits. The longest run is the last k whose rounding to 16 bits differs from the
  // one before it, and from 0.
  uint32_t run_starts(uint16_t* starts) const {
    uint64_t survival = uint64_t{1} << 47;
    uint32_t max_run = 0;
    for (starts[0] = 0; max_run < kMaxRun;) {
      survival = (survival >> 16) * frequency + ((survival & 0xffff) * frequency >> 16);
      const uint32_t next = kOne - static_cast<uint32_t>(survival >> 31);
      if (next == starts[max_run] || next >= kOne) break;
      starts[++max_run] = static_cast<uint16_t>(next);
    }
    return max_run;
  }
};

// Index of the entry that covers the state's low 16 bits.
template <class Entries>
inline uint32_t find(uint32_t state, const Entries& table) {
  const uint32_t slot = state & 0xffff;
  uint32_t k = table.first[slot >> Entries::kBucketBits];
  while (slot - table[k].start >= table[k].frequency) ++k;
  return k;
}

// An escaped symbol's distance from the table.
template <class AnyChannel>
inline void push_digits(uint32_t& state, int32_t symbol, const AnyChannel& channel,
                        Writer& writer) {
  if (symbol == kNotASymbol) AnyChannel::refuse_not_a_symbol();
  const int32_t end = channel.offset + static_cast<int32_t>(channel.in_table);
  uint32_t distance = symbol >= end ? 2 * static_cast<uint32_t>(symbol - end)
                                    : 2 * static_cast<uint32_t>(channel.offset - 1 - symbol) + 1;
  uint32_t digits[kMaxDigits];
  int count = 0;
  for (; distance >= kMoreDigits; distance /= kMoreDigits)
    digits[count++] = distance % kMoreDigits + kMoreDigits;
  digits[count++] = distance;
  while (count-- > 0) push_bits(state, 8, digits[count], writer);
}

template <class AnyChannel>
inline Status pop_digits(uint32_t& state, const AnyChannel& channel, Reader& reader,
                         int16_t& value) {
  uint32_t distance = 0, digit = kMoreDigits;
  for (int count = 0; digit >= kMoreDigits; ++count) {
    if (count == kMaxDigits) return Status::bad_escape;
    digit = pop_bits(state, 8, reader);
    if (reader.past_end()) return Status::truncated;
    distance |= (digit % kMoreDigits) << (7 * count);
    if (digit == 0 && count > 0) return Status::bad_escape;
  }
  const int32_t half = static_cast<int32_t>(distance / 2);
  const int32_t symbol = distance % 2
                             ? channel.offset - 1 - half
                             : channel.offset + static_cast<int32_t>(channel.in_table) + half;
  if (symbol <= kNotASymbol || symbol > 32767) return Status::bad_escape;
  value = static_cast<int16_t>(symbol);
  return Status::ok;
}

// A symbol under channel.values; an escape's digits are pushed first, because decoding reverses the
// order. The symbol is not the mode if the channel is coded in runs.
template <class AnyChannel>
inline void push_value(uint32_t& state, int16_t symbol, const AnyChannel& channel, Writer& writer) {
  const uint32_t k = static_cast<uint32_t>(symbol - channel.offset);
  if (k < channel.in_table) {
    push_entry<true>(state, channel.values[k - (channel.in_runs && k > channel.mode)], writer);
  } else {
    push_digits(state, symbol, channel, writer);
    push_entry(state, channel.values[channel.values.size() - 1], writer);
  }
}

template <class AnyChannel>
inline Status pop_value(uint32_t& state, const AnyChannel& channel, Reader& reader,
                        int16_t& value) {
  const uint32_t k = find(state, channel.values);
  const Entry& entry = channel.values[k];
  pop_entry(state, entry.start, entry.frequency, reader);
  if (k + 1 == channel.values.size()) return pop_digits(state, channel, reader, value);
  value = static_cast<int16_t>(channel.offset +
                               static_cast<int32_t>(k + (channel.in_runs && k >= channel.mode)));
  return Status::ok;
}

}  // namespace rans
