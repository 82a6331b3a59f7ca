// Reads edge.tables, which has what an encoder needs of a bundle's manifest and tables in binary
// form. docs/BUNDLE.md, section 11, specifies it.
//
// Always holds: nothing is read outside the file's bytes, and nothing is allocated before the
// file's checksum proved right. The fingerprint is computed from what was read, and compared with
// the file's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

#include "../coder/rans.hpp"
#include "checksums.hpp"
#include "feature_file.hpp"
#include "refused.hpp"

namespace edgecloud {

inline constexpr size_t kMaxTablesBytes = size_t{16} << 20;
inline constexpr uint32_t kMaxResize = 1u << 12;  // pixels, as in a manifest

// What edge.tables says beside the tables.
struct Rule {
  uint32_t channels, stride, shrink, max_symbols, resize, crop;
  bool small;
  Digest bottleneck, fingerprint, weights;  // the last: SHA-256 of edge.weights

  // Rows of the symbols of an image; and columns of its width. 0 if the image is too small.
  size_t rows(size_t height) const {
    return height / stride > shrink ? height / stride - shrink : 0;
  }
  // Symbols of an image; the largest integer if they are more than max_symbols.
  uint64_t symbols(size_t height, size_t width) const {
    const uint64_t down = rows(height), across = rows(width);
    if (down == 0 || across == 0) return 0;
    if (down > max_symbols / across) return UINT64_MAX;
    const uint64_t count = down * across * channels;
    return count > max_symbols ? UINT64_MAX : count;
  }
};

struct EdgeTables {
  Rule rule;
  rans::Tables tables;
  size_t contexts;  // channels that have context tables
};

namespace detail {

inline constexpr char kTablesMagic[8] = {'E', 'D', 'G', 'E', 'T', 'A', 'B', 'L'};
inline constexpr uint32_t kTablesVersion = 1;
inline constexpr size_t kRuleBytes = 8 + 4 * 8 + 3 * 32;

// The fastest kernel of the coder.
inline const rans::Kernel& coder_kernel() {
  for (const rans::Kernel& kernel : rans::kKernels)
    if (kernel.is_available()) return kernel;
  return std::end(rans::kKernels)[-1];  // the portable one, which is always available
}

// Numbers of the file, one after the other.
class Numbers {
 public:
  Numbers(const uint8_t* at, const uint8_t* end) : at_(at), end_(end) {}
  bool is_done() const { return at_ == end_; }
  uint32_t next() {
    need(1);
    const uint32_t value = static_cast<uint32_t>(at_[0]) | static_cast<uint32_t>(at_[1]) << 8 |
                           static_cast<uint32_t>(at_[2]) << 16 |
                           static_cast<uint32_t>(at_[3]) << 24;
    at_ += 4;
    return value;
  }
  std::vector<uint32_t> take(size_t count) {
    need(count);
    std::vector<uint32_t> values(count);
    for (uint32_t& value : values) value = next();
    return values;
  }
  Digest digest() {
    need(8);
    Digest out;
    std::memcpy(out.data(), at_, out.size());
    at_ += out.size();
    return out;
  }
  const uint8_t* at() const { return at_; }

 private:
  void need(size_t count) const {
    if (count > static_cast<size_t>(end_ - at_) / 4)
      throw std::invalid_argument("it ends before its tables do");
  }
  const uint8_t* at_;
  const uint8_t* end_;
};

inline Rule read_rule(Numbers& numbers) {
  Rule rule;
  rule.channels = numbers.next(), rule.stride = numbers.next(), rule.shrink = numbers.next();
  rule.max_symbols = numbers.next(), rule.resize = numbers.next(), rule.crop = numbers.next();
  const uint32_t small = numbers.next();
  rule.small = small != 0;
  rule.bottleneck = numbers.digest(), rule.fingerprint = numbers.digest();
  rule.weights = numbers.digest();
  if (rule.channels < 1 || rule.channels > 4096 || rule.stride < 1 || rule.stride > kBlock ||
      kBlock % rule.stride != 0 || rule.shrink > 1u << 20 || rule.max_symbols < 1 ||
      rule.max_symbols > 1u << 30)
    throw std::invalid_argument("its shape rule is impossible");
  if (rule.crop < 1 || rule.crop > rule.resize || rule.resize > kMaxResize ||
      rule.crop % kBlock != 0 || small > 1)
    throw std::invalid_argument("a value is out of its range");
  return rule;
}

// The SHA-256 that a fingerprint is; `tables` are the bytes of the file behind the rule.
inline Digest fingerprint_of(const Rule& rule, const uint8_t* tables, size_t size) {
  const std::string text = "feature file 1; block 8; " + std::to_string(rule.channels) +
                           " channels, stride " + std::to_string(rule.stride) + ", shrink " +
                           std::to_string(rule.shrink) + "; ";
  const Digest inner = Sha256().add(tables, size).digest();
  return Sha256()
      .add(text.data(), text.size())
      .add(inner.data(), inner.size())
      .add(rule.bottleneck.data(), rule.bottleneck.size())
      .digest();
}

inline rans::Tables read_static(Numbers& numbers, size_t channels, std::vector<uint32_t>& lengths) {
  std::vector<uint32_t> cdf;
  std::vector<int32_t> offsets;
  for (size_t channel = 0; channel < channels; ++channel) {
    offsets.push_back(static_cast<int32_t>(numbers.next()));
    lengths.push_back(numbers.next());
    const std::vector<uint32_t> values = numbers.take(lengths.back());
    cdf.insert(cdf.end(), values.begin(), values.end());
  }
  return {cdf.data(), cdf.size(), lengths.data(), offsets.data(), channels, coder_kernel()};
}

// Adds the context tables, up to the end of the numbers; gives of how many channels.
inline size_t read_contexts(Numbers& numbers, const std::vector<uint32_t>& lengths,
                            rans::Tables& tables) {
  size_t count = 0;
  for (; !numbers.is_done(); ++count) {
    const size_t channel = numbers.next();
    int32_t thresholds[rans::kLevels - 1];
    for (int32_t& threshold : thresholds) threshold = static_cast<int32_t>(numbers.next());
    if (channel >= lengths.size()) throw std::invalid_argument("context tables of no channel");
    const std::vector<uint32_t> cdf = numbers.take(rans::kContexts * lengths[channel]);
    tables.add_contexts(channel, thresholds, cdf.data(), cdf.size());
  }
  return count;
}

}  // namespace detail

// Reads a file of `size` bytes; nothing refers to them afterwards. Throws Refused with BAD_BUNDLE,
// and std::bad_alloc.
inline EdgeTables read_edge_tables(const uint8_t* bytes, size_t size) {
  using namespace detail;
  const auto refuse = [](const std::string& why) {
    throw Refused(EDGECLOUD_BAD_BUNDLE,
                  "edge.tables is refused, " + why + ": copy it again or export the bundle again");
  };
  if (size < 12 || std::memcmp(bytes, kTablesMagic, sizeof kTablesMagic) != 0)
    refuse("it is not a file of tables");
  Numbers head(bytes + 8, bytes + 12);
  if (const uint32_t version = head.next(); version != kTablesVersion)
    refuse("it has version " + std::to_string(version) + ", this release reads " +
           std::to_string(kTablesVersion));
  if (size > kMaxTablesBytes || size < kRuleBytes + kCrcBytes || size % 4 != 0 ||
      !is_intact(bytes, size))
    refuse("it is damaged or incomplete");
  try {
    Numbers numbers(bytes + 12, bytes + size - kCrcBytes);
    const Rule rule = read_rule(numbers);
    const uint8_t* tables = numbers.at();
    if (fingerprint_of(rule, tables, static_cast<size_t>(bytes + size - kCrcBytes - tables)) !=
        rule.fingerprint)
      throw std::invalid_argument("its contents give another fingerprint than it says");
    std::vector<uint32_t> lengths;
    EdgeTables out{rule, read_static(numbers, rule.channels, lengths), 0};
    out.contexts = read_contexts(numbers, lengths, out.tables);
    if (rule.small && out.contexts == 0)
      throw std::invalid_argument("it asks for small files and has no context tables");
    return out;
  } catch (const std::invalid_argument& error) {
    refuse(error.what());
    throw;  // not reached
  }
}

}  // namespace edgecloud
