// What edge.tables says before its tables: the shape rule, preprocessing, hashes. docs/BUNDLE.md,
// section 11, specifies it.
//
// Always holds: nothing is allocated and nothing throws, so that microcontrollers use it too
// (examples/cortex-m).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "checksums.hpp"
#include "wrap.hpp"

namespace edgecloud {

inline constexpr uint32_t kMaxResize = 1u << 12;  // pixels, as in a manifest

// What edge.tables says beside the tables.
struct Rule {
  uint32_t channels, stride, shrink, max_symbols, resize, crop;
  uint32_t small;                           // 0 or 1
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

namespace detail {

inline constexpr char kTablesMagic[8] = {'E', 'D', 'G', 'E', 'T', 'A', 'B', 'L'};
inline constexpr uint32_t kTablesVersion = 1, kVariableVersion = 2;
inline constexpr size_t kRuleBytes = 8 + 4 * 8 + 3 * 32;

// A number of the file, which is little-endian, whatever the machine is.
inline uint32_t read_number(const uint8_t* at) {
  return static_cast<uint32_t>(at[0]) | static_cast<uint32_t>(at[1]) << 8 |
         static_cast<uint32_t>(at[2]) << 16 | static_cast<uint32_t>(at[3]) << 24;
}

// Reads the first kRuleBytes of a file.
inline Rule read_rule(const uint8_t* bytes) {
  const uint8_t* at = bytes + sizeof kTablesMagic + 4;
  const auto next = [&at] { return at += 4, read_number(at - 4); };
  Rule rule;
  rule.channels = next(), rule.stride = next(), rule.shrink = next();
  rule.max_symbols = next(), rule.resize = next(), rule.crop = next();
  rule.small = next();
  for (Digest* digest : {&rule.bottleneck, &rule.fingerprint, &rule.weights}) {
    std::memcpy(digest->data(), at, digest->size());
    at += digest->size();
  }
  return rule;
}

// Why a rule is refused; null if it is not.
inline const char* problem_of(const Rule& rule) {
  if (rule.channels < 1 || rule.channels > 4096 || rule.stride < 1 || rule.stride > kBlock ||
      kBlock % rule.stride != 0 || rule.shrink > 1u << 20 || rule.max_symbols < 1 ||
      rule.max_symbols > 1u << 30)
    return "its shape rule is impossible";
  if (rule.crop < 1 || rule.crop > rule.resize || rule.resize > kMaxResize ||
      rule.crop % kBlock != 0 || rule.small > 1)
    return "a value is out of its range";
  return nullptr;
}

inline void add_text(Sha256& sha, const char* text) { sha.add(text, std::strlen(text)); }
// In decimal.
inline void add_text(Sha256& sha, uint32_t number) {
  char digits[10];
  size_t count = 0;
  do digits[sizeof digits - ++count] = static_cast<char>('0' + number % 10);
  while (number /= 10);
  sha.add(digits + sizeof digits - count, count);
}

// The SHA-256 that a fingerprint is (docs/FORMAT.md, section 4), with the digest of all that
// symbols are coded with.
inline Digest fingerprint_of(const Rule& rule, uint32_t version, const Digest& coding) {
  Sha256 whole;
  add_text(whole, "feature file "), add_text(whole, version);
  add_text(whole, "; block 8; "), add_text(whole, rule.channels);
  add_text(whole, " channels, stride "), add_text(whole, rule.stride);
  add_text(whole, ", shrink "), add_text(whole, rule.shrink);
  add_text(whole, "; ");
  return whole.add(coding.data(), coding.size())
      .add(rule.bottleneck.data(), rule.bottleneck.size())
      .digest();
}
// Of a bundle with one rate; `tables` are the bytes of the file behind the rule.
inline Digest fingerprint_of(const Rule& rule, const uint8_t* tables, size_t size) {
  return fingerprint_of(rule, kTablesVersion, Sha256().add(tables, size).digest());
}

}  // namespace detail

}  // namespace edgecloud
