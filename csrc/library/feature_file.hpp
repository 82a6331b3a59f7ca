// The feature file around its payload: taken apart. wrap.hpp writes it. docs/FORMAT.md, sections 2
// and 6.2, specifies it; runtime/codec/feature_file.py is the same in Python, with the same texts.
//
// Always holds: parsing copies nothing, and a file that differs in any byte from what was written
// is refused.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "checksums.hpp"
#include "rates.hpp"
#include "refused.hpp"
#include "wrap.hpp"

namespace edgecloud {

struct ParsedFile {
  edgecloud_file_info info;
  const uint8_t* payload;
};

namespace detail {

inline constexpr unsigned kSmallFlag = 1, kSquareFlag = 2;

[[noreturn]] inline void refuse(const std::string& text) {
  throw Refused(EDGECLOUD_BAD_FEATURE_FILE, text);
}

// The bytes of a file's header, one after the other.
class HeaderReader {
 public:
  HeaderReader(const uint8_t* file, size_t size, size_t at) : file_(file), size_(size), at_(at) {}
  size_t at() const { return at_; }

  void require(size_t size) const {
    if (size_ < size)
      refuse("a feature file of " + std::to_string(size_) + (size_ == 1 ? " byte" : " bytes") +
             " ends in its header: send it again");
  }
  uint8_t byte() {
    require(at_ + 1);
    return file_[at_++];
  }
  uint32_t varint() {
    const size_t begin = at_;
    uint32_t value = 0;
    for (int shift = 0; shift < 28; shift += 7) {
      const uint8_t next = byte();
      value |= static_cast<uint32_t>(next & 0x7f) << shift;
      if (next < 0x80) {
        if (next == 0 && shift > 0) break;  // longer than the shortest form, which alone is written
        return value;
      }
    }
    refuse("the header field at byte " + std::to_string(begin) +
           " is damaged: send the feature file again");
  }

 private:
  const uint8_t* file_;
  size_t size_, at_;
};

inline bool is_intact(const uint8_t* file, size_t size) {
  const uint8_t* crc = file + size - kCrcBytes;
  const uint32_t written = static_cast<uint32_t>(crc[0]) | static_cast<uint32_t>(crc[1]) << 8 |
                           static_cast<uint32_t>(crc[2]) << 16 |
                           static_cast<uint32_t>(crc[3]) << 24;
  return crc32(file, size - kCrcBytes) == written;
}

}  // namespace detail

// Takes a file apart, and checks all that can be checked without its bundle. Throws Refused.
inline ParsedFile parse(const uint8_t* file, size_t size) {
  using namespace detail;
  if (size == 0) refuse("the feature file is empty (0 bytes): encode and send it again");
  if (file[0] != kMagic) {
    const char* digits = "0123456789abcdef";
    refuse(std::string("not a feature file: it begins with byte 0x") + digits[file[0] >> 4] +
           digits[file[0] & 15] + ", not 0xfc; edge-encode writes feature files");
  }
  HeaderReader reader(file, size, 1);
  const uint8_t mode = reader.byte();
  const unsigned version = mode & 15, flags = mode >> 4;
  if (!(version == 1 && flags <= 1) && !(version == 2 && flags <= 3))
    refuse("feature file of format version " + std::to_string(version) + ", profile " +
           std::to_string(flags) +
           "; this release reads version 1, profiles 0 and 1, and version 2, profiles 0 to 3: "
           "update the cloud side");
  reader.require(2 + kFileFingerprint);
  ParsedFile parsed{};
  edgecloud_file_info& info = parsed.info;
  std::memcpy(info.fingerprint, file + 2, kFileFingerprint);
  info.version = version, info.small = (flags & kSmallFlag) != 0;
  info.step = -1, info.kept = -1;
  reader = HeaderReader(file, size, 2 + kFileFingerprint);
  uint32_t rows, columns;
  if (version == 1) {
    rows = reader.varint(), columns = reader.varint();
    const uint32_t length = reader.varint();
    const size_t expected = reader.at() + length + kCrcBytes;
    if (size < expected)
      refuse("the feature file has " + std::to_string(size) + " of its " +
             std::to_string(expected) + " bytes: send it again");
    if (size > expected)
      refuse("the feature file has " + std::to_string(size) + " bytes, " +
             std::to_string(size - expected) +
             " more than its header says: send each file by itself");
    if (!is_intact(file, size))
      refuse("the feature file is damaged, its checksum does not match: send it again");
    info.payload_bytes = length;
  } else {
    info.step = reader.byte();
    if (info.step == kCut) info.step = 0, info.kept = reader.byte();
    const bool square = (flags & kSquareFlag) != 0;
    columns = rows = reader.varint();
    if (!square) columns = reader.varint();
    reader.require(reader.at() + kCrcBytes);
    if (info.step > kMaxStep || (columns == rows && !square))
      refuse("the header is damaged, it has " +
             (info.step > kMaxStep
                  ? "step " + std::to_string(info.step)
                  : "a width of " + std::to_string(uint64_t{columns} * kBlock) + " written twice") +
             ": send the feature file again");
    if (!is_intact(file, size))
      refuse(
          "the feature file is damaged or incomplete, its checksum does not match: send it again");
    info.payload_bytes = size - reader.at() - kCrcBytes;
  }
  info.height = rows * static_cast<uint32_t>(kBlock);
  info.width = columns * static_cast<uint32_t>(kBlock);
  parsed.payload = file + reader.at();
  return parsed;
}

}  // namespace edgecloud
