// From an image to the pixels that an encoder takes: the short side resized, then the centre
// cropped.
//
// The pixels are those of Pillow's Image.resize with BILINEAR, which is antialiased, and so those
// of runtime/images/preprocess.py, level for level. Source: Pillow's src/libImaging/Resample.c. A
// pass over the rows comes before one over the columns. A sample's weights are computed in double
// precision, rounded to 22 bits, and summed in whole numbers; each pass rounds to eight bits.
//
// Only what the crop needs is computed: a sample's value does not depend on its neighbours.
//
// Always holds: doubles are computed as IEEE 754 says, so the compiler must not fuse
// multiplications with additions (-ffp-contract=off). Then the pixels are the same on every
// machine.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace images {

// Pixels RGB that lie in someone else's memory: a row begins `row_bytes` after the one before.
struct View {
  const uint8_t* pixels;
  size_t height, width, row_bytes;
};

namespace detail {

inline constexpr int kBits = 22;  // of a weight's fraction

// The weights of one axis: sample `i` is the sum of `counts[i]` values from `firsts[i]` on.
struct Weights {
  std::vector<size_t> firsts, counts;
  std::vector<int32_t> values;  // [sample][most]
  size_t most = 0;
};

// Of the samples from `begin` to `end` of `out`, which are made of `in` values.
inline Weights make_weights(size_t in, size_t out, size_t begin, size_t end) {
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double support = std::max(scale, 1.0), inverse = 1.0 / support;
  Weights weights;
  weights.most = static_cast<size_t>(std::ceil(support)) * 2 + 1;
  weights.values.resize((end - begin) * weights.most);
  std::vector<double> exact(weights.most);
  for (size_t sample = begin; sample < end; ++sample) {
    const double centre = (static_cast<double>(sample) + 0.5) * scale;
    const int64_t low = static_cast<int64_t>(centre - support + 0.5),
                  high = static_cast<int64_t>(centre + support + 0.5);
    const size_t first = static_cast<size_t>(std::max<int64_t>(low, 0));
    const size_t count = std::min(static_cast<size_t>(high), in) - first;
    double sum = 0;
    for (size_t k = 0; k < count; ++k) {
      const double x = std::fabs((static_cast<double>(k + first) - centre + 0.5) * inverse);
      exact[k] = x < 1.0 ? 1.0 - x : 0.0;
      sum += exact[k];
    }
    int32_t* values = weights.values.data() + (sample - begin) * weights.most;
    for (size_t k = 0; k < count; ++k)
      values[k] = static_cast<int32_t>(0.5 + (sum != 0 ? exact[k] / sum : exact[k]) *
                                                 static_cast<double>(1 << kBits));
    weights.firsts.push_back(first);
    weights.counts.push_back(count);
  }
  return weights;
}

inline uint8_t to_level(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kBits, 0, 255));
}

// A pass along rows: `rows` rows, each from `row_bytes` after the one before, of which the samples
// are written without gaps.
inline void resize_across(const uint8_t* pixels, size_t row_bytes, size_t rows,
                          const Weights& weights, uint8_t* out) {
  for (size_t row = 0; row < rows; ++row, pixels += row_bytes)
    for (size_t i = 0; i < weights.firsts.size(); ++i, out += 3) {
      const uint8_t* from = pixels + 3 * weights.firsts[i];
      const int32_t* weight = weights.values.data() + i * weights.most;
      int32_t red = 1 << (kBits - 1), green = red, blue = red;
      for (size_t k = 0; k < weights.counts[i]; ++k, from += 3) {
        red += from[0] * weight[k];
        green += from[1] * weight[k];
        blue += from[2] * weight[k];
      }
      out[0] = to_level(red), out[1] = to_level(green), out[2] = to_level(blue);
    }
}

// A pass along columns, of rows of `length` bytes.
inline void resize_down(const uint8_t* pixels, size_t row_bytes, size_t length,
                        const Weights& weights, uint8_t* out) {
  std::vector<int32_t> sums(length);
  for (size_t i = 0; i < weights.firsts.size(); ++i, out += length) {
    std::fill(sums.begin(), sums.end(), 1 << (kBits - 1));
    const uint8_t* from = pixels + weights.firsts[i] * row_bytes;
    const int32_t* weight = weights.values.data() + i * weights.most;
    for (size_t k = 0; k < weights.counts[i]; ++k, from += row_bytes)
      for (size_t x = 0; x < length; ++x) sums[x] += from[x] * weight[k];
    for (size_t x = 0; x < length; ++x) out[x] = to_level(sums[x]);
  }
}

// The values that the samples are made of begin at the first sample's first, which is taken from
// all. Gives that, and in `count` how many values there are.
inline size_t take_begin(Weights& weights, size_t& count) {
  const size_t begin = weights.firsts.front();
  count = weights.firsts.back() + weights.counts.back() - begin;
  for (size_t& first : weights.firsts) first -= begin;
  return begin;
}

// Python's round(length / 2): halves go to the even neighbour.
inline size_t half(size_t length) { return length / 2 + (length % 4 == 3); }

}  // namespace detail

// Resizes the short side to `resize` and crops the centre to crop x crop pixels, into `out`
// [crop][crop][3]. The image has at least one pixel. Throws std::bad_alloc.
inline void prepare(View image, size_t resize, size_t crop, uint8_t* out) {
  using namespace detail;
  // Sides are those of torchvision's Resize. A panorama is cropped before it is enlarged.
  const auto long_side = [&](size_t longer, size_t shorter) {
    return std::max(resize, static_cast<size_t>(static_cast<double>(resize * longer) /
                                                static_cast<double>(shorter)));
  };
  const bool upright = image.width <= image.height;
  size_t width = upright ? resize : long_side(image.width, image.height);
  size_t height = upright ? long_side(image.height, image.width) : resize;
  const size_t ratio = std::max<size_t>(4, 64 * 256 / resize);
  if (std::max(width, height) > ratio * resize) {
    const size_t keep_width = std::min(image.width, ratio * image.height);
    const size_t keep_height = std::min(image.height, ratio * image.width);
    image.pixels +=
        (image.height - keep_height) / 2 * image.row_bytes + (image.width - keep_width) / 2 * 3;
    image.width = keep_width, image.height = keep_height;
    (upright ? height : width) = ratio * resize;
  }
  const size_t left = half(width - crop), top = half(height - crop);
  Weights across = make_weights(image.width, width, left, left + crop);
  Weights down = make_weights(image.height, height, top, top + crop);
  // As Pillow 13 does, for whom the vertical pass is faster first. Both passes round, so the order
  // changes levels.
  const bool down_first = image.height > height &&
                          static_cast<int64_t>(image.height - height) >
                              2 * (static_cast<int64_t>(image.width) - static_cast<int64_t>(width));
  size_t columns, rows;
  const uint8_t* pixels = image.pixels + 3 * take_begin(across, columns);
  pixels += take_begin(down, rows) * image.row_bytes;
  std::vector<uint8_t> between(3 * crop * (down_first ? columns : rows));
  if (down_first) {
    resize_down(pixels, image.row_bytes, 3 * columns, down, between.data());
    resize_across(between.data(), 3 * columns, crop, across, out);
  } else {
    resize_across(pixels, image.row_bytes, rows, across, between.data());
    resize_down(between.data(), 3 * crop, 3 * crop, down, out);
  }
}

}  // namespace images
