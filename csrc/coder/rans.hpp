// Range asymmetric numeral systems (rANS) for rows of quantised features, under static integer
// tables.
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
// Where many channels are not like that, sixteen lanes code them side by side (the wide part). In
// small payloads the tables of some channels are chosen symbol by symbol, by what lies above and to
// the left.
//
// In this order: steps.hpp, what a lane does; channel.hpp, tables; narrow.hpp, wide.hpp (and a file
// for each set of vector instructions) and contexts.hpp, rows of a channel in each way; here,
// payloads.
//
// Method: J. Duda, "Asymmetric numeral systems" (arXiv 1311.2540); interleaving after F. Giesen,
// "Interleaved entropy coders" (arXiv 1402.3392). docs/FORMAT.md is the specification; the
// pure-Python coder in tests/support/reference_coder.py is its oracle.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "channel.hpp"
#include "contexts.hpp"
#include "narrow.hpp"
#include "steps.hpp"
#include "wide.hpp"

namespace rans {

// One integer cumulative distribution a channel: entry k covers [cdf[k], cdf[k+1]) of 2^16; entry k
// stands for the symbol offset + k, and the last entry for "not in this table".
class Tables {
 public:
  // cdf: the channels' values one after the other, lengths[c] of them for channel c, each run
  // strictly increasing from 0 to 2^16, of three values at least. Throws std::invalid_argument.
  // `path` is one of kPaths that is_here.
  Tables(const uint32_t* cdf, size_t cdf_size, const uint32_t* lengths, const int32_t* offsets,
         size_t channels, const Path& path)
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
    if (begin != cdf_size)
      throw std::invalid_argument("CDF values are left over after the last table");
    for (size_t c = 0; c < channels; ++c)
      if (!channels_[c].in_runs) busy_.push_back(c);
  }

  Tables(Tables&&) = default;  // not copied: context tables point at their channels

  size_t channels() const { return channels_.size(); }

  // Gives a channel context tables, for small payloads: thresholds[0 .. kLevels - 2], strictly
  // increasing, and kContexts CDFs one after the other, each as long as the channel's own. Channels
  // come in increasing order, before anything is coded. Throws std::invalid_argument.
  void add_contexts(size_t channel, const int32_t* thresholds, const uint32_t* cdf,
                    size_t cdf_size) {
    const std::string where = "context tables of channel " + std::to_string(channel) + ": ";
    if (channel >= channels() || (!contexts_.empty() && channel <= contexts_.back().channel))
      throw std::invalid_argument(where + "channels are out of order");
    const size_t entries = size_t{channels_[channel].in_table} + 1;
    if (entries > kMaxContextEntries) throw std::invalid_argument(where + "more than 256 entries");
    if (cdf_size != kContexts * (entries + 1))
      throw std::invalid_argument(where + "not 25 CDFs as long as the channel's own");
    for (size_t t = 0; t + 1 < kLevels; ++t)
      if (thresholds[t] <= kNotASymbol || thresholds[t] > 32767 ||
          (t > 0 && thresholds[t] <= thresholds[t - 1]))
        throw std::invalid_argument(where + "thresholds do not increase within -32767..32767");
    for (size_t context = 0; context < kContexts; ++context)
      check_cdf(cdf + context * (entries + 1), entries + 1, where);
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
      if (channel.in_runs)
        push_runs(narrow, channel, symbols + c * row, row, writer);
      else if (!is_wide(c, wide))
        push_narrow(narrow, channel, symbols + c * row, row, writer);
    }
    push_states(narrow, writer);
    if (wide) {
      // The wide lanes begin with the narrow part's first words in their low halves.
      uint32_t lane[kWideLanes];
      for (uint32_t& state : lane) {
        state = kLowerBound;
        if (writer.at != end) state |= writer.take();
      }
      for (size_t w = wide; w-- > 0;)
        push_wide(path_, lane, channels_[busy_[w]], symbols + busy_[w] * row, row, writer);
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
        const Status status =
            pop_wide(path_, lane, channels_[busy_[w]], reader, symbols + busy_[w] * row, row);
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
      if (channel.in_runs)
        status = pop_runs(lane, channel, reader, symbols + c * row, row);
      else if (!is_wide(c, wide))
        status = pop_narrow(lane, channel, reader, symbols + c * row, row);
      if (status != Status::ok) return status;
    }
    if (padded)
      while (reader.at != reader.end && reader.word() == 0) reader.at += 2;
    return end_of(lane, reader);
  }

  // A small payload, to symbols[channels][rows][columns].
  Status decode_small(const uint8_t* payload, size_t size, size_t rows, size_t columns,
                      int16_t* symbols) const {
    return contexts_.size() < kManyContexts
               ? decode_small_in<2>(payload, size, rows, columns, symbols)
               : decode_small_in<4>(payload, size, rows, columns, symbols);
  }

 private:
  // Channels that are not coded in runs; all but the last are wide where there are many symbols of
  // them. The last one's words fill the wide lanes' first states.
  size_t wide_channels(size_t row) const {
    return busy_.size() * row < kWideSymbols ? 0 : busy_.size() - 1;
  }
  bool is_wide(size_t c, size_t wide) const { return wide && c != busy_.back(); }

  // A small payload: one part, all channels without context tables first, then those with, as many
  // of them side by side as there are lanes.
  template <size_t lanes>
  size_t encode_small_in(const int16_t* symbols, size_t rows, size_t columns,
                         uint8_t* buffer) const {
    const size_t row = rows * columns;
    const uint8_t* end = buffer + max_payload(row);
    Writer writer{buffer + max_payload(row)};
    uint32_t lane[lanes];
    std::fill(lane, lane + lanes, kLowerBound);
    std::vector<uint8_t> scratch(2 * row * lanes);
    size_t k = contexts_.size();
    for (; k % lanes; --k)
      push_contexts<1>(lane, &contexts_[k - 1], symbols, rows, columns, scratch.data(), writer);
    for (; k > 0; k -= lanes)
      push_contexts<lanes>(lane, &contexts_[k - lanes], symbols, rows, columns, scratch.data(),
                           writer);
    k = contexts_.size();
    for (size_t c = channels(); c-- > 0;) {
      if (k > 0 && contexts_[k - 1].channel == c)
        --k;
      else if (channels_[c].in_runs)
        push_runs(lane, channels_[c], symbols + c * row, row, writer);
      else
        push_narrow(lane, channels_[c], symbols + c * row, row, writer);
    }
    push_states(lane, writer);
    return static_cast<size_t>(end - writer.at);
  }

  template <size_t lanes>
  Status decode_small_in(const uint8_t* payload, size_t size, size_t rows, size_t columns,
                         int16_t* symbols) const {
    const size_t row = rows * columns;
    if (size % 2) return Status::truncated;
    if (size > max_payload(row)) return Status::trailing;
    const Copy copy(payload, size);
    Reader reader = copy.reader();
    uint32_t lane[lanes] = {};
    Status status = pop_states(lane, reader);
    size_t k = 0;
    for (size_t c = 0; c < channels() && status == Status::ok; ++c) {
      if (k < contexts_.size() && contexts_[k].channel == c)
        ++k;
      else if (channels_[c].in_runs)
        status = pop_runs(lane, channels_[c], reader, symbols + c * row, row);
      else
        status = pop_narrow(lane, channels_[c], reader, symbols + c * row, row);
    }
    std::vector<uint8_t> above(columns * lanes);
    for (k = 0; k + lanes <= contexts_.size() && status == Status::ok; k += lanes)
      status =
          pop_contexts<lanes>(lane, &contexts_[k], reader, symbols, row, columns, above.data());
    for (; k < contexts_.size() && status == Status::ok; ++k)
      status = pop_contexts<1>(lane, &contexts_[k], reader, symbols, row, columns, above.data());
    return status == Status::ok ? end_of(lane, reader) : status;
  }

  const Path& path_;
  std::vector<Channel> channels_;
  std::vector<size_t> busy_;        // channels that are not coded in runs
  std::vector<Contexts> contexts_;  // of some channels, in their order
};

}  // namespace rans
