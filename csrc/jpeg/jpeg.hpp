// Checks that a JPEG's entropy-coded data is whole, by walking through all of its Huffman codes
// without decoding pixels.
//
// libjpeg goes on after damage: it fills what is lost with grey and leaves a warning, which Pillow
// drops. This walk finds what libjpeg warns of within a scan: data that ends before its blocks do,
// a code that is in no table, a restart marker out of sequence. It also finds data left over after
// a scan's last block, coefficients beyond a block's end, and pictures whose last scans are
// missing. Junk between segments and after the end of the image is ignored.
//
// Baseline, extended and progressive JPEGs are walked. Arithmetic-coded and lossless JPEGs are not,
// and headers that libjpeg itself refuses are left to it: both give Damage::none.
//
// Always holds: no byte outside the given ones is read. Memory is a copy of the data, and for
// progressive JPEGs eight bytes a block, of which only the pages that the data reaches are touched.
//
// The names are those of the JPEG standard (ITU-T T.81): MCU, the minimum coded unit, with some
// blocks of each component; DC and AC, a block's first and other coefficients; EOB, end of block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "huffman.hpp"

namespace jpeg {

enum class Damage {
  none,
  cut_short,     // a segment of a scan ends before its blocks do
  bad_code,      // a code in no table, or a coefficient beyond its block's end
  lost_restart,  // a restart marker is not the next one in sequence
  left_over,     // more than kHarmlessBytes follow the last block
  unfinished,    // scans are missing
};

// Why a JPEG is refused, for users: "NAME is damaged or cut short (REASON)". "" if it is not.
inline const char* reason(Damage damage) {
  switch (damage) {
    case Damage::cut_short: return "its data ends before its picture does";
    case Damage::bad_code: return "its data has an invalid code";
    case Damage::lost_restart: return "a part of its data is missing";
    case Damage::left_over: return "its data goes on after the picture's end";
    case Damage::unfinished: return "its last scans are missing";
    case Damage::none: break;
  }
  return "";
}

constexpr size_t kHarmlessBytes = 8;  // some encoders append that many to a scan

// One walk through a JPEG. Does not own the data.
class Walk {
 public:
  Walk(const uint8_t* data, size_t size)
      : at_(data), end_(data + size), segment_(new uint8_t[size + kSlack]) {
    std::fill_n(lowest_bit_[0], 4 * kCoefficients, kNeverCoded);
    read_huffman_tables(kStandardTables, kStandardTables + sizeof kStandardTables);
  }

  Damage damage() {
    for (uint8_t marker; (marker = next_marker()) != kEndOfImage;) {
      if (marker == kStartOfImage || (kRestart0 <= marker && marker < kRestart0 + 8) ||
          marker == kTemporary)
        continue;
      if (end_ - at_ < 2) break;
      const size_t length = at_[0] << 8 | at_[1];
      if (length < 2 || length > static_cast<size_t>(end_ - at_)) break;
      const uint8_t *body = at_ + 2, *next = at_ + length;
      at_ = next;
      if (marker == kHuffmanTables && !read_huffman_tables(body, next)) return Damage::none;
      if (marker == kRestartInterval && length == 4)
        restart_interval_ = static_cast<size_t>(body[0] << 8 | body[1]);
      if (is_frame(marker) && !read_frame(marker, body, next)) return Damage::none;
      if (marker != kStartOfScan) continue;
      if (!read_scan(body, next)) return Damage::none;
      if (const Damage found = walk_scan(); found != Damage::none) return found;
    }
    return is_finished() ? Damage::none : Damage::unfinished;
  }

 private:
  static constexpr uint8_t kStartOfImage = 0xD8, kEndOfImage = 0xD9, kStartOfScan = 0xDA,
                           kHuffmanTables = 0xC4, kRestartInterval = 0xDD, kRestart0 = 0xD0,
                           kTemporary = 0x01;
  static constexpr int8_t kNeverCoded = -1;

  struct Component {
    unsigned id, across, down;  // blocks across and down in an MCU of all components
    size_t columns, rows;       // blocks in a scan of this component alone
    size_t stride;              // blocks in a row of MCUs
    // Progressive only. For each block, bit k says whether coefficient k is known not to be zero.
    std::unique_ptr<uint64_t[], void (*)(void*)> nonzero{nullptr, std::free};
    const HuffmanTable *dc_table = nullptr, *ac_table = nullptr;
  };

  // The next marker, after any junk. The end of the data counts as the end of the image.
  uint8_t next_marker() {
    while (at_ < end_) {
      if (*at_++ != 0xFF) continue;
      while (at_ < end_ && *at_ == 0xFF) ++at_;
      if (at_ < end_ && *at_++ != 0) return at_[-1];
    }
    return kEndOfImage;
  }

  // These three read the body of a segment, [at, end). False if it is not of a kind that is walked,
  // or libjpeg refuses it.
  bool read_huffman_tables(const uint8_t* at, const uint8_t* end) {
    while (at < end) {
      if (end - at < 17 || at[0] & 0xEC) return false;
      size_t count = 0;
      for (int length = 1; length <= 16; ++length) count += at[length];
      if (count > 256 || count > static_cast<size_t>(end - at - 17)) return false;
      if (!tables_[at[0] >> 4][at[0] & 3].set(at + 1, at + 17)) return false;
      at += 17 + count;
    }
    return true;
  }

  // 0xC0 to 0xC2 are baseline, extended and progressive. 0xC8 and 0xCC are no frames.
  static bool is_frame(uint8_t marker) {
    return 0xC0 <= marker && marker <= 0xCF && marker != kHuffmanTables && marker != 0xC8 &&
           marker != 0xCC;
  }

  bool read_frame(uint8_t marker, const uint8_t* at, const uint8_t* end) {
    if (marker > 0xC2 || component_count_ || end - at < 6 || at[0] != 8 ||
        end - at != 6 + 3 * at[5])
      return false;
    is_progressive_ = marker == 0xC2;
    const size_t height = at[1] << 8 | at[2], width = at[3] << 8 | at[4];
    const unsigned count = at[5];
    if (height == 0 || width == 0 || count < 1 || count > 4) return false;
    unsigned most_across = 1, most_down = 1;
    for (unsigned c = 0; c < count; ++c) {
      const uint8_t* from = at + 6 + 3 * c;
      components_[c].id = from[0];
      components_[c].across = from[1] >> 4;
      components_[c].down = from[1] & 15;
      if (components_[c].across - 1 > 3 || components_[c].down - 1 > 3) return false;
      most_across = std::max(most_across, components_[c].across);
      most_down = std::max(most_down, components_[c].down);
    }
    mcu_columns_ = divide_up(width, 8 * most_across);
    mcu_rows_ = divide_up(height, 8 * most_down);
    for (unsigned c = 0; c < count; ++c) {
      Component& one = components_[c];
      one.columns = divide_up(width * one.across, 8 * most_across);
      one.rows = divide_up(height * one.down, 8 * most_down);
      one.stride = mcu_columns_ * one.across;
      if (!is_progressive_) continue;
      // calloc's zeros take no memory until they are written: a header alone claims none.
      one.nonzero.reset(
          static_cast<uint64_t*>(std::calloc(one.stride * mcu_rows_ * one.down, sizeof(uint64_t))));
      if (!one.nonzero) throw std::bad_alloc();
    }
    component_count_ = count;
    return true;
  }

  bool read_scan(const uint8_t* at, const uint8_t* end) {
    if (!component_count_ || at == end || at[0] < 1 || at[0] > 4 || end - at != 4 + 2 * at[0])
      return false;
    scan_count_ = at[0];
    const uint8_t* spectrum = at + 1 + 2 * scan_count_;
    first_ = is_progressive_ ? spectrum[0] : 0;
    last_ = is_progressive_ ? spectrum[1] : kCoefficients - 1;
    high_bit_ = is_progressive_ ? spectrum[2] >> 4 : 0;
    low_bit_ = is_progressive_ ? spectrum[2] & 15 : 0;
    if (first_ > last_ || last_ >= kCoefficients || low_bit_ > 13 ||
        (is_progressive_ && (first_ == 0) != (last_ == 0)))
      return false;
    if (first_ > 0 && scan_count_ > 1) return false;
    unsigned blocks = 0;
    for (unsigned s = 0; s < scan_count_; ++s) {
      const uint8_t* from = at + 1 + 2 * s;
      const unsigned dc_table = from[1] >> 4, ac_table = from[1] & 15;
      Component* one = std::find_if(components_, components_ + component_count_,
                                    [&](const Component& c) { return c.id == from[0]; });
      if (one == components_ + component_count_) return false;
      const bool needs_dc = first_ == 0 && high_bit_ == 0, needs_ac = last_ > 0;
      if ((needs_dc && !is_set(0, dc_table)) || (needs_ac && !is_set(1, ac_table))) return false;
      scan_components_[s] = one;
      one->dc_table = &tables_[0][dc_table & 3];
      one->ac_table = &tables_[1][ac_table & 3];
      if (!is_progressive_) tables_[1][ac_table].make_jumps();
      blocks += one->across * one->down;
      std::fill(lowest_bit_[one - components_] + first_, lowest_bit_[one - components_] + last_ + 1,
                static_cast<int8_t>(low_bit_));
    }
    return scan_count_ == 1 || blocks <= 10;
  }

  bool is_set(unsigned kind, unsigned table) const {
    return table < 4 && tables_[kind][table].is_set();
  }

  Damage walk_scan() {
    const Component& alone = *scan_components_[0];
    const size_t units = scan_count_ == 1 ? alone.columns * alone.rows : mcu_columns_ * mcu_rows_;
    const size_t interval = restart_interval_ ? restart_interval_ : units;
    for (size_t unit = 0, segment = 0; unit < units; unit += interval, ++segment) {
      if (segment > 0 && next_marker() != kRestart0 + (segment - 1) % 8)
        return Damage::lost_restart;
      Bits bits = take_segment();
      eob_run_ = 0;
      if (const Damage found = walk_units(bits, unit, std::min(units, unit + interval));
          found != Damage::none)
        return found;
      if (bits.bytes_left() > kHarmlessBytes) return Damage::left_over;
    }
    return Damage::none;
  }

  // The data up to the next marker, without the zero byte that is stuffed after each 0xFF.
  Bits take_segment() {
    uint8_t* out = segment_.get();
    while (at_ < end_) {
      const void* found = std::memchr(at_, 0xFF, static_cast<size_t>(end_ - at_));
      const uint8_t* mark = found ? static_cast<const uint8_t*>(found) : end_;
      std::memcpy(out, at_, static_cast<size_t>(mark - at_));
      out += mark - at_;
      at_ = mark;
      while (mark < end_ && *mark == 0xFF) ++mark;
      if (mark == end_ || *mark != 0) break;
      *out++ = 0xFF;
      at_ = mark + 1;
    }
    std::memset(out, 0, kSlack);
    return {segment_.get(), static_cast<size_t>(out - segment_.get())};
  }

  // Walks MCUs, or blocks in a scan of one component, from number `unit` to `stop` - 1.
  Damage walk_units(Bits& bits, size_t unit, size_t stop) {
    if (scan_count_ == 1) {
      Component& one = *scan_components_[0];
      size_t row = unit / one.columns, column = unit % one.columns;
      for (; unit < stop; ++unit) {
        if (const Damage found = walk_block(bits, one, row * one.stride + column);
            found != Damage::none)
          return found;
        if (++column == one.columns) column = 0, ++row;
      }
      return Damage::none;
    }
    for (; unit < stop; ++unit) {
      for (unsigned s = 0; s < scan_count_; ++s) {
        Component& one = *scan_components_[s];
        // A block's place matters only for AC coefficients, whose scans have one component.
        for (unsigned block = one.across * one.down; block > 0; --block)
          if (const Damage found = walk_block(bits, one, 0); found != Damage::none) return found;
      }
    }
    return Damage::none;
  }

  Damage walk_block(Bits& bits, Component& one, size_t place) {
    Damage found = Damage::none;
    if (!is_progressive_)
      found = walk_sequential(bits, one);
    else if (first_ == 0)
      found = high_bit_ == 0 ? walk_dc(bits, one) : (bits.skip(1), Damage::none);
    else
      found = high_bit_ == 0 ? walk_ac_first(bits, one, one.nonzero[place])
                             : walk_ac_refinement(bits, one, one.nonzero[place]);
    return bits.is_over() ? Damage::cut_short : found;
  }

  Damage walk_dc(Bits& bits, const Component& one) {
    const int symbol = one.dc_table->next_symbol(bits);
    if (symbol < 0) return Damage::bad_code;
    bits.skip(static_cast<unsigned>(symbol));
    return symbol > 15 ? Damage::bad_code : Damage::none;
  }

  Damage walk_sequential(Bits& bits, const Component& one) {
    if (const Damage found = walk_dc(bits, one); found != Damage::none) return found;
    for (unsigned k = 1; k < kCoefficients;) {
      const HuffmanTable::Jump jump = one.ac_table->jump(bits.window());
      // Near a block's end a look-up may see codes of the next block. There coefficients are passed
      // one by one.
      if (jump.bits && k + jump.coefficients < kCoefficients) {
        bits.skip(jump.bits);
        if (jump.ends) break;
        k += jump.coefficients;
        continue;
      }
      const int symbol = one.ac_table->next_symbol(bits);
      if (symbol < 0) return Damage::bad_code;
      const unsigned zeros = static_cast<unsigned>(symbol) >> 4, size = symbol & 15;
      if (size == 0 && zeros < 15) break;
      k += zeros + 1;
      if (size && k > kCoefficients) return Damage::bad_code;
      bits.skip(size);
    }
    return Damage::none;
  }

  // First scan of the coefficients first_ to last_ of a block.
  Damage walk_ac_first(Bits& bits, const Component& one, uint64_t& nonzero) {
    if (eob_run_) {
      --eob_run_;
      return Damage::none;
    }
    for (unsigned k = first_; k <= last_; ++k) {
      const int symbol = one.ac_table->next_symbol(bits);
      if (symbol < 0) return Damage::bad_code;
      const unsigned zeros = static_cast<unsigned>(symbol) >> 4, size = symbol & 15;
      if (size == 0 && zeros < 15) {
        eob_run_ = (1u << zeros) - 1 + bits.take(zeros);
        break;
      }
      k += zeros;
      if (size && k > last_) return Damage::bad_code;
      if (size) nonzero |= uint64_t{1} << k;
      bits.skip(size);
    }
    return Damage::none;
  }

  // A later scan: one more bit of each coefficient that is not zero, and those that become so.
  Damage walk_ac_refinement(Bits& bits, const Component& one, uint64_t& nonzero) {
    unsigned k = first_;
    for (; eob_run_ == 0 && k <= last_; ++k) {
      const int symbol = one.ac_table->next_symbol(bits);
      if (symbol < 0) return Damage::bad_code;
      unsigned zeros = static_cast<unsigned>(symbol) >> 4;
      const unsigned size = symbol & 15;
      if (size > 1) return Damage::bad_code;
      if (size == 0 && zeros < 15) {
        eob_run_ = (1u << zeros) + bits.take(zeros);
        break;
      }
      bits.skip(size);  // the sign
      for (; k <= last_; ++k) {
        if (nonzero >> k & 1)
          bits.skip(1);
        else if (zeros-- == 0)
          break;
      }
      if (size && k > last_) return Damage::bad_code;
      if (size) nonzero |= uint64_t{1} << k;
    }
    if (eob_run_) {
      for (; k <= last_; ++k) bits.skip(nonzero >> k & 1);
      --eob_run_;
    }
    return Damage::none;
  }

  // Whether the DC coefficients of all components, and all coefficients that a scan began, have
  // been coded down to the last bit.
  bool is_finished() const {
    for (unsigned c = 0; c < component_count_; ++c)
      if (lowest_bit_[c][0] != 0 || std::any_of(lowest_bit_[c], lowest_bit_[c] + kCoefficients,
                                                [](int8_t bit) { return bit > 0; }))
        return false;
    return true;
  }

  static size_t divide_up(size_t value, size_t by) { return (value + by - 1) / by; }

  const uint8_t *at_, *end_;            // what is not read yet
  std::unique_ptr<uint8_t[]> segment_;  // buffer of take_segment, and kSlack zeros
  HuffmanTable tables_[2][4];           // [0: DC, 1: AC][number]
  Component components_[4];
  Component* scan_components_[4];                  // those that the scan has
  unsigned component_count_ = 0, scan_count_ = 0;  // of the frame, of the scan
  unsigned first_ = 0, last_ = 0;                  // the scan's coefficients (Ss, Se)
  unsigned high_bit_ = 0, low_bit_ = 0;            // bits coded before, and after the scan (Ah, Al)
  size_t mcu_columns_ = 0, mcu_rows_ = 0;
  size_t restart_interval_ = 0;          // MCUs between restart markers; 0: there are none
  uint32_t eob_run_ = 0;                 // blocks to come that end without a code
  int8_t lowest_bit_[4][kCoefficients];  // down to which each coefficient has been coded
  bool is_progressive_ = false;
};

// The first damage in a JPEG of `size` bytes. Throws std::bad_alloc.
inline Damage find_damage(const uint8_t* data, size_t size) {
  // On the heap: the look-up tables are large for a small stack.
  return std::make_unique<Walk>(data, size)->damage();
}

}  // namespace jpeg
