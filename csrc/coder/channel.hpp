// A channel's tables in the forms that the coder needs: its own table, its runs, its context
// tables; and one symbol's steps under them.
//
// Always holds: Tables has checked a table before a Channel is made from it, and it does not
// change.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "steps.hpp"
#include "window.hpp"

namespace rans {

// Throws std::invalid_argument unless the values increase strictly from 0 to 2^16. The message
// begins with `where`.
inline void check_cdf(const uint32_t* values, size_t length, const std::string& where) {
  if (values[0] != 0) throw std::invalid_argument(where + "its CDF does not begin at 0");
  for (size_t k = 1; k < length; ++k)
    if (values[k] <= values[k - 1])
      throw std::invalid_argument(where + "its CDF does not increase at value " +
                                  std::to_string(k));
  if (values[length - 1] != kOne)
    throw std::invalid_argument(where + "its CDF does not end at 65536");
}

// A table's entries, and an index for searches by slot (a state's low 16 bits): first[b] is the
// entry that covers slot b << kBucketBits.
struct Entries {
  static constexpr uint32_t kBucketBits = 6;
  std::vector<Entry> entries;
  std::vector<uint16_t> first;

  size_t size() const { return entries.size(); }
  const Entry& operator[](size_t k) const { return entries[k]; }
  void make_buckets() {
    first.resize(kOne >> kBucketBits);
    size_t k = 0;
    for (uint32_t b = 0; b < first.size(); ++b) {
      while (k + 1 < entries.size() && b << kBucketBits >= entries[k + 1].start) ++k;
      first[b] = static_cast<uint16_t>(k);
    }
  }
};

// An entry as the wide part's decoder needs it: fewer bytes than Entry, and the symbol in place.
struct DecoderEntry {
  uint16_t start, frequency;
  int16_t symbol;
};

struct Channel {
  int32_t offset;     // symbol of the first entry
  uint32_t in_table;  // number of entries that stand for symbols, and so the index of the escape
  uint32_t mode = 0;  // index of the most frequent of them, the first of equals
  bool in_runs;       // coded in runs of the mode; otherwise the channel is called busy
  Entries values;     // busy: the table. In runs: the table without the mode, scaled to 2^16
  Entries runs;       // in runs only; entry k: k modes, then another symbol
  std::vector<DecoderEntry> decoder_entries;  // busy only: `values` once more
  Window window;                              // busy only

  Channel(const uint32_t* cdf, size_t count, int32_t first_symbol)
      : offset(first_symbol), in_table(static_cast<uint32_t>(count - 1)) {
    const auto frequency = [&](size_t k) { return cdf[k + 1] - cdf[k]; };
    for (uint32_t k = 1; k < in_table; ++k)
      if (frequency(k) > frequency(mode)) mode = k;
    const uint32_t mode_frequency = frequency(mode), other_frequency = kOne - mode_frequency;
    in_runs = mode_frequency >= kRunFrequency;
    if (!in_runs) {
      for (size_t k = 0; k < count; ++k) {
        const int16_t symbol =
            k == in_table ? kNotASymbol : static_cast<int16_t>(offset + static_cast<int32_t>(k));
        values.entries.emplace_back(cdf[k], frequency(k));
        decoder_entries.push_back(
            {static_cast<uint16_t>(cdf[k]), static_cast<uint16_t>(frequency(k)), symbol});
      }
    } else {
      // The distribution of a symbol, given that it is not the mode. Scaling multiplies frequencies
      // by 2^16 / other_frequency >= 8, so none becomes 0.
      const auto scaled = [&](size_t k) {
        return static_cast<uint32_t>((uint64_t{cdf[k]} - (k > mode ? mode_frequency : 0)) * kOne /
                                     other_frequency);
      };
      for (size_t k = 0; k < count; ++k)
        if (k != mode) values.entries.emplace_back(scaled(k), scaled(k + 1) - scaled(k));
      // `survival` is the probability of k or more modes in a row, the k-th power of the mode's,
      // with 47 fractional bits. The longest run is the last k whose rounding to 16 bits differs
      // from the one before it, and from 0.
      uint64_t survival = uint64_t{1} << 47;
      uint32_t start = 0;
      while (runs.size() < kMaxRun) {
        survival = (survival >> 16) * mode_frequency + ((survival & 0xffff) * mode_frequency >> 16);
        const uint32_t next = kOne - static_cast<uint32_t>(survival >> 31);
        if (next == start || next >= kOne) break;
        runs.entries.emplace_back(start, next - start);
        start = next;
      }
      runs.entries.emplace_back(start, kOne - start);  // max_run modes: the run may go on
      runs.make_buckets();
    }
    values.make_buckets();
    if (!in_runs) window = Window(values.entries.data(), in_table);
  }

  uint32_t max_run() const { return static_cast<uint32_t>(runs.size()) - 1; }
};

// A channel's context tables, for small payloads. Refers to its channel, and does not own it.
struct Contexts {
  // An entry as the decoder needs it. Eight bytes, so that an index needs no multiplication.
  struct DecoderEntry {
    uint16_t start, frequency;
    int16_t symbol;
    uint8_t level;
    bool escape;
  };
  static constexpr uint32_t kBucketBits = 8;
  size_t channel;
  const Channel& own;
  std::array<int16_t, kLevels - 1> thresholds;
  // Entry k of context c is at c * size() + k, in both lists.
  std::vector<Entry> entries;
  std::vector<DecoderEntry> decoder_entries;
  // Entry of context c that covers slot b << kBucketBits, at (c << (16 - kBucketBits)) + b.
  std::vector<uint8_t> first;

  Contexts(size_t channel, const Channel& own, const int32_t* bounds, const uint32_t* cdf)
      : channel(channel), own(own) {
    for (size_t t = 0; t < thresholds.size(); ++t) thresholds[t] = static_cast<int16_t>(bounds[t]);
    entries.reserve(kContexts * size());
    decoder_entries.reserve(kContexts * size());
    first.reserve(size_t{kContexts} << (16 - kBucketBits));
    for (size_t context = 0; context < kContexts; ++context, cdf += size() + 1) {
      for (size_t k = 0; k < size(); ++k) {
        const int16_t symbol = static_cast<int16_t>(own.offset + static_cast<int32_t>(k));
        entries.emplace_back(cdf[k], cdf[k + 1] - cdf[k]);
        decoder_entries.push_back({static_cast<uint16_t>(cdf[k]),
                                   static_cast<uint16_t>(cdf[k + 1] - cdf[k]), symbol,
                                   level(symbol), k == own.in_table});
      }
      for (uint32_t slot = 0, k = 0; slot < kOne; slot += 1u << kBucketBits) {
        while (cdf[k + 1] <= slot) ++k;
        first.push_back(static_cast<uint8_t>(k));
      }
    }
  }

  size_t size() const { return size_t{own.in_table} + 1; }  // entries of each table
  // Number of thresholds that a symbol has reached.
  uint8_t level(int16_t symbol) const {
    uint8_t passed = 0;
    for (const int16_t threshold : thresholds) passed += symbol >= threshold;
    return passed;
  }
};

// Index of the entry that covers the state's low 16 bits.
inline uint32_t find(uint32_t state, const Entries& table) {
  const uint32_t slot = state & 0xffff;
  uint32_t k = table.first[slot >> Entries::kBucketBits];
  while (slot - table[k].start >= table[k].frequency) ++k;
  return k;
}

// An escaped symbol's distance from the table. Throws std::domain_error on kNotASymbol.
inline void push_digits(uint32_t& state, int32_t symbol, const Channel& channel, Writer& writer) {
  if (symbol == kNotASymbol)
    throw std::domain_error("symbol -32768 marks a latent that is not a number");
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

inline Status pop_digits(uint32_t& state, const Channel& channel, Reader& reader, int16_t& value) {
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
inline void push_value(uint32_t& state, int16_t symbol, const Channel& channel, Writer& writer) {
  const uint32_t k = static_cast<uint32_t>(symbol - channel.offset);
  if (k < channel.in_table) {
    push_entry<true>(state, channel.values[k - (channel.in_runs && k > channel.mode)], writer);
  } else {
    push_digits(state, symbol, channel, writer);
    push_entry(state, channel.values[channel.values.size() - 1], writer);
  }
}

inline Status pop_value(uint32_t& state, const Channel& channel, Reader& reader, int16_t& value) {
  const uint32_t k = find(state, channel.values);
  const Entry& entry = channel.values[k];
  pop_entry(state, entry.start, entry.frequency, reader);
  if (k + 1 == channel.values.size()) return pop_digits(state, channel, reader, value);
  value = static_cast<int16_t>(channel.offset +
                               static_cast<int32_t>(k + (channel.in_runs && k >= channel.mode)));
  return Status::ok;
}

}  // namespace rans
