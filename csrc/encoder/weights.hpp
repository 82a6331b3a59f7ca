// Reads edge.weights, the integer encoder of a bundle; docs/BUNDLE.md, section 10, specifies it.
//
// Always holds: nothing is read outside the file's bytes, and nothing is allocated. A file that is
// accepted has only values with which no sum of the encoder can overflow 32 bits, whatever the
// pixels are, and with which no rounding meets a tie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace encoder {

// The sizes of the encoders of ours_n0, ours_n4 and ours_n8, which differ in their blocks alone.
inline constexpr size_t kPatch = 8;  // pixels of a patch, on each axis
inline constexpr size_t kPatchValues = 3 * kPatch * kPatch;
inline constexpr size_t kChannels = 128;  // of the residual stream
inline constexpr size_t kHidden = 64;     // between the two convolutions of a block
inline constexpr size_t kLatent = 64;     // channels of the symbols
inline constexpr size_t kMaxBlocks = 64;
inline constexpr size_t kGeluEntries = 256;
// Of the file: one whose values are symbols, and one whose values are the latent of a variable-rate
// bundle, which gains make symbols of.
inline constexpr uint32_t kSymbols = 1, kLatentValues = 2;
inline constexpr uint32_t kMaxLatentFraction = 14;
inline constexpr uint32_t kMinFraction = 6, kMaxFraction = 14;
inline constexpr uint32_t kMinShift = 32, kMaxShift = 61;
inline constexpr size_t kFingerprintBytes = 32;

enum class Status {
  ok,
  not_weights,      // another kind of file
  unknown_version,  // of another release
  unknown_shape,    // not the sizes above
  wrong_length,     // cut short, or with bytes left over
  bad_value,        // a value out of its range
  no_memory,
};

// Why weights are refused, for users: "edge.weights REASON". "" for ok.
inline const char* reason(Status status) {
  switch (status) {
    case Status::not_weights: return "is not a file of an integer encoder";
    case Status::unknown_version: return "is of another version than this release reads";
    case Status::unknown_shape: return "is of an encoder that this release does not know";
    case Status::wrong_length: return "is cut short or has bytes left over";
    case Status::bad_value: return "has a value out of its range";
    case Status::no_memory: return "does not fit into memory";
    case Status::ok: break;
  }
  return "";
}

// A number of the file, which is little-endian, whatever the machine is.
inline uint32_t read_u16(const uint8_t* at) {
  return static_cast<uint32_t>(at[0]) | static_cast<uint32_t>(at[1]) << 8;
}
inline uint32_t read_u32(const uint8_t* at) { return read_u16(at) | read_u16(at + 2) << 16; }
inline int32_t read_i16(const uint8_t* at) { return static_cast<int16_t>(read_u16(at)); }
inline int32_t read_i32(const uint8_t* at) { return static_cast<int32_t>(read_u32(at)); }

// What quantises a value of 16 bits to one of eight: zero + value * multiplier / 2^15, rounded.
struct Rounding {
  int32_t multiplier = 0;  // 1 to 32767
  int32_t zero = 0;        // 0 to 255; what stands for the value 0, and outside of the image
};

// A convolution in the file. The pointers go into the file's bytes.
struct Layer {
  size_t outputs = 0;
  size_t inputs = 0;                     // values that an output is summed from
  size_t value_size = 0;                 // bytes of a weight: 1 or 2
  uint32_t shift = 0;                    // of the requantisation, kMinShift to kMaxShift
  Rounding input;                        // of a 3x3 convolution
  const uint8_t* weights = nullptr;      // [outputs][inputs]
  const uint8_t* biases = nullptr;       // int32 [outputs]
  const uint8_t* multipliers = nullptr;  // int32 [outputs], positive and odd

  int32_t weight(size_t output, size_t input) const {
    const size_t index = output * inputs + input;
    return value_size == 1 ? static_cast<int8_t>(weights[index]) : read_i16(weights + 2 * index);
  }
  int32_t bias(size_t output) const { return read_i32(biases + 4 * output); }
  int32_t multiplier(size_t output) const { return read_i32(multipliers + 4 * output); }
};

// A file that was read. It does not own the bytes.
struct Weights {
  size_t blocks = 0;
  uint32_t fraction = 0;  // a value v of 16 bits stands for v / 2^fraction
  // A value v of the result stands for v / 2^latent_fraction; -1 where results are symbols.
  int latent_fraction = -1;
  const uint8_t* fingerprint = nullptr;  // of the bundle
  const uint8_t* gelu = nullptr;         // uint16 [kGeluEntries]
  Layer first, last;
  Layer middle[2 * kMaxBlocks];  // of each block its first and its second convolution
};

namespace detail {

inline constexpr size_t kHeaderBytes = 8 + 4 * 7 + kFingerprintBytes, kLayerHeaderBytes = 12;
inline constexpr uint8_t kMagic[8] = {'E', 'D', 'G', 'E', 'W', 'G', 'T', 'S'};

inline size_t layer_bytes(size_t outputs, size_t inputs, size_t value_size) {
  return kLayerHeaderBytes + outputs * (inputs * value_size + 8);
}

// Checks that no sum of products and no requantised sum can overflow. `largest` is the largest
// absolute value of an input.
inline bool is_bounded(const Layer& layer, int64_t largest) {
  for (size_t output = 0; output < layer.outputs; ++output) {
    int64_t sum = 0, multiplier = layer.multiplier(output);
    for (size_t input = 0; input < layer.inputs; ++input) {
      const int32_t weight = layer.weight(output, input);
      // The lowest integer has no negative counterpart, which some kernels need.
      if (weight == (layer.value_size == 1 ? INT8_MIN : INT16_MIN)) return false;
      sum += std::abs(weight);
    }
    const int64_t bias = layer.bias(output);
    if (sum * largest + std::llabs(bias) > INT32_MAX || multiplier < 1 || multiplier % 2 == 0)
      return false;
  }
  return true;
}

}  // namespace detail

// Reads a file of `size` bytes. What it gives in `out` is valid as long as the bytes are.
inline Status read_weights(const uint8_t* bytes, size_t size, Weights& out) {
  using namespace detail;
  if (size < sizeof kMagic || std::memcmp(bytes, kMagic, sizeof kMagic) != 0)
    return Status::not_weights;
  if (size < kHeaderBytes) return Status::wrong_length;
  const uint32_t version = read_u32(bytes + 8);
  if (version != kSymbols && version != kLatentValues) return Status::unknown_version;
  if (read_u32(bytes + 12) != kPatch || read_u32(bytes + 16) != kChannels ||
      read_u32(bytes + 20) != kHidden || read_u32(bytes + 24) != kLatent ||
      read_u32(bytes + 28) > kMaxBlocks)
    return Status::unknown_shape;
  out.blocks = read_u32(bytes + 28);
  out.fraction = read_u32(bytes + 32);
  out.fingerprint = bytes + 36;
  size_t at = kHeaderBytes;
  out.latent_fraction = -1;
  if (version == kLatentValues) {
    if (size < at + 4) return Status::wrong_length;
    const uint32_t fraction = read_u32(bytes + at);
    if (fraction > kMaxLatentFraction) return Status::bad_value;
    out.latent_fraction = static_cast<int>(fraction);
    at += 4;
  }
  out.gelu = bytes + at;
  at += 2 * kGeluEntries;
  const size_t whole = at + layer_bytes(kChannels, kPatchValues, 2) +
                       out.blocks * (layer_bytes(kHidden, 9 * kChannels, 1) +
                                     layer_bytes(kChannels, 9 * kHidden, 1)) +
                       layer_bytes(kLatent, kChannels, 2);
  if (size != whole) return Status::wrong_length;
  if (out.fraction < kMinFraction || out.fraction > kMaxFraction) return Status::bad_value;
  for (size_t index = 0; index < kGeluEntries; ++index)
    if (read_u16(out.gelu + 2 * index) > INT16_MAX) return Status::bad_value;

  // Takes the next layer; false if it has a value out of range.
  const auto take = [&](Layer& layer, size_t outputs, size_t inputs, size_t value_size,
                        int64_t largest) {
    layer.outputs = outputs, layer.inputs = inputs, layer.value_size = value_size;
    layer.shift = read_u32(bytes + at);
    const uint32_t multiplier = read_u32(bytes + at + 4), zero = read_u32(bytes + at + 8);
    layer.weights = bytes + at + kLayerHeaderBytes;
    layer.biases = layer.weights + outputs * inputs * value_size;
    layer.multipliers = layer.biases + 4 * outputs;
    at += layer_bytes(outputs, inputs, value_size);
    const bool rounds = value_size == 1;
    if (layer.shift < (&layer == &out.last ? kMinShift + 1 : kMinShift) ||
        layer.shift > kMaxShift || zero > (rounds ? 255u : 0u) || (multiplier >= 1) != rounds ||
        multiplier > INT16_MAX)
      return false;
    layer.input = {static_cast<int32_t>(multiplier), static_cast<int32_t>(zero)};
    return is_bounded(layer, largest);
  };
  bool good = take(out.first, kChannels, kPatchValues, 2, 255);
  // Of a 3x3 convolution the inputs are 0 to 255, and some kernels take them less 128.
  for (size_t block = 0; good && block < out.blocks; ++block)
    good = take(out.middle[2 * block], kHidden, 9 * kChannels, 1, 2 * 255) &&
           take(out.middle[2 * block + 1], kChannels, 9 * kHidden, 1, 2 * 255);
  good = good && take(out.last, kLatent, kChannels, 2, 1 << 15);
  return good ? Status::ok : Status::bad_value;
}

}  // namespace encoder
