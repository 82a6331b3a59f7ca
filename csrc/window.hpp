// What the vector paths of the wide part share: tables laid out for them, and the interface.
//
// All sixteen lanes of a group are under one table, and of it under a *window* of up to sixteen
// entries that has nearly all the mass: a symbol is then a count of thresholds passed. A group with a
// symbol outside the window is left to the caller, which codes it without vectors.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace rans {

// Sixteen 16-bit values to be looked up, and their bytes apart for byte shuffles.
struct Lookup {
  alignas(32) std::array<uint16_t, 16> values{};
  alignas(16) std::array<uint8_t, 16> low{}, high{};
  void set(size_t k, uint32_t value) {
    values[k] = static_cast<uint16_t>(value);
    low[k] = static_cast<uint8_t>(value);
    high[k] = static_cast<uint8_t>(value >> 8);
  }
};

// Up to sixteen entries of a table, side by side.
struct Window {
  static constexpr size_t kEntries = 16;
  uint32_t first = 0, count = 0;   // entries of the table
  uint32_t begin = 0, end = 0;     // slots that they cover
  // Sixteen copies each of the last slot before an entry, for all but the first, less 2^15: compared as signed.
  alignas(32) std::array<std::array<int16_t, 16>, kEntries - 1> before;
  Lookup start, frequency, reciprocal_low, reciprocal_high;  // floor(2^32 / frequency), at most 2^32 - 1
  // A step leaves frequency * high + slot - start, which is under 2^16, so that a word is due, if
  // high <= quotient, or high == quotient + 1 and slot < bound: 2^16 divided by the frequency, less
  // 1, and where the remainder of that ends, less 2^15.
  Lookup quotient, bound;

  Window() { for (auto& copies : before) copies.fill(0x7fff); }  // what no slot is above
  // Of entries[0 .. size) the 4, 8, 12 or 16 side by side with most mass. Four more to compare with
  // cost a decoder about as much time as one group in 140 that has a symbol outside the window.
  template <typename Entry>
  Window(const Entry* entries, size_t size) : Window() {
    constexpr uint32_t kCostOfFour = 0x10000 / 16 / 140;
    uint32_t least = 0xffffffff;
    for (uint32_t width = 4; width <= kEntries && width < size + 4; width += 4) {
      const uint32_t some = static_cast<uint32_t>(width < size ? width : size);
      for (uint32_t k = 0; k + some <= size; ++k) {
        const uint32_t stop = entries[k + some - 1].start + entries[k + some - 1].frequency, mass = stop - entries[k].start;
        const uint32_t cost = 0x10000 - mass + kCostOfFour * width / 4;
        if (cost < least) least = cost, first = k, count = some, begin = entries[k].start, end = stop;
      }
    }
    for (uint32_t k = 0; k < count; ++k) {
      const Entry& entry = entries[first + k];
      const uint32_t reciprocal = entry.frequency > 1 ? static_cast<uint32_t>((uint64_t{1} << 32) / entry.frequency) : 0xffffffffu;
      if (k > 0) before[k - 1].fill(static_cast<int16_t>(entry.start - 1 - 0x8000u));
      start.set(k, entry.start);
      frequency.set(k, entry.frequency);
      reciprocal_low.set(k, reciprocal & 0xffff);
      reciprocal_high.set(k, reciprocal >> 16);
      // With a frequency of 1 a word is always due, and no high half is above 2^16 - 1.
      const uint32_t remainder = 0x10000 % entry.frequency;
      quotient.set(k, 0x10000 / entry.frequency - 1);
      bound.set(k, entry.start + remainder - 0x8000u);
    }
  }
};

// For each set of eight lanes, as byte shuffles: words one after the other to the lanes of the set
// (`spread`), and the words of the set's lanes to the end of the register (`gather`).
struct Shuffles {
  alignas(16) std::array<std::array<uint8_t, 16>, 256> spread{}, gather{};
  constexpr Shuffles() {
    for (unsigned set = 0; set < 256; ++set) {
      unsigned count = 0;
      for (unsigned lane = 0; lane < 8; ++lane) count += set >> lane & 1;
      unsigned seen = 0;
      for (unsigned lane = 0; lane < 8; ++lane) {
        const bool in = set >> lane & 1;
        for (unsigned byte = 0; byte < 2; ++byte) {
          spread[set][2 * lane + byte] = static_cast<uint8_t>(in ? 2 * seen + byte : 0x80);
          if (in) gather[set][2 * (8 - count + seen) + byte] = static_cast<uint8_t>(2 * lane + byte);
        }
        seen += in;
      }
    }
  }
};
inline constexpr Shuffles kShuffles{};

// Each threshold that is not compared with makes the chain shorter.
template <typename Function>
Function* by_thresholds(const Window& window, Function* of_3, Function* of_7, Function* of_11, Function* of_15) {
  return window.count <= 4 ? of_3 : window.count <= 8 ? of_7 : window.count <= 12 ? of_11 : of_15;
}

// Pops groups from values[0] on, while all of a group lies in the window and `end` is not passed;
// gives how many symbols. May look 32 bytes past `at`.
using PopGroups = size_t (*)(uint32_t* lane, const Window& window, int32_t offset, const uint8_t*& at, const uint8_t* end, int16_t* values, size_t count);

// Pushes groups from values[count - 1] down to values[0], count being a multiple of sixteen, while
// all of a group lies in the window; gives how many symbols are left. May write 16 bytes before
// the words.
using PushGroups = size_t (*)(uint32_t* lane, const Window& window, int32_t offset, uint8_t*& at, const int16_t* values, size_t count);

}  // namespace rans
