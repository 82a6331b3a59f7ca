// The edge of ours_n0 for microcontrollers: rows of pixels to a feature file, in static memory.
//
//   static cortex::Encoder encoder;
//   Status status = encoder.open(tables, tables_size, weights, weights_size);    // once
//   status = encoder.begin(224, 224);                                            // each picture
//   for each 8 lines { fill encoder.lines() with their RGB pixels; status = encoder.push(); }
//   status = encoder.finish(&file, &size);
//
// ours_n0 computes the symbols of 8x8 pixels from these pixels alone, so eight lines are encoded as
// soon as they are there. The coder codes backwards and channel by channel, so it needs all symbols
// of the picture: they are kept with eight bits each, in the order of coding. Then the payload is
// written over the symbols that are already coded.
//
// Always holds: the files are byte for byte those of the C library and of the engine `native`, or
// there is none, with the reason as a Status. Nothing is allocated and nothing throws. What the
// coder writes stays inside `memory_`, whatever the pixels are.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <new>

#include "../../csrc/coder/contexts.hpp"
#include "../../csrc/coder/narrow.hpp"
#include "../../csrc/encoder/weights.hpp"
#include "convolve.hpp"
#include "tables.hpp"

namespace cortex {

using encoder::kChannels;
using encoder::kLatent;
using encoder::kPatch;
using encoder::kPatchValues;

class Encoder {
 public:
  static constexpr size_t kMaxColumns = 28, kMaxSide = kPatch * kMaxColumns;

  // Takes a bundle's edge.tables and edge.weights, which must lie at multiples of four bytes and
  // stay there.
  Status open(const uint8_t* tables, size_t tables_size, const uint8_t* weights,
              size_t weights_size) {
    is_open_ = false, rows_ = row_ = 0;
    const Status status = tables_.open(tables, tables_size);
    if (status != Status::ok) return status;
    const edgecloud::Rule& rule = tables_.rule();
    if (rule.channels != kLatent || rule.stride != kPatch || rule.shrink != 0)
      return Status::unknown_shape;
    // It is large, and `memory_` is not in use yet.
    encoder::Weights& read = *new (memory_) encoder::Weights;
    static_assert(sizeof read <= sizeof memory_);
    if (encoder::read_weights(weights, weights_size, read) != encoder::Status::ok)
      return Status::bad_weights;
    if (read.latent_fraction >= 0 ||
        std::memcmp(read.fingerprint, rule.fingerprint.data(), rule.fingerprint.size()) != 0 ||
        edgecloud::Sha256().add(weights, weights_size).digest() != rule.weights)
      return Status::other_weights;
    if (read.blocks != 0) return Status::has_blocks;
    first_ = in_place(read.first), last_ = in_place(read.last);
    gelu_ = {reinterpret_cast<const uint16_t*>(read.gelu), nullptr,
             static_cast<int>(read.fraction - encoder::kMinFraction)};
    order_planes();
    is_open_ = true;
    return Status::ok;
  }

  // Begins a picture of height x width pixels.
  Status begin(size_t height, size_t width) {
    rows_ = row_ = 0;
    if (!is_open_) return Status::not_open;
    if (height % kPatch || width % kPatch || height < kPatch || width < kPatch ||
        height > kMaxSide || width > kMaxSide ||
        tables_.rule().symbols(height, width) == UINT64_MAX)
      return Status::bad_size;
    rows_ = height / kPatch, columns_ = width / kPatch;
    return Status::ok;
  }

  // Where the next eight lines go: uint8 [8][width][RGB].
  uint8_t* lines() { return memory_ + kLines; }

  // Encodes the eight lines to symbols.
  Status push() {
    if (row_ == rows_) return Status::too_many_lines;
    int16_t* pixels = reinterpret_cast<int16_t*>(memory_ + kPixels);
    int16_t* stream = reinterpret_cast<int16_t*>(memory_ + kStream);
    for (size_t column = 0; column < columns_; column += kTogether) {
      const size_t count = std::min(kTogether, columns_ - column);
      for (size_t c = 0; c < count; ++c) widen(column + c, pixels + c * kPatchValues);
      convolve<kPatchValues, kChannels>(first_, pixels, count, stream);
      encoder::portable::gelu_row(stream, count * kChannels, gelu_, stream);
      convolve<kChannels, kLatent>(last_, stream, count, pixels);
      for (size_t c = 0; c < count; ++c)
        if (!keep(column + c, pixels + c * kLatent)) return Status::far_symbol;
    }
    ++row_;
    return Status::ok;
  }

  // Gives the feature file of the picture. It is valid until the next `begin`.
  Status finish(const uint8_t** file, size_t* size) {
    if (rows_ == 0 || row_ != rows_) return Status::lines_missing;
    if (!tables_.rule().small && busy_ * rows_ * columns_ >= rans::kWideSymbols)
      return Status::wide_part;
    const size_t contexts = contexts_coded();
    row_ = 0;  // the symbols will be overwritten
    return contexts < rans::kManyContexts ? code<2>(contexts, file, size)
                                          : code<4>(contexts, file, size);
  }

 private:
  static constexpr size_t kTogether = 8;  // columns
  static constexpr size_t kMaxCells = kMaxColumns * kMaxColumns;
  // Parts of `memory_`: the symbols; then what a picture's rows need, or what the coder needs.
  static constexpr size_t kLines = kLatent * kMaxCells;
  static constexpr size_t kPixels = kLines + kMaxColumns * kPatchValues;
  static constexpr size_t kStream = kPixels + 2 * kTogether * kPatchValues;
  static constexpr size_t kBytes = kStream + 2 * kTogether * kChannels;
  static constexpr size_t kRuns = kBytes - sizeof(Runs);
  static_assert(kLines < kRuns - 2 * 4 * kMaxCells && kRuns % alignof(Runs) == 0);
  // Bytes that a file takes beside its symbols at most, before the payload's end.
  static constexpr size_t kHeaderAndStates = edgecloud::kMaxHeader + 32;

  static encoder::Packed in_place(const encoder::Layer& layer) {
    return {layer.weights, reinterpret_cast<const int32_t*>(layer.biases),
            reinterpret_cast<const int32_t*>(layer.multipliers), static_cast<int>(layer.shift)};
  }

  size_t contexts_coded() const { return tables_.rule().small ? tables_.contexts() : 0; }

  // Planes lie in the order of coding: in small files, channels with context tables come last.
  void order_planes() {
    const size_t contexts = contexts_coded();
    size_t plane = 0, k = 0;
    busy_ = 0;
    for (size_t channel = 0; channel < kLatent; ++channel) {
      busy_ += tables_.in_runs(channel) ? 0 : 1;
      if (k < contexts && tables_.context_channel(k) == channel)
        plane_of_[channel] = static_cast<uint8_t>(kLatent - contexts + k++);
      else
        channel_of_[plane] = static_cast<uint8_t>(channel),
        plane_of_[channel] = static_cast<uint8_t>(plane++);
    }
  }

  // A patch's pixels, one line after the other.
  void widen(size_t column, int16_t* to) const {
    const uint8_t* from = memory_ + kLines + 3 * kPatch * column;
    for (size_t y = 0; y < kPatch; ++y, from += 3 * kPatch * columns_)
      for (size_t x = 0; x < 3 * kPatch; ++x) *to++ = from[x];
  }

  // Stores the symbols of a column of the current row. False if one has more than eight bits.
  bool keep(size_t column, const int16_t* symbols) {
    int8_t* at = reinterpret_cast<int8_t*>(memory_) + row_ * columns_ + column;
    const size_t cells = rows_ * columns_;
    for (size_t channel = 0; channel < kLatent; ++channel) {
      const int8_t symbol = static_cast<int8_t>(symbols[channel]);
      if (symbol != symbols[channel]) return false;
      at[plane_of_[channel] * cells] = symbol;
    }
    return true;
  }

  // Writes the payload with so many lanes, and the file around it. `contexts`: channels that are
  // coded with context tables.
  template <size_t lanes>
  Status code(size_t contexts, const uint8_t** file, size_t* size) {
    const size_t cells = rows_ * columns_, plain = kLatent - contexts;
    const int8_t* symbols = reinterpret_cast<int8_t*>(memory_);
    Runs& runs = *new (memory_ + kRuns) Runs;
    uint8_t *scratch = memory_ + kRuns - 2 * lanes * cells, *end = scratch - edgecloud::kCrcBytes;
    rans::Writer writer{end};
    uint32_t lane[lanes];
    std::fill(lane, lane + lanes, rans::kLowerBound);
    // Codes some planes. False if the memory before the payload might not be enough for them, or if
    // the payload was written over planes that were not yet coded.
    const auto coded = [&](size_t plane, size_t count, const auto& push) {
      const size_t most = kHeaderAndStates + 2 * rans::kMaxSymbolWords * count * cells;
      if (static_cast<size_t>(writer.at - memory_) < most) return false;
      push();
      return writer.at >= memory_ + (plane + count) * cells;
    };
    for (size_t k = contexts; k > 0;) {
      const size_t count = k % lanes ? 1 : lanes;
      k -= count;
      Contexts group[lanes];
      for (size_t l = 0; l < count; ++l) group[l] = tables_.context(k + l, plain + k + l);
      const auto push = [&] {
        if (count == 1)
          rans::push_contexts<1>(lane, group, symbols, rows_, columns_, scratch, writer);
        else
          rans::push_contexts<lanes>(lane, group, symbols, rows_, columns_, scratch, writer);
      };
      if (!coded(plain + k, count, push)) return Status::large_file;
    }
    for (size_t plane = plain; plane-- > 0;) {
      const Channel channel = tables_.channel(channel_of_[plane], runs);
      const auto push = [&] {
        if (channel.in_runs)
          rans::push_runs(lane, channel, symbols + plane * cells, cells, writer);
        else
          rans::push_narrow(lane, channel, symbols + plane * cells, cells, writer);
      };
      if (!coded(plane, 1, push)) return Status::large_file;
    }
    rans::push_states(lane, writer);
    *file = edgecloud::wrap(writer.at, static_cast<size_t>(end - writer.at),
                            tables_.rule().fingerprint.data(), contexts > 0, rows_ * kPatch,
                            columns_ * kPatch);
    *size = static_cast<size_t>(end + edgecloud::kCrcBytes - *file);
    return Status::ok;
  }

  Tables tables_;
  encoder::Packed first_, last_;
  encoder::Gelu gelu_;
  uint8_t plane_of_[kLatent], channel_of_[kLatent];
  bool is_open_ = false;
  size_t busy_;  // channels that are not coded in runs
  size_t rows_, columns_, row_;
  alignas(8) uint8_t memory_[kBytes];
};

}  // namespace cortex
