// Per-table lookup data for the SIMD kernels, and their interface: shared by wide_avx2.hpp,
// wide_avx512.hpp and wide_neon.hpp, which write and read the same bytes as rans.hpp does without
// vectors.
//
// Mostly a lane's state is held as two 16-bit halves, so that one register, or two, have a half of
// all sixteen lanes. All lanes are under one table, and of it under a window of at most sixteen
// entries that has nearly all the mass: a symbol is then found by counting starts that are passed,
// and what belongs to it by shuffles, without a gather. A group with a symbol outside the window is
// left to the caller.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace rans {

// Up to sixteen entries of a table, side by side.
struct Window {
  static constexpr size_t kEntries = 16;
  // Sixteen 16-bit values as shuffles of bytes look them up: their low bytes, then their high ones.
  struct Column {
    alignas(32) std::array<uint8_t, 2 * kEntries> bytes{};
    void set(size_t k, uint32_t value) {
      bytes[k] = static_cast<uint8_t>(value);
      bytes[k + kEntries] = static_cast<uint8_t>(value >> 8);
    }
  };

  uint32_t first = 0, count = 0;  // entries of the table
  uint32_t begin = 0, end = 0;    // slots that they cover; the escape lies outside
  // A slot's entry is found in two steps: its quarter of the window by the starts of three
  // quarters, and its place there by the starts of the quarter's three other entries, which are
  // looked up: bytes 0-3 have the four quarters' low bytes, bytes 4-7 their high ones. All are the
  // last slot before the start, less 2^15, to be compared as signed; where there is no entry, the
  // last of all slots, which none is above.
  std::array<int16_t, 3> quarters{};
  alignas(16) std::array<std::array<uint8_t, 16>, 3> places{};
  Column start, frequency;
  alignas(
      64) std::array<uint64_t, kEntries> reciprocal{};  // ceil(2^52 / frequency), at most 2^52 - 1
  Column reciprocal_low,
      reciprocal_high;  // its upper 32 bits: floor(2^32 / frequency), at most 2^32 - 1
  // A decoder's lane needs a word if frequency * high + slot - start < 2^16. With 2^16 = frequency
  // * q + r, r <= frequency, that is if high < q, or high = q and slot < start + r: known before
  // the product is. For a frequency of 1, q = 2^16 - 1 and r = 1 make it true for all states, as it
  // has to be.
  Column due_high, due_slot;  // q and start + r, both less 2^15: to be compared as signed

  // Whether most groups lie in the window: with one symbol in 40 outside, a third of them do not.
  bool pays() const { return 0x10000 - (end - begin) < 0x10000 / 40; }

  Window() = default;
  // The `count` entries with most mass, of entries[0 .. size).
  template <typename Entry>
  Window(const Entry* entries, size_t size)
      : count(static_cast<uint32_t>(size < kEntries ? size : kEntries)) {
    uint32_t most = 0;
    for (uint32_t k = 0; k + count <= size; ++k) {
      const uint32_t stop = entries[k + count - 1].start + entries[k + count - 1].frequency;
      if (stop - entries[k].start > most)
        first = k, begin = entries[k].start, end = stop, most = end - begin;
    }
    for (uint32_t k = 1; k < kEntries; ++k) {
      const int16_t before = signed_order((k < count ? entries[first + k].start : 0x10000u) - 1);
      if (k % 4 == 0) {
        quarters[k / 4 - 1] = before;
      } else {
        places[k % 4 - 1][k / 4] = static_cast<uint8_t>(before);
        places[k % 4 - 1][k / 4 + 4] = static_cast<uint8_t>(before >> 8);
      }
    }
    for (uint32_t k = 0; k < count; ++k) {
      const Entry& entry = entries[first + k];
      const uint32_t q = entry.frequency > 1 ? 0x10000u / entry.frequency : 0xffffu,
                     r = 0x10000u - entry.frequency * q;
      start.set(k, entry.start);
      frequency.set(k, entry.frequency);
      constexpr uint64_t kTop = uint64_t{1} << 52;
      reciprocal[k] =
          entry.frequency > 1 ? (kTop + entry.frequency - 1) / entry.frequency : kTop - 1;
      reciprocal_low.set(k, static_cast<uint32_t>(reciprocal[k] >> 20));
      reciprocal_high.set(k, static_cast<uint32_t>(reciprocal[k] >> 36));
      due_high.set(k, q - 0x8000);
      due_slot.set(k, entry.start + r - 0x8000);
    }
  }
  static int16_t signed_order(uint32_t value) {
    return static_cast<int16_t>(static_cast<int32_t>(value) - 0x8000);
  }
};

// For each set of eight lanes a shuffle of bytes: the words of the set's lanes to the end of the
// register.
struct Gather {
  alignas(16) std::array<std::array<uint8_t, 16>, 256> shuffles{};
  constexpr Gather() {
    for (unsigned set = 0; set < 256; ++set) {
      size_t place = 16;
      for (unsigned lane = 8; lane-- > 0;) {
        if (!(set >> lane & 1)) continue;
        shuffles[set][--place] = static_cast<uint8_t>(2 * lane + 1);
        shuffles[set][--place] = static_cast<uint8_t>(2 * lane);
      }
    }
  }
};
inline constexpr Gather kGather{};

// Pops groups from values[0] on, while all of a group lies in the window and `end` is not passed;
// gives how many symbols. May look 32 bytes past `at`.
using PopGroups = size_t (*)(uint32_t* lane, const Window& window, int32_t offset,
                             const uint8_t*& at, const uint8_t* end, int16_t* values, size_t count);

// Pushes groups from values[count - 1] down to values[0], count being a multiple of sixteen, while
// all of a group lies in the window; gives how many symbols are left. May write 16 bytes before
// the words.
using PushGroups = size_t (*)(uint32_t* lane, const Window& window, int32_t offset, uint8_t*& at,
                              const int16_t* values, size_t count);

}  // namespace rans
