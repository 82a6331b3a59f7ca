// What a kernel of the encoder is: the functions that compute rows with one instruction set.
//
// A convolution works on rows of values [column][channel], so that the values of neighbouring
// columns lie side by side: what one output is summed from are runs of contiguous values, one for
// each row of the filter. Outputs are computed in blocks. For one block the weights are stored as
//
//   [group of inputs][output of the block][input of the group]
//
// so that a vector of weights has the group's weights for as many outputs as it has lanes of 32
// bits; the group's inputs are broadcast to all lanes. Where a kernel says so, the two inputs of a
// group of 16 bits lie apart: a vector has all first inputs, then all second ones. Within a block,
// outputs are in the order in which two vectors of 32 bits become one of 16.
//
// Always holds: all kernels give the same values, which docs/BUNDLE.md, section 10, specifies.
#pragma once

#include <cstddef>
#include <cstdint>

#include "weights.hpp"

namespace encoder {

// A convolution's weights in a kernel's order. Biases are of the sums that the kernel computes.
struct Packed {
  const void* weights;
  const int32_t* biases;
  const int32_t* multipliers;
  int shift;  // of the requantisation
};

// What a GELU is computed with. A value's table index is its size, shifted to the right by `shift`.
struct Gelu {
  const uint16_t* table;  // kGeluEntries, and some more for loads of 32 bits
  const uint8_t* low;     // the table's low bytes, and then its high bytes
  int shift;
};

// Computes the outputs [column][output] of a row. `at` is the first value of the first column's
// filter, `row_stride` the number of values from one row of the filter to the next.
using ConvolveRow = void (*)(const Packed&, const void* at, size_t row_stride, size_t columns,
                             int16_t* out);

struct Kernel {
  const char* name;
  bool (*is_available)();  // on this machine
  size_t block;            // outputs of a block
  size_t group;            // inputs of a group in 3x3 convolutions; in the others it is 2
  // Bytes of an input of a 3x3 convolution: 1 or 2. A weight has as many.
  size_t value_size;
  bool apart;          // see above
  int32_t offset;      // what is subtracted from these inputs: 128 if they have to be signed
  ConvolveRow first;   // 8x8 of int16 pixels -> kChannels, columns 24 values apart
  ConvolveRow narrow;  // 3x3 of kChannels -> kHidden
  ConvolveRow widen;   // 3x3 of kHidden -> kChannels
  ConvolveRow last;    // 1x1 of int16 kChannels -> kLatent
  // GELU of `count` values; a multiple of kHidden. `out` may be `in`.
  void (*gelu)(const int16_t* in, size_t count, const Gelu&, int16_t* out);
  // The same, quantised to inputs of a 3x3 convolution.
  void (*activate)(const int16_t* in, size_t count, const Gelu&, const Rounding&, void* out);
  // values += more, saturating; `count` as above.
  void (*add)(int16_t* values, const int16_t* more, size_t count);
};

// Which output is lane `lane` of vector `vector`, in a block of two vectors. x86's instruction that
// packs two vectors takes four lanes of one and four of the other in turns.
constexpr size_t output_in_block(size_t vector, size_t lane) {
  return lane / 4 * 8 + vector * 4 + lane % 4;
}

}  // namespace encoder
