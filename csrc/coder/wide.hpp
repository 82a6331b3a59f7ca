// The wide part: busy channels in sixteen lanes, with vectors where the machine has them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "channel.hpp"
#include "wide_avx2.hpp"
#include "wide_avx512.hpp"
#include "wide_neon.hpp"

namespace rans {

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

// Entries of a group's first `count` lanes, or of `all` of them, which is known beforehand; an
// escape leaves kNotASymbol. Gives whether there is one.
template <size_t all>
inline bool pop_group(uint32_t* lane, const Channel& channel, Reader& shared, int16_t* values,
                      size_t count) {
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

// Groups of sixteen symbols: their entries in the order of the lanes, then the digits of the
// escapes among them in the order of the lanes.
inline void push_wide(const Path& path, uint32_t* lane, const Channel& channel,
                      const int16_t* values, size_t row, Writer& writer) {
  for (size_t stop = row; stop > 0;) {
    if (path.push_groups && stop % kWideLanes == 0 && channel.window.pays())
      stop = path.push_groups(lane, channel.window, channel.offset, writer.at, values, stop);
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

inline Status pop_wide(const Path& path, uint32_t* lane, const Channel& channel, Reader& reader,
                       int16_t* values, size_t row) {
  for (size_t begin = 0; begin < row; begin += kWideLanes) {
    if (path.pop_groups && channel.window.pays()) {
      const uint8_t* at = reader.at;
      begin += path.pop_groups(lane, channel.window, channel.offset, at, reader.end, values + begin,
                               row - begin);
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
