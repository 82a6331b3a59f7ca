// From a latent to symbols: scale by a gain, round half to even, clip to the range of symbols.
//
// Always holds: the result is that of IEEE 754 single precision arithmetic, on every machine. The
// loop has no branches, so that compilers turn it into vector instructions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace rans {

// symbols[i] = round(latent[i] * gain), in -32767..32767, for `count` values. Returns whether all
// of the latent is finite; otherwise the symbols are not valid.
inline bool quantise(const float* latent, float gain, size_t count, int16_t* symbols) {
  constexpr float kMost = 32767.0f;
  // Adding 1.5 * 2^23 leaves no bits for a fraction: the sum is rounded, half to even.
  constexpr float kRound = 12582912.0f;
  constexpr uint32_t kExponent = 0x7f800000;  // all of its bits are set in infinity and NaN
  uint32_t not_finite = 0;
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, latent + i, sizeof bits);
    not_finite |= (bits & kExponent) == kExponent;
    float value = latent[i] * gain;
    value = value < kMost ? value : kMost;
    value = value > -kMost ? value : -kMost;
    value = (value + kRound) - kRound;
    symbols[i] = static_cast<int16_t>(static_cast<int32_t>(value));
  }
  return not_finite == 0;
}

}  // namespace rans
