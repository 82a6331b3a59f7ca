// The integer encoder: pixels to symbols, in whole numbers alone; or to the latent of a
// variable-rate bundle. docs/BUNDLE.md, section 10, specifies what it computes; start here to read
// how.
//
//   Encoder encoder;
//   Status status = encoder.load(bytes, size, *find_kernel());     // edge.weights
//   Workspace workspace;
//   status = encoder.encode(pixels, rows, columns, symbols, workspace);
//
// An image goes through the layers one after the other. Each layer works on rows, which are
// independent, so several threads may share them; see team.hpp.
//
// Always holds: the symbols are the same for every kernel and every number of threads. Nothing
// throws. There is no global state: an Encoder does not change after `load`, and may be used by
// several threads if each has a Workspace of its own.
#pragma once

#include <algorithm>

#include "kernels.hpp"
#include "memory.hpp"
#include "weights.hpp"

namespace encoder {

// Runs all rows of a layer in the calling thread. What `encode` takes in its place has the same two
// members, and returns when all rows are done.
struct OneThread {
  static constexpr size_t threads() { return 1; }
  // Calls work(begin, end, thread) for parts of the rows 0 to `rows`.
  template <class Work>
  void operator()(size_t rows, const Work& work) const {
    work(size_t{0}, rows, size_t{0});
  }
};

// Memory for the values between layers. It grows to the largest image, and belongs to one call.
class Workspace {
 public:
  // Makes room for an image of rows x columns patches. False if there is no memory.
  bool reserve(const Kernel& kernel, size_t rows, size_t columns, size_t threads) {
    const size_t cells = rows * columns, with_border = (rows + 2) * (columns + 2);
    const size_t sizes[] = {
        aligned(2 * kChannels * cells),
        aligned(kernel.value_size * kChannels * with_border),
        aligned(kernel.value_size * kHidden * with_border),
        threads * aligned(2 * kPatchValues * columns),
        threads * aligned(2 * kChannels * columns),
    };
    size_t whole = 0;
    for (size_t part = 0; part < kParts; whole += sizes[part++]) begins_[part] = whole;
    pixels_size_ = sizes[kPixels] / threads, row_size_ = sizes[kRow] / threads;
    return block_.reserve(whole);
  }
  // The residual stream [row][column][kChannels].
  int16_t* stream() { return reinterpret_cast<int16_t*>(part(kStream)); }
  // Inputs of the first and of the second convolution of a block, with a border of one value.
  uint8_t* wide_inputs() { return part(kWide); }
  uint8_t* narrow_inputs() { return part(kNarrow); }
  // A thread's pixels of one row of patches, and its outputs [column][kChannels] of one row.
  int16_t* pixels(size_t thread) {
    return reinterpret_cast<int16_t*>(part(kPixels) + thread * pixels_size_);
  }
  int16_t* row(size_t thread) {
    return reinterpret_cast<int16_t*>(part(kRow) + thread * row_size_);
  }

 private:
  enum Part { kStream, kWide, kNarrow, kPixels, kRow, kParts };
  uint8_t* part(Part which) { return block_.data() + begins_[which]; }
  Block block_;
  size_t begins_[kParts] = {}, pixels_size_ = 0, row_size_ = 0;
};

class Encoder {
 public:
  // Reads edge.weights and packs it for a kernel. The bytes are no longer needed afterwards.
  Status load(const uint8_t* bytes, size_t size, const Kernel& kernel) {
    Weights weights;
    const Status status = read_weights(bytes, size, weights);
    if (status != Status::ok) return status;
    kernel_ = &kernel;
    blocks_ = weights.blocks;
    latent_fraction_ = weights.latent_fraction;
    std::memcpy(fingerprint_, weights.fingerprint, sizeof fingerprint_);
    gelu_shift_ = static_cast<int>(weights.fraction - kMinFraction);
    for (size_t index = 0; index < kGeluEntries; ++index) {
      table_[index] = static_cast<uint16_t>(read_u16(weights.gelu + 2 * index));
      bytes_[index] = static_cast<uint8_t>(table_[index]);
      bytes_[kGeluEntries + index] = static_cast<uint8_t>(table_[index] >> 8);
    }
    return pack_all(weights) ? Status::ok : Status::no_memory;
  }

  // Encodes pixels uint8 [8 * rows][8 * columns][RGB] to symbols int16 [kLatent][rows][columns], or
  // to the latent, as latent_fraction() says. Gives ok, or no_memory.
  template <class Run = OneThread>
  Status encode(const uint8_t* pixels, size_t rows, size_t columns, int16_t* symbols,
                Workspace& workspace, Run&& run = Run()) const {
    if (!workspace.reserve(*kernel_, rows, columns, run.threads())) return Status::no_memory;
    const Image image{*this, pixels, rows, columns, symbols, workspace};
    run(rows, [&](size_t begin, size_t end, size_t thread) {
      for (size_t row = begin; row < end; ++row) image.first(row, thread);
    });
    for (size_t block = 0; block < blocks_; ++block) {
      run(rows, [&](size_t begin, size_t end, size_t thread) {
        for (size_t row = begin; row < end; ++row) image.narrow(block, row, thread);
      });
      run(rows, [&](size_t begin, size_t end, size_t thread) {
        for (size_t row = begin; row < end; ++row) image.widen(block, row, thread);
      });
    }
    return Status::ok;
  }

  // Of the bundle: kFingerprintBytes.
  const uint8_t* fingerprint() const { return fingerprint_; }
  const Kernel& kernel() const { return *kernel_; }
  // A value v that `encode` gives stands for v / 2^latent_fraction(); -1 if it gives symbols.
  int latent_fraction() const { return latent_fraction_; }

 private:
  // A layer in the kernel's order.
  struct Loaded {
    Packed packed;
    Rounding input;
  };

  // One image on its way through the layers; computes single rows of them.
  struct Image {
    const Encoder& encoder;
    const uint8_t* pixels;
    size_t rows, columns;
    int16_t* symbols;
    Workspace& workspace;

    const Kernel& kernel() const { return *encoder.kernel_; }
    int16_t* stream(size_t row) const { return workspace.stream() + row * columns * kChannels; }

    // The first convolution, and what follows in the same row.
    void first(size_t row, size_t thread) const {
      const size_t values = 3 * kPatch * columns;
      int16_t* widened = workspace.pixels(thread);
      const uint8_t* from = pixels + row * kPatch * values;
      for (size_t i = 0; i < kPatch * values; ++i) widened[i] = from[i];
      kernel().first(encoder.first_.packed, widened, values, columns, stream(row));
      if (encoder.blocks_ > 0) return quantise_stream(0, row);
      kernel().gelu(stream(row), columns * kChannels, encoder.gelu(), stream(row));
      last(row, thread);
    }

    // The first convolution of a block.
    void narrow(size_t block, size_t row, size_t thread) const {
      const Loaded &layer = encoder.middle_[2 * block], &next = encoder.middle_[2 * block + 1];
      int16_t* out = workspace.row(thread);
      convolve(kernel().narrow, layer, workspace.wide_inputs(), kChannels, row, out);
      quantise(out, next.input, workspace.narrow_inputs(), kHidden, row);
    }

    // The second convolution of a block and the sum, and what follows in the same row.
    void widen(size_t block, size_t row, size_t thread) const {
      int16_t* out = workspace.row(thread);
      convolve(kernel().widen, encoder.middle_[2 * block + 1], workspace.narrow_inputs(), kHidden,
               row, out);
      kernel().add(stream(row), out, columns * kChannels);
      if (block + 1 < encoder.blocks_)
        quantise_stream(block + 1, row);
      else
        last(row, thread);
    }

    // The last convolution, to symbols or the latent. -32768 is not a symbol.
    void last(size_t row, size_t thread) const {
      int16_t* out = workspace.row(thread);
      kernel().last(encoder.last_.packed, stream(row), 0, columns, out);
      for (size_t channel = 0; channel < kLatent; ++channel) {
        int16_t* to = symbols + (channel * rows + row) * columns;
        for (size_t column = 0; column < columns; ++column)
          to[column] = std::max<int16_t>(out[column * kLatent + channel], -INT16_MAX);
      }
    }

    void convolve(ConvolveRow function, const Loaded& layer, const uint8_t* inputs, size_t channels,
                  size_t row, int16_t* out) const {
      const size_t row_stride = (columns + 2) * channels;
      function(layer.packed, inputs + row * row_stride * kernel().value_size, row_stride, columns,
               out);
    }

    void quantise_stream(size_t block, size_t row) const {
      quantise(stream(row), encoder.middle_[2 * block].input, workspace.wide_inputs(), kChannels,
               row);
    }

    // GELU, then eight bits: a row of inputs of a 3x3 convolution, and the border beside it.
    void quantise(const int16_t* values, const Rounding& rounding, uint8_t* inputs, size_t channels,
                  size_t row) const {
      const size_t size = kernel().value_size, cell = channels * size, line = (columns + 2) * cell;
      uint8_t* at = inputs + (row + 1) * line;
      kernel().activate(values, columns * channels, encoder.gelu(), rounding, at + cell);
      const int32_t zero = rounding.zero - kernel().offset;
      fill(at, channels, zero);
      fill(at + line - cell, channels, zero);
      if (row == 0) fill(inputs, (columns + 2) * channels, zero);
      if (row + 1 == rows) fill(at + line, (columns + 2) * channels, zero);
    }

    void fill(uint8_t* at, size_t count, int32_t value) const {
      if (kernel().value_size == 1)
        std::memset(at, static_cast<uint8_t>(value), count);
      else
        std::fill_n(reinterpret_cast<int16_t*>(at), count, static_cast<int16_t>(value));
    }
  };

  Gelu gelu() const { return {table_, bytes_, gelu_shift_}; }

  bool pack_all(const Weights& weights) {
    size_t whole = 0;
    const auto room = [&](const Layer& layer, size_t value_size) {
      whole += aligned(layer.outputs * layer.inputs * value_size) + 2 * aligned(4 * layer.outputs);
    };
    room(weights.first, 2);
    for (size_t i = 0; i < 2 * blocks_; ++i) room(weights.middle[i], kernel_->value_size);
    room(weights.last, 2);
    if (!memory_.reserve(whole)) return false;
    uint8_t* at = memory_.data();
    first_ = pack(weights.first, 2, 2, at);
    for (size_t i = 0; i < 2 * blocks_; ++i)
      middle_[i] = pack(weights.middle[i], kernel_->value_size, kernel_->group, at);
    last_ = pack(weights.last, 2, 2, at);
    return true;
  }

  // Writes a layer in the kernel's order to `at`, and moves that behind it.
  Loaded pack(const Layer& layer, size_t value_size, size_t group, uint8_t*& at) const {
    const size_t block = kernel_->block, lanes = std::max<size_t>(1, block / 2);
    uint8_t* weights = at;
    int32_t* biases =
        reinterpret_cast<int32_t*>(at + aligned(layer.outputs * layer.inputs * value_size));
    int32_t* multipliers = biases + aligned(4 * layer.outputs) / 4;
    at = reinterpret_cast<uint8_t*>(multipliers) + aligned(4 * layer.outputs);
    for (size_t place = 0; place < layer.outputs; ++place) {
      const size_t inside = place % block;
      const size_t output =
          place - inside + (block == 1 ? 0 : output_in_block(inside / lanes, inside % lanes));
      int32_t sum = 0;
      for (size_t input = 0; input < layer.inputs; ++input) {
        const int32_t weight = layer.weight(output, input);
        const size_t begin = (place - inside) * layer.inputs + input / group * group * block;
        const size_t index =
            begin + (kernel_->apart && value_size == 2
                         ? inside / lanes * lanes * group + input % group * lanes + inside % lanes
                         : inside * group + input % group);
        if (value_size == 1)
          weights[index] = static_cast<uint8_t>(weight);
        else
          reinterpret_cast<int16_t*>(weights)[index] = static_cast<int16_t>(weight);
        sum += weight;
      }
      // What stands for 0 is not 0, and is subtracted here from all sums.
      biases[place] = layer.bias(output) - (layer.input.zero - offset_of(layer)) * sum;
      multipliers[place] = layer.multiplier(output);
    }
    return {{weights, biases, multipliers, static_cast<int>(layer.shift)}, layer.input};
  }
  int32_t offset_of(const Layer& layer) const {
    return layer.value_size == 1 ? kernel_->offset : 0;
  }

  const Kernel* kernel_ = nullptr;
  size_t blocks_ = 0;
  int latent_fraction_ = -1;
  uint8_t fingerprint_[kFingerprintBytes] = {};
  int gelu_shift_ = 0;
  alignas(kAlignment) uint16_t table_[kGeluEntries + 2] = {};
  alignas(kAlignment) uint8_t bytes_[2 * kGeluEntries] = {};
  Block memory_;
  Loaded first_ = {}, last_ = {}, middle_[2 * kMaxBlocks] = {};
};

}  // namespace encoder
