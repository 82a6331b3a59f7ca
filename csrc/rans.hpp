// Range asymmetric numeral systems (rANS) for rows of quantised features, under static integer tables.
//
// Codes `channels` rows of 16-bit integers, each row under the table of its channel. What holds:
//   * Bytes are the same on every machine and instruction set: integer arithmetic only, 16-bit
//     little-endian words, lane counts that belong to the format.
//   * The decoder reads no byte outside its input and writes no symbol outside its output, on any
//     input; it accepts a payload only if every byte of it is consumed and the lanes end in the
//     states that the format prescribes.
//   * Tables are validated once, by the constructor of Tables; coding trusts them.
//
// How it is fast: most channels are nearly all one symbol, their mode. There a *run* of modes and
// the one symbol that ends it are two steps instead of one step a symbol, at the same code length.
// Where many channels are not like that, sixteen lanes code them side by side (the wide part).
//
// Method: J. Duda, "Asymmetric numeral systems" (arXiv 1311.2540); interleaving after F. Giesen,
// "Interleaved entropy coders" (arXiv 1402.3392). docs/FORMAT.md is the specification; the
// pure-Python coder in tests/reference_coder.py is its oracle.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "wide_avx2.hpp"
#include "wide_avx512.hpp"
#include "wide_neon.hpp"
#include "window.hpp"

namespace rans {

constexpr uint32_t kOne = 1u << 16;          // a table's frequencies sum to 2^16
constexpr uint32_t kLowerBound = 1u << 16;   // a lane's state lies in [2^16, 2^32)
constexpr size_t kNarrowLanes = 2;           // lane 0 codes runs, lane 1 what ends them
constexpr size_t kWideLanes = 16;            // symbol i of a row belongs to wide lane i mod 16
constexpr size_t kWideSymbols = 16384;       // fewer symbols than this are not worth sixteen lanes' bytes
constexpr uint32_t kRunFrequency = 57344;    // a mode of 7/8 or more is coded in runs
constexpr uint32_t kMaxRun = 256;            // modes that one step can code
constexpr int32_t kNotASymbol = -32768;      // the edge graph's mark for a NaN latent
constexpr size_t kMaxSymbolWords = 4;        // words one symbol can take: a run's, its own, its escape's
constexpr size_t kSlack = 32;                // bytes before the words that a vector may overwrite

// Symbols that a table lacks are coded as its last entry, then their distance from the table in
// base 128, least significant digit first, each digit in 8 bits whose top bit says "more follows".
// distance = 2 * (symbol - end of table) above it, 2 * (start of table - 1 - symbol) + 1 below it.
constexpr uint32_t kMoreDigits = 128;
constexpr int kMaxDigits = 3;  // 2^17 distances at most

// Small payloads: the table of a symbol is chosen by the levels of the symbols above and to the left.
constexpr size_t kLevels = 5;
constexpr size_t kContexts = kLevels * kLevels;
constexpr size_t kManyContexts = 16;         // channels with context tables that are worth four lanes' bytes
constexpr size_t kMaxContextEntries = 256;  // of a channel that has context tables

// Ways to do the same: the wide part's groups one symbol at a time, or with vectors.
struct Path {
  const char* name;
  bool (*is_here)();  // on this machine
  PushGroups push_groups;
  PopGroups pop_groups;  // none: a symbol at a time
};

// The fastest first.
inline constexpr Path kPaths[] = {
#if defined(RANS_AVX2)
    {"avx512", avx512::is_here, avx512::push_groups, avx512::pop_groups},
    {"avx2", avx2::is_here, avx2::push_groups, avx2::pop_groups},
#endif
#if defined(RANS_NEON)
    {"neon", neon::is_here, neon::push_groups, neon::pop_groups},
#endif
    {"portable", [] { return true; }, nullptr, nullptr},
};

enum class Status {
  ok,
  truncated,   // the payload ends before the symbols do
  trailing,    // the symbols end before the payload does
  bad_state,   // a lane begins or ends in a state that the encoder does not leave
  bad_escape,  // an escaped symbol lies in the table, out of range, or is not in shortest form
};

// One integer cumulative distribution a channel: entry k covers [cdf[k], cdf[k+1]) of 2^16; entry k
// stands for the symbol offset + k, and the last entry for "not in this table".
class Tables {
 public:
  // cdf: the channels' values one after the other, lengths[c] of them for channel c, each run
  // strictly increasing from 0 to 2^16, of three values at least. Throws std::invalid_argument.
  // `path` is one of kPaths that is_here.
  Tables(const uint32_t* cdf, size_t cdf_size, const uint32_t* lengths, const int32_t* offsets, size_t channels, const Path& path)
      : path_(path) {
    if (channels == 0) throw std::invalid_argument("there are no tables");
    size_t begin = 0;
    for (size_t c = 0; c < channels; ++c) {
      const std::string where = "table " + std::to_string(c) + ": ";
      const size_t length = lengths[c];
      if (length < 3) throw std::invalid_argument(where + "fewer than three CDF values");
      if (length > cdf_size - begin) throw std::invalid_argument(where + "its CDF is cut short");
      const uint32_t* values = cdf + begin;
      check_cdf(values, length, where);
      const int64_t in_table = static_cast<int64_t>(length) - 2;
      if (offsets[c] <= kNotASymbol || offsets[c] + in_table - 1 > 32767)
        throw std::invalid_argument(where + "its symbols leave the range -32767..32767");
      channels_.emplace_back(values, length - 1, offsets[c]);
      begin += length;
    }
    if (begin != cdf_size) throw std::invalid_argument("CDF values are left over after the last table");
    for (size_t c = 0; c < channels; ++c)
      if (!channels_[c].in_runs) busy_.push_back(c);
  }

  Tables(Tables&&) = default;  // not copied: context tables point at their channels

  size_t channels() const { return channels_.size(); }

  // Gives a channel context tables, for small payloads: thresholds[0 .. kLevels - 2], strictly
  // increasing, and kContexts CDFs one after the other, each as long as the channel's own. Channels
  // come in increasing order, before anything is coded. Throws std::invalid_argument.
  void add_contexts(size_t channel, const int32_t* thresholds, const uint32_t* cdf, size_t cdf_size) {
    const std::string where = "context tables of channel " + std::to_string(channel) + ": ";
    if (channel >= channels() || (!contexts_.empty() && channel <= contexts_.back().channel))
      throw std::invalid_argument(where + "channels are out of order");
    const size_t entries = size_t{channels_[channel].in_table} + 1;
    if (entries > kMaxContextEntries) throw std::invalid_argument(where + "more than 256 entries");
    if (cdf_size != kContexts * (entries + 1)) throw std::invalid_argument(where + "not 25 CDFs as long as the channel's own");
    for (size_t t = 0; t + 1 < kLevels; ++t)
      if (thresholds[t] <= kNotASymbol || thresholds[t] > 32767 || (t > 0 && thresholds[t] <= thresholds[t - 1]))
        throw std::invalid_argument(where + "thresholds do not increase within -32767..32767");
    for (size_t context = 0; context < kContexts; ++context) check_cdf(cdf + context * (entries + 1), entries + 1, where);
    contexts_.emplace_back(channel, channels_[channel], thresholds, cdf);
  }

  // Bytes that `row` symbols a channel can take at most, escapes included.
  size_t max_payload(size_t row) const {
    return kSlack + 4 * (kNarrowLanes + kWideLanes) + 2 * kMaxSymbolWords * channels() * row;
  }

  // Encode symbols[channels][row] to at most max_payload(row) bytes, written to the end of
  // `buffer`, which has that size; gives their number, the bytes being the buffer's last. Throws
  // std::domain_error on kNotASymbol.
  size_t encode(const int16_t* symbols, size_t row, uint8_t* buffer) const {
    const uint8_t* end = buffer + max_payload(row);
    Writer writer{buffer + max_payload(row)};
    // A decoder pops what was pushed last: the last channel and the last symbol come first here.
    const size_t wide = wide_channels(row);
    uint32_t narrow[kNarrowLanes] = {kLowerBound, kLowerBound};
    for (size_t c = channels(); c-- > 0;) {
      const Channel& channel = channels_[c];
      if (channel.in_runs) push_runs(narrow, channel, symbols + c * row, row, writer);
      else if (!is_wide(c, wide)) push_narrow(narrow, channel, symbols + c * row, row, writer);
    }
    push_states(narrow, writer);
    if (wide) {
      // The wide lanes begin with the narrow part's first words in their low halves.
      uint32_t lane[kWideLanes];
      for (uint32_t& state : lane) {
        state = kLowerBound;
        if (writer.at != end) state |= writer.take();
      }
      for (size_t w = wide; w-- > 0;) push_wide(lane, channels_[busy_[w]], symbols + busy_[w] * row, row, writer);
      push_states(lane, writer);
    }
    return static_cast<size_t>(end - writer.at);
  }

  // A small payload, of symbols[channels][rows][columns].
  size_t encode_small(const int16_t* symbols, size_t rows, size_t columns, uint8_t* buffer) const {
    return contexts_.size() < kManyContexts ? encode_small_in<2>(symbols, rows, columns, buffer)
                                            : encode_small_in<4>(symbols, rows, columns, buffer);
  }

  // Decode a payload of `size` bytes to symbols[channels][row]. Takes memory for a copy of the
  // payload. Unless the status is ok the symbols mean nothing.
  Status decode(const uint8_t* payload, size_t size, size_t row, int16_t* symbols) const {
    if (size % 2) return Status::truncated;
    if (size > max_payload(row)) return Status::trailing;  // before a copy is made of it
    const Copy copy(payload, size);
    Reader reader = copy.reader();
    const size_t wide = wide_channels(row);
    bool padded = false;  // the narrow part may be shorter than what the wide lanes can carry
    if (wide) {
      uint32_t lane[kWideLanes];
      if (const Status status = pop_states(lane, reader); status != Status::ok) return status;
      for (size_t w = 0; w < wide; ++w) {
        const Status status = pop_wide(lane, channels_[busy_[w]], reader, symbols + busy_[w] * row, row);
        if (status != Status::ok) return status;
      }
      padded = reader.at == reader.end;
      for (size_t l = kWideLanes; l-- > 0;) {
        if (lane[l] >> 16 != 1) return Status::bad_state;
        reader.give_back(static_cast<uint16_t>(lane[l]));
      }
    }
    uint32_t lane[kNarrowLanes];
    if (const Status status = pop_states(lane, reader); status != Status::ok) return status;
    for (size_t c = 0; c < channels(); ++c) {
      const Channel& channel = channels_[c];
      Status status = Status::ok;
      if (channel.in_runs) status = pop_runs(lane, channel, reader, symbols + c * row, row);
      else if (!is_wide(c, wide)) status = pop_narrow(lane, channel, reader, symbols + c * row, row);
      if (status != Status::ok) return status;
    }
    if (padded)
      while (reader.at != reader.end && reader.word() == 0) reader.at += 2;
    return end_of(lane, reader);
  }

  // A small payload, to symbols[channels][rows][columns].
  Status decode_small(const uint8_t* payload, size_t size, size_t rows, size_t columns, int16_t* symbols) const {
    return contexts_.size() < kManyContexts ? decode_small_in<2>(payload, size, rows, columns, symbols)
                                            : decode_small_in<4>(payload, size, rows, columns, symbols);
  }

 private:
  static void check_cdf(const uint32_t* values, size_t length, const std::string& where) {
    if (values[0] != 0) throw std::invalid_argument(where + "its CDF does not begin at 0");
    for (size_t k = 1; k < length; ++k)
      if (values[k] <= values[k - 1]) throw std::invalid_argument(where + "its CDF does not increase at value " + std::to_string(k));
    if (values[length - 1] != kOne) throw std::invalid_argument(where + "its CDF does not end at 65536");
  }

  static constexpr size_t kGroup = 64;

  // Bit i says whether values[i] is another symbol than `mode`, for up to kGroup of them.
  static uint64_t other_than(int16_t mode, const int16_t* values, size_t count) {
    uint64_t others = 0;
    size_t i = 0;
#if defined(__SSE2__)
    const __m128i modes = _mm_set1_epi16(mode);
    for (; i + 16 <= count; i += 16) {
      const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + i));
      const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values + i + 8));
      const int same = _mm_movemask_epi8(_mm_packs_epi16(_mm_cmpeq_epi16(low, modes), _mm_cmpeq_epi16(high, modes)));
      others |= uint64_t{0xffff ^ static_cast<uint32_t>(same)} << i;
    }
#else
    for (; i + 16 <= count; i += 16) {
      uint16_t any = 0;  // compilers make vectors of this
      for (size_t j = 0; j < 16; ++j) any |= static_cast<uint16_t>(values[i + j] ^ mode);
      for (size_t j = 0; any && j < 16; ++j) others |= uint64_t{values[i + j] != mode} << (i + j);
    }
#endif
    for (; i < count; ++i) others |= uint64_t{values[i] != mode} << i;
    return others;
  }

  static uint32_t highest_bit(uint64_t bits) {
#if defined(__GNUC__)
    return 63u - static_cast<uint32_t>(__builtin_clzll(bits));
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
        : reciprocal(((uint64_t{1} << 48) + frequency - 1) / frequency), start(start), frequency(frequency) {}
  };

  // Entries side by side, and for each 64 of the 2^16 slots the entry that covers the first.
  struct Entries {
    static constexpr uint32_t kBucket = 6;
    std::vector<Entry> entries;
    std::vector<uint16_t> first;

    size_t size() const { return entries.size(); }
    const Entry& operator[](size_t k) const { return entries[k]; }
    void make_buckets() {
      first.resize(kOne >> kBucket);
      size_t k = 0;
      for (uint32_t b = 0; b < first.size(); ++b) {
        while (k + 1 < entries.size() && b << kBucket >= entries[k + 1].start) ++k;
        first[b] = static_cast<uint16_t>(k);
      }
    }
  };

  // What a decoder needs of an entry, in fewer bytes.
  struct Slot {
    uint16_t start, frequency;
    int16_t symbol;
  };

  struct Channel {
    int32_t offset;     // symbol of the first entry
    uint32_t in_table;  // entries that stand for symbols; the escape follows them
    uint32_t mode = 0;  // the most frequent of them, the first of equals
    bool in_runs;
    Entries values;     // all entries; of a channel in runs all but the mode, scaled to 2^16
    Entries runs;       // entry k: k modes and then another symbol
    std::vector<Slot> slots;  // of a channel that may be wide: its values once more
    Window window;

    Channel(const uint32_t* cdf, size_t count, int32_t first_symbol) : offset(first_symbol), in_table(static_cast<uint32_t>(count - 1)) {
      const auto frequency = [&](size_t k) { return cdf[k + 1] - cdf[k]; };
      for (uint32_t k = 1; k < in_table; ++k)
        if (frequency(k) > frequency(mode)) mode = k;
      const uint32_t often = frequency(mode), seldom = kOne - often;
      in_runs = often >= kRunFrequency;
      if (!in_runs) {
        for (size_t k = 0; k < count; ++k) {
          const int16_t symbol = k == in_table ? kNotASymbol : static_cast<int16_t>(offset + static_cast<int32_t>(k));
          values.entries.emplace_back(cdf[k], frequency(k));
          slots.push_back({static_cast<uint16_t>(cdf[k]), static_cast<uint16_t>(frequency(k)), symbol});
        }
      } else {
        // Given that it is not the mode, a symbol's distribution is the table without the mode.
        // Frequencies grow by 2^16 / seldom >= 8, so that none becomes 0.
        const auto scaled = [&](size_t k) { return static_cast<uint32_t>((uint64_t{cdf[k]} - (k > mode ? often : 0)) * kOne / seldom); };
        for (size_t k = 0; k < count; ++k)
          if (k != mode) values.entries.emplace_back(scaled(k), scaled(k + 1) - scaled(k));
        // The probability of more than k modes falls by the mode's own at each step (47 bits after
        // the point, rounded down to 16). A run is as long as steps are left that can be told apart.
        uint64_t survival = uint64_t{1} << 47;
        uint32_t start = 0;
        while (runs.size() < kMaxRun) {
          survival = (survival >> 16) * often + ((survival & 0xffff) * often >> 16);
          const uint32_t next = kOne - static_cast<uint32_t>(survival >> 31);
          if (next == start || next >= kOne) break;
          runs.entries.emplace_back(start, next - start);
          start = next;
        }
        runs.entries.emplace_back(start, kOne - start);  // a bound for the last; a run that goes on
        runs.make_buckets();
      }
      values.make_buckets();
      if (!in_runs) window = Window(values.entries.data(), in_table);
    }
    uint32_t max_run() const { return static_cast<uint32_t>(runs.size()) - 1; }
  };

  // Channels that are not coded in runs; all but the last are wide where there are many symbols of
  // them. The last one's words fill the wide lanes' first states.
  size_t wide_channels(size_t row) const { return busy_.size() * row < kWideSymbols ? 0 : busy_.size() - 1; }
  bool is_wide(size_t c, size_t wide) const { return wide && c != busy_.back(); }

  // A channel's tables by context, for small payloads.
  struct Contexts {
    // What a decoder needs of an entry, in eight bytes.
    struct Slot {
      uint16_t start, frequency;
      int16_t symbol;
      uint8_t level;
      bool escape;
    };
    // The slots of one context are size() apart; so are its `first` from the next context's.
    static constexpr uint32_t kBucket = 8;
    size_t channel;
    const Channel& own;
    std::array<int16_t, kLevels - 1> thresholds;
    std::vector<Entry> entries;
    std::vector<Slot> slots;
    std::vector<uint8_t> first;  // for each 256 of the 2^16 slots the entry that covers the first

    Contexts(size_t channel, const Channel& own, const int32_t* bounds, const uint32_t* cdf) : channel(channel), own(own) {
      for (size_t t = 0; t < thresholds.size(); ++t) thresholds[t] = static_cast<int16_t>(bounds[t]);
      for (size_t context = 0; context < kContexts; ++context, cdf += size() + 1) {
        for (size_t k = 0; k < size(); ++k) {
          const int16_t symbol = static_cast<int16_t>(own.offset + static_cast<int32_t>(k));
          entries.emplace_back(cdf[k], cdf[k + 1] - cdf[k]);
          slots.push_back({static_cast<uint16_t>(cdf[k]), static_cast<uint16_t>(cdf[k + 1] - cdf[k]), symbol, level(symbol), k == own.in_table});
        }
        for (uint32_t slot = 0, k = 0; slot < kOne; slot += 1u << kBucket) {
          while (cdf[k + 1] <= slot) ++k;
          first.push_back(static_cast<uint8_t>(k));
        }
      }
    }
    size_t size() const { return size_t{own.in_table} + 1; }  // entries of a table
    uint8_t level(int16_t symbol) const {
      uint8_t passed = 0;
      for (const int16_t threshold : thresholds) passed += symbol >= threshold;
      return passed;
    }
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
    // `evenly`: without a branch, which compilers make of a choice. For many lanes side by side, where
    // a wrong guess costs more than a longer chain.
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
    Copy(const uint8_t* payload, size_t size) : size(size), bytes(new uint8_t[kFront + size + kBehind]) {
      if (size) std::memcpy(bytes.get() + kFront, payload, size);
      std::memset(bytes.get() + kFront + size, 0, kBehind);
    }
    Reader reader() const { return {bytes.get() + kFront, bytes.get() + kFront + size}; }
  };

  template <size_t lanes>
  static Status end_of(const uint32_t (&lane)[lanes], const Reader& reader) {
    for (const uint32_t state : lane)
      if (state != kLowerBound) return Status::bad_state;
    return reader.at == reader.end ? Status::ok : Status::trailing;
  }

  // `evenly`: as in Reader::refill.
  template <bool evenly = false>
  static void push_entry(uint32_t& state, const Entry& entry, Writer& writer) {
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

  static void pop_entry(uint32_t& state, uint32_t start, uint32_t frequency, Reader& reader) {
    state = frequency * (state >> 16) + (state & 0xffff) - start;
    reader.refill(state);
  }

  // Index of the entry that covers the state's low 16 bits.
  static uint32_t find(uint32_t state, const Entries& table) {
    const uint32_t slot = state & 0xffff;
    uint32_t k = table.first[slot >> Entries::kBucket];
    while (slot - table[k].start >= table[k].frequency) ++k;
    return k;
  }

  // Bits as they are, up to 16 of them.
  static void push_bits(uint32_t& state, uint32_t count, uint32_t bits, Writer& writer) {
    if (uint64_t{state} << count >> 32) {
      writer.push(static_cast<uint16_t>(state));
      state >>= 16;
    }
    state = state << count | bits;
  }

  static uint32_t pop_bits(uint32_t& state, uint32_t count, Reader& reader) {
    const uint32_t bits = state & ((1u << count) - 1);
    state >>= count;
    reader.refill(state);
    return bits;
  }

  // The lanes' last states, from the last lane to the first: the low half of each as a word, the
  // high half, which has as many bits as it has, in the lane before it. Lane 0 is written whole.
  template <size_t lanes>
  static void push_states(uint32_t (&lane)[lanes], Writer& writer) {
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
  static Status pop_states(uint32_t (&lane)[lanes], Reader& reader) {
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

  static void push_digits(uint32_t& state, int32_t symbol, const Channel& channel, Writer& writer) {
    if (symbol == kNotASymbol) throw std::domain_error("a latent is not a number");
    const int32_t end = channel.offset + static_cast<int32_t>(channel.in_table);
    uint32_t distance = symbol >= end ? 2 * static_cast<uint32_t>(symbol - end)
                                      : 2 * static_cast<uint32_t>(channel.offset - 1 - symbol) + 1;
    uint32_t digits[kMaxDigits];
    int count = 0;
    for (; distance >= kMoreDigits; distance /= kMoreDigits) digits[count++] = distance % kMoreDigits + kMoreDigits;
    digits[count++] = distance;
    while (count-- > 0) push_bits(state, 8, digits[count], writer);
  }

  static Status pop_digits(uint32_t& state, const Channel& channel, Reader& reader, int16_t& value) {
    uint32_t distance = 0, digit = kMoreDigits;
    for (int count = 0; digit >= kMoreDigits; ++count) {
      if (count == kMaxDigits) return Status::bad_escape;
      digit = pop_bits(state, 8, reader);
      if (reader.past_end()) return Status::truncated;
      distance |= (digit % kMoreDigits) << (7 * count);
      if (digit == 0 && count > 0) return Status::bad_escape;
    }
    const int32_t half = static_cast<int32_t>(distance / 2);
    const int32_t symbol = distance % 2 ? channel.offset - 1 - half : channel.offset + static_cast<int32_t>(channel.in_table) + half;
    if (symbol <= kNotASymbol || symbol > 32767) return Status::bad_escape;
    value = static_cast<int16_t>(symbol);
    return Status::ok;
  }

  // Index among channel.values of a symbol other than a mode in runs; of the escape, after its digits.
  static void push_value(uint32_t& state, int16_t symbol, const Channel& channel, Writer& writer) {
    const uint32_t k = static_cast<uint32_t>(symbol - channel.offset);
    if (k < channel.in_table) {
      push_entry<true>(state, channel.values[k - (channel.in_runs && k > channel.mode)], writer);
    } else {
      push_digits(state, symbol, channel, writer);
      push_entry(state, channel.values[channel.values.size() - 1], writer);
    }
  }

  static Status pop_value(uint32_t& state, const Channel& channel, Reader& reader, int16_t& value) {
    const uint32_t k = find(state, channel.values);
    const Entry& entry = channel.values[k];
    pop_entry(state, entry.start, entry.frequency, reader);
    if (k + 1 == channel.values.size()) return pop_digits(state, channel, reader, value);
    value = static_cast<int16_t>(channel.offset + static_cast<int32_t>(k + (channel.in_runs && k >= channel.mode)));
    return Status::ok;
  }

  // Symbols, each by itself, in lanes 0 and 1 by turns.
  static void push_narrow(uint32_t* lane, const Channel& channel, const int16_t* values, size_t row, Writer& writer) {
    uint32_t even = lane[0], odd = lane[1];
    size_t i = row;
    if (i % 2) push_value(even, values[--i], channel, writer);
    for (; i > 0; i -= 2) {
      push_value(odd, values[i - 1], channel, writer);
      push_value(even, values[i - 2], channel, writer);
    }
    lane[0] = even, lane[1] = odd;
  }

  static Status pop_narrow(uint32_t* lane, const Channel& channel, Reader& shared, int16_t* values, size_t row) {
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

  // Runs: lane 0 has the number of modes before the next other symbol, lane 1 that symbol. A run
  // that reaches max_run, or the row's end, is coded as "so many or more", and another may follow.
  static void push_runs(uint32_t* lane, const Channel& channel, const int16_t* values, size_t row, Writer& writer) {
    uint32_t run_lane = lane[0], value_lane = lane[1];
    const int16_t mode = static_cast<int16_t>(channel.offset + static_cast<int32_t>(channel.mode));
    size_t stop = row;  // what is to the right of it is coded
    bool ended = false;  // the run before it is, by another symbol; the last one is by the row's end
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

  static void push_run(uint32_t& state, size_t run, bool ended, const Channel& channel, Writer& writer) {
    const size_t max_run = channel.max_run();
    size_t full = 0;  // runs that go on; a decoder meets them first
    if (run >= max_run) full = run / max_run, run %= max_run;
    if (ended) push_entry<true>(state, channel.runs[run], writer);
    else if (run) push_entry(state, Entry(channel.runs[run].start, kOne - channel.runs[run].start), writer);
    for (; full; --full) push_entry(state, channel.runs[max_run], writer);
  }

  static Status pop_runs(uint32_t* lane, const Channel& channel, Reader& shared, int16_t* values, size_t row) {
    std::fill(values, values + row, static_cast<int16_t>(channel.offset + static_cast<int32_t>(channel.mode)));
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

  // A small payload: one part, all channels without context tables first, then those with, as many of
  // them side by side as there are lanes.
  template <size_t lanes>
  size_t encode_small_in(const int16_t* symbols, size_t rows, size_t columns, uint8_t* buffer) const {
    const size_t row = rows * columns;
    const uint8_t* end = buffer + max_payload(row);
    Writer writer{buffer + max_payload(row)};
    uint32_t lane[lanes];
    std::fill(lane, lane + lanes, kLowerBound);
    std::vector<uint8_t> scratch(2 * row * lanes);
    size_t k = contexts_.size();
    for (; k % lanes; --k) push_contexts<1>(lane, &contexts_[k - 1], symbols, rows, columns, scratch.data(), writer);
    for (; k > 0; k -= lanes) push_contexts<lanes>(lane, &contexts_[k - lanes], symbols, rows, columns, scratch.data(), writer);
    k = contexts_.size();
    for (size_t c = channels(); c-- > 0;) {
      if (k > 0 && contexts_[k - 1].channel == c) --k;
      else if (channels_[c].in_runs) push_runs(lane, channels_[c], symbols + c * row, row, writer);
      else push_narrow(lane, channels_[c], symbols + c * row, row, writer);
    }
    push_states(lane, writer);
    return static_cast<size_t>(end - writer.at);
  }

  template <size_t lanes>
  Status decode_small_in(const uint8_t* payload, size_t size, size_t rows, size_t columns, int16_t* symbols) const {
    const size_t row = rows * columns;
    if (size % 2) return Status::truncated;
    if (size > max_payload(row)) return Status::trailing;
    const Copy copy(payload, size);
    Reader reader = copy.reader();
    uint32_t lane[lanes];
    Status status = pop_states(lane, reader);
    size_t k = 0;
    for (size_t c = 0; c < channels() && status == Status::ok; ++c) {
      if (k < contexts_.size() && contexts_[k].channel == c) ++k;
      else if (channels_[c].in_runs) status = pop_runs(lane, channels_[c], reader, symbols + c * row, row);
      else status = pop_narrow(lane, channels_[c], reader, symbols + c * row, row);
    }
    std::vector<uint8_t> above(columns * lanes);
    for (k = 0; k + lanes <= contexts_.size() && status == Status::ok; k += lanes)
      status = pop_contexts<lanes>(lane, &contexts_[k], reader, symbols, row, columns, above.data());
    for (; k < contexts_.size() && status == Status::ok; ++k)
      status = pop_contexts<1>(lane, &contexts_[k], reader, symbols, row, columns, above.data());
    return status == Status::ok ? end_of(lane, reader) : status;
  }

  // Symbols of `count` channels, position by position, each channel's in a lane of its own: none
  // waits for another's, as each waits for its own left neighbour.
  template <size_t count>
  static void push_contexts(uint32_t* lane, const Contexts* channels, const int16_t* symbols, size_t rows, size_t columns, uint8_t* scratch, Writer& shared) {
    // Bytes that are written could be anything's, so what the loops read again and again is local.
    Writer writer = shared;
    const size_t row = rows * columns;
    uint8_t* const context = scratch;
    uint8_t* const level = scratch + count * row;
    uint32_t state[count], in_table[count];
    const int16_t* values[count];
    const Entry* entries[count];
    for (size_t l = 0; l < count; ++l) {
      state[l] = lane[l], in_table[l] = channels[l].own.in_table;
      values[l] = symbols + channels[l].channel * row, entries[l] = channels[l].entries.data();
      const auto thresholds = channels[l].thresholds;
      for (size_t i = 0; i < row; ++i) {
        uint16_t passed = 0;
        for (const int16_t threshold : thresholds) passed = static_cast<uint16_t>(passed + (values[l][i] >= threshold));
        level[i] = static_cast<uint8_t>(passed);
      }
      const uint8_t outside = channels[l].level(0);
      uint8_t* own = context + l * row;
      for (size_t i = 0; i < row; i += columns) {
        own[i] = outside;
        for (size_t x = 1; x < columns; ++x) own[i + x] = level[i + x - 1];
        for (size_t x = 0; x < columns; ++x) own[i + x] = static_cast<uint8_t>(own[i + x] + kLevels * (i ? level[i + x - columns] : outside));
      }
    }
    for (size_t i = row; i-- > 0;)
      for (size_t l = count; l-- > 0;) {
        const uint32_t k = std::min(static_cast<uint32_t>(values[l][i] - channels[l].own.offset), in_table[l]);
        if (k == in_table[l]) push_digits(state[l], values[l][i], channels[l].own, writer);
        push_entry<count == 4>(state[l], entries[l][context[l * row + i] * (in_table[l] + 1) + k], writer);
      }
    for (size_t l = 0; l < count; ++l) lane[l] = state[l];
    shared = writer;
  }

  template <size_t count>
  static Status pop_contexts(uint32_t* lane, const Contexts* channels, Reader& shared, int16_t* symbols, size_t row, size_t columns, uint8_t* above) {
    Reader reader = shared;
    uint32_t state[count];
    uint8_t left[count], outside[count];
    size_t size[count];
    int16_t* values[count];
    const uint8_t* first[count];
    const typename Contexts::Slot* slots[count];
    for (size_t l = 0; l < count; ++l) {
      state[l] = lane[l], size[l] = channels[l].size(), outside[l] = channels[l].level(0);
      values[l] = symbols + channels[l].channel * row, first[l] = channels[l].first.data(), slots[l] = channels[l].slots.data();
      std::fill(above + l * columns, above + (l + 1) * columns, outside[l]);
    }
    for (size_t begin = 0; begin < row; begin += columns) {
      for (size_t l = 0; l < count; ++l) left[l] = outside[l];
      for (size_t x = 0; x < columns; ++x) {
        for (size_t l = 0; l < count; ++l) {
          const size_t context = kLevels * above[l * columns + x] + left[l];
          const uint32_t slot = state[l] & 0xffff;
          const auto* entry = slots[l] + context * size[l] + first[l][context << (16 - Contexts::kBucket) | slot >> Contexts::kBucket];
          while (slot - entry->start >= entry->frequency) ++entry;
          int16_t symbol = entry->symbol;
          left[l] = entry->level;
          state[l] = entry->frequency * (state[l] >> 16) + slot - entry->start;
          reader.refill<count == 4>(state[l]);
          if (entry->escape) {
            if (const Status status = pop_digits(state[l], channels[l].own, reader, symbol); status != Status::ok) return status;
            left[l] = channels[l].level(symbol);
          }
          above[l * columns + x] = left[l];
          values[l][begin + x] = symbol;
        }
        if (reader.past_end()) return Status::truncated;
      }
    }
    for (size_t l = 0; l < count; ++l) lane[l] = state[l];
    shared = reader;
    return Status::ok;
  }

  // Groups of sixteen symbols: their entries in the order of the lanes, then the digits of the
  // escapes among them in the order of the lanes.
  void push_wide(uint32_t* lane, const Channel& channel, const int16_t* values, size_t row, Writer& writer) const {
    for (size_t stop = row; stop > 0;) {
      if (path_.push_groups && stop % kWideLanes == 0) stop = path_.push_groups(lane, channel.window, channel.offset, writer.at, values, stop);
      if (stop == 0) break;
      const size_t begin = (stop - 1) / kWideLanes * kWideLanes;
      uint32_t entry[kWideLanes];
      for (size_t i = stop; i-- > begin;) {
        const uint32_t k = static_cast<uint32_t>(values[i] - channel.offset);
        entry[i - begin] = std::min(k, channel.in_table);
        if (k >= channel.in_table) push_digits(lane[i - begin], values[i], channel, writer);
      }
      for (size_t l = stop - begin; l-- > 0;) push_entry<true>(lane[l], channel.values[entry[l]], writer);
      stop = begin;
    }
  }

  Status pop_wide(uint32_t* lane, const Channel& channel, Reader& reader, int16_t* values, size_t row) const {
    for (size_t begin = 0; begin < row; begin += kWideLanes) {
      if (path_.pop_groups) {
        const uint8_t* at = reader.at;
        begin += path_.pop_groups(lane, channel.window, channel.offset, at, reader.end, values + begin, row - begin);
        reader.at += at - reader.at;
        if (reader.past_end()) return Status::truncated;
        if (begin == row) break;
      }
      const size_t count = std::min(kWideLanes, row - begin);
      const bool escapes = count == kWideLanes ? pop_group<kWideLanes>(lane, channel, reader, values + begin, count)
                                               : pop_group<0>(lane, channel, reader, values + begin, count);
      for (size_t l = 0; escapes && l < count; ++l) {
        if (values[begin + l] != kNotASymbol) continue;
        const Status status = pop_digits(lane[l], channel, reader, values[begin + l]);
        if (status != Status::ok) return status;
      }
      if (reader.past_end()) return Status::truncated;
    }
    return Status::ok;
  }

  // Entries of a group's first `count` lanes, or of `all` of them, which is known beforehand; an escape
  // leaves kNotASymbol. Gives whether there is one.
  template <size_t all>
  static bool pop_group(uint32_t* lane, const Channel& channel, Reader& shared, int16_t* values, size_t count) {
    Reader reader = shared;
    bool escapes = false;
    for (size_t l = 0; l < (all ? all : count); ++l) {
      uint32_t state = lane[l];
      const uint32_t slot = state & 0xffff;
      const Slot* entry = &channel.slots[channel.values.first[slot >> Entries::kBucket]];
      while (slot - entry->start >= entry->frequency) ++entry;
      state = entry->frequency * (state >> 16) + slot - entry->start;
      reader.refill<true>(state);
      lane[l] = state;
      values[l] = entry->symbol;
      escapes |= entry->symbol == kNotASymbol;
    }
    shared = reader;
    return escapes;
  }

  const Path& path_;
  std::vector<Channel> channels_;
  std::vector<size_t> busy_;  // channels that are not coded in runs
  std::vector<Contexts> contexts_;  // of some channels, in their order
};

}  // namespace rans
