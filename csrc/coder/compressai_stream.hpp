// Reads and writes CompressAI's rANS streams, with every access bounds-checked. CompressAI's own
// coder trusts its input, and writes outside its buffer on tensors of few symbols.
//
// The bytes equal those that compressai.ans of CompressAI 1.2.8 writes for EntropyBottleneck: one
// 64-bit rANS lane (F. Giesen's rans64), 32-bit little-endian words, 16-bit tables. A symbol that a
// table lacks is its last entry, followed by the number of its nibbles (4 bits each) and the
// nibbles. This code was written from the format's behaviour.
//
// Always holds: no byte outside a stream is read. A stream is accepted only if it is consumed
// exactly and its lane ends in the state in which the encoder began.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "rans.hpp"

namespace rans {

class CompressAiStream {
 public:
  // The arrays of the constructor of Tables, which must have accepted them. They are copied.
  CompressAiStream(const uint32_t* cdf, const uint32_t* lengths, const int32_t* offsets,
                   size_t channels) {
    for (size_t c = 0; c < channels; cdf += lengths[c++])
      channels_.push_back({std::vector<uint32_t>(cdf, cdf + lengths[c]), offsets[c]});
  }

  size_t channels() const { return channels_.size(); }

  // Encodes symbols[channels][row]. Returns the stream's words in reverse order. Throws
  // std::domain_error on kNotASymbol.
  std::vector<uint32_t> encode(const int16_t* symbols, size_t row) const {
    std::vector<uint32_t> words;
    uint64_t state = kLower;
    const auto push = [&](uint64_t start, uint64_t frequency) {
      if (state >= (kLower >> 16 << 32) * frequency) {
        words.push_back(static_cast<uint32_t>(state));
        state >>= 32;
      }
      state = (state / frequency << 16) + state % frequency + start;
    };
    for (size_t c = channels_.size(); c-- > 0;) {
      const Channel& channel = channels_[c];
      const int32_t escape = static_cast<int32_t>(channel.cdf.size()) - 2;
      for (size_t i = row; i-- > 0;) {
        const int32_t symbol = symbols[c * row + i];
        if (symbol == kNotASymbol)
          throw std::domain_error("symbol -32768 marks a latent that is not a number");
        const int32_t k = symbol - channel.offset;
        const bool escaped = k < 0 || k >= escape;
        if (escaped) {
          const uint32_t distance =
              k < 0 ? static_cast<uint32_t>(-2 * k - 1) : static_cast<uint32_t>(2 * (k - escape));
          uint32_t nibbles = 0;
          while (distance >> (4 * nibbles)) ++nibbles;
          for (uint32_t n = nibbles; n-- > 0;) push_nibble(state, distance >> (4 * n) & 15, words);
          push_nibble(state, nibbles, words);
        }
        const size_t entry = static_cast<size_t>(escaped ? escape : k);
        push(channel.cdf[entry], channel.cdf[entry + 1] - channel.cdf[entry]);
      }
    }
    words.push_back(static_cast<uint32_t>(state >> 32));
    words.push_back(static_cast<uint32_t>(state));
    return words;
  }

  // Decodes a stream to symbols[channels][row], which are valid only if the status is ok.
  Status decode(const uint8_t* stream, size_t size, size_t row, int16_t* symbols) const {
    if (size < 8 || size % 4) return Status::truncated;
    const uint8_t* const end = stream + size;
    const auto word = [&] {
      const uint32_t value =
          stream[0] | stream[1] << 8 | stream[2] << 16 | static_cast<uint32_t>(stream[3]) << 24;
      stream += 4;
      return value;
    };
    uint64_t state = word();
    state |= static_cast<uint64_t>(word()) << 32;
    if (state < kLower || state >> 63) return Status::bad_state;
    const auto refill = [&] {
      if (state >= kLower) return true;
      if (stream == end) return false;
      state = state << 32 | word();
      return true;
    };
    for (size_t c = 0; c < channels_.size(); ++c) {
      const Channel& channel = channels_[c];
      const int32_t escape = static_cast<int32_t>(channel.cdf.size()) - 2;
      for (size_t i = 0; i < row; ++i) {
        const uint32_t slot = state & 0xffff;
        const size_t entry =
            static_cast<size_t>(std::upper_bound(channel.cdf.begin(), channel.cdf.end(), slot) -
                                channel.cdf.begin()) -
            1;
        state = (channel.cdf[entry + 1] - channel.cdf[entry]) * (state >> 16) + slot -
                channel.cdf[entry];
        if (!refill()) return Status::truncated;
        int32_t k = static_cast<int32_t>(entry);
        if (k == escape) {
          const uint32_t nibbles = state & 15;
          state >>= 4;
          if (!refill()) return Status::truncated;
          if (nibbles > kMaxNibbles) return Status::bad_escape;
          uint32_t distance = 0;
          for (uint32_t n = 0; n < nibbles; ++n) {
            distance |= static_cast<uint32_t>(state & 15) << (4 * n);
            state >>= 4;
            if (!refill()) return Status::truncated;
          }
          if (nibbles > 0 && distance >> (4 * (nibbles - 1)) == 0) return Status::bad_escape;
          k = distance % 2 ? -1 - static_cast<int32_t>(distance / 2)
                           : escape + static_cast<int32_t>(distance / 2);
        }
        const int32_t symbol = channel.offset + k;
        if (symbol <= kNotASymbol || symbol > 32767) return Status::bad_escape;
        symbols[c * row + i] = static_cast<int16_t>(symbol);
      }
    }
    if (state != kLower) return Status::bad_state;
    return stream == end ? Status::ok : Status::trailing;
  }

 private:
  static constexpr uint64_t kLower = uint64_t{1} << 31;  // the state lies in [2^31, 2^63)
  static constexpr uint32_t kMaxNibbles = 5;             // a distance has at most 17 bits

  struct Channel {
    std::vector<uint32_t> cdf;
    int32_t offset;
  };

  static void push_nibble(uint64_t& state, uint32_t nibble, std::vector<uint32_t>& words) {
    if (state >= kLower << 28) {
      words.push_back(static_cast<uint32_t>(state));
      state >>= 32;
    }
    state = state << 4 | nibble;
  }

  std::vector<Channel> channels_;
};

}  // namespace rans
