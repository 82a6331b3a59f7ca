// Tests of the C functions without Python:
//
//   library_test [BUNDLE]
//
// prints what is wrong and exits with 1, or exits with 0. With a bundle (a folder with edge.tables
// and edge.weights) it also encodes made-up pixels with each kernel of this machine, in each
// profile, and decodes what it encoded. tests/csrc compares the bytes with those of Python.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "../encoder/kernels.hpp"
#include "../include/edgecloud.h"
#include "checksums.hpp"

namespace {

using Bytes = std::vector<uint8_t>;

int failures = 0;

#define EXPECT(holds)                                                          \
  do {                                                                         \
    if (!(holds)) {                                                            \
      ++failures;                                                              \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #holds); \
    }                                                                          \
  } while (0)

Bytes read(const std::string& name) {
  std::ifstream file(name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// A made-up image: smooth, with some noise.
Bytes made_pixels(size_t height, size_t width) {
  Bytes pixels;
  uint32_t noise = 1;
  for (size_t y = 0; y < height; ++y)
    for (size_t x = 0; x < width; ++x)
      for (size_t channel = 0; channel < 3; ++channel) {
        noise = noise * 1664525u + 1013904223u;
        pixels.push_back(static_cast<uint8_t>((x + y * (channel + 1)) / 2 + (noise >> 28)));
      }
  return pixels;
}

void test_checksums() {
  const uint8_t text[] = {'a', 'b', 'c'};
  EXPECT(edgecloud::crc32(text, 3) == 0x352441c2u);
  const edgecloud::Digest digest = edgecloud::Sha256().add(text, 3).digest();
  const uint8_t expected[] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea};
  EXPECT(std::memcmp(digest.data(), expected, sizeof expected) == 0);
}

void test_refusals() {
  edgecloud_error error;
  edgecloud_bundle* bundle = nullptr;
  EXPECT(edgecloud_bundle_open(nullptr, &bundle, &error) == EDGECLOUD_BAD_ARGUMENT);
  EXPECT(edgecloud_bundle_open("no/such/folder", &bundle, &error) == EDGECLOUD_BAD_FILE);
  EXPECT(std::strstr(error.text, "no/such/folder/edge.tables") != nullptr);
  EXPECT(edgecloud_bundle_open("no/such/folder", &bundle, nullptr) == EDGECLOUD_BAD_FILE);
  EXPECT(edgecloud_bundle_from_memory("EDGETABL", 8, nullptr, 0, &bundle, &error) ==
         EDGECLOUD_BAD_BUNDLE);
  EXPECT(bundle == nullptr);
  edgecloud_bundle_close(nullptr);
  edgecloud_encoder_free(nullptr);
  edgecloud_file_info info;
  EXPECT(edgecloud_file_parse("", 0, &info, &error) == EDGECLOUD_BAD_FEATURE_FILE);
  EXPECT(edgecloud_file_parse("JPEG", 4, &info, &error) == EDGECLOUD_BAD_FEATURE_FILE);
  EXPECT(std::strstr(error.text, "byte 0x4a") != nullptr);
}

void test_every_damage_of_the_files_is_refused(const Bytes& tables, const Bytes& weights) {
  edgecloud_bundle* bundle = nullptr;
  for (size_t at = 0; at < tables.size(); at += at < 200 ? 1 : 97) {
    Bytes changed = tables;
    changed[at] ^= 1;
    EXPECT(edgecloud_bundle_from_memory(changed.data(), changed.size(), nullptr, 0, &bundle,
                                        nullptr) == EDGECLOUD_BAD_BUNDLE);
    EXPECT(edgecloud_bundle_from_memory(tables.data(), at, nullptr, 0, &bundle, nullptr) ==
           EDGECLOUD_BAD_BUNDLE);
  }
  for (const size_t at : {size_t{0}, size_t{40}, size_t{600}, weights.size() - 1}) {
    Bytes changed = weights;
    changed[at] ^= 1;
    EXPECT(edgecloud_bundle_from_memory(tables.data(), tables.size(), changed.data(),
                                        changed.size(), &bundle, nullptr) == EDGECLOUD_BAD_BUNDLE);
  }
}

// Encodes with each kernel and profile, and decodes; the symbols and the bytes are the same for all
// kernels.
void test_round_trips(edgecloud_bundle* bundle) {
  edgecloud_error error;
  edgecloud_bundle_info about;
  edgecloud_bundle_describe(bundle, &about);
  const size_t height = 64, width = 96;
  const Bytes pixels = made_pixels(height, width);
  for (int profile = 1; profile <= 2; ++profile) {
    Bytes first;
    for (const encoder::Kernel& kernel : encoder::kKernels) {
      if (!kernel.is_available()) continue;
      edgecloud_options options = {2, profile, kernel.name};
      edgecloud_encoder* encoder = nullptr;
      const edgecloud_status made = edgecloud_encoder_new(bundle, &options, &encoder, &error);
      if (made != EDGECLOUD_OK) {  // a bundle without context tables
        EXPECT(profile == 2 && std::strstr(error.text, "no context tables"));
        continue;
      }
      EXPECT(std::strcmp(edgecloud_encoder_kernel(encoder), kernel.name) == 0);
      const uint8_t* file = nullptr;
      size_t size = 0;
      EXPECT(edgecloud_encode(encoder, pixels.data(), height, width, 0, &file, &size, &error) ==
             EDGECLOUD_OK);
      const Bytes bytes(file, file + size);
      if (first.empty()) first = bytes;
      EXPECT(bytes == first);
      EXPECT(size <= edgecloud_max_file_bytes(bundle, height, width));

      uint8_t small_buffer[4];
      size_t needed = 0;
      EXPECT(edgecloud_encode_into(encoder, pixels.data(), height, width, 3 * width, small_buffer,
                                   sizeof small_buffer, &needed, &error) == EDGECLOUD_SMALL_BUFFER);
      EXPECT(needed == size);
      EXPECT(edgecloud_encode(encoder, pixels.data(), height, width - 1, 0, &file, &size, &error) ==
             EDGECLOUD_BAD_IMAGE);
      EXPECT(edgecloud_encode(encoder, pixels.data(), size_t{1} << 40, size_t{1} << 40, 0, &file,
                              &size, &error) == EDGECLOUD_BAD_IMAGE);
      edgecloud_encoder_free(encoder);
    }
    if (first.empty()) continue;
    uint32_t rows = 0, columns = 0;
    EXPECT(edgecloud_decode(bundle, first.data(), first.size(), nullptr, 0, &rows, &columns,
                            &error) == EDGECLOUD_SMALL_BUFFER);
    EXPECT(rows == height / about.stride && columns == width / about.stride);
    std::vector<int16_t> symbols(size_t{about.channels} * rows * columns);
    EXPECT(edgecloud_decode(bundle, first.data(), first.size(), symbols.data(), symbols.size(),
                            &rows, &columns, &error) == EDGECLOUD_OK);
    edgecloud_file_info info;
    EXPECT(edgecloud_file_parse(first.data(), first.size(), &info, &error) == EDGECLOUD_OK);
    EXPECT(info.version == 1 && info.height == height && info.width == width);
    EXPECT(info.small == (profile == 2) && info.step == -1 && info.kept == -1);
    for (size_t at = 0; at < first.size(); ++at) {
      Bytes changed = first;
      changed[at] ^= 0x10;
      EXPECT(edgecloud_decode(bundle, changed.data(), changed.size(), symbols.data(),
                              symbols.size(), &rows, &columns, nullptr) != EDGECLOUD_OK);
      EXPECT(edgecloud_decode(bundle, first.data(), at, symbols.data(), symbols.size(), &rows,
                              &columns, nullptr) == EDGECLOUD_BAD_FEATURE_FILE);
    }
  }
}

// Encoders of one bundle work side by side, and after the bundle was closed.
void test_threads(edgecloud_bundle* bundle) {
  const Bytes pixels = made_pixels(64, 64);
  constexpr size_t kThreads = 4;
  edgecloud_encoder* encoders[kThreads];
  for (edgecloud_encoder*& encoder : encoders)
    EXPECT(edgecloud_encoder_new(bundle, nullptr, &encoder, nullptr) == EDGECLOUD_OK);
  edgecloud_bundle_close(bundle);
  Bytes files[kThreads];
  std::vector<std::thread> threads;
  for (size_t thread = 0; thread < kThreads; ++thread)
    threads.emplace_back([&, thread] {
      for (int turn = 0; turn < 4; ++turn) {
        const uint8_t* file = nullptr;
        size_t size = 0;
        if (edgecloud_encode(encoders[thread], pixels.data(), 64, 64, 0, &file, &size, nullptr) ==
            EDGECLOUD_OK)
          files[thread].assign(file, file + size);
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (size_t thread = 0; thread < kThreads; ++thread) {
    EXPECT(!files[thread].empty() && files[thread] == files[0]);
    edgecloud_encoder_free(encoders[thread]);
  }
}

}  // namespace

int main(int count, char** arguments) {
  test_checksums();
  test_refusals();
  if (count == 2) {
    const std::string folder = arguments[1];
    const Bytes tables = read(folder + "/edge.tables"), weights = read(folder + "/edge.weights");
    edgecloud_bundle* bundle = nullptr;
    edgecloud_error error = {};
    if (edgecloud_bundle_from_memory(tables.data(), tables.size(), weights.data(), weights.size(),
                                     &bundle, &error) != EDGECLOUD_OK) {
      std::fprintf(stderr, "%s\n", error.text);
      return 1;
    }
    test_every_damage_of_the_files_is_refused(tables, weights);
    test_round_trips(bundle);
    test_threads(bundle);
  }
  return failures ? 1 : 0;
}
