// Reads edge.tables where it lies, in flash: what csrc/library/edge_tables.hpp does on machines
// with more memory. docs/BUNDLE.md, section 11, specifies the file.
//
// Always holds: nothing is read outside the file's bytes, nothing is allocated, and the tables are
// not copied. `open` makes the checks of the C library, so the coder may trust the tables.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../../csrc/coder/values.hpp"
#include "../../csrc/library/rule.hpp"
#include "status.hpp"

namespace cortex {

// The symbols of a table. `refuse_not_a_symbol` is for symbols of 16 bits; here they have eight.
struct Range {
  int32_t offset;     // symbol of the first entry
  uint32_t in_table;  // number of entries that stand for symbols
  static void refuse_not_a_symbol() {}
};

// The table without its mode, scaled, if the channel is coded in runs; else the table.
struct Values {
  const uint32_t* cdf;
  size_t count;  // entries, the escape among them
  rans::Mode mode;
  size_t size() const { return count - (mode.in_runs() ? 1 : 0); }
  rans::Part operator[](size_t k) const {
    if (!mode.in_runs()) return {cdf[k], cdf[k + 1] - cdf[k]};
    k += k >= mode.entry ? 1 : 0;
    const uint32_t start = mode.scaled(cdf, k);
    return {start, mode.scaled(cdf, k + 1) - start};
  }
};

struct Runs {
  uint16_t starts[rans::kMaxRun + 1];
  uint32_t max;
  rans::Part operator[](size_t k) const {
    return {starts[k], (k < max ? starts[k + 1] : rans::kOne) - starts[k]};
  }
};

// As rans::Channel. `runs` is the caller's memory.
struct Channel : Range {
  bool in_runs;
  uint32_t mode;
  Values values;
  const Runs& runs;
  uint32_t max_run() const { return runs.max; }
};

// As rans::Contexts, for encoders.
struct Contexts {
  // Entry k of context c is [c * size + k].
  struct Entries {
    const uint32_t* cdf;  // of each context size + 1 values
    uint32_t size;
    Entries data() const { return *this; }
    rans::Part operator[](size_t at) const {
      const uint32_t* value = cdf + at + at / size;
      return {value[0], value[1] - value[0]};
    }
  };
  Range own;
  std::array<int16_t, rans::kLevels - 1> thresholds;
  Entries entries;
  size_t channel;  // which of the planes
  uint8_t level(int16_t symbol) const {
    uint8_t passed = 0;
    for (const int16_t threshold : thresholds) passed += symbol >= threshold;
    return passed;
  }
};

class Tables {
 public:
  static constexpr size_t kMaxChannels = 64;

  // Takes a file, which must lie at a multiple of four bytes and stay there.
  Status open(const uint8_t* bytes, size_t size) {
    using namespace edgecloud::detail;
    if (size < kRuleBytes + edgecloud::kCrcBytes || size % 4 != 0 ||
        std::memcmp(bytes, kTablesMagic, sizeof kTablesMagic) != 0)
      return Status::not_tables;
    if (read_number(bytes + 8) != kTablesVersion) return Status::unknown_version;
    const uint8_t *tables = bytes + kRuleBytes, *end = bytes + size - edgecloud::kCrcBytes;
    if (edgecloud::crc32(bytes, size - edgecloud::kCrcBytes) != read_number(end))
      return Status::damaged_tables;
    rule_ = read_rule(bytes);
    if (problem_of(rule_) || rule_.channels > kMaxChannels) return Status::unknown_shape;
    if (fingerprint_of(rule_, tables, static_cast<size_t>(end - tables)) != rule_.fingerprint)
      return Status::damaged_tables;
    return find_all(reinterpret_cast<const uint32_t*>(tables),
                    reinterpret_cast<const uint32_t*>(end))
               ? Status::ok
               : Status::damaged_tables;
  }

  const edgecloud::Rule& rule() const { return rule_; }
  size_t contexts() const { return contexts_count_; }  // channels with context tables

  bool in_runs(size_t index) const {
    return rans::Mode(channels_[index] + 2, channels_[index][1] - 1).in_runs();
  }
  // Channel `index`. Computes its runs into `runs`, if it has any.
  Channel channel(size_t index, Runs& runs) const {
    const uint32_t *at = channels_[index], count = at[1] - 1;
    const rans::Mode mode(at + 2, count);
    if (mode.in_runs()) runs.max = mode.run_starts(runs.starts);
    return {{static_cast<int32_t>(at[0]), count - 1},
            mode.in_runs(),
            mode.entry,
            {at + 2, count, mode},
            runs};
  }

  // The k-th channel with context tables, and its tables. Its symbols are plane `plane`.
  size_t context_channel(size_t k) const { return contexts_[k][0]; }
  Contexts context(size_t k, size_t plane) const {
    const uint32_t *at = contexts_[k], *own = channels_[at[0]];
    Contexts out{{static_cast<int32_t>(own[0]), own[1] - 2}, {}, {at + 5, own[1] - 1}, plane};
    for (size_t t = 0; t < out.thresholds.size(); ++t)
      out.thresholds[t] = static_cast<int16_t>(at[1 + t]);
    return out;
  }

 private:
  static bool is_cdf(const uint32_t* values, size_t length) {
    if (values[0] != 0 || values[length - 1] != rans::kOne) return false;
    for (size_t k = 1; k < length; ++k)
      if (values[k] <= values[k - 1]) return false;
    return true;
  }

  // Finds and checks the tables of all channels.
  bool find_all(const uint32_t* at, const uint32_t* end) {
    for (size_t index = 0; index < rule_.channels; ++index) {
      if (end - at < 2) return false;
      const int64_t offset = static_cast<int32_t>(at[0]), length = at[1];
      if (length < 3 || length > end - at - 2 || offset <= rans::kNotASymbol ||
          offset + length - 3 > INT16_MAX || !is_cdf(at + 2, at[1]))
        return false;
      channels_[index] = at;
      at += 2 + length;
    }
    for (contexts_count_ = 0; at != end; ++contexts_count_) {
      if (end - at < 5 || at[0] >= rule_.channels) return false;
      const uint32_t length = channels_[at[0]][1];
      if ((contexts_count_ > 0 && at[0] <= contexts_[contexts_count_ - 1][0]) ||
          length > rans::kMaxContextEntries + 1 ||
          static_cast<size_t>(end - at) < 5 + rans::kContexts * length)
        return false;
      for (size_t t = 1; t < rans::kLevels; ++t) {
        const int32_t threshold = static_cast<int32_t>(at[t]);
        if (threshold <= rans::kNotASymbol || threshold > INT16_MAX ||
            (t > 1 && threshold <= static_cast<int32_t>(at[t - 1])))
          return false;
      }
      contexts_[contexts_count_] = at;
      at += 5;
      for (size_t context = 0; context < rans::kContexts; ++context, at += length)
        if (!is_cdf(at, length)) return false;
    }
    return !rule_.small || contexts_count_ > 0;
  }

  edgecloud::Rule rule_;
  size_t contexts_count_;
  const uint32_t* channels_[kMaxChannels];  // offset, length, CDF
  const uint32_t* contexts_[kMaxChannels];  // channel, thresholds, CDFs
};

}  // namespace cortex
