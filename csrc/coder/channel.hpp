// A channel's tables in the forms that the coder needs: its own table, its runs, its context
// tables.
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
#include "values.hpp"
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
    const Mode most(cdf, count);
    mode = most.entry, in_runs = most.in_runs();
    const auto frequency = [&](size_t k) { return cdf[k + 1] - cdf[k]; };
    if (!in_runs) {
      for (size_t k = 0; k < count; ++k) {
        const int16_t symbol =
            k == in_table ? kNotASymbol : static_cast<int16_t>(offset + static_cast<int32_t>(k));
        values.entries.emplace_back(cdf[k], frequency(k));
        decoder_entries.push_back(
            {static_cast<uint16_t>(cdf[k]), static_cast<uint16_t>(frequency(k)), symbol});
      }
    } else {
      for (size_t k = 0; k < count; ++k)
        if (k != mode)
          values.entries.emplace_back(most.scaled(cdf, k),
                                      most.scaled(cdf, k + 1) - most.scaled(cdf, k));
      uint16_t starts[kMaxRun + 1];
      const uint32_t max = most.run_starts(starts);
      for (uint32_t k = 0; k < max; ++k)
        runs.entries.emplace_back(starts[k], uint32_t{starts[k + 1]} - starts[k]);
      runs.entries.emplace_back(starts[max], kOne - starts[max]);  // the run may go on
      runs.make_buckets();
    }
    values.make_buckets();
    if (!in_runs) window = Window(values.entries.data(), in_table);
  }

  uint32_t max_run() const { return static_cast<uint32_t>(runs.size()) - 1; }
  // Of a symbol that is kNotASymbol, before a byte of it is written.
  [[noreturn]] static void refuse_not_a_symbol() {
    throw std::domain_error("symbol -32768 marks a latent that is not a number");
  }
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

}  // namespace rans
