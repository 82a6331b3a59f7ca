// The C functions of ../include/edgecloud.h: they check what they are given, and turn exceptions
// into a status and a text.
//
// Always holds: no exception leaves a function. A bundle does not change after it was made, so that
// its encoders may share it.
#define EDGECLOUD_BUILD
#include "../include/edgecloud.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "image_encoder.hpp"

namespace edgecloud {
namespace {

constexpr size_t kMaxWeightsBytes = size_t{64} << 20;
constexpr int kMaxThreads = 256;
constexpr size_t kMaxImageSide = size_t{1} << 24;
constexpr uint64_t kMaxImagePixels = uint64_t{1} << 30;

[[noreturn]] void refuse(edgecloud_status status, const std::string& text) {
  throw Refused(status, text);
}

edgecloud_status tell(edgecloud_error* error, edgecloud_status status, const char* text) {
  if (error) std::snprintf(error->text, sizeof error->text, "%s", text);
  return status;
}

// Runs `work`; turns what it throws into a status and a text.
template <class Work>
edgecloud_status guarded(edgecloud_error* error, const Work& work) noexcept {
  try {
    work();
    return EDGECLOUD_OK;
  } catch (const Refused& refused) {
    return tell(error, refused.status, refused.text.c_str());
  } catch (const std::bad_alloc&) {
    return tell(error, EDGECLOUD_NO_MEMORY, "there is not enough memory");
  } catch (const std::exception& other) {
    return tell(error, EDGECLOUD_BAD_ARGUMENT, other.what());
  }
}

void require(bool holds, const char* text) {
  if (!holds) refuse(EDGECLOUD_BAD_ARGUMENT, text);
}

// The bytes of a file of the bundle. Throws Refused.
std::vector<uint8_t> read(const std::string& name, size_t limit) {
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  const std::unique_ptr<std::FILE, Close> file(std::fopen(name.c_str(), "rb"));
  if (!file)
    refuse(EDGECLOUD_BAD_FILE,
           "the bundle lacks " + name + ": copy it there or export the bundle again");
  std::vector<uint8_t> bytes;
  for (size_t got = 1; got > 0;) {
    const size_t size = bytes.size();
    bytes.resize(size + (size_t{1} << 18));
    got = std::fread(bytes.data() + size, 1, bytes.size() - size, file.get());
    bytes.resize(size + got);
    if (bytes.size() > limit)
      refuse(EDGECLOUD_BAD_BUNDLE, name + " has more bytes than the limit of " +
                                       std::to_string(limit) + ": export the bundle again");
  }
  if (std::ferror(file.get())) refuse(EDGECLOUD_BAD_FILE, "cannot read " + name);
  return bytes;
}

Shared make(const std::vector<uint8_t>& tables, std::vector<uint8_t> weights) {
  Contents contents{read_edge_tables(tables.data(), tables.size()), std::move(weights)};
  if (!contents.weights.empty()) {
    const auto damaged = [](const std::string& why) {
      refuse(EDGECLOUD_BAD_BUNDLE,
             "edge.weights " + why + ": copy it again or export the bundle again");
    };
    const Rule& rule = contents.tables.rule;
    encoder::Weights read;
    const encoder::Status status =
        encoder::read_weights(contents.weights.data(), contents.weights.size(), read);
    if (status != encoder::Status::ok) damaged(encoder::reason(status));
    if (std::memcmp(read.fingerprint, rule.fingerprint.data(), rule.fingerprint.size()) != 0)
      damaged("is of another bundle than edge.tables");
    if (Sha256().add(contents.weights.data(), contents.weights.size()).digest() != rule.weights)
      damaged("is not the file that was exported");
    if (rule.channels != encoder::kLatent || rule.stride != encoder::kPatch || rule.shrink != 0)
      damaged("does not fit the shape rule of edge.tables");
    if ((read.latent_fraction >= 0) != contents.tables.varies())
      damaged("is of a bundle with another kind of rate than edge.tables");
  }
  return std::make_shared<const Contents>(std::move(contents));
}

// The view of a caller's pixels. Throws Refused.
images::View view(const uint8_t* pixels, size_t height, size_t width, size_t row_bytes) {
  require(pixels != nullptr, "pixels is NULL");
  require(row_bytes == 0 || row_bytes >= 3 * width, "row_bytes is less than 3 * width");
  return {pixels, height, width, row_bytes ? row_bytes : 3 * width};
}

// Decodes the payload of a file that fits the bundle, to symbols [channels][rows][columns].
rans::Status decode(const EdgeTables& tables, const ParsedFile& file, size_t rows, size_t columns,
                    int16_t* symbols) {
  const size_t count = rows * columns;
  const auto payload = [&](const rans::Tables& own, int16_t* out) {
    return file.info.small
               ? own.decode_small(file.payload, file.info.payload_bytes, rows, columns, out)
               : own.decode(file.payload, file.info.payload_bytes, count, out);
  };
  if (file.info.kept < 0) return payload(tables.at(std::max(file.info.step, 0)), symbols);
  std::fill_n(symbols, tables.rule.channels * count, int16_t{0});
  if (file.info.kept == 0) return rans::Status::ok;
  const auto kept = static_cast<size_t>(file.info.kept);
  const uint32_t* order = tables.rates.order.data();
  std::vector<int16_t> some(kept * count);
  const rans::Status status = payload(tables.lowest.of(order, kept).tables, some.data());
  for (size_t place = 0; place < kept; ++place)
    std::copy_n(some.data() + place * count, count, symbols + order[place] * count);
  return status;
}

const encoder::Kernel& find_kernel(const char* name) {
  const encoder::Kernel* kernel = encoder::find_kernel(name ? name : "");
  if (!kernel)
    refuse(EDGECLOUD_BAD_ARGUMENT,
           std::string("this machine has no kernel ") + std::string(name).substr(0, 64));
  return *kernel;
}

}  // namespace
}  // namespace edgecloud

using namespace edgecloud;

struct edgecloud_bundle {
  Shared contents;
};
struct edgecloud_encoder {
  Encoder encoder;
};

const char* edgecloud_version(void) { return EDGECLOUD_VERSION; }

edgecloud_status edgecloud_bundle_open(const char* folder, edgecloud_bundle** bundle,
                                       edgecloud_error* error) {
  return guarded(error, [&] {
    require(folder && bundle, "folder or bundle is NULL");
    const std::string place(folder);
    const std::vector<uint8_t> tables = read(place + "/edge.tables", kMaxTablesBytes);
    *bundle = new edgecloud_bundle{make(tables, read(place + "/edge.weights", kMaxWeightsBytes))};
  });
}

edgecloud_status edgecloud_bundle_from_memory(const void* tables, size_t tables_size,
                                              const void* weights, size_t weights_size,
                                              edgecloud_bundle** bundle, edgecloud_error* error) {
  return guarded(error, [&] {
    require(tables && bundle, "tables or bundle is NULL");
    require(weights || weights_size == 0, "weights is NULL and has bytes");
    if (tables_size > kMaxTablesBytes || weights_size > kMaxWeightsBytes)
      refuse(EDGECLOUD_BAD_BUNDLE, "edge.tables or edge.weights is larger than the limit");
    const uint8_t *first = static_cast<const uint8_t*>(tables),
                  *second = static_cast<const uint8_t*>(weights);
    std::vector<uint8_t> copy;
    if (weights_size) copy.assign(second, second + weights_size);
    *bundle = new edgecloud_bundle{
        make(std::vector<uint8_t>(first, first + tables_size), std::move(copy))};
  });
}

void edgecloud_bundle_close(edgecloud_bundle* bundle) { delete bundle; }

void edgecloud_bundle_describe(const edgecloud_bundle* bundle, edgecloud_bundle_info* info) {
  if (!bundle || !info) return;
  const Rule& rule = bundle->contents->tables.rule;
  *info = {};
  std::memcpy(info->fingerprint, rule.fingerprint.data(), rule.fingerprint.size());
  info->channels = rule.channels, info->stride = rule.stride, info->shrink = rule.shrink;
  info->max_symbols = rule.max_symbols, info->resize = rule.resize, info->crop = rule.crop;
  info->small = rule.small, info->has_encoder = !bundle->contents->weights.empty();
}

int edgecloud_bundle_has_rates(const edgecloud_bundle* bundle) {
  return bundle && bundle->contents->tables.varies();
}

edgecloud_status edgecloud_encoder_new(const edgecloud_bundle* bundle,
                                       const edgecloud_options* options,
                                       edgecloud_encoder** encoder, edgecloud_error* error) {
  return guarded(error, [&] {
    require(bundle && encoder, "bundle or encoder is NULL");
    const edgecloud_options chosen = options ? *options : edgecloud_options{};
    const Contents& contents = *bundle->contents;
    require(!contents.weights.empty(), "the bundle has no edge.weights, which encoders need");
    require(chosen.threads >= 0 && chosen.threads <= kMaxThreads, "threads are 1 to 256");
    require(chosen.profile >= 0 && chosen.profile <= 2, "profile is 0, 1 or 2");
    const bool small = chosen.profile ? chosen.profile == 2 : contents.tables.rule.small;
    require(!small || contents.tables.has_contexts(),
            "the bundle has no context tables, which small files need: export it with --refit DIR");
    *encoder = new edgecloud_encoder{Encoder(bundle->contents, small,
                                             static_cast<size_t>(std::max(1, chosen.threads)),
                                             find_kernel(chosen.kernel))};
  });
}

void edgecloud_encoder_free(edgecloud_encoder* encoder) { delete encoder; }

const char* edgecloud_encoder_kernel(const edgecloud_encoder* encoder) {
  return encoder ? encoder->encoder.kernel() : "";
}

edgecloud_status edgecloud_encoder_ask(edgecloud_encoder* encoder, const edgecloud_budget* budget,
                                       edgecloud_error* error) {
  return guarded(error, [&] {
    require(encoder != nullptr, "encoder is NULL");
    const edgecloud_budget asked = budget ? *budget : edgecloud_budget{};
    const bool is_set = asked.has_rate || asked.max_bytes > 0 || asked.target_bytes != 0;
    require(!is_set || encoder->encoder.varies(),
            "the bundle has one rate: leave out rate, max_bytes and target_bytes, or take a "
            "variable-rate bundle, whose model's name ends in _vr");
    require(!asked.has_rate || (asked.rate >= 0 && asked.rate <= kLevels - 1),
            "a rate level is from 0 to 15");
    require(
        asked.target_bytes == 0 || (asked.target_bytes >= 1 && std::isfinite(asked.target_bytes)),
        "target_bytes is less than 1, or not finite: ask for 1 byte or more");
    require(!asked.has_rate || asked.target_bytes == 0,
            "rate and target_bytes each choose the level: ask for one of both, with max_bytes or "
            "without");
    encoder->encoder.ask(
        {asked.has_rate ? step_of(asked.rate) : -1, asked.max_bytes, asked.target_bytes});
  });
}

edgecloud_status edgecloud_encode(edgecloud_encoder* encoder, const uint8_t* pixels, size_t height,
                                  size_t width, size_t row_bytes, const uint8_t** file,
                                  size_t* size, edgecloud_error* error) {
  return guarded(error, [&] {
    require(encoder && file && size, "encoder, file or size is NULL");
    *file = encoder->encoder.encode(view(pixels, height, width, row_bytes), size);
  });
}

edgecloud_status edgecloud_encode_into(edgecloud_encoder* encoder, const uint8_t* pixels,
                                       size_t height, size_t width, size_t row_bytes, uint8_t* file,
                                       size_t capacity, size_t* size, edgecloud_error* error) {
  return guarded(error, [&] {
    require(encoder && size && (file || capacity == 0), "encoder, file or size is NULL");
    const uint8_t* made = encoder->encoder.encode(view(pixels, height, width, row_bytes), size);
    if (*size > capacity)
      refuse(EDGECLOUD_SMALL_BUFFER, "the feature file has " + std::to_string(*size) +
                                         " bytes, there is room for " + std::to_string(capacity));
    std::memcpy(file, made, *size);
  });
}

size_t edgecloud_max_file_bytes(const edgecloud_bundle* bundle, size_t height, size_t width) {
  if (!bundle) return 0;
  const EdgeTables& tables = bundle->contents->tables;
  if (!is_encodable(tables.rule, height, width)) return 0;
  const size_t symbols = tables.rule.rows(height) * tables.rule.rows(width);
  return kMaxHeader + kCrcBytes + tables.levels[0].tables.max_payload(symbols);
}

edgecloud_status edgecloud_prepare(const edgecloud_bundle* bundle, const uint8_t* pixels,
                                   size_t height, size_t width, size_t row_bytes, uint8_t* out,
                                   edgecloud_error* error) {
  return guarded(error, [&] {
    require(bundle && out, "bundle or out is NULL");
    if (height < 1 || width < 1 || height > kMaxImageSide || width > kMaxImageSide ||
        uint64_t{height} * width > kMaxImagePixels)
      refuse(EDGECLOUD_BAD_IMAGE, "an image of " + std::to_string(width) + "x" +
                                      std::to_string(height) +
                                      " pixels is empty or too large: sides are 1 to 2^24, and "
                                      "there are 2^30 pixels at most");
    const Rule& rule = bundle->contents->tables.rule;
    images::prepare(view(pixels, height, width, row_bytes), rule.resize, rule.crop, out);
  });
}

edgecloud_status edgecloud_file_parse(const void* file, size_t size, edgecloud_file_info* info,
                                      edgecloud_error* error) {
  return guarded(error, [&] {
    require((file || size == 0) && info, "file or info is NULL");
    *info = parse(static_cast<const uint8_t*>(file), size).info;
  });
}

edgecloud_status edgecloud_decode(const edgecloud_bundle* bundle, const void* file, size_t size,
                                  int16_t* symbols, size_t capacity, uint32_t* rows,
                                  uint32_t* columns, edgecloud_error* error) {
  return guarded(error, [&] {
    require(bundle && (file || size == 0) && rows && columns && (symbols || capacity == 0),
            "bundle, file, symbols, rows or columns is NULL");
    const ParsedFile parsed = parse(static_cast<const uint8_t*>(file), size);
    const edgecloud_file_info& info = parsed.info;
    const EdgeTables& tables = bundle->contents->tables;
    const Rule& rule = tables.rule;
    if (std::memcmp(info.fingerprint, rule.fingerprint.data(), sizeof info.fingerprint) != 0)
      refuse(EDGECLOUD_OTHER_BUNDLE,
             "the feature file is of another bundle: decode it with the bundle that encoded it");
    if (const unsigned own = tables.varies() ? 2 : 1; info.version != own)
      refuse(EDGECLOUD_OTHER_BUNDLE,
             "the feature file is of version " + std::to_string(info.version) +
                 ", and files of this bundle are of version " + std::to_string(own) +
                 ": decode it with the bundle that encoded it");
    const uint64_t count = rule.symbols(info.height, info.width);
    const std::string size_text =
        std::to_string(info.width) + "x" + std::to_string(info.height) + " pixels";
    if (count == 0)
      refuse(EDGECLOUD_BAD_FEATURE_FILE,
             "a feature file of " + size_text + " is impossible: send it again");
    if (count == UINT64_MAX)
      refuse(EDGECLOUD_BAD_FEATURE_FILE,
             "the feature file is of " + size_text + ", more than the " +
                 std::to_string(rule.max_symbols) +
                 " symbols that the bundle allows: export with a larger --max-pixels");
    if (info.small && !tables.has_contexts())
      refuse(EDGECLOUD_BAD_FEATURE_FILE,
             "the feature file is marked as a small one, and its bundle has no context tables: "
             "send it again");
    if (info.kept > tables.most_kept())
      refuse(EDGECLOUD_BAD_FEATURE_FILE, "the feature file is cut to " + std::to_string(info.kept) +
                                             " channels, and its bundle has " +
                                             std::to_string(rule.channels) + ": send it again");
    if (info.kept == 0 && info.payload_bytes > 0)
      refuse(EDGECLOUD_BAD_FEATURE_FILE, "the feature file has no channels, and " +
                                             std::to_string(info.payload_bytes) +
                                             " bytes of them: send it again");
    const size_t height = rule.rows(info.height), width = rule.rows(info.width);
    *rows = static_cast<uint32_t>(height), *columns = static_cast<uint32_t>(width);
    if (count > capacity)
      refuse(EDGECLOUD_SMALL_BUFFER, "the feature file has " + std::to_string(count) +
                                         " symbols, there is room for " + std::to_string(capacity));
    const rans::Status status = decode(tables, parsed, height, width, symbols);
    if (status != rans::Status::ok)
      refuse(EDGECLOUD_BAD_FEATURE_FILE,
             std::string("the payload is damaged, ") + rans::reason(status) + ": send it again");
  });
}
