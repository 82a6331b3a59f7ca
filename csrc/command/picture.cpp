// Which decoder a file needs, and turning a picture upright.
#include "picture.hpp"

#include <algorithm>
#include <cstring>

namespace command {
namespace {

// Numbers of a JPEG's metadata, which are in a TIFF structure.
class Tiff {
 public:
  Tiff(const uint8_t* data, size_t size) : data_(data), size_(size) {
    big_ = size > 1 && data[0] == 'M';
  }
  // A number of two or four bytes; 0 beyond the end.
  uint32_t number(size_t at, size_t bytes) const {
    if (at > size_ || size_ - at < bytes) return 0;
    uint32_t value = 0;
    for (size_t i = 0; i < bytes; ++i)
      value |= static_cast<uint32_t>(data_[at + i]) << 8 * (big_ ? bytes - 1 - i : i);
    return value;
  }
  // Whether the header is one; otherwise Pillow takes the image for upright.
  bool is_sound() const {
    return size_ >= 8 && number(2, 2) == 42 &&
           (std::memcmp(data_, "II", 2) == 0 || std::memcmp(data_, "MM", 2) == 0);
  }
  // The value of the tag Orientation; -1 if there is none. Other types than whole numbers give 0.
  int64_t orientation() const {
    const size_t folder = number(4, 4);
    int64_t found = -1;
    for (uint32_t entry = 0; entry < number(folder, 2); ++entry) {
      const size_t at = folder + 2 + 12 * size_t{entry};
      if (at > size_ || size_ - at < 12) break;
      if (number(at, 2) != 0x0112) continue;
      const uint32_t type = number(at + 2, 2), count = number(at + 4, 4);
      const size_t bytes = type == 3 || type == 8 ? 2 : type == 4 || type == 9 ? 4 : 0;
      const uint64_t all = uint64_t{bytes} * count;
      if (count == 0 || type == 0 || type > 12) continue;  // as if it were not there
      if (bytes == 0) return 0;
      const size_t place = all <= 4 ? at + 8 : number(at + 8, 4);
      if (place > size_ || all > size_ - place) continue;  // Pillow leaves it out as well
      found = number(place, bytes);                        // the first, if there are several
    }
    return found;
  }

 private:
  const uint8_t* data_;
  size_t size_;
  bool big_;
};

// The first digit behind tiff:Orientation=" or tiff:Orientation> in XMP metadata; 0 if there is
// none.
uint32_t xmp_orientation(const uint8_t* data, size_t size) {
  static constexpr char kTag[] = "tiff:Orientation";
  constexpr size_t kLength = sizeof kTag - 1;
  const uint8_t* end = data + size;
  for (const uint8_t* at = data; (at = std::search(at, end, kTag, kTag + kLength)) != end;) {
    at += kLength;
    const size_t skip = end - at > 2 && at[0] == '=' && at[1] == '"' ? 2
                        : end - at > 1 && at[0] == '>'               ? 1
                                                                     : 0;
    if (skip && at[skip] >= '0' && at[skip] <= '9') return static_cast<uint32_t>(at[skip] - '0');
  }
  return 0;
}

}  // namespace

Picture decode(const Bytes& file, const std::string& name, size_t fast_side) {
  if (file.size() > 2 && file[0] == 0xff && file[1] == 0xd8 && file[2] == 0xff)
    return turn(decode_jpeg(file, name, fast_side), find_orientation(file));
  if (file.size() > 2 && file[0] == 'P' && file[1] != 0 && std::strchr("2356", file[1]))
    return decode_pnm(file, name);
  throw Failure(name +
                " is not an image that this command can read: convert it to JPEG or PNM, or use "
                "the Python command");
}

int find_orientation(const Bytes& jpeg) {
  static constexpr char kExif[] = "Exif\0", kXmp[] = "http://ns.adobe.com/xap/1.0/";
  Bytes exif;
  uint32_t xmp = 0;
  // The segments before the first scan, with any junk between them.
  for (size_t at = 2; at + 4 <= jpeg.size();) {
    const uint8_t marker = jpeg[at + 1];
    if (jpeg[at] != 0xff || marker == 0xff) {
      ++at;
      continue;
    }
    if (marker == 0xda) break;
    if (marker < 2 || (marker >= 0xd0 && marker <= 0xd9)) {  // these have no length
      at += 2;
      continue;
    }
    const size_t length = static_cast<size_t>(jpeg[at + 2]) << 8 | jpeg[at + 3];
    if (length > jpeg.size() - at - 2) break;
    if (length < 2) {  // an impossible length, after which Pillow goes on as well
      at += 4;
      continue;
    }
    const uint8_t* body = jpeg.data() + at + 4;
    const size_t size = length - 2;
    if (marker == 0xe1) {
      // Metadata of more than a segment go on in the next.
      if (size >= 6 && std::memcmp(body, kExif, 6) == 0)
        exif.insert(exif.end(), body + 6, body + size);
      if (size > sizeof kXmp && std::memcmp(body, kXmp, sizeof kXmp) == 0)
        xmp = xmp_orientation(body + sizeof kXmp, size - sizeof kXmp);
    }
    at += 2 + length;
  }
  int64_t found = -1;
  if (!exif.empty()) {
    const Tiff tiff(exif.data(), exif.size());
    if (!tiff.is_sound()) return 1;
    found = tiff.orientation();
  }
  if (found < 0) found = xmp;
  return found >= 1 && found <= 8 ? static_cast<int>(found) : 1;
}

Picture turn(Picture picture, int orientation) {
  if (orientation == 1) return picture;
  const bool sideways = orientation >= 5;
  Picture out;
  out.height = sideways ? picture.width : picture.height;
  out.width = sideways ? picture.height : picture.width;
  out.pixels.resize(picture.pixels.size());
  const bool from_right =
      orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_below =
      orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  uint8_t* to = out.pixels.data();
  for (size_t y = 0; y < out.height; ++y)
    for (size_t x = 0; x < out.width; ++x, to += 3) {
      size_t row = sideways ? x : y, column = sideways ? y : x;
      if (from_below) row = picture.height - 1 - row;
      if (from_right) column = picture.width - 1 - column;
      std::memcpy(to, picture.pixels.data() + 3 * (row * picture.width + column), 3);
    }
  return out;
}

}  // namespace command
