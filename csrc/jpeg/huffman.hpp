// The bits of a JPEG's entropy-coded data, and the Huffman tables that they are coded with.
//
// Why it is fast: bits are read by one unaligned load, and one look-up may pass over several
// coefficients, since the walk in jpeg.hpp needs their sizes and not their values.
//
// Always holds: reading past the end of the data gives zeros, as far as kSlack bytes.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace jpeg {

constexpr unsigned kCoefficients = 64;  // of a block
constexpr unsigned kLookBits = 11;      // of a look-up: its tables fit into the first-level cache
constexpr size_t kSlack = 512;          // zero bytes after the data: more than a block's codes take

// A position among the bits of one segment, which it does not own. The caller checks is_over()
// before it has read kSlack bytes past the end.
class Bits {
 public:
  Bits() = default;
  Bits(const uint8_t* data, size_t size) : data_(data), size_(8 * static_cast<uint64_t>(size)) {}

  // At least the next 57 bits, from the highest bit down.
  uint64_t window() const {
    const uint8_t* at = data_ + at_ / 8;
    const uint64_t word = uint64_t{at[0]} << 56 | uint64_t{at[1]} << 48 | uint64_t{at[2]} << 40 |
                          uint64_t{at[3]} << 32 | uint64_t{at[4]} << 24 | uint64_t{at[5]} << 16 |
                          uint64_t{at[6]} << 8 | at[7];  // one load
    return word << at_ % 8;
  }
  void skip(unsigned count) { at_ += count; }
  // The next `count` bits, at most 32.
  uint32_t take(unsigned count) {
    const uint64_t value = count == 0 ? 0 : window() >> (64 - count);
    skip(count);
    return static_cast<uint32_t>(value);
  }
  bool is_over() const { return at_ > size_; }
  uint64_t bytes_left() const { return (size_ - at_) / 8; }

 private:
  const uint8_t* data_ = nullptr;
  uint64_t at_ = 0, size_ = 0;
};

// One Huffman table. A symbol of an AC table is a number of zero coefficients (upper four bits) and
// the size in bits of the value that follows them (lower four); of a DC table it is a size.
class HuffmanTable {
 public:
  static constexpr int kNoCode = -1;

  // `counts`: the number of codes of each length from 1 to 16. False if no prefix code has these.
  bool set(const uint8_t* counts, const uint8_t* symbols) {
    std::memset(short_codes_, 0, sizeof short_codes_);
    has_jumps_ = false;
    unsigned code = 0, index = 0;
    for (unsigned length = 1; length <= 16; ++length, code <<= 1) {
      first_code_[length] = code;
      first_index_[length] = index;
      count_[length] = counts[length - 1];
      for (unsigned k = 0; k < counts[length - 1]; ++k, ++code, ++index) {
        symbols_[index] = symbols[index];
        if (length > kLookBits) continue;
        const ShortCode entry{static_cast<uint8_t>(length), symbols[index]};
        const unsigned spread = kLookBits - length;
        if (code >> length) return false;
        std::fill_n(short_codes_ + (code << spread), size_t{1} << spread, entry);
      }
      if (code > 1u << length) return false;
    }
    is_set_ = true;
    return true;
  }
  bool is_set() const { return is_set_; }

  // Reads one code. kNoCode if the table has no such code.
  int next_symbol(Bits& bits) const {
    const uint32_t window = static_cast<uint32_t>(bits.window() >> 48);
    const ShortCode entry = short_codes_[window >> (16 - kLookBits)];
    if (entry.length) {
      bits.skip(entry.length);
      return entry.symbol;
    }
    for (unsigned length = kLookBits + 1; length <= 16; ++length) {
      const uint32_t offset = (window >> (16 - length)) - first_code_[length];
      if (offset < count_[length]) {
        bits.skip(length);
        return symbols_[first_index_[length] + offset];
      }
    }
    return kNoCode;
  }

  // What the next kLookBits bits pass over within a block of a sequential scan, values included. No
  // bits if the look-up does not know, and next_symbol() has to be called.
  struct Jump {
    uint8_t bits, coefficients;
    bool ends;  // whether the block ends
  };
  Jump jump(uint64_t window) const { return jumps_[window >> (64 - kLookBits)]; }

  // Fills the look-ups of jump(), which only sequential scans need.
  void make_jumps() {
    if (has_jumps_) return;
    has_jumps_ = true;
    for (uint32_t look = 0; look < 1u << kLookBits; ++look) {
      Jump jump{0, 0, false};
      while (!jump.ends) {
        const ShortCode entry = short_codes_[(look << jump.bits) & ((1u << kLookBits) - 1)];
        const unsigned zeros = entry.symbol >> 4, size = entry.symbol & 15;
        // The code must lie within the look-up. The value's bits may lie beyond it: only their
        // number matters.
        if (entry.length == 0 || jump.bits + entry.length > kLookBits ||
            jump.coefficients + zeros + 1 >= kCoefficients)
          break;
        jump.bits = static_cast<uint8_t>(jump.bits + entry.length + size);
        jump.ends = size == 0 && zeros < 15;
        if (!jump.ends) jump.coefficients = static_cast<uint8_t>(jump.coefficients + zeros + 1);
        if (jump.bits >= kLookBits) break;
      }
      jumps_[look] = jump;
    }
  }

 private:
  struct ShortCode {
    uint8_t length, symbol;
  };
  ShortCode short_codes_[1u << kLookBits];  // by the next bits; length 0: the code is longer
  Jump jumps_[1u << kLookBits];
  uint32_t first_code_[17], first_index_[17], count_[17];
  uint8_t symbols_[256];
  bool is_set_ = false, has_jumps_ = false;
};

// The Huffman tables of the JPEG standard, annex K.3, in the form of a DHT segment's body. Frames
// of Motion JPEG leave them out.
constexpr uint8_t kStandardTables[] = {
    0,   0,   1,   5,   1,   1,   1,   1,   1,   1,   0,   0,   0,   0,   0,   0,   0,   0,   1,
    2,   3,   4,   5,   6,   7,   8,   9,   10,  11,  16,  0,   2,   1,   3,   3,   2,   4,   3,
    5,   5,   4,   4,   0,   0,   1,   125, 1,   2,   3,   0,   4,   17,  5,   18,  33,  49,  65,
    6,   19,  81,  97,  7,   34,  113, 20,  50,  129, 145, 161, 8,   35,  66,  177, 193, 21,  82,
    209, 240, 36,  51,  98,  114, 130, 9,   10,  22,  23,  24,  25,  26,  37,  38,  39,  40,  41,
    42,  52,  53,  54,  55,  56,  57,  58,  67,  68,  69,  70,  71,  72,  73,  74,  83,  84,  85,
    86,  87,  88,  89,  90,  99,  100, 101, 102, 103, 104, 105, 106, 115, 116, 117, 118, 119, 120,
    121, 122, 131, 132, 133, 134, 135, 136, 137, 138, 146, 147, 148, 149, 150, 151, 152, 153, 154,
    162, 163, 164, 165, 166, 167, 168, 169, 170, 178, 179, 180, 181, 182, 183, 184, 185, 186, 194,
    195, 196, 197, 198, 199, 200, 201, 202, 210, 211, 212, 213, 214, 215, 216, 217, 218, 225, 226,
    227, 228, 229, 230, 231, 232, 233, 234, 241, 242, 243, 244, 245, 246, 247, 248, 249, 250, 1,
    0,   3,   1,   1,   1,   1,   1,   1,   1,   1,   1,   0,   0,   0,   0,   0,   0,   1,   2,
    3,   4,   5,   6,   7,   8,   9,   10,  11,  17,  0,   2,   1,   2,   4,   4,   3,   4,   7,
    5,   4,   4,   0,   1,   2,   119, 0,   1,   2,   3,   17,  4,   5,   33,  49,  6,   18,  65,
    81,  7,   97,  113, 19,  34,  50,  129, 8,   20,  66,  145, 161, 177, 193, 9,   35,  51,  82,
    240, 21,  98,  114, 209, 10,  22,  36,  52,  225, 37,  241, 23,  24,  25,  26,  38,  39,  40,
    41,  42,  53,  54,  55,  56,  57,  58,  67,  68,  69,  70,  71,  72,  73,  74,  83,  84,  85,
    86,  87,  88,  89,  90,  99,  100, 101, 102, 103, 104, 105, 106, 115, 116, 117, 118, 119, 120,
    121, 122, 130, 131, 132, 133, 134, 135, 136, 137, 138, 146, 147, 148, 149, 150, 151, 152, 153,
    154, 162, 163, 164, 165, 166, 167, 168, 169, 170, 178, 179, 180, 181, 182, 183, 184, 185, 186,
    194, 195, 196, 197, 198, 199, 200, 201, 202, 210, 211, 212, 213, 214, 215, 216, 217, 218, 226,
    227, 228, 229, 230, 231, 232, 233, 234, 242, 243, 244, 245, 246, 247, 248, 249, 250};

}  // namespace jpeg
