// Whether a JPEG's entropy-coded data is whole: all of its Huffman codes are walked, and no pixel
// is made.
//
// libjpeg goes on over damage: it fills what is lost with grey and leaves a warning, which Pillow
// drops. This walk finds what libjpeg warns of within a scan: data that ends before its blocks do,
// a code that no table has, a restart marker that is not the next one. It also finds data left over
// after a scan's last block, coefficients beyond a block's end, and pictures whose last scans are
// missing. Junk between segments and after the end is passed over.
//
// Baseline, extended and progressive JPEGs are walked. Arithmetic coding and lossless JPEGs are
// not, and headers that libjpeg itself refuses are left to it: both give Damage::none.
//
// Always holds: nothing outside the given bytes is read; memory is a copy of the data, and for
// progressive JPEGs eight bytes a block, of which only those are touched that the data reaches.
//
// Why it is fast: a walk needs a coefficient's place and how many bits it takes, never its value.
// Stuffed zeros are removed first, bits are then read by one unaligned load, and one look-up passes
// over several coefficients.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace jpeg {

enum class Damage { none, cut_short, bad_code, lost_restart, left_over, unfinished };

constexpr unsigned kCoefficients = 64;  // of a block
constexpr unsigned kLookBits = 11;      // so that the look-ups stay in the first-level cache
constexpr size_t kSlack = 512;          // bytes; the codes of one block take fewer
constexpr size_t kHarmlessBytes = 8;    // that some encoders append to a scan

// Where a walk is among the bits of one segment. Beyond its end there are zeros, and is_over() says
// so.
class Bits {
 public:
  Bits() = default;
  Bits(const uint8_t* data, size_t size) : data_(data), size_(8 * static_cast<uint64_t>(size)) {}

  // The next 57 bits, uppermost.
  uint64_t window() const {
    const uint8_t* at = data_ + at_ / 8;
    const uint64_t word = uint64_t{at[0]} << 56 | uint64_t{at[1]} << 48 | uint64_t{at[2]} << 40 |
                          uint64_t{at[3]} << 32 | uint64_t{at[4]} << 24 | uint64_t{at[5]} << 16 |
                          uint64_t{at[6]} << 8 | at[7];  // one load
    return word << at_ % 8;
  }
  void skip(unsigned count) { at_ += count; }
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

// One Huffman table. Symbols are a run of zeros (upper four bits) and the size of a value (lower
// four) in bits.
class Table {
 public:
  static constexpr int kNoCode = -1;

  // `counts`: how many codes there are of each length from 1 to 16. False if they cannot be.
  bool set(const uint8_t* counts, const uint8_t* symbols) {
    std::memset(short_, 0, sizeof short_);
    has_runs_ = false;
    unsigned code = 0, index = 0;
    for (unsigned length = 1; length <= 16; ++length, code <<= 1) {
      first_code_[length] = code;
      first_index_[length] = index;
      count_[length] = counts[length - 1];
      for (unsigned k = 0; k < counts[length - 1]; ++k, ++code, ++index) {
        symbols_[index] = symbols[index];
        if (length > kLookBits) continue;
        const Short entry{static_cast<uint8_t>(length), symbols[index]};
        const unsigned spread = kLookBits - length;
        if (code >> length) return false;
        std::fill_n(short_ + (code << spread), size_t{1} << spread, entry);
      }
      if (code > 1u << length) return false;
    }
    is_set_ = true;
    return true;
  }
  bool is_set() const { return is_set_; }

  int next(Bits& bits) const {
    const uint32_t window = static_cast<uint32_t>(bits.window() >> 48);
    const Short entry = short_[window >> (16 - kLookBits)];
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

  // How far the next bits lead within a block of a sequential scan; no bits at all where next()
  // must be asked.
  struct Run {
    uint8_t bits, coefficients;
    bool ends;  // the block
  };
  Run run(uint64_t window) const { return runs_[window >> (64 - kLookBits)]; }

  void make_runs() {
    if (has_runs_) return;
    has_runs_ = true;
    for (uint32_t look = 0; look < 1u << kLookBits; ++look) {
      Run run{0, 0, false};
      while (!run.ends) {
        const Short entry = short_[(look << run.bits) & ((1u << kLookBits) - 1)];
        const unsigned zeros = entry.symbol >> 4, size = entry.symbol & 15;
        // A value's own bits may lie beyond the look-up; they are passed over all the same.
        if (entry.length == 0 || run.bits + entry.length > kLookBits ||
            run.coefficients + zeros + 1 >= kCoefficients)
          break;
        run.bits = static_cast<uint8_t>(run.bits + entry.length + size);
        run.ends = size == 0 && zeros < 15;
        if (!run.ends) run.coefficients = static_cast<uint8_t>(run.coefficients + zeros + 1);
        if (run.bits >= kLookBits) break;
      }
      runs_[look] = run;
    }
  }

 private:
  struct Short {
    uint8_t length, symbol;
  };
  Short short_[1u << kLookBits];
  Run runs_[1u << kLookBits];
  uint32_t first_code_[17], first_index_[17], count_[17];
  uint8_t symbols_[256];
  bool is_set_ = false, has_runs_ = false;
};

// The tables of the JPEG standard's annex K, which frames of Motion JPEG leave out.
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

class Walk {
 public:
  Walk(const uint8_t* data, size_t size)
      : at_(data), end_(data + size), segment_(new uint8_t[size + kSlack]) {
    std::fill_n(last_bit_[0], 4 * kCoefficients, kNeverCoded);
    read_tables(kStandardTables, kStandardTables + sizeof kStandardTables);
  }

  Damage damage() {
    for (uint8_t marker; (marker = next_marker()) != kEnd;) {
      if (marker == kStart || (kRestart <= marker && marker < kRestart + 8) || marker == 0x01)
        continue;
      if (end_ - at_ < 2) break;
      const size_t length = at_[0] << 8 | at_[1];
      if (length < 2 || length > static_cast<size_t>(end_ - at_)) break;
      const uint8_t *body = at_ + 2, *next = at_ + length;
      at_ = next;
      if (marker == kTables && !read_tables(body, next)) return Damage::none;
      if (marker == kInterval && length == 4)
        interval_ = static_cast<size_t>(body[0] << 8 | body[1]);
      if (is_frame(marker) && !read_frame(marker, body, next)) return Damage::none;
      if (marker != kScan) continue;
      if (!read_scan(body, next)) return Damage::none;
      if (const Damage found = walk_scan(); found != Damage::none) return found;
    }
    return is_finished() ? Damage::none : Damage::unfinished;
  }

 private:
  static constexpr uint8_t kStart = 0xD8, kEnd = 0xD9, kScan = 0xDA, kTables = 0xC4,
                           kInterval = 0xDD, kRestart = 0xD0;
  static constexpr int8_t kNeverCoded = -1;

  struct Component {
    unsigned id, across, down;  // blocks of it in a unit of all components
    size_t columns, rows;       // blocks that it has alone
    size_t stride;              // blocks in a row of units
    std::unique_ptr<uint64_t[], void (*)(void*)> not_zero{
        nullptr, std::free};  // a bit for each coefficient, in order
    const Table *first = nullptr, *others = nullptr;
  };

  // The next marker, whatever junk is before it; at the end of the data as if the image ended
  // there.
  uint8_t next_marker() {
    while (at_ < end_) {
      if (*at_++ != 0xFF) continue;
      while (at_ < end_ && *at_ == 0xFF) ++at_;
      if (at_ < end_ && *at_++ != 0) return at_[-1];
    }
    return kEnd;
  }

  bool read_tables(const uint8_t* at, const uint8_t* end) {
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

  static bool is_frame(uint8_t marker) {
    return 0xC0 <= marker && marker <= 0xCF && marker != kTables && marker != 0xC8 &&
           marker != 0xCC;
  }

  bool read_frame(uint8_t marker, const uint8_t* at, const uint8_t* end) {
    if (marker > 0xC2 || components_ || end - at < 6 || at[0] != 8 || end - at != 6 + 3 * at[5])
      return false;
    is_progressive_ = marker == 0xC2;
    const size_t height = at[1] << 8 | at[2], width = at[3] << 8 | at[4];
    const unsigned count = at[5];
    if (height == 0 || width == 0 || count < 1 || count > 4) return false;
    unsigned most_across = 1, most_down = 1;
    for (unsigned c = 0; c < count; ++c) {
      const uint8_t* from = at + 6 + 3 * c;
      component_[c].id = from[0];
      component_[c].across = from[1] >> 4;
      component_[c].down = from[1] & 15;
      if (component_[c].across - 1 > 3 || component_[c].down - 1 > 3) return false;
      most_across = std::max(most_across, component_[c].across);
      most_down = std::max(most_down, component_[c].down);
    }
    columns_ = divide_up(width, 8 * most_across);
    rows_ = divide_up(height, 8 * most_down);
    for (unsigned c = 0; c < count; ++c) {
      Component& one = component_[c];
      one.columns = divide_up(width * one.across, 8 * most_across);
      one.rows = divide_up(height * one.down, 8 * most_down);
      one.stride = columns_ * one.across;
      if (!is_progressive_) continue;
      // From calloc, which gives zeros without touching them: a header alone takes no memory.
      one.not_zero.reset(
          static_cast<uint64_t*>(std::calloc(one.stride * rows_ * one.down, sizeof(uint64_t))));
      if (!one.not_zero) throw std::bad_alloc();
    }
    components_ = count;
    return true;
  }

  bool read_scan(const uint8_t* at, const uint8_t* end) {
    if (!components_ || at == end || at[0] < 1 || at[0] > 4 || end - at != 4 + 2 * at[0])
      return false;
    in_scan_ = at[0];
    const uint8_t* spectrum = at + 1 + 2 * in_scan_;
    first_ = is_progressive_ ? spectrum[0] : 0;
    last_ = is_progressive_ ? spectrum[1] : kCoefficients - 1;
    high_ = is_progressive_ ? spectrum[2] >> 4 : 0;
    low_ = is_progressive_ ? spectrum[2] & 15 : 0;
    if (first_ > last_ || last_ >= kCoefficients || low_ > 13 ||
        (is_progressive_ && (first_ == 0) != (last_ == 0)))
      return false;
    if (first_ > 0 && in_scan_ > 1) return false;
    unsigned blocks = 0;
    for (unsigned s = 0; s < in_scan_; ++s) {
      const uint8_t* from = at + 1 + 2 * s;
      const unsigned first_table = from[1] >> 4, others_table = from[1] & 15;
      Component* one = std::find_if(component_, component_ + components_,
                                    [&](const Component& c) { return c.id == from[0]; });
      if (one == component_ + components_) return false;
      const bool wants_first = first_ == 0 && high_ == 0, wants_others = last_ > 0;
      if ((wants_first && !is_set(0, first_table)) || (wants_others && !is_set(1, others_table)))
        return false;
      scan_[s] = one;
      one->first = &tables_[0][first_table & 3];
      one->others = &tables_[1][others_table & 3];
      if (!is_progressive_) tables_[1][others_table].make_runs();
      blocks += one->across * one->down;
      std::fill(last_bit_[one - component_] + first_, last_bit_[one - component_] + last_ + 1,
                static_cast<int8_t>(low_));
    }
    return in_scan_ == 1 || blocks <= 10;
  }

  bool is_set(unsigned kind, unsigned table) const {
    return table < 4 && tables_[kind][table].is_set();
  }

  Damage walk_scan() {
    const Component& alone = *scan_[0];
    const size_t units = in_scan_ == 1 ? alone.columns * alone.rows : columns_ * rows_;
    const size_t interval = interval_ ? interval_ : units;
    for (size_t unit = 0, segment = 0; unit < units; unit += interval, ++segment) {
      if (segment > 0 && next_marker() != kRestart + (segment - 1) % 8) return Damage::lost_restart;
      Bits bits = take_segment();
      waiting_ = 0;
      if (const Damage found = walk_units(bits, unit, std::min(units, unit + interval));
          found != Damage::none)
        return found;
      if (bits.bytes_left() > kHarmlessBytes) return Damage::left_over;
    }
    return Damage::none;
  }

  // The data up to the next marker, without its stuffed zeros.
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

  Damage walk_units(Bits& bits, size_t unit, size_t stop) {
    if (in_scan_ == 1) {
      Component& one = *scan_[0];
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
      for (unsigned s = 0; s < in_scan_; ++s) {
        Component& one = *scan_[s];
        // Where a block lies matters to scans of one component only.
        for (unsigned block = one.across * one.down; block > 0; --block)
          if (const Damage found = walk_block(bits, one, 0); found != Damage::none) return found;
      }
    }
    return Damage::none;
  }

  Damage walk_block(Bits& bits, Component& one, size_t place) {
    Damage found = Damage::none;
    if (!is_progressive_)
      found = sequential(bits, one);
    else if (first_ == 0)
      found = high_ == 0 ? first_coefficient(bits, one) : (bits.skip(1), Damage::none);
    else
      found = high_ == 0 ? others_first(bits, one, one.not_zero[place])
                         : others_refined(bits, one, one.not_zero[place]);
    return bits.is_over() ? Damage::cut_short : found;
  }

  Damage first_coefficient(Bits& bits, const Component& one) {
    const int symbol = one.first->next(bits);
    if (symbol < 0) return Damage::bad_code;
    bits.skip(static_cast<unsigned>(symbol));
    return symbol > 15 ? Damage::bad_code : Damage::none;
  }

  Damage sequential(Bits& bits, const Component& one) {
    if (const Damage found = first_coefficient(bits, one); found != Damage::none) return found;
    for (unsigned k = 1; k < kCoefficients;) {
      const Table::Run run = one.others->run(bits.window());
      // Bits after a block's last coefficient are the next block's: there coefficients are passed
      // one by one.
      if (run.bits && k + run.coefficients < kCoefficients) {
        bits.skip(run.bits);
        if (run.ends) break;
        k += run.coefficients;
        continue;
      }
      const int symbol = one.others->next(bits);
      if (symbol < 0) return Damage::bad_code;
      const unsigned zeros = static_cast<unsigned>(symbol) >> 4, size = symbol & 15;
      if (size == 0 && zeros < 15) break;
      k += zeros + 1;
      if (size && k > kCoefficients) return Damage::bad_code;
      bits.skip(size);
    }
    return Damage::none;
  }

  // Coefficients first_ to last_ of a block, for the first time.
  Damage others_first(Bits& bits, const Component& one, uint64_t& not_zero) {
    if (waiting_) {
      --waiting_;
      return Damage::none;
    }
    for (unsigned k = first_; k <= last_; ++k) {
      const int symbol = one.others->next(bits);
      if (symbol < 0) return Damage::bad_code;
      const unsigned zeros = static_cast<unsigned>(symbol) >> 4, size = symbol & 15;
      if (size == 0 && zeros < 15) {
        waiting_ = (1u << zeros) - 1 + bits.take(zeros);
        break;
      }
      k += zeros;
      if (size && k > last_) return Damage::bad_code;
      if (size) not_zero |= uint64_t{1} << k;
      bits.skip(size);
    }
    return Damage::none;
  }

  // One more bit of each coefficient that is not zero, between those that become so.
  Damage others_refined(Bits& bits, const Component& one, uint64_t& not_zero) {
    unsigned k = first_;
    for (; waiting_ == 0 && k <= last_; ++k) {
      const int symbol = one.others->next(bits);
      if (symbol < 0) return Damage::bad_code;
      unsigned zeros = static_cast<unsigned>(symbol) >> 4;
      const unsigned size = symbol & 15;
      if (size > 1) return Damage::bad_code;
      if (size == 0 && zeros < 15) {
        waiting_ = (1u << zeros) + bits.take(zeros);
        break;
      }
      bits.skip(size);  // the sign
      for (; k <= last_; ++k) {
        if (not_zero >> k & 1)
          bits.skip(1);
        else if (zeros-- == 0)
          break;
      }
      if (size && k > last_) return Damage::bad_code;
      if (size) not_zero |= uint64_t{1} << k;
    }
    if (waiting_) {
      for (; k <= last_; ++k) bits.skip(not_zero >> k & 1);
      --waiting_;
    }
    return Damage::none;
  }

  // Whether all components have their mean levels, and all that was begun has its last bit.
  bool is_finished() const {
    for (unsigned c = 0; c < components_; ++c)
      if (last_bit_[c][0] != 0 || std::any_of(last_bit_[c], last_bit_[c] + kCoefficients,
                                              [](int8_t bit) { return bit > 0; }))
        return false;
    return true;
  }

  static size_t divide_up(size_t value, size_t by) { return (value + by - 1) / by; }

  const uint8_t *at_, *end_;
  std::unique_ptr<uint8_t[]> segment_;
  Table tables_[2][4];
  Component component_[4];
  Component* scan_[4];
  unsigned components_ = 0, in_scan_ = 0, first_ = 0, last_ = 0, high_ = 0, low_ = 0;
  size_t columns_ = 0, rows_ = 0,
         interval_ = 0;                // units of all components, and between restart markers
  uint32_t waiting_ = 0;               // blocks that end without a code
  int8_t last_bit_[4][kCoefficients];  // that each coefficient was coded down to
  bool is_progressive_ = false;
};

inline Damage find_damage(const uint8_t* data, size_t size) {
  // On the heap: its look-ups are too much for a small stack.
  return std::make_unique<Walk>(data, size)->damage();
}

}  // namespace jpeg
