// Which decoder a file needs; PNM; and turning a picture upright.
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
  // The value of the tag Orientation; 0 if there is none.
  uint32_t orientation() const {
    if (number(2, 2) != 42) return 0;
    const size_t folder = number(4, 4);
    for (uint32_t entry = 0; entry < number(folder, 2); ++entry) {
      const size_t at = folder + 2 + 12 * size_t{entry};
      if (number(at, 2) != 0x0112 || number(at + 4, 4) != 1) continue;
      const uint32_t type = number(at + 2, 2);
      return type == 3 ? number(at + 8, 2) : type == 4 ? number(at + 8, 4) : 0;
    }
    return 0;
  }

 private:
  const uint8_t* data_;
  size_t size_;
  bool big_;
};

// The digit behind tiff:Orientation=" or tiff:Orientation> in XMP metadata; 0 if there is none.
uint32_t xmp_orientation(const uint8_t* data, size_t size) {
  static constexpr char kTag[] = "tiff:Orientation";
  const uint8_t* end = data + size;
  const uint8_t* at = std::search(data, end, kTag, kTag + sizeof kTag - 1) + sizeof kTag - 1;
  if (at >= end || end - at < 3) return 0;
  if (at[0] == '=' && at[1] == '"')
    ++at;
  else if (at[0] != '>')
    return 0;
  return at[1] >= '0' && at[1] <= '9' ? static_cast<uint32_t>(at[1] - '0') : 0;
}

// A number of a PNM header, after white space and comments.
size_t pnm_number(const Bytes& file, size_t& at, const std::string& name) {
  const auto refuse = [&] {
    throw Failure(name + " is damaged or cut short (its header): copy it again");
  };
  for (; at < file.size(); ++at) {
    if (file[at] == '#')
      while (at < file.size() && file[at] != '\n') ++at;
    else if (!std::strchr(" \t\r\n\v\f", file[at]) || file[at] == 0)
      break;
  }
  size_t value = 0, digits = 0;
  for (; at < file.size() && file[at] >= '0' && file[at] <= '9'; ++at, ++digits) {
    if (digits == 9) refuse();
    value = 10 * value + (file[at] - '0');
  }
  if (digits == 0) refuse();
  return value;
}

}  // namespace

Picture decode(const Bytes& file, const std::string& name, size_t fast_side) {
  if (file.size() > 2 && file[0] == 0xff && file[1] == 0xd8)
    return turn(decode_jpeg(file, name, fast_side), find_orientation(file));
  if (file.size() > 2 && file[0] == 'P' && (file[1] == '5' || file[1] == '6'))
    return decode_pnm(file, name);
  throw Failure(name +
                " is not a JPEG, nor a PNM of kind P5 or P6, which are what this command reads: "
                "convert it, or use the Python package's edge-encode");
}

Picture decode_pnm(const Bytes& file, const std::string& name) {
  size_t at = 2;
  Picture picture;
  picture.width = pnm_number(file, at, name);
  picture.height = pnm_number(file, at, name);
  if (const size_t most = pnm_number(file, at, name); most != 255)
    throw Failure(name + " has levels up to " + std::to_string(most) +
                  ", and this command reads those up to 255: convert it to 8 bits");
  ++at;  // one white space before the levels
  check_pixels(name, picture.height, picture.width);
  const size_t count = picture.height * picture.width, channels = file[1] == '5' ? 1 : 3;
  if (count == 0 || at > file.size() || file.size() - at < channels * count)
    throw Failure(name +
                  " is damaged or cut short (its data ends before its picture does): "
                  "copy it again");
  const uint8_t* levels = file.data() + at;
  picture.pixels.resize(3 * count);
  for (size_t i = 0; i < 3 * count; ++i) picture.pixels[i] = levels[channels == 1 ? i / 3 : i];
  return picture;
}

int find_orientation(const Bytes& jpeg) {
  static constexpr char kExif[] = "Exif\0", kXmp[] = "http://ns.adobe.com/xap/1.0/";
  uint32_t exif = 0, xmp = 0;
  // The segments before the first scan.
  for (size_t at = 2; at + 4 <= jpeg.size() && jpeg[at] == 0xff && jpeg[at + 1] != 0xda;) {
    if (jpeg[at + 1] == 0xff) {  // a fill byte
      ++at;
      continue;
    }
    const size_t length = static_cast<size_t>(jpeg[at + 2]) << 8 | jpeg[at + 3];
    if (length < 2 || length > jpeg.size() - at - 2) break;
    const uint8_t* body = jpeg.data() + at + 4;
    const size_t size = length - 2;
    if (jpeg[at + 1] == 0xe1) {
      if (exif == 0 && size > 6 && std::memcmp(body, kExif, 6) == 0)
        exif = Tiff(body + 6, size - 6).orientation();
      if (xmp == 0 && size > sizeof kXmp && std::memcmp(body, kXmp, sizeof kXmp) == 0)
        xmp = xmp_orientation(body + sizeof kXmp, size - sizeof kXmp);
    }
    at += 2 + length;
  }
  const uint32_t found = exif ? exif : xmp;
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
