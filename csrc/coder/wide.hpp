// The wide part's sixteen lanes: busy channels in groups of sixteen symbols, with a SIMD
// kernel if the processor has the instructions. The kernel is chosen at run time, so that one build
// runs on every processor of its architecture.
//
// Always holds: all kernels write the same bytes, and read back the same symbols.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "channel.hpp"
#include "wide_avx2.hpp"
#include "wide_avx512.hpp"
#include "wide_neon.hpp"

namespace rans {

// Functions that code the groups with one instruction set; null pointers: no vectors.
struct Kernel {
  const char* name;
  bool (*is_available)();  // on this machine
  PushGroups push_groups;
  PopGroups pop_groups;
};

// The fastest first.
inline constexpr Kernel kKernels[] = {
#if defined(RANS_AVX2)
    {"avx512", avx512::is_available, avx512::push_groups, avx512::pop_groups},
    {"avx2", avx2::is_available, avx2::push_groups, avx2::pop_groups},
#endif
#if defined(RANS_NEON)
    {"neon", neon::is_available, neon::push_groups, neon::pop_groups},
#endif
    {"portable", [] { return true; }, nullptr, nullptr},
};

// Decodes the entries of a group of `count` symbols. `all` is the count if it is known at compile
// time, which unrolls the loop, else 0. An escape leaves kNotASymbol. Returns whether there is one.
template <size_t all>
inline bool pop_group(uint32_t* lane, const Channel& channel, Reader& shared, int16_t* values,
                      size_t count) {
  Reader reader = shared;
  bool escapes = false;
  for (size_t l = 0; l < (all ? all : count); ++l) {
    uint32_t state = lane[l];
    const uint32_t slot = state & 0xffff;
    const DecoderEntry* entry =
        &channel.decoder_entries[channel.values.first[slot >> Entries::kBucketBits]];
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

// In each group the entries come first, in the order of the lanes, then the digits of the escapes
// among them, in the order of the lanes.
inline void push_wide(const Kernel& kernel, uint32_t* lane, const Channel& channel,
                      const int16_t* values, size_t row, Writer& writer) {
  for (size_t stop = row; stop > 0;) {
    if (kernel.push_groups && stop % kWideLanes == 0 && channel.window.is_worthwhile())
      stop = kernel.push_groups(lane, channel.window, channel.offset, writer.at, values, stop);
    if (stop == 0) break;
    const size_t begin = (stop - 1) / kWideLanes * kWideLanes;
    uint32_t entry[kWideLanes];
    for (size_t i = stop; i-- > begin;) {
      const uint32_t k = static_cast<uint32_t>(values[i] - channel.offset);
      entry[i - begin] = std::min(k, channel.in_table);
      if (k >= channel.in_table) push_digits(lane[i - begin], values[i], channel, writer);
    }
    for (size_t l = stop - begin; l-- > 0;)
      push_entry<true>(lane[l], channel.values[entry[l]], writer);
    stop = begin;
  }
}

// Inverse of push_wide.
inline Status pop_wide(const Kernel& kernel, uint32_t* lane, const Channel& channel, Reader& reader,
                       int16_t* values, size_t row) {
  for (size_t begin = 0; begin < row; begin += kWideLanes) {
    if (kernel.pop_groups && channel.window.is_worthwhile()) {
      const uint8_t* at = reader.at;
      begin += kernel.pop_groups(lane, channel.window, channel.offset, at, reader.end,
                                 values + begin, row - begin);
      reader.at += at - reader.at;
      if (reader.past_end()) return Status::truncated;
      if (begin == row) break;
    }
    const size_t count = std::min(kWideLanes, row - begin);
    const bool escapes = count == kWideLanes
                             ? pop_group<kWideLanes>(lane, channel, reader, values + begin, count)
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

}  // namespace rans
