// Tests of the integer encoder without Python:
//
//   encoder_test WEIGHTS PIXELS SYMBOLS ROWS COLUMNS
//
// prints the kernels that this machine has, one a line, and exits with 0 if each of them encodes
// the pixels of ROWS x COLUMNS patches to the symbols. The files hold the bytes of edge.weights and
// of the two arrays.
#include "encoder.hpp"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

namespace {

std::vector<uint8_t> read(const char* name) {
  std::ifstream file(name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Whether a kernel gives these symbols, whose bytes are little-endian.
bool holds(const encoder::Kernel& kernel, const std::vector<uint8_t>& weights,
           const std::vector<uint8_t>& pixels, const std::vector<uint8_t>& expected, size_t rows,
           size_t columns) {
  encoder::Encoder encoder;
  encoder::Workspace workspace;
  encoder::Status status = encoder.load(weights.data(), weights.size(), kernel);
  std::vector<int16_t> symbols(encoder::kLatent * rows * columns);
  if (status == encoder::Status::ok)
    status = encoder.encode(pixels.data(), rows, columns, symbols.data(), workspace);
  if (status != encoder::Status::ok) {
    std::fprintf(stderr, "%s: edge.weights %s\n", kernel.name, encoder::reason(status));
    return false;
  }
  size_t wrong = 0;
  for (size_t i = 0; i < symbols.size(); ++i)
    wrong += symbols[i] != encoder::read_i16(expected.data() + 2 * i);
  if (wrong) std::fprintf(stderr, "%s: %zu symbols are wrong\n", kernel.name, wrong);
  return wrong == 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 6) return std::fprintf(stderr, "give five arguments\n"), 2;
  const std::vector<uint8_t> weights = read(arguments[1]), pixels = read(arguments[2]),
                             symbols = read(arguments[3]);
  const size_t rows = std::strtoul(arguments[4], nullptr, 10),
               columns = std::strtoul(arguments[5], nullptr, 10);
  if (pixels.size() != encoder::kPatchValues * rows * columns ||
      symbols.size() != 2 * encoder::kLatent * rows * columns)
    return std::fprintf(stderr, "the files are not of that size\n"), 2;
  bool good = true;
  for (const encoder::Kernel& kernel : encoder::kKernels) {
    if (!kernel.is_available()) continue;
    std::puts(kernel.name);
    good = holds(kernel, weights, pixels, symbols, rows, columns) && good;
  }
  return good ? 0 : 1;
}
