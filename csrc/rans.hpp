// Interleaved range asymmetric numeral systems (rANS) with static integer tables.
//
// Codes `channels` rows of 16-bit integers, each row under the table of its channel. What holds:
//   * Bytes are the same on every machine: integer arithmetic only, 16-bit little-endian words.
//   * The decoder reads no byte outside its input and writes no symbol outside its output, on any
//     input; it accepts a payload only if every byte of it is consumed and the lanes end in the
//     state in which the encoder began.
//   * Tables are validated once, by the constructor of Tables; coding trusts them.
//
// Method: J. Duda, "Asymmetric numeral systems" (arXiv 1311.2540); interleaving after F. Giesen,
// "Interleaved entropy coders" (arXiv 1402.3392). docs/FORMAT.md describes the payload; the
// pure-Python coder in tests/reference_coder.py is its oracle.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace rans {

constexpr uint32_t kPrecision = 16;          // bits; a table's frequencies sum to 2^16
constexpr uint32_t kLowerBound = 1u << 16;   // a lane's state lies in [2^16, 2^32)
constexpr size_t kLanes = 4;                 // symbol i of a row belongs to lane i mod 4
constexpr size_t kStateBytes = 4 * kLanes;   // the lanes' final states, before the words
constexpr int32_t kNotASymbol = -32768;      // the edge graph's mark for a NaN latent
constexpr size_t kMaxSymbolWords = 3;        // words one symbol can take: its own and its escape's

// Symbols that a table lacks are coded as its last entry, then their distance from the table in
// base 128, least significant digit first, each digit in 8 bits whose top bit says "more follows".
// distance = 2 * (symbol - end of table) above it, 2 * (start of table - 1 - symbol) + 1 below it.
constexpr uint32_t kMoreDigits = 128;
constexpr int kMaxDigits = 3;  // 2^17 distances at most

constexpr uint32_t kSkewed = 60000;  // from this frequency on the decoder bets on a table's mode; speed only

enum class Status {
  ok,
  truncated,      // the payload ends before the symbols do
  trailing,       // the symbols end before the payload does
  bad_state,      // a lane begins outside [2^16, 2^32) or does not end where the encoder began
  bad_escape,     // an escaped symbol lies in the table, out of range, or is not in shortest form
};

// One integer cumulative distribution a channel: entry k covers [cdf[k], cdf[k+1]) of 2^16; entry k
// stands for the symbol offset + k, and the last entry for "not in this table".
class Tables {
 public:
  // cdf: the channels' values one after the other, lengths[c] of them for channel c, each run
  // strictly increasing from 0 to 2^16, of three values at least. Throws std::invalid_argument.
  Tables(const uint32_t* cdf, size_t cdf_size, const uint32_t* lengths, const int32_t* offsets, size_t channels) {
    if (channels == 0) throw std::invalid_argument("there are no tables");
    size_t begin = 0;
    for (size_t c = 0; c < channels; ++c) {
      const std::string where = "table " + std::to_string(c) + ": ";
      const size_t length = lengths[c];
      if (length < 3) throw std::invalid_argument(where + "fewer than three CDF values");
      if (length > cdf_size - begin) throw std::invalid_argument(where + "its CDF is cut short");
      const uint32_t* values = cdf + begin;
      if (values[0] != 0) throw std::invalid_argument(where + "its CDF does not begin at 0");
      for (size_t k = 1; k < length; ++k)
        if (values[k] <= values[k - 1]) throw std::invalid_argument(where + "its CDF does not increase at value " + std::to_string(k));
      if (values[length - 1] != 1u << kPrecision) throw std::invalid_argument(where + "its CDF does not end at 65536");
      const int64_t in_table = static_cast<int64_t>(length) - 2;
      if (offsets[c] <= kNotASymbol || offsets[c] + in_table - 1 > 32767)
        throw std::invalid_argument(where + "its symbols leave the range -32767..32767");
      Channel channel{entries_.size(), offsets[c], static_cast<uint32_t>(in_table), Found{0}};
      for (uint32_t k = 0; k + 1 < length; ++k) {
        entries_.push_back(Entry::make(values[k], values[k + 1] - values[k]));
        const Found found = Found::make(k, entries_.back());
        if (k < in_table && found.frequency() > channel.mode.frequency()) channel.mode = found;
      }
      channels_.push_back(channel);
      begin += length;
    }
    if (begin != cdf_size) throw std::invalid_argument("CDF values are left over after the last table");
    // starts_[c][b]: the entry that covers b * 256, from which the decoder's search goes up.
    starts_.resize(channels * 256);
    for (size_t c = 0; c < channels; ++c) {
      const Entry* entries = &entries_[channels_[c].entries];
      uint16_t k = 0;
      for (uint32_t b = 0; b < 256; ++b) {
        while (b * 256 >= entries[k].start + entries[k].frequency) ++k;
        starts_[c * 256 + b] = Found::make(k, entries[k]);
      }
    }
  }

  size_t channels() const { return channels_.size(); }

  // Bytes that `row` symbols a channel can take at most, escapes included.
  size_t max_payload(size_t row) const { return kStateBytes + 2 * kMaxSymbolWords * channels() * row; }

  // Encode symbols[channels][row] to at most max_payload(row) bytes, written to the end of
  // `buffer`, which has that size; gives their number, the bytes being the buffer's last. Throws
  // std::domain_error on kNotASymbol.
  size_t encode(const int16_t* symbols, size_t row, uint8_t* buffer) const {
    Writer writer{buffer + max_payload(row)};
    uint32_t lane[kLanes];
    std::fill(lane, lane + kLanes, kLowerBound);
    // A decoder pops what was pushed last: from the last symbol to the first.
    for (size_t c = channels(); c-- > 0;) {
      const Channel channel = channels_[c];
      const Entry* entries = &entries_[channel.entries];
      const int16_t* values = symbols + c * row;
      size_t i = row;
      for (; i % kLanes; --i) push(lane[(i - 1) % kLanes], values[i - 1], channel, entries, writer);
      for (; i > 0; i -= kLanes) {
        push(lane[3], values[i - 1], channel, entries, writer);
        push(lane[2], values[i - 2], channel, entries, writer);
        push(lane[1], values[i - 3], channel, entries, writer);
        push(lane[0], values[i - 4], channel, entries, writer);
      }
    }
    for (size_t l = kLanes; l-- > 0;) {
      writer.push(static_cast<uint16_t>(lane[l] >> 16));
      writer.push(static_cast<uint16_t>(lane[l]));
    }
    return static_cast<size_t>(buffer + max_payload(row) - writer.at);
  }

  // Decode a payload of `size` bytes to symbols[channels][row]. Unless the status is ok the
  // symbols mean nothing.
  Status decode(const uint8_t* payload, size_t size, size_t row, int16_t* symbols) const {
    if (size < kStateBytes || size % 2) return Status::truncated;
    Reader reader{payload, payload + size};
    uint32_t lane[kLanes];
    for (uint32_t& state : lane) {
      const uint32_t low = reader.pop();
      state = low | static_cast<uint32_t>(reader.pop()) << 16;
      if (state < kLowerBound) return Status::bad_state;
    }
    for (size_t c = 0; c < channels(); ++c) {
      const Channel channel = channels_[c];
      const Entry* entries = &entries_[channel.entries];
      const Found* starts = &starts_[c * 256];
      int16_t* values = symbols + c * row;
      size_t i = 0;
      while (i < row) {
        i += pop_groups(lane, channel, entries, starts, reader, values + i, row - i);
        // Up to four with checks, then without them again.
        for (const size_t stop = std::min(row, i + kLanes); i < stop; ++i) {
          const Status status = pop(lane[i % kLanes], channel, entries, starts, reader, values[i]);
          if (status != Status::ok) return status;
        }
      }
    }
    for (const uint32_t state : lane)
      if (state != kLowerBound) return Status::bad_state;
    return reader.words() ? Status::trailing : Status::ok;
  }

 private:
  struct Entry {
    uint64_t reciprocal;  // ceil(2^48 / frequency)
    uint32_t start, frequency;

    // For x < frequency * 2^16, (x * ceil(2^48 / f)) >> 48 is floor(x / f) exactly: rounding the
    // reciprocal up adds less than x / 2^48 < 2^-16 to the quotient, and x / f is never nearer
    // than 1 / f > 2^-16 to the next integer. The product stays below 2^64 because f < 2^16.
    static Entry make(uint32_t start, uint32_t frequency) {
      return Entry{((uint64_t{1} << 48) + frequency - 1) / frequency, start, frequency};
    }
  };

  // What the decoder needs of an entry, packed to travel in one register: index, start, frequency.
  struct Found {
    uint64_t packed;
    static Found make(uint32_t k, const Entry& entry) { return Found{k | uint64_t{entry.start} << 16 | uint64_t{entry.frequency} << 32}; }
    uint32_t k() const { return packed & 0xffff; }
    uint32_t start() const { return packed >> 16 & 0xffff; }
    uint32_t frequency() const { return static_cast<uint32_t>(packed >> 32); }
  };

  struct Channel {
    size_t entries;     // index of the first entry
    int32_t offset;     // symbol of the first entry
    uint32_t in_table;  // entries that stand for symbols; the escape's entry follows them
    Found mode;         // the most frequent symbol's entry
  };

  // Words are written from the buffer's end to its beginning, so that the decoder reads forwards.
  struct Writer {
    uint8_t* at;
    void push(uint16_t word) {
      at -= 2;
      at[0] = static_cast<uint8_t>(word);
      at[1] = static_cast<uint8_t>(word >> 8);
    }
  };

  struct Reader {
    const uint8_t* at;
    const uint8_t* end;
    size_t words() const { return static_cast<size_t>(end - at) / 2; }
    uint16_t pop() {
      const uint16_t word = static_cast<uint16_t>(at[0] | at[1] << 8);
      at += 2;
      return word;
    }
    // No branch on whether a word is due: it is read in any case, and kept if so.
    void refill_unchecked(uint32_t& state) {
      const bool due = state < kLowerBound;
      const uint32_t refilled = state << 16 | static_cast<uint32_t>(at[0] | at[1] << 8);
      state = due ? refilled : state;
      at += due ? 2 : 0;
    }
    bool refill(uint32_t& state) {
      if (state >= kLowerBound) return true;
      if (at == end) return false;
      state = state << 16 | pop();
      return true;
    }
  };

  static void push(uint32_t& state, int16_t symbol, const Channel& channel, const Entry* entries, Writer& writer) {
    uint32_t k = static_cast<uint32_t>(symbol - channel.offset);
    if (k >= channel.in_table) {
      push_escape(state, symbol, channel, writer);
      k = channel.in_table;
    }
    const Entry entry = entries[k];
    // Keep the state below 2^32 after the step: at most one word leaves.
    const bool full = (state >> 16) >= entry.frequency;
    writer.at[-2] = static_cast<uint8_t>(state);
    writer.at[-1] = static_cast<uint8_t>(state >> 8);
    writer.at -= full ? 2 : 0;
    state = full ? state >> 16 : state;
    // state = quotient * 2^16 + remainder + start, the remainder being state - quotient * frequency
    const uint32_t quotient = static_cast<uint32_t>((state * entry.reciprocal) >> 48);
    state += quotient * ((1u << kPrecision) - entry.frequency) + entry.start;
  }

  static void push_escape(uint32_t& state, int32_t symbol, const Channel& channel, Writer& writer) {
    if (symbol == kNotASymbol) throw std::domain_error("a latent is not a number");
    const int32_t end = channel.offset + static_cast<int32_t>(channel.in_table);
    uint32_t distance = symbol >= end ? 2 * static_cast<uint32_t>(symbol - end)
                                      : 2 * static_cast<uint32_t>(channel.offset - 1 - symbol) + 1;
    uint32_t digits[kMaxDigits];
    int count = 0;
    for (; distance >= kMoreDigits; distance /= kMoreDigits) digits[count++] = distance % kMoreDigits + kMoreDigits;
    digits[count++] = distance;
    while (count-- > 0) {
      if (state >= 1u << 24) {
        writer.push(static_cast<uint16_t>(state));
        state >>= 16;
      }
      state = state << 8 | digits[count];
    }
  }

  // The entry that covers the state's low 16 bits.
  static Found find(uint32_t state, const Entry* entries, const Found* starts) {
    const uint32_t slot = state & 0xffff;
    Found found = starts[slot >> 8];
    while (slot - found.start() >= found.frequency()) found = Found::make(found.k() + 1, entries[found.k() + 1]);
    return found;
  }

  static void pop_entry(uint32_t& state, Found found) {
    state = found.frequency() * (state >> 16) + (state & 0xffff) - found.start();
  }

  // Pops symbols in groups of four while no escape is among them and four words are left, so that
  // none needs a bounds check; gives how many. One variable a lane: compilers keep those in
  // registers, and elements of an array in memory, which costs a third of the speed.
  static size_t pop_groups(uint32_t* lane, const Channel channel, const Entry* entries, const Found* starts, Reader& shared,
                           int16_t* values, size_t count) {
    uint32_t s0 = lane[0], s1 = lane[1], s2 = lane[2], s3 = lane[3];
    Reader reader = shared;
    size_t i = 0;
    const auto step = [&](uint32_t& state, Found found, size_t l) {
      pop_entry(state, found);
      reader.refill_unchecked(state);
      values[i + l] = static_cast<int16_t>(channel.offset + static_cast<int32_t>(found.k()));
    };
    const uint32_t start = channel.mode.start(), frequency = channel.mode.frequency();
    const auto is_mode = [&](uint32_t state) { return (state & 0xffff) - start < frequency; };
    for (; i + kLanes <= count && reader.words() >= kLanes; i += kLanes) {
      // Most channels are nearly all zero: then the next entry is known without a look at the table.
      if (frequency >= kSkewed && (is_mode(s0) & is_mode(s1) & is_mode(s2) & is_mode(s3))) {
        step(s0, channel.mode, 0);
        step(s1, channel.mode, 1);
        step(s2, channel.mode, 2);
        step(s3, channel.mode, 3);
        continue;
      }
      const Found f0 = find(s0, entries, starts), f1 = find(s1, entries, starts);
      const Found f2 = find(s2, entries, starts), f3 = find(s3, entries, starts);
      if (std::max(std::max(f0.k(), f1.k()), std::max(f2.k(), f3.k())) == channel.in_table) break;
      step(s0, f0, 0);
      step(s1, f1, 1);
      step(s2, f2, 2);
      step(s3, f3, 3);
    }
    lane[0] = s0, lane[1] = s1, lane[2] = s2, lane[3] = s3;
    shared = reader;
    return i;
  }

  static Status pop(uint32_t& state, const Channel& channel, const Entry* entries, const Found* starts, Reader& reader, int16_t& value) {
    const Found found = find(state, entries, starts);
    pop_entry(state, found);
    if (!reader.refill(state)) return Status::truncated;
    if (found.k() < channel.in_table) {
      value = static_cast<int16_t>(channel.offset + static_cast<int32_t>(found.k()));
      return Status::ok;
    }
    uint32_t distance = 0, digit = kMoreDigits;
    for (int count = 0; digit >= kMoreDigits; ++count) {
      if (count == kMaxDigits) return Status::bad_escape;
      digit = state & 0xff;
      state >>= 8;
      if (!reader.refill(state)) return Status::truncated;
      distance |= (digit % kMoreDigits) << (7 * count);
      if (digit == 0 && count > 0) return Status::bad_escape;
    }
    const int32_t half = static_cast<int32_t>(distance / 2);
    const int32_t symbol = distance % 2 ? channel.offset - 1 - half : channel.offset + static_cast<int32_t>(channel.in_table) + half;
    if (symbol <= kNotASymbol || symbol > 32767) return Status::bad_escape;
    value = static_cast<int16_t>(symbol);
    return Status::ok;
  }

  std::vector<Channel> channels_;
  std::vector<Entry> entries_;
  std::vector<Found> starts_;
};

}  // namespace rans
