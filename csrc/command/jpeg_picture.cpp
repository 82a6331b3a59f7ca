// Decodes a JPEG with libjpeg-turbo.
//
// Always holds: libjpeg fills what is lost with grey, so the data is checked for damage first
// (../jpeg/jpeg.hpp). libjpeg's errors end decoding by longjmp: what decoding changes lies in a
// Decoder, outside the function that the jump returns to, and that function has no object with a
// destructor of its own.
#include <csetjmp>
#include <cstdio>
// jpeglib.h needs stdio.h before it.
#include <jpeglib.h>

#include <algorithm>
#include <utility>

#include "../jpeg/jpeg.hpp"
#include "picture.hpp"

namespace command {
namespace {

struct Errors {
  jpeg_error_mgr manager;
  std::jmp_buf back;
  char text[JMSG_LENGTH_MAX];
};

void on_error(j_common_ptr info) {
  Errors* errors = reinterpret_cast<Errors*>(info->err);
  info->err->format_message(info, errors->text);
  std::longjmp(errors->back, 1);
}

void ignore(j_common_ptr, int) {}

[[noreturn]] void refuse(const std::string& name, const std::string& why) {
  throw Failure(name + " is damaged or cut short (" + why + "): copy it again");
}

// Pillow's rounding of a * b / 255.
uint8_t multiply(unsigned a, unsigned b) {
  const unsigned product = a * b + 128;
  return static_cast<uint8_t>(((product >> 8) + product) >> 8);
}

// Inks as Adobe writes them, which is inverted, to RGB as Pillow converts them.
void from_inks(const uint8_t* inks, size_t count, uint8_t* out) {
  for (size_t i = 0; i < count; ++i, inks += 4, out += 3)
    for (size_t ink = 0; ink < 3; ++ink)
      out[ink] = static_cast<uint8_t>(inks[3] - multiply(255u - inks[ink], inks[3]));
}

// The divisor of a JPEG's sides: 1, 2, 4 or 8.
unsigned shrinking(size_t height, size_t width, size_t fast_side) {
  if (fast_side == 0) return 1;
  const size_t most = std::min(height, width) / fast_side;
  return most >= 8 ? 8 : most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

// libjpeg's state, and the picture that is being made.
class Decoder {
 public:
  Decoder() {
    info_.err = jpeg_std_error(&errors_.manager);
    errors_.manager.error_exit = on_error;
    errors_.manager.emit_message = ignore;
  }
  ~Decoder() { jpeg_destroy_decompress(&info_); }
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // Throws Failure.
  Picture decode(const Bytes& file, const std::string& name, size_t fast_side) {
    if (!read_header(file)) refuse(name, errors_.text);
    check_pixels(name, info_.image_height, info_.image_width);
    const jpeg::Damage damage = jpeg::find_damage(file.data(), file.size());
    if (damage != jpeg::Damage::none) refuse(name, jpeg::reason(damage));
    if (info_.num_components == 1)
      info_.out_color_space = JCS_GRAYSCALE;
    else
      info_.out_color_space = info_.num_components == 4 ? JCS_CMYK : JCS_RGB;
    info_.scale_num = 1;
    info_.scale_denom = shrinking(info_.image_height, info_.image_width, fast_side);
    if (!start()) refuse(name, errors_.text);
    picture_.height = info_.output_height, picture_.width = info_.output_width;
    picture_.pixels.resize(3 * picture_.height * picture_.width);
    levels_.resize(4 * picture_.width);
    if (!read_rows()) refuse(name, errors_.text);
    return std::move(picture_);
  }

 private:
  bool read_header(const Bytes& file) {
    if (setjmp(errors_.back)) return false;
    jpeg_create_decompress(&info_);
    jpeg_mem_src(&info_, file.data(), static_cast<unsigned long>(file.size()));
    jpeg_read_header(&info_, TRUE);
    return true;
  }
  bool start() {
    if (setjmp(errors_.back)) return false;
    jpeg_start_decompress(&info_);
    return true;
  }
  bool read_rows() {
    if (setjmp(errors_.back)) return false;
    while (info_.output_scanline < info_.output_height) {
      uint8_t* to = picture_.pixels.data() + 3 * picture_.width * info_.output_scanline;
      JSAMPROW into = info_.out_color_space == JCS_RGB ? to : levels_.data();
      jpeg_read_scanlines(&info_, &into, 1);
      if (info_.out_color_space == JCS_CMYK) from_inks(into, picture_.width, to);
      if (info_.out_color_space == JCS_GRAYSCALE)
        for (size_t i = 0; i < 3 * picture_.width; ++i) to[i] = into[i / 3];
    }
    jpeg_finish_decompress(&info_);
    return true;
  }

  jpeg_decompress_struct info_ = {};
  Errors errors_ = {};
  Picture picture_;
  Bytes levels_;  // of a row that is not RGB
};

}  // namespace

Picture decode_jpeg(const Bytes& file, const std::string& name, size_t fast_side) {
  return Decoder().decode(file, name, fast_side);
}

}  // namespace command
