// Fuzz targets of the coder, the integer encoder and the JPEG check; library.cpp has those of the C
// library. Each makes one kind of input from the fuzzer's bytes:
//
//   any_tables    tables of any values, which are refused or valid
//   any_payload   payloads of any bytes, and valid ones with a few changes, under valid tables
//   round_trip    symbols of any values, under valid tables
//   any_jpeg      JPEGs with scans of any bytes
//   any_weights   files edge.weights of any bytes, and valid ones with a few changes
//
//   make fuzz                      eight seconds of each
//   FUZZ_SECONDS=2400 make fuzz    five minutes of each
//
// With clang each is a libFuzzer target, chosen by -DFUZZ_TARGET=any_tables and so on, and starts
// from its corpus in tests/corpus. Without, main() in run.ipp feeds random inputs to all of them.
// The address and undefined-behaviour sanitizers find accesses outside their bounds. The checks
// here find payloads that are accepted although no encoder writes them, and kernels that differ.
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <set>
#include <vector>

#include "../coder/compressai_stream.hpp"
#include "../coder/rans.hpp"
#include "../encoder/encoder.hpp"
#include "../jpeg/jpeg.hpp"
#include "input.hpp"

namespace {

const rans::Kernel& kPortable = std::end(rans::kKernels)[-1];

// The arguments of rans::Tables::add_contexts for one channel.
struct ContextArrays {
  size_t channel;
  int32_t thresholds[rans::kLevels - 1];
  std::vector<uint32_t> cdf;
};

// The arguments of the constructor of rans::Tables.
struct TableArrays {
  std::vector<uint32_t> cdf, lengths;
  std::vector<int32_t> offsets;
  std::vector<ContextArrays> contexts;
};

struct Shape {
  size_t rows, columns;
  size_t row() const { return rows * columns; }
};

rans::Tables make(const TableArrays& arrays, const rans::Kernel& kernel) {
  rans::Tables tables(arrays.cdf.data(), arrays.cdf.size(), arrays.lengths.data(),
                      arrays.offsets.data(), arrays.lengths.size(), kernel);
  for (const ContextArrays& one : arrays.contexts)
    tables.add_contexts(one.channel, one.thresholds, one.cdf.data(), one.cdf.size());
  return tables;
}

// Valid context tables for a channel of `entries` entries, the escape included.
ContextArrays valid_contexts(Input& input, uint32_t kind, size_t channel, int32_t offset,
                             uint32_t entries) {
  ContextArrays contexts{channel, {}, {}};
  for (int32_t t = 0; t < 4; ++t)
    contexts.thresholds[t] =
        std::min(std::max(offset, -32766) + t * static_cast<int32_t>(1 + kind % 3), 32764 + t);
  uint32_t state = 1 + input.below(1 << 23);
  for (size_t context = 0; context < rans::kContexts; ++context) {
    state = state * 1664525 + 1013904223;
    // All entries but the first or the last have this frequency.
    const uint32_t frequency = 1 + (state >> 8) % (state >> 31 ? 65536 / entries : 40);
    const bool rest_is_last = state >> 30 & 1;
    contexts.cdf.push_back(0);
    for (uint32_t k = 1; k < entries; ++k)
      contexts.cdf.push_back(rest_is_last ? k * frequency : 65536 - (entries - k) * frequency);
    contexts.cdf.push_back(65536);
  }
  return contexts;
}

// Valid tables, some of which are coded in runs. Bits of the first byte choose which kinds occur.
TableArrays valid_tables(Input& input) {
  TableArrays arrays;
  const uint32_t kind = input.byte(), channels = 1 + input.below(kind & 16 ? 20 : 5);
  for (uint32_t c = 0; c < channels; ++c) {
    std::set<uint32_t> inner;
    const uint32_t count = 1 + input.below(kind & 1 ? 40 : 4);
    // With bit 1, nearly all of 2^16 is one entry's: such a channel is coded in runs.
    while (inner.size() < count && (input.left() || inner.empty()))
      inner.insert(kind & 2 ? (input.byte() & 1 ? 1 + input.below(400) : 65535 - input.below(400))
                            : 1 + input.below(65535));
    arrays.cdf.push_back(0);
    arrays.cdf.insert(arrays.cdf.end(), inner.begin(), inner.end());
    arrays.cdf.push_back(65536);
    arrays.lengths.push_back(static_cast<uint32_t>(inner.size()) + 2);
    const int32_t offset =
        static_cast<int32_t>(input.below(65535 - static_cast<uint32_t>(inner.size()))) - 32767;
    arrays.offsets.push_back(offset);
    if (!(kind & 4) || (kind & 8 && c % 3 == 0)) continue;
    arrays.contexts.push_back(
        valid_contexts(input, kind, c, offset, static_cast<uint32_t>(inner.size()) + 1));
  }
  return arrays;
}

Shape any_shape(Input& input) {
  const size_t row = (input.byte() & 31) < 31 ? input.below(70) : 3000 + input.below(9000),
               columns = 1 + input.below(40);
  return {row / columns, columns};
}

std::vector<int16_t> any_symbols(Input& input, const TableArrays& arrays, size_t row) {
  const size_t count = arrays.lengths.size() * row;
  const uint32_t likely = input.byte();
  std::vector<int16_t> symbols(count);
  uint32_t state = 1 + input.below(1 << 23);  // a generator: the input may be shorter
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525 + 1013904223 + input.byte();
    const int32_t first = arrays.offsets[i / row],
                  entries = static_cast<int32_t>(arrays.lengths[i / row]) - 2;
    const int32_t inside =
        first + static_cast<int32_t>((state >> 8) % static_cast<uint32_t>(entries));
    const int32_t anywhere = static_cast<int32_t>((state >> 8) % 65535) - 32767;
    symbols[i] = static_cast<int16_t>(
        (state >> 24) <= likely ? inside : (state & 64 ? first + entries / 2 : anywhere));
  }
  return symbols;
}

std::vector<uint8_t> encode(const rans::Tables& tables, const std::vector<int16_t>& symbols,
                            Shape shape, bool small) {
  std::vector<uint8_t> buffer(tables.max_payload(shape.row()));
  const size_t size =
      small ? tables.encode_small(symbols.data(), shape.rows, shape.columns, buffer.data())
            : tables.encode(symbols.data(), shape.row(), buffer.data());
  return {buffer.end() - static_cast<std::ptrdiff_t>(size), buffer.end()};
}

rans::Status decode(const rans::Tables& tables, const std::vector<uint8_t>& payload, Shape shape,
                    bool small, std::vector<int16_t>& symbols) {
  return small ? tables.decode_small(payload.data(), payload.size(), shape.rows, shape.columns,
                                     symbols.data())
               : tables.decode(payload.data(), payload.size(), shape.row(), symbols.data());
}

void any_tables(Input& input) {
  TableArrays arrays;
  const uint32_t channels = input.below(4);
  for (uint32_t c = 0; c < channels; ++c) {
    arrays.lengths.push_back(input.below(7));
    arrays.offsets.push_back(static_cast<int32_t>(input.below(1 << 17)) - (1 << 16));
  }
  const bool contexts = input.byte() & 1;
  if (contexts) arrays.contexts.push_back({input.below(4), {}, {}});
  for (size_t t = 0; contexts && t + 1 < rans::kLevels; ++t)
    arrays.contexts[0].thresholds[t] = static_cast<int32_t>(input.below(1 << 17)) - (1 << 16);
  while (input.left()) {
    const uint32_t kind = input.byte(), value = kind & 1   ? input.below(1 << 17)
                                                : kind & 2 ? 0
                                                           : 65536;
    (contexts && kind & 4 ? arrays.contexts[0].cdf : arrays.cdf).push_back(value);
  }
  try {
    make(arrays, kPortable);
  } catch (const std::invalid_argument&) {
  }
}

void any_payload(Input& input) {
  const TableArrays arrays = valid_tables(input);
  const Shape shape = any_shape(input);
  const size_t row = shape.row();
  const bool small = !arrays.contexts.empty() && input.byte() & 1;
  // Its capacity is its size, so that a sanitizer sees a read beyond it.
  std::vector<uint8_t> payload;
  if (input.byte() & 1) {
    payload = encode(make(arrays, kPortable), any_symbols(input, arrays, row), shape, small);
    for (uint32_t edits = input.below(4); edits > 0; --edits) {
      const uint32_t kind = input.byte() % 3;
      if (kind == 0)
        payload.resize(payload.size() + 2 * input.below(4),
                       static_cast<uint8_t>(input.byte() & 1 ? 0 : input.byte()));
      if (kind == 1) payload.resize(input.below(static_cast<uint32_t>(payload.size()) + 1));
      if (kind == 2 && !payload.empty())
        payload[input.below(static_cast<uint32_t>(payload.size()))] ^=
            static_cast<uint8_t>(input.byte());
    }
    payload.shrink_to_fit();
  } else {
    payload.assign(input.rest(), input.rest() + input.left());
  }
  std::vector<int16_t> symbols(arrays.lengths.size() * row);
  const rans::CompressAiStream stream(arrays.cdf.data(), arrays.lengths.data(),
                                      arrays.offsets.data(), arrays.lengths.size());
  if (stream.decode(payload.data(), payload.size(), row, symbols.data()) == rans::Status::ok)
    require(4 * stream.encode(symbols.data(), row).size() == payload.size(),
            "a stream is accepted that differs in length from what the encoder writes");
  for (const rans::Kernel& kernel : rans::kKernels) {
    if (!kernel.is_available()) continue;
    const rans::Tables tables = make(arrays, kernel);
    if (decode(tables, payload, shape, small, symbols) != rans::Status::ok) continue;
    require(encode(tables, symbols, shape, small) == payload,
            "a payload is accepted that the encoder does not write");
  }
}

void round_trip(Input& input) {
  const TableArrays arrays = valid_tables(input);
  const Shape shape = any_shape(input);
  const size_t row = shape.row(), count = arrays.lengths.size() * row;
  const bool small = !arrays.contexts.empty() && input.byte() & 1;
  const std::vector<int16_t> symbols = any_symbols(input, arrays, row);
  std::vector<int16_t> decoded(count);
  std::vector<uint8_t> first;
  for (const rans::Kernel& kernel : rans::kKernels) {
    if (!kernel.is_available()) continue;
    const rans::Tables tables = make(arrays, kernel);
    const std::vector<uint8_t> payload = encode(tables, symbols, shape, small);
    require(first.empty() || payload == first, "two kernels write different bytes");
    first = payload;
    require(
        decode(tables, payload, shape, small, decoded) == rans::Status::ok && decoded == symbols,
        "decoding gives other symbols than were encoded");
  }
  const rans::CompressAiStream stream(arrays.cdf.data(), arrays.lengths.data(),
                                      arrays.offsets.data(), arrays.lengths.size());
  const std::vector<uint32_t> words = stream.encode(symbols.data(), row);
  std::vector<uint8_t> bytes;
  for (size_t w = words.size(); w-- > 0;)
    for (int shift = 0; shift < 32; shift += 8)
      bytes.push_back(static_cast<uint8_t>(words[w] >> shift));
  require(stream.decode(bytes.data(), bytes.size(), row, decoded.data()) == rans::Status::ok &&
              decoded == symbols,
          "decoding a stream gives other symbols than were encoded");
}

void append_segment(std::vector<uint8_t>& jpeg, uint8_t marker, const std::vector<uint32_t>& body) {
  jpeg.insert(jpeg.end(), {0xFF, marker, 0, static_cast<uint8_t>(body.size() + 2)});
  for (const uint32_t value : body) jpeg.push_back(static_cast<uint8_t>(value));
}

void any_jpeg(Input& input) {
  const uint32_t kind = input.byte(), components = 1 + input.byte() % 4;
  std::vector<uint8_t> jpeg{0xFF, 0xD8};
  if (kind & 1) {  // any bytes
    jpeg.assign(input.rest(), input.rest() + input.left());
  } else {
    std::vector<uint32_t> frame{8, 0, input.byte(), kind & 8 ? 1u : 0u, input.byte(), components};
    for (uint32_t c = 0; c < components; ++c)
      frame.insert(frame.end(), {c, (1 + input.byte() % 3) << 4 | (1 + input.byte() % 3), 0});
    append_segment(jpeg, kind & 2 ? 0xC2 : 0xC0, frame);
    if (kind & 4) append_segment(jpeg, 0xDD, {0, input.byte() % 20});
    while (input.left()) {
      const uint32_t how = input.byte(), last = input.byte() % 64;
      const bool dc = how & 1;  // the DC coefficients of all components, or AC ones of one
      std::vector<uint32_t> scan{dc ? components : 1};
      for (uint32_t c = 0; c < scan[0]; ++c)
        scan.insert(scan.end(), {dc ? c : input.byte() % components, how & 2 ? 0x11u : 0u});
      scan.insert(scan.end(),
                  {dc ? 0u : 1u, dc ? 0u : std::max(1u, last), (how >> 3 & 0x10) | (how >> 2 & 1)});
      append_segment(jpeg, 0xDA, scan);
      for (uint32_t bytes = input.byte(); bytes > 0 && input.left(); --bytes)
        jpeg.push_back(static_cast<uint8_t>(input.byte()));
    }
  }
  jpeg.shrink_to_fit();  // so that a sanitizer sees a read beyond it
  jpeg::find_damage(jpeg.data(), jpeg.size());
}

// A valid file edge.weights of up to one block, with values of all sizes; of version 2, it gives
// the latent.
std::vector<uint8_t> valid_weights(Input& input, uint32_t blocks, uint32_t version) {
  std::vector<uint8_t> file(encoder::detail::kMagic, std::end(encoder::detail::kMagic));
  const auto put = [&](uint32_t value, int bytes) {
    for (int shift = 0; shift < 8 * bytes; shift += 8)
      file.push_back(static_cast<uint8_t>(value >> shift));
  };
  uint32_t state = 1 + input.below(1 << 23);
  const auto random = [&] { return (state = state * 1664525 + 1013904223) >> 8; };
  for (const uint32_t value : {version, 8u, 128u, 64u, 64u, blocks, 6 + random() % 9})
    put(value, 4);
  for (size_t i = 0; i < encoder::kFingerprintBytes; ++i) put(random(), 1);
  if (version == 2) put(random() % 15, 4);
  for (size_t i = 0; i < encoder::kGeluEntries; ++i) put(random() % 32768, 2);
  const auto put_layer = [&](uint32_t outputs, uint32_t inputs, int bytes, uint32_t limit) {
    put(33 + random() % 29, 4);
    put(bytes == 1 ? 1 + random() % 32767 : 0, 4);
    put(bytes == 1 ? random() % 256 : 0, 4);
    for (uint32_t i = 0; i < outputs * inputs; ++i) put(random() % (2 * limit + 1) - limit, bytes);
    for (uint32_t i = 0; i < outputs; ++i) put(random() % (1 << 20) - (1 << 19), 4);
    for (uint32_t i = 0; i < outputs; ++i) put((random() << (random() % 8)) | 1, 4);
  };
  put_layer(128, 192, 2, 32767);
  for (uint32_t block = 0; block < blocks; ++block)
    put_layer(64, 1152, 1, 127), put_layer(128, 576, 1, 127);
  put_layer(64, 128, 2, 500);
  return file;
}

void any_weights(Input& input) {
  const uint32_t kind = input.byte();
  std::vector<uint8_t> file;
  if ((kind & 7) == 7) {
    file.assign(input.rest(), input.rest() + input.left());
  } else {
    file = valid_weights(input, kind >> 3 & 1, 1 + (kind >> 6 & 1));
    for (uint32_t edits = kind & 7; edits > 0; --edits) {
      const size_t at = input.byte() & 1 ? input.below(600) : input.below(1 << 24) % file.size();
      file[at] ^= static_cast<uint8_t>(input.byte());
    }
    if (kind & 16) file.resize(input.below(1 << 24) % (file.size() + 1));
  }
  file.shrink_to_fit();  // so that a sanitizer sees a read beyond it
  const size_t rows = 1 + input.below(2), columns = 1 + input.below(3);
  std::vector<uint8_t> pixels(encoder::kPatchValues * rows * columns);
  for (uint8_t& value : pixels) value = static_cast<uint8_t>(kind & 32 ? 255 : input.byte());
  std::vector<int16_t> first, symbols(encoder::kLatent * rows * columns);
  encoder::Workspace workspace;
  for (const encoder::Kernel& kernel : encoder::kKernels) {
    encoder::Encoder loaded;
    if (!kernel.is_available() ||
        loaded.load(file.data(), file.size(), kernel) != encoder::Status::ok)
      continue;
    require(loaded.encode(pixels.data(), rows, columns, symbols.data(), workspace) ==
                encoder::Status::ok,
            "an image is refused");
    require(first.empty() || first == symbols, "two kernels give different symbols");
    first = symbols;
  }
}

const Target kTargets[] = {any_tables, any_payload, round_trip, any_jpeg, any_weights};

}  // namespace

#include "run.ipp"
