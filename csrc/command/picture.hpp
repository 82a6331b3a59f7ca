// Decodes a picture to RGB: JPEG by libjpeg-turbo, and PNM. The levels are those that Pillow gives,
// and so those of runtime/images/image_file.py and preprocess.py.
//
// Always holds: an incomplete picture is never returned. Pixels are counted before memory is
// allocated for them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "failure.hpp"

namespace command {

using Bytes = std::vector<uint8_t>;

// RGB, one byte a level, rows without gaps.
struct Picture {
  size_t height = 0, width = 0;
  Bytes pixels;
};

inline constexpr uint64_t kMaxPixels = 178956970;  // as Pillow's limit

// Throws Failure for a picture of more pixels.
inline void check_pixels(const std::string& name, uint64_t height, uint64_t width) {
  if (height * width > kMaxPixels)
    throw Failure(name + " has too many pixels to decode safely (" +
                  std::to_string(height * width) + " pixels, the limit is " +
                  std::to_string(kMaxPixels) + "): make it smaller first");
}

// Decodes a file's bytes; messages call it `name`. A JPEG is decoded at a half, a quarter or an
// eighth of its size while both sides keep `fast_side` pixels, unless that is 0. Throws Failure,
// and std::bad_alloc.
Picture decode(const Bytes& file, const std::string& name, size_t fast_side);

// The parts of `decode`.
Picture decode_jpeg(const Bytes& file, const std::string& name, size_t fast_side);
Picture decode_pnm(const Bytes& file, const std::string& name);

// The orientation, 1 to 8, that a JPEG's metadata say; 1 if they say none or are damaged.
int find_orientation(const Bytes& jpeg);
// The picture upright, from one of that orientation.
Picture turn(Picture picture, int orientation);

}  // namespace command
