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
#include "rule.hpp"

namespace edgecloud {

inline constexpr size_t kMaxTablesBytes = size_t{16} << 20;
struct EdgeTables {
  Rule rule;
  rans::Tables tables;
  size_t contexts;  // channels that have context tables
};

namespace detail {

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
    const uint32_t value = read_number(at_);
    at_ += 4;
    return value;
  }
  std::vector<uint32_t> take(size_t count) {
    need(count);
    std::vector<uint32_t> values(count);
    for (uint32_t& value : values) value = next();
    return values;
  }

 private:
  void need(size_t count) const {
    if (count > static_cast<size_t>(end_ - at_) / 4)
      throw std::invalid_argument("it ends before its tables do");
  }
  const uint8_t* at_;
  const uint8_t* end_;
};

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
  if (const uint32_t version = read_number(bytes + 8); version != kTablesVersion)
    refuse("it has version " + std::to_string(version) + ", this release reads " +
           std::to_string(kTablesVersion));
  if (size > kMaxTablesBytes || size < kRuleBytes + kCrcBytes || size % 4 != 0 ||
      !is_intact(bytes, size))
    refuse("it is damaged or incomplete");
  try {
    const Rule rule = read_rule(bytes);
    if (const char* why = problem_of(rule)) throw std::invalid_argument(why);
    const uint8_t *tables = bytes + kRuleBytes, *end = bytes + size - kCrcBytes;
    if (fingerprint_of(rule, tables, static_cast<size_t>(end - tables)) != rule.fingerprint)
      throw std::invalid_argument("its contents give another fingerprint than it says");
    Numbers numbers(tables, end);
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
