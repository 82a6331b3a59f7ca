// Fuzz targets of the C library (fuzz.cpp has the others, and says how they are run):
//
//   any_edge_tables    files edge.tables of any bytes, and valid ones; under these, feature files
//   any_feature_file   feature files of any bytes, with a checksum that fits
//   any_image          images of any size, which are resized and cropped
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "../images/resize.hpp"
#include "../include/edgecloud.h"
#include "../library/checksums.hpp"
#include "../library/edge_tables.hpp"
#include "../library/feature_file.hpp"
#include "input.hpp"

namespace {

using Bytes = std::vector<uint8_t>;

void put(Bytes& bytes, uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<uint8_t>(value >> shift));
}

// A CDF of so many values.
void put_cdf(Bytes& bytes, uint32_t count, Input& input) {
  put(bytes, 0);
  for (uint32_t k = 1; k + 1 < count; ++k) put(bytes, k * (65536 / count) + input.below(60));
  put(bytes, 65536);
}

// The tables of a file, in the form that the fingerprint covers; mostly valid.
Bytes made_tables(Input& input, uint32_t channels) {
  Bytes tables;
  std::vector<uint32_t> counts;
  for (uint32_t channel = 0; channel < channels; ++channel) {
    counts.push_back(3 + input.below(20));
    put(tables, input.below(5) - 2);
    put(tables, counts.back() + (input.byte() == 255));
    put_cdf(tables, counts.back(), input);
  }
  for (uint32_t channel = input.below(channels + 1); channel < channels; ++channel) {
    put(tables, channel + (input.byte() == 255));
    for (uint32_t threshold = 0; threshold < 4; ++threshold) put(tables, threshold - 1);
    for (size_t context = 0; context < rans::kContexts; ++context)
      put_cdf(tables, counts[channel], input);
  }
  return tables;
}

// What the file of a variable-rate bundle has in the place of the tables, mostly valid; `digest`
// receives that of its tables and rates.
Bytes made_levels(Input& input, uint32_t channels, edgecloud::Digest& digest) {
  Bytes levels, rates;
  put(levels, input.below(242));
  std::vector<uint32_t> gains;
  for (uint32_t step = 0; step < 241; ++step)  // 0.25 and more, in half an octave a level
    gains.insert(gains.end(), channels, 0x3e800000 + (step << 18) + input.byte());
  for (int both = 0; both < 2; ++both)
    for (uint32_t at = 0; at < gains.size(); ++at)
      if (at / channels % 16 == 0) put(rates, gains[at]);
  const uint32_t turn = input.below(channels);
  for (uint32_t channel = 0; channel < channels; ++channel)
    put(rates, (channel + turn) % channels + (input.byte() == 255));
  levels.insert(levels.end(), rates.begin(), rates.end());
  for (const uint32_t gain : gains) put(levels, gain);
  edgecloud::Sha256 whole;
  for (int level = 0; level < 16; ++level) {
    const Bytes tables = made_tables(input, channels);
    const edgecloud::Digest own = edgecloud::Sha256().add(tables.data(), tables.size()).digest();
    whole.add(own.data(), own.size());
    put(levels, static_cast<uint32_t>(tables.size()));
    levels.insert(levels.end(), tables.begin(), tables.end());
  }
  digest = whole.add(rates.data(), rates.size()).digest();
  return levels;
}

// A file with the right fingerprint and checksum, unless some bytes are changed.
Bytes made_file(Input& input) {
  const uint32_t channels = 1 + input.below(4), version = 1 + input.below(2);
  edgecloud::Digest digest;
  const Bytes tables =
      version == 2 ? made_levels(input, channels, digest) : made_tables(input, channels);
  if (version == 1) digest = edgecloud::Sha256().add(tables.data(), tables.size()).digest();
  edgecloud::Rule rule{};
  rule.channels = channels, rule.stride = 1u << input.below(4), rule.shrink = input.below(3);
  Bytes file(edgecloud::detail::kTablesMagic, std::end(edgecloud::detail::kTablesMagic));
  for (const uint32_t value : {version, channels, rule.stride, rule.shrink, 1 + input.below(20000),
                               64 + input.below(200), 8 * (1 + input.below(8)), input.below(3)})
    put(file, value);
  const edgecloud::Digest print = edgecloud::detail::fingerprint_of(rule, version, digest);
  for (const edgecloud::Digest& digest : {rule.bottleneck, print, rule.weights})
    file.insert(file.end(), digest.begin(), digest.end());
  file.insert(file.end(), tables.begin(), tables.end());
  for (uint32_t edits = input.byte() % 4; edits > 0 && edits < 3; --edits)
    file[input.below(1 << 20) % file.size()] ^= static_cast<uint8_t>(input.byte());
  put(file, edgecloud::crc32(file.data(), file.size()));
  return file;
}

// A feature file of a bundle around any payload.
Bytes feature_file(Input& input, const edgecloud_bundle_info& info, bool varies) {
  const size_t height = 8 * (1 + input.below(20)), width = 8 * (1 + input.below(20));
  const int kept = input.byte() & 1 ? static_cast<int>(input.below(5)) : -1;
  const int step = kept < 0 ? static_cast<int>(input.below(241)) : 0;
  Bytes bytes(edgecloud::kMaxHeader, 0);
  const bool small = input.byte() & 1;
  bytes.insert(bytes.end(), input.rest(), input.rest() + input.left());
  const size_t size = bytes.size() - edgecloud::kMaxHeader;
  bytes.resize(bytes.size() + edgecloud::kCrcBytes);
  uint8_t* payload = bytes.data() + edgecloud::kMaxHeader;
  const uint8_t* begin =
      varies ? edgecloud::wrap_variable(payload, size, info.fingerprint, small, step, kept, height,
                                        width)
             : edgecloud::wrap(payload, size, info.fingerprint, small, height, width);
  return {begin, begin + (bytes.data() + bytes.size() - begin)};
}

void any_edge_tables(Input& input) {
  Bytes file;
  if (input.byte() % 8 == 7)
    file.assign(input.rest(), input.rest() + input.left());
  else
    file = made_file(input);
  file.shrink_to_fit();  // so that a sanitizer sees a read beyond it
  edgecloud_bundle* bundle = nullptr;
  edgecloud_error error;
  if (edgecloud_bundle_from_memory(file.data(), file.size(), nullptr, 0, &bundle, &error) !=
      EDGECLOUD_OK) {
    require(bundle == nullptr && std::strlen(error.text) > 0, "a refusal without a text");
    return;
  }
  edgecloud_bundle_info info;
  edgecloud_bundle_describe(bundle, &info);
  const Bytes data = feature_file(input, info, edgecloud_bundle_has_rates(bundle));
  std::vector<int16_t> symbols(20000);
  uint32_t rows = 0, columns = 0;
  const edgecloud_status status = edgecloud_decode(bundle, data.data(), data.size(), symbols.data(),
                                                   symbols.size(), &rows, &columns, &error);
  require(status == EDGECLOUD_OK || status == EDGECLOUD_BAD_FEATURE_FILE ||
              status == EDGECLOUD_SMALL_BUFFER,
          "decoding gives a status that it cannot give");
  edgecloud_bundle_close(bundle);
}

void any_feature_file(Input& input) {
  Bytes file(input.rest(), input.rest() + input.left());
  put(file, edgecloud::crc32(file.data(), file.size()));
  file.shrink_to_fit();
  edgecloud_file_info info;
  if (edgecloud_file_parse(file.data(), file.size(), &info, nullptr) != EDGECLOUD_OK) return;
  require(info.payload_bytes < file.size() && (info.version == 1 || info.version == 2) &&
              info.height % 8 == 0 && info.width % 8 == 0,
          "a file is taken apart wrongly");
}

void any_image(Input& input) {
  const auto side = [&] { return 1 + (input.byte() % 4 ? input.below(80) : input.below(3000)); };
  const size_t height = side(), width = side(), gap = input.below(5);
  const size_t crop = 8 * (1 + input.below(8)), resize = crop + input.below(40);
  if (height * width > 300000) return;
  const size_t row = 3 * width + gap;
  Bytes pixels(row * (height - 1) + 3 * width, static_cast<uint8_t>(input.byte()));
  pixels.shrink_to_fit();
  Bytes out(3 * crop * crop);
  images::prepare({pixels.data(), height, width, row}, resize, crop, out.data());
  if (gap == 0)
    require(std::all_of(out.begin(), out.end(), [&](uint8_t level) { return level == pixels[0]; }),
            "an even image is not even after it was resized");
}

const Target kTargets[] = {any_edge_tables, any_feature_file, any_image};

}  // namespace

#include "run.ipp"
