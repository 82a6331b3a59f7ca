// Reads edge.tables, which has what an encoder needs of a bundle's manifest, tables and rates in
// binary form. docs/BUNDLE.md, section 11, specifies it.
//
// Always holds: nothing is read outside the file's bytes, and nothing is allocated before the
// file's checksum proved right. The fingerprint is computed from what was read, and compared with
// the file's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "../coder/rans.hpp"
#include "checksums.hpp"
#include "feature_file.hpp"
#include "rates.hpp"
#include "refused.hpp"
#include "rule.hpp"

namespace edgecloud {

inline constexpr size_t kMaxTablesBytes = size_t{16} << 20;
// Of a variable-rate bundle. Its 16 levels then take no more memory than the tables of 4096
// channels, which a bundle with one rate may have.
inline constexpr uint32_t kMaxVariableChannels = 256;

// The tables of one level, or of a bundle with one rate.
struct Level {
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
  const uint8_t* at() const { return at_; }
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
  std::vector<float> take_floats(size_t count) {
    need(count);
    std::vector<float> values(count);
    for (float& value : values) {
      const uint32_t bits = next();
      std::memcpy(&value, &bits, sizeof value);
    }
    return values;
  }
  // The numbers of the next `size` bytes, which are left out here.
  Numbers part(size_t size) {
    if (size % 4 != 0) throw std::invalid_argument("a level of it is cut short");
    need(size / 4);
    at_ += size;
    return {at_ - size, at_};
  }

 private:
  void need(size_t count) const {
    if (count > static_cast<size_t>(end_ - at_) / 4)
      throw std::invalid_argument("it ends before its tables do");
  }
  const uint8_t* at_;
  const uint8_t* end_;
};

}  // namespace detail

// A level's tables as the file has them, of which the coder's are made.
class RawLevel {
 public:
  RawLevel() = default;
  RawLevel(detail::Numbers numbers, size_t channels) {
    for (size_t channel = 0; channel < channels; ++channel) {
      offsets_.push_back(static_cast<int32_t>(numbers.next()));
      cdfs_.push_back(numbers.take(numbers.next()));
    }
    while (!numbers.is_done()) {
      Contexts one;
      one.channel = numbers.next();
      for (int32_t& threshold : one.thresholds) threshold = static_cast<int32_t>(numbers.next());
      if (one.channel >= channels ||
          (!contexts_.empty() && one.channel <= contexts_.back().channel))
        throw std::invalid_argument("context tables of no channel, or out of order");
      one.cdf = numbers.take(rans::kContexts * cdfs_[one.channel].size());
      contexts_.push_back(std::move(one));
    }
  }

  // The coder's tables of some channels, in this order. Throws std::invalid_argument.
  Level of(const uint32_t* channels, size_t count) const {
    std::vector<uint32_t> cdf, lengths;
    std::vector<int32_t> offsets;
    for (size_t place = 0; place < count; ++place) {
      const std::vector<uint32_t>& own = cdfs_[channels[place]];
      cdf.insert(cdf.end(), own.begin(), own.end());
      lengths.push_back(static_cast<uint32_t>(own.size()));
      offsets.push_back(offsets_[channels[place]]);
    }
    Level level{
        {cdf.data(), cdf.size(), lengths.data(), offsets.data(), count, detail::coder_kernel()}, 0};
    for (size_t place = 0; place < count; ++place)
      for (const Contexts& one : contexts_)
        if (one.channel == channels[place]) {
          level.tables.add_contexts(place, one.thresholds, one.cdf.data(), one.cdf.size());
          ++level.contexts;
        }
    return level;
  }

 private:
  struct Contexts {
    uint32_t channel;
    int32_t thresholds[rans::kLevels - 1];
    std::vector<uint32_t> cdf;
  };
  std::vector<int32_t> offsets_;
  std::vector<std::vector<uint32_t>> cdfs_;
  std::vector<Contexts> contexts_;
};

struct EdgeTables {
  Rule rule;
  Rates rates;                // without gains in a bundle with one rate
  std::vector<Level> levels;  // of each whole level, or the only one
  RawLevel lowest;            // level 0, of which cut files keep some channels

  bool varies() const { return !rates.gains.empty(); }
  bool has_contexts() const {
    for (const Level& level : levels)
      if (level.contexts) return true;
    return false;
  }
  // The tables that code the symbols of a step.
  const rans::Tables& at(int step) const { return levels[varies() ? whole_level(step) : 0].tables; }
  // The most channels of a cut file.
  int most_kept() const { return static_cast<int>(std::min<size_t>(rule.channels - 1, 255)); }
};

namespace detail {

inline void check_gains(const std::vector<float>& gains) {
  for (const float gain : gains)
    if (!(gain > 0 && gain <= kMaxGain))  // true of NaN
      throw std::invalid_argument("a gain is not over 0 and at most 1e6");
}

// Reads what a variable-rate bundle's file has behind the rule; gives the digest of its tables and
// rates.
inline Digest read_variable(Numbers numbers, EdgeTables& out) {
  const size_t channels = out.rule.channels;
  if (channels > kMaxVariableChannels)
    throw std::invalid_argument("it has all rates and more than 256 channels");
  const uint32_t step = numbers.next();
  if (step > uint32_t{kMaxStep}) throw std::invalid_argument("its default step is over 240");
  out.rates.default_step = static_cast<int>(step);
  const uint8_t* begin = numbers.at();
  const std::vector<float> whole = numbers.take_floats(kLevels * channels);
  check_gains(whole), check_gains(numbers.take_floats(kLevels * channels));
  out.rates.order = numbers.take(channels);
  const uint8_t* end = numbers.at();
  std::vector<bool> listed(channels);
  for (const uint32_t channel : out.rates.order) {
    if (channel >= channels || listed[channel])
      throw std::invalid_argument("its order does not list every channel once");
    listed[channel] = true;
  }
  out.rates.gains = numbers.take_floats((kMaxStep + 1) * channels);
  check_gains(out.rates.gains);
  for (size_t level = 0; level < size_t{kLevels}; ++level)
    if (std::memcmp(out.rates.gains.data() + kStepsPerLevel * level * channels,
                    whole.data() + level * channels, channels * sizeof(float)) != 0)
      throw std::invalid_argument("its gains differ from those of a whole level");
  std::vector<uint32_t> all(channels);
  std::iota(all.begin(), all.end(), 0u);
  Sha256 digest;
  for (size_t level = 0; level < size_t{kLevels}; ++level) {
    const uint32_t size = numbers.next();
    const Numbers part = numbers.part(size);
    const Digest tables = Sha256().add(part.at(), size).digest();
    digest.add(tables.data(), tables.size());
    const RawLevel raw(part, channels);
    out.levels.push_back(raw.of(all.data(), channels));
    if (level == 0) out.lowest = raw;
  }
  if (!numbers.is_done()) throw std::invalid_argument("it has bytes behind its tables");
  return digest.add(begin, static_cast<size_t>(end - begin)).digest();
}

inline Digest read_fixed(Numbers numbers, size_t size, EdgeTables& out) {
  std::vector<uint32_t> all(out.rule.channels);
  std::iota(all.begin(), all.end(), 0u);
  out.levels.push_back(RawLevel(numbers, all.size()).of(all.data(), all.size()));
  return Sha256().add(numbers.at(), size).digest();
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
  const uint32_t version = read_number(bytes + 8);
  if (version != kTablesVersion && version != kVariableVersion)
    refuse("it has version " + std::to_string(version) + ", this release reads " +
           std::to_string(kTablesVersion) + " and " + std::to_string(kVariableVersion));
  if (size > kMaxTablesBytes || size < kRuleBytes + kCrcBytes || size % 4 != 0 ||
      !is_intact(bytes, size))
    refuse("it is damaged or incomplete");
  try {
    EdgeTables out;
    out.rule = read_rule(bytes);
    if (const char* why = problem_of(out.rule)) throw std::invalid_argument(why);
    const uint8_t *tables = bytes + kRuleBytes, *end = bytes + size - kCrcBytes;
    const Numbers numbers(tables, end);
    const Digest digest = version == kVariableVersion
                              ? read_variable(numbers, out)
                              : read_fixed(numbers, static_cast<size_t>(end - tables), out);
    if (fingerprint_of(out.rule, version, digest) != out.rule.fingerprint)
      throw std::invalid_argument("its contents give another fingerprint than it says");
    if (out.rule.small && !out.has_contexts())
      throw std::invalid_argument("it asks for small files and has no context tables");
    return out;
  } catch (const std::invalid_argument& error) {
    refuse(error.what());
    throw;  // not reached
  }
}

}  // namespace edgecloud
