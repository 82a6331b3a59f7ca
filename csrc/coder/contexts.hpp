// Small payloads: the planes of channels with context tables. The symbols above and to the left
// choose each symbol's table.
//
// Always holds: a decoder chooses a table by symbols that it has already decoded, and an encoder by
// the same ones. `lane` and the shared Writer or Reader are updated on success.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "values.hpp"

namespace rans {

// Encodes `count` planes side by side, position by position, each in a lane of its own. A symbol
// waits for its left neighbour but not for the other planes', so processors overlap their steps.
// `scratch` has 2 * count * rows * columns bytes.
template <size_t count, class AnyContexts, class Symbol>
inline void push_contexts(uint32_t* lane, const AnyContexts* channels, const Symbol* symbols,
                          size_t rows, size_t columns, uint8_t* scratch, Writer& shared) {
  // Compilers must assume that a store through uint8_t* changes any object, so what the loops read
  // is kept in local variables.
  Writer writer = shared;
  const size_t row = rows * columns;
  uint8_t* const context = scratch;
  uint8_t* const level = scratch + count * row;
  uint32_t state[count], in_table[count];
  const Symbol* values[count];
  decltype(channels->entries.data()) entries[count];
  for (size_t l = 0; l < count; ++l) {
    state[l] = lane[l], in_table[l] = channels[l].own.in_table;
    values[l] = symbols + channels[l].channel * row, entries[l] = channels[l].entries.data();
    const auto thresholds = channels[l].thresholds;
    for (size_t i = 0; i < row; ++i) {
      uint16_t passed = 0;
      for (const int16_t threshold : thresholds)
        passed = static_cast<uint16_t>(passed + (values[l][i] >= threshold));
      level[i] = static_cast<uint8_t>(passed);
    }
    const uint8_t outside = channels[l].level(0);
    uint8_t* own = context + l * row;
    for (size_t i = 0; i < row; i += columns) {
      own[i] = outside;
      for (size_t x = 1; x < columns; ++x) own[i + x] = level[i + x - 1];
      for (size_t x = 0; x < columns; ++x)
        own[i + x] =
            static_cast<uint8_t>(own[i + x] + kLevels * (i ? level[i + x - columns] : outside));
    }
  }
  for (size_t i = row; i-- > 0;)
    for (size_t l = count; l-- > 0;) {
      const uint32_t k =
          std::min(static_cast<uint32_t>(values[l][i] - channels[l].own.offset), in_table[l]);
      if (k == in_table[l]) push_digits(state[l], values[l][i], channels[l].own, writer);
      push_entry<count == 4>(state[l], entries[l][context[l * row + i] * (in_table[l] + 1) + k],
                             writer);
    }
  for (size_t l = 0; l < count; ++l) lane[l] = state[l];
  shared = writer;
}

// Inverse of push_contexts. `above` is scratch of count * columns bytes: the levels of the row
// above.
template <size_t count, class AnyContexts>
inline Status pop_contexts(uint32_t* lane, const AnyContexts* channels, Reader& shared,
                           int16_t* symbols, size_t row, size_t columns, uint8_t* above) {
  Reader reader = shared;
  uint32_t state[count];
  uint8_t left[count], outside[count];
  size_t size[count];
  int16_t* values[count];
  const uint8_t* first[count];
  const typename AnyContexts::DecoderEntry* decoder_entries[count];
  for (size_t l = 0; l < count; ++l) {
    state[l] = lane[l], size[l] = channels[l].size(), outside[l] = channels[l].level(0);
    values[l] = symbols + channels[l].channel * row, first[l] = channels[l].first.data(),
    decoder_entries[l] = channels[l].decoder_entries.data();
    std::fill(above + l * columns, above + (l + 1) * columns, outside[l]);
  }
  for (size_t begin = 0; begin < row; begin += columns) {
    for (size_t l = 0; l < count; ++l) left[l] = outside[l];
    for (size_t x = 0; x < columns; ++x) {
      for (size_t l = 0; l < count; ++l) {
        const size_t context = kLevels * above[l * columns + x] + left[l];
        const uint32_t slot = state[l] & 0xffff;
        const auto* entry =
            decoder_entries[l] + context * size[l] +
            first[l][context << (16 - AnyContexts::kBucketBits) | slot >> AnyContexts::kBucketBits];
        while (slot - entry->start >= entry->frequency) ++entry;
        int16_t symbol = entry->symbol;
        left[l] = entry->level;
        state[l] = entry->frequency * (state[l] >> 16) + slot - entry->start;
        reader.refill<count == 4>(state[l]);
        if (entry->escape) {
          if (const Status status = pop_digits(state[l], channels[l].own, reader, symbol);
              status != Status::ok)
            return status;
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

}  // namespace rans
