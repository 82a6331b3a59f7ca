// What a variable-rate bundle has beside its tables: the gains that make symbols of the latent, and
// the order of the channels. docs/BUNDLE.md, sections 3.1 and 11, specifies both;
// runtime/codec/rates.py is the same in Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../coder/quantise.hpp"

namespace edgecloud {

inline constexpr int kStepsPerLevel = 16, kLevels = 16, kMaxStep = kStepsPerLevel * (kLevels - 1);
inline constexpr float kMaxGain = 1e6f;

// The whole level whose tables code the symbols of a step.
inline size_t whole_level(int step) {
  return static_cast<size_t>(step + kStepsPerLevel / 2) / kStepsPerLevel;
}

struct Rates {
  std::vector<float> gains;     // [kMaxStep + 1][channels]; none in a bundle with one rate
  std::vector<uint32_t> order;  // the channels, in the order in which a cut file keeps them
  int default_step = 0;

  // The latent [channels][count] at a step, to symbols of the same shape.
  void symbols(const float* latent, size_t count, int step, int16_t* out) const {
    const float* gain = gains.data() + static_cast<size_t>(step) * order.size();
    for (size_t channel = 0; channel < order.size(); ++channel)
      rans::quantise(latent + channel * count, gain[channel], count, out + channel * count);
  }
};

}  // namespace edgecloud
