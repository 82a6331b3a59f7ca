// A rANS coder (range asymmetric numeral systems) for quantised features, with static integer
// tables: an image's symbols to a payload, and back. Include this file to use the coder.
//
// Codes `channels` rows of 16-bit integers, each row with the table of its channel. Always holds:
//   * The bytes are the same on every machine and instruction set: integer arithmetic only, 16-bit
//     little-endian words, numbers of lanes that belong to the format.
//   * On any input, the decoder reads no byte outside the payload and writes no symbol outside its
//     output. It accepts a payload only if it consumes every byte and the lanes end in the states
//     that the format prescribes.
//   * The constructor of Tables validates the tables once; coding trusts them.
//
// Why it is fast: in most channels nearly all symbols equal the mode. There a *run* of modes and
// the symbol that ends it take two steps in place of one step a symbol, at the same code length.
// The other channels are called busy. Where they have many symbols, sixteen lanes code them side by
// side (the wide part).
//
// Small payloads take fewer bytes in more time: the symbols above and to the left choose the table.
//
// Reading order: steps.hpp, one step; channel.hpp, tables and one symbol; then one row in each way:
// narrow.hpp, wide.hpp (window.hpp and wide_*.hpp have its SIMD kernels), contexts.hpp; last this
// file, whole payloads.
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

// The tables of all channels. In each, entry k covers [cdf[k], cdf[k+1]) of 2^16 and stands for the
// symbol offset + k; the last entry is the escape, for all other symbols. Const member functions
// may run in several threads at once.
class Tables {
 public:
  // `cdf`: lengths[c] values for channel c, one channel after the other. A channel's values
  // increase strictly from 0 to 2^16; there are at least three. The arrays are copied. `kernel` is
  // one of kKernels that is_available. Throws std::invalid_argument.
  Tables(const uint32_t* cdf, size_t cdf_size, const uint32_t* lengths, const int32_t* offsets,
         size_t channels, const Kernel& kernel)
      : kernel_(kernel) {
    check(cdf, cdf_size, lengths, offsets, channels);
    channels_.reserve(channels);
    for (size_t c = 0; c < channels; cdf += lengths[c++])
      channels_.emplace_back(cdf, lengths[c] - 1, offsets[c]);
    for (size_t c = 0; c < channels; ++c)
      if (!channels_[c].in_runs) busy_.push_back(c);
  }

  // What the constructor throws for these arguments, if anything, without the work of making
  // tables.
  static void check(const uint32_t* cdf, size_t cdf_size, const uint32_t* lengths,
                    const int32_t* offsets, size_t channels) {
    if (channels == 0) throw std::invalid_argument("there are no tables");
    size_t begin = 0;
    for (size_t c = 0; c < channels; ++c) {
      const std::string where = "table " + std::to_string(c) + ": ";
      const size_t length = lengths[c];
      if (length < 3) throw std::invalid_argument(where + "fewer than three CDF values");
      if (length > cdf_size - begin) throw std::invalid_argument(where + "its CDF is cut short");
      check_cdf(cdf + begin, length, where);
      const int64_t in_table = static_cast<int64_t>(length) - 2;
      if (offsets[c] <= kNotASymbol || offsets[c] + in_table - 1 > 32767)
        throw std::invalid_argument(where + "its symbols leave the range -32767..32767");
      begin += length;
    }
    if (begin != cdf_size)
      throw std::invalid_argument("CDF values are left over after the last table");
  }

  Tables(Tables&&) = default;  // not copied: context tables refer to channels_

  size_t channels() const { return channels_.size(); }

  // Adds a channel's context tables, for small payloads: thresholds[0 .. kLevels - 2], strictly
  // increasing, and kContexts CDFs one after the other, each as long as the channel's own. Called
  // for channels in increasing order, before anything is coded. Throws std::invalid_argument.
  void add_contexts(size_t channel, const int32_t* thresholds, const uint32_t* cdf,
                    size_t cdf_size) {
    if (channel >= channels() || (!contexts_.empty() && channel <= contexts_.back().channel))
      throw std::invalid_argument("context tables of channel " + std::to_string(channel) +
                                  ": channels are out of order");
    check_contexts(channel, size_t{channels_[channel].in_table} + 1, thresholds, cdf, cdf_size);
    contexts_.emplace_back(channel, channels_[channel], thresholds, cdf);
  }

  // What add_contexts throws for a channel with so many entries, if anything.
  static void check_contexts(size_t channel, size_t entries, const int32_t* thresholds,
                             const uint32_t* cdf, size_t cdf_size) {
    const std::string where = "context tables of channel " + std::to_string(channel) + ": ";
    if (entries > kMaxContextEntries) throw std::invalid_argument(where + "more than 256 entries");
    if (cdf_size != kContexts * (entries + 1))
      throw std::invalid_argument(where + "not 25 CDFs as long as the channel's own");
    for (size_t t = 0; t + 1 < kLevels; ++t)
      if (thresholds[t] <= kNotASymbol || thresholds[t] > 32767 ||
          (t > 0 && thresholds[t] <= thresholds[t - 1]))
        throw std::invalid_argument(where + "thresholds do not increase within -32767..32767");
    for (size_t context = 0; context < kContexts; ++context)
      check_cdf(cdf + context * (entries + 1), entries + 1, where);
  }

  // Upper bound on the bytes that a buffer needs for `row` symbols a channel, escapes included.
  size_t max_payload(size_t row) const {
    return kSlack + 4 * (kNarrowLanes + kWideLanes) + 2 * kMaxSymbolWords * channels() * row;
  }

  // Encodes symbols[channels][row]. `buffer` has max_payload(row) bytes; the payload is written to
  // its end. Returns the payload's size. Throws std::domain_error on kNotASymbol.
  size_t encode(const int16_t* symbols, size_t row, uint8_t* buffer) const {
    const uint8_t* end = buffer + max_payload(row);
    Writer writer{buffer + max_payload(row)};
    // rANS decodes in reverse order, so the last channel and the last symbol are encoded first.
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
      // The wide lanes' first states carry the narrow part's first words in their low halves.
      uint32_t lane[kWideLanes];
      for (uint32_t& state : lane) {
        state = kLowerBound;
        if (writer.at != end) state |= writer.take();
      }
      for (size_t w = wide; w-- > 0;)
        push_wide(kernel_, lane, channels_[busy_[w]], symbols + busy_[w] * row, row, writer);
      push_states(lane, writer);
    }
    return static_cast<size_t>(end - writer.at);
  }

  // Encodes symbols[channels][rows][columns] to a small payload, as `encode` does to a plain one.
  size_t encode_small(const int16_t* symbols, size_t rows, size_t columns, uint8_t* buffer) const {
    return contexts_.size() < kManyContexts ? encode_small_in<2>(symbols, rows, columns, buffer)
                                            : encode_small_in<4>(symbols, rows, columns, buffer);
  }

  // Decodes a payload of `size` bytes to symbols[channels][row]. Allocates a copy of the payload.
  // The symbols are valid only if the status is ok.
  Status decode(const uint8_t* payload, size_t size, size_t row, int16_t* symbols) const {
    if (size % 2) return Status::truncated;
    if (size > max_payload(row)) return Status::trailing;  // bounds the copy
    const PaddedCopy copy(payload, size);
    Reader reader = copy.reader();
    const size_t wide = wide_channels(row);
    bool padded = false;  // whether the wide lanes may carry words that the narrow part lacks
    if (wide) {
      uint32_t lane[kWideLanes];
      if (const Status status = pop_states(lane, reader); status != Status::ok) return status;
      for (size_t w = 0; w < wide; ++w) {
        const Status status =
            pop_wide(kernel_, lane, channels_[busy_[w]], reader, symbols + busy_[w] * row, row);
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
    return check_end(lane, reader);
  }

  // Decodes a small payload to symbols[channels][rows][columns].
  Status decode_small(const uint8_t* payload, size_t size, size_t rows, size_t columns,
                      int16_t* symbols) const {
    return contexts_.size() < kManyContexts
               ? decode_small_in<2>(payload, size, rows, columns, symbols)
               : decode_small_in<4>(payload, size, rows, columns, symbols);
  }

 private:
  // Number of channels in the wide part: all busy ones but the last, if their symbols are many. The
  // last one is in the narrow part, so that there are words for the wide lanes' first states.
  size_t wide_channels(size_t row) const {
    return busy_.size() * row < kWideSymbols ? 0 : busy_.size() - 1;
  }
  bool is_wide(size_t c, size_t wide) const { return wide && c != busy_.back(); }

  // A small payload is a single part. Channels without context tables come first, then those with,
  // in groups of as many as there are lanes; channels that are left over come last, one by one.
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
    const PaddedCopy copy(payload, size);
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
    return status == Status::ok ? check_end(lane, reader) : status;
  }

  const Kernel& kernel_;
  std::vector<Channel> channels_;
  std::vector<size_t> busy_;        // indexes of the busy channels, in order
  std::vector<Contexts> contexts_;  // of the channels that have them, in order
};

}  // namespace rans
