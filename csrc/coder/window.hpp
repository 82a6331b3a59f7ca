// Per-table lookup data for the SIMD kernels, and their interface. wide_avx2.hpp, wide_avx512.hpp
// and wide_neon.hpp use it.
//
// A kernel codes the sixteen lanes side by side. A lane's state is held as two 16-bit halves, so
// that one register (two with NEON) holds the same half of all lanes; only encoding with AVX-512
// holds whole states. All lanes use one table, and only a window of it: at most sixteen
// neighbouring entries, which cover nearly all slots. So a symbol is found by counting the starts
// that its slot has passed, and its values by byte shuffles, without a gather from memory.
//
// Always holds: a kernel writes and reads the same bytes as the code without vectors in wide.hpp,
// and leaves a group with a symbol outside the window to that code.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace rans {

// Up to sixteen neighbouring entries of a table.
struct Window {
  static constexpr size_t kEntries = 16;
  // One 16-bit value for each entry, laid out for byte shuffles: all low bytes, then all high
  // bytes.
  struct Column {
    alignas(32) std::array<uint8_t, 2 * kEntries> bytes{};
    void set(size_t k, uint32_t value) {
      bytes[k] = static_cast<uint8_t>(value);
      bytes[k + kEntries] = static_cast<uint8_t>(value >> 8);
    }
  };

  uint32_t first = 0, count = 0;  // index of the first entry in the table, number of entries
  uint32_t begin = 0, end = 0;    // slots [begin, end) that they cover; the escape's lie outside

  // A slot's entry is found in two steps. `quarters`: comparing the slot with the starts of entries
  // 4, 8 and 12 gives its quarter of the window. `places`: comparing it with the starts of the
  // quarter's other three entries gives its place there. Row j of `places` has those of entry
  // j + 1 of all quarters: bytes 0-3 are the low bytes, bytes 4-7 the high ones.
  //
  // Each is the last slot before the start, less 2^15 so that a signed comparison orders slots. For
  // an entry that does not exist it is the largest slot, so that no slot is above it.
  std::array<int16_t, 3> quarters{};
  alignas(16) std::array<std::array<uint8_t, 16>, 3> places{};

  Column start, frequency;

  // For encoders: ceil(2^52 / frequency), at most 2^52 - 1; and its upper 32 bits in two columns,
  // floor(2^32 / frequency), at most 2^32 - 1.
  alignas(64) std::array<uint64_t, kEntries> reciprocal{};
  Column reciprocal_low, reciprocal_high;

  // For decoders: q and start + r, both less 2^15 for signed comparisons. A lane needs a word if
  // frequency * high + slot - start < 2^16. Let 2^16 = frequency * q + r with r <= frequency. Then
  // that is so if high < q, or if high = q and slot < start + r. These comparisons do not wait for
  // the product. A frequency of 1 always needs a word: q = 2^16 - 1 and r = 1 have that effect.
  Column due_high, due_slot;

  // Whether the kernel is worth using. With one symbol in 40 outside the window, a third of the
  // groups of sixteen have one: 1 - (39/40)^16.
  bool is_worthwhile() const { return 0x10000 - (end - begin) < 0x10000 / 40; }

  Window() = default;
  // Takes those neighbours in entries[0 .. size) that cover most slots.
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

  // A slot less 2^15: signed comparisons order slots that way.
  static int16_t signed_order(uint32_t value) {
    return static_cast<int16_t>(static_cast<int32_t>(value) - 0x8000);
  }
};

// For each set of eight lanes (bit l: lane l) the byte shuffle that moves the words of the set's
// lanes to the end of a register, in order.
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

// Decodes groups of sixteen symbols from values[0] on, up to a group with a symbol outside the
// window, past_end, or `count`. Returns how many symbols were decoded. May read 32 bytes from `at`
// on while `at` <= `end`.
using PopGroups = size_t (*)(uint32_t* lane, const Window& window, int32_t offset,
                             const uint8_t*& at, const uint8_t* end, int16_t* values, size_t count);

// Encodes groups of sixteen symbols from values[count - 1] down to values[0], up to a group with a
// symbol outside the window. `count` is a multiple of sixteen. Returns how many symbols are left.
// May overwrite 16 bytes before the words.
using PushGroups = size_t (*)(uint32_t* lane, const Window& window, int32_t offset, uint8_t*& at,
                              const int16_t* values, size_t count);

}  // namespace rans
