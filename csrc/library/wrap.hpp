// Writes the feature file around its payload. docs/FORMAT.md, sections 2 and 6.2, specifies it.
//
// Always holds: nothing is allocated and nothing throws, so that microcontrollers use it too
// (examples/cortex-m).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "checksums.hpp"

namespace edgecloud {

inline constexpr size_t kBlock = 8;  // pixels that heights and widths are multiples of
inline constexpr size_t kMaxHeader = 18, kCrcBytes = 4, kFileFingerprint = 4;

namespace detail {

inline constexpr uint8_t kMagic = 0xfc, kCut = 255;

inline uint8_t* write_varint(uint8_t* at, uint32_t value) {
  for (; value >= 0x80; value >>= 7) *at++ = static_cast<uint8_t>(value | 0x80);
  *at++ = static_cast<uint8_t>(value);
  return at;
}

// Copies a header to where it ends at the payload, and writes the checksum behind the payload.
// Gives the file's first byte.
inline uint8_t* enclose(uint8_t* payload, size_t size, const uint8_t* header, size_t length) {
  uint8_t* file = payload - length;
  std::memcpy(file, header, length);
  const uint32_t crc = crc32(file, length + size);
  for (int i = 0; i < 4; ++i) payload[size + i] = static_cast<uint8_t>(crc >> 8 * i);
  return file;
}

}  // namespace detail

// Writes the header of a file of version 1 so that it ends where the payload begins, and the
// checksum behind the payload. There must be kMaxHeader bytes before the payload, and kCrcBytes
// after it. Gives the file's first byte. Sides are multiples of 8 below 2^31,
// and the payload is below 2^28 bytes.
inline uint8_t* wrap(uint8_t* payload, size_t size, const uint8_t* fingerprint, bool small,
                     size_t height, size_t width) {
  uint8_t header[kMaxHeader];
  header[0] = detail::kMagic;
  header[1] = static_cast<uint8_t>(1 | small << 4);
  std::memcpy(header + 2, fingerprint, kFileFingerprint);
  uint8_t* at = header + 2 + kFileFingerprint;
  at = detail::write_varint(at, static_cast<uint32_t>(height / kBlock));
  at = detail::write_varint(at, static_cast<uint32_t>(width / kBlock));
  at = detail::write_varint(at, static_cast<uint32_t>(size));
  return detail::enclose(payload, size, header, static_cast<size_t>(at - header));
}

// The same for version 2, of variable-rate bundles. `step` is the rate level in sixteenths, and
// `kept` the number of channels of a cut file, whose step is 0; -1 for a whole one.
inline uint8_t* wrap_variable(uint8_t* payload, size_t size, const uint8_t* fingerprint, bool small,
                              int step, int kept, size_t height, size_t width) {
  const bool square = height == width;
  uint8_t header[kMaxHeader];
  header[0] = detail::kMagic;
  header[1] = static_cast<uint8_t>(2 | (small | square << 1) << 4);
  std::memcpy(header + 2, fingerprint, kFileFingerprint);
  uint8_t* at = header + 2 + kFileFingerprint;
  *at++ = kept < 0 ? static_cast<uint8_t>(step) : detail::kCut;
  if (kept >= 0) *at++ = static_cast<uint8_t>(kept);
  at = detail::write_varint(at, static_cast<uint32_t>(height / kBlock));
  if (!square) at = detail::write_varint(at, static_cast<uint32_t>(width / kBlock));
  return detail::enclose(payload, size, header, static_cast<size_t>(at - header));
}

}  // namespace edgecloud
