// Tests of the coder without Python: `coder_test CASE.txt...` prints the kernels that this machine
// has, one a line, and exits with 0; or it also prints what is wrong, and exits with 1.
//
// Every kernel has to encode and decode the golden cases (tests/golden/*.txt; make.py there
// describes them). And all kernels have to write the same bytes, and read them back, for rows and
// tables whose sizes are no multiples of a vector's.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "rans.hpp"

namespace {

using Bytes = std::vector<uint8_t>;

// A golden case: tables, symbols and their payload.
struct Case {
  rans::Tables tables;
  bool small;
  size_t channels, rows, columns;  // a plain case has one column
  std::vector<int16_t> symbols;
  Bytes payload;

  size_t row() const { return rows * columns; }
  Bytes encode() const {
    Bytes buffer(tables.max_payload(row()));
    const size_t size = small ? tables.encode_small(symbols.data(), rows, columns, buffer.data())
                              : tables.encode(symbols.data(), row(), buffer.data());
    return {buffer.end() - static_cast<std::ptrdiff_t>(size), buffer.end()};
  }
  rans::Status decode(const Bytes& bytes, int16_t* values) const {
    return small ? tables.decode_small(bytes.data(), bytes.size(), rows, columns, values)
                 : tables.decode(bytes.data(), bytes.size(), row(), values);
  }
};

std::vector<long> numbers(std::istream& file) {
  std::string line;
  std::getline(file, line);
  std::istringstream words(line);
  return {std::istream_iterator<long>(words), {}};
}

rans::Tables read_tables(std::istream& file, size_t channels, const rans::Kernel& kernel) {
  std::vector<uint32_t> cdf, lengths;
  std::vector<int32_t> offsets;
  for (size_t c = 0; c < channels; ++c) {
    const std::vector<long> table = numbers(file);
    offsets.push_back(static_cast<int32_t>(table.at(0)));
    cdf.insert(cdf.end(), table.begin() + 1, table.end());
    lengths.push_back(static_cast<uint32_t>(table.size() - 1));
  }
  return {cdf.data(), cdf.size(), lengths.data(), offsets.data(), channels, kernel};
}

void read_contexts(std::istream& file, size_t channels, rans::Tables& tables) {
  for (size_t c = 0; c < channels; ++c) {
    const std::vector<long> own = numbers(file);
    if (own.empty()) continue;
    const std::vector<int32_t> thresholds(own.begin(), own.begin() + 4);
    const std::vector<uint32_t> cdf(own.begin() + 4, own.end());
    tables.add_contexts(c, thresholds.data(), cdf.data(), cdf.size());
  }
}

// Throws std::exception if the file is no case.
Case read_case(const char* name, const rans::Kernel& kernel) {
  std::ifstream file(name);
  const std::vector<long> size = numbers(file);  // channels, row; or channels, rows, columns
  if (size.size() != 2 && size.size() != 3) throw std::runtime_error("its first line has no sizes");
  const size_t channels = static_cast<size_t>(size[0]), rows = static_cast<size_t>(size[1]);
  const bool small = size.size() == 3;
  const size_t columns = small ? static_cast<size_t>(size[2]) : 1;
  Case one{read_tables(file, channels, kernel), small, channels, rows, columns, {}, {}};
  if (small) read_contexts(file, channels, one.tables);
  for (size_t c = 0; c < channels; ++c)
    for (const long value : numbers(file)) one.symbols.push_back(static_cast<int16_t>(value));
  std::string hex;
  file >> hex;
  for (size_t i = 0; i < hex.size(); i += 2)
    one.payload.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return one;
}

// What is wrong with a golden case; "" if nothing is.
std::string check(const char* name, const rans::Kernel& kernel) try {
  const Case one = read_case(name, kernel);
  if (one.symbols.size() != one.channels * one.row())
    return "has another number of symbols than it says";
  if (one.encode() != one.payload) return "is encoded to other bytes";
  std::vector<int16_t> decoded(one.symbols.size());
  if (one.decode(one.payload, decoded.data()) != rans::Status::ok) return "is refused";
  if (decoded != one.symbols) return "is decoded to other symbols";
  for (size_t length = 0; length < one.payload.size(); ++length) {
    // A copy of the exact size, so that a sanitizer sees a read beyond it.
    const Bytes cut(one.payload.begin(), one.payload.begin() + static_cast<std::ptrdiff_t>(length));
    if (one.decode(cut, decoded.data()) == rans::Status::ok) return "is accepted when cut short";
  }
  return "";
} catch (const std::exception& error) {
  return std::string("is no case, ") + error.what();
}

// A CDF of `entries` symbols of falling frequency, and an escape.
std::vector<uint32_t> falling(size_t entries) {
  std::vector<uint32_t> cdf{0};
  for (size_t k = 0; k < entries; ++k) {
    // Each entry that is still to come keeps a frequency of 1.
    const uint32_t left = 65536 - cdf.back() - static_cast<uint32_t>(entries - k);
    cdf.push_back(cdf.back() + 1 + left / 3);
  }
  cdf.push_back(65536);
  return cdf;
}

// Pseudo-random symbols that the table (offset -1) makes likely, and some escapes.
std::vector<int16_t> likely_symbols(size_t count, const std::vector<uint32_t>& cdf,
                                    uint32_t escapes_of_1024) {
  std::vector<int16_t> symbols(count);
  uint32_t state = 1;
  for (int16_t& symbol : symbols) {
    state = state * 1664525 + 1013904223;
    const auto above = std::upper_bound(cdf.begin(), cdf.end() - 1, state >> 16);
    const int32_t entry = static_cast<int32_t>(above - cdf.begin()) - 1;
    const bool escape =
        (state & 1023) < escapes_of_1024 || entry == static_cast<int32_t>(cdf.size()) - 2;
    symbol =
        static_cast<int16_t>(escape ? 30000 - static_cast<int32_t>(state >> 16) / 2 : entry - 1);
  }
  return symbols;
}

// What is wrong with the kernels, for so many rows of one table; "" if nothing is.
std::string compare_kernels(size_t channels, size_t row, size_t entries, uint32_t escapes_of_1024) {
  const std::vector<uint32_t> table = falling(entries);
  std::vector<uint32_t> cdf, lengths(channels, static_cast<uint32_t>(table.size()));
  for (size_t c = 0; c < channels; ++c) cdf.insert(cdf.end(), table.begin(), table.end());
  const std::vector<int32_t> offsets(channels, -1);
  const std::vector<int16_t> symbols = likely_symbols(channels * row, table, escapes_of_1024);
  Bytes first;
  for (const rans::Kernel& kernel : rans::kKernels) {
    if (!kernel.is_available()) continue;
    const Case one{{cdf.data(), cdf.size(), lengths.data(), offsets.data(), channels, kernel},
                   false,
                   channels,
                   row,
                   1,
                   symbols,
                   {}};
    const Bytes payload = one.encode();
    if (first.empty()) first = payload;
    if (payload != first)
      return std::string(kernel.name) + " writes other bytes than the kernel before it";
    std::vector<int16_t> decoded(symbols.size());
    if (one.decode(payload, decoded.data()) != rans::Status::ok)
      return std::string(kernel.name) + " refuses what it wrote";
    if (decoded != symbols) return std::string(kernel.name) + " decodes other symbols";
  }
  return "";
}

}  // namespace

int main(int count, char** names) {
  int status = 0;
  // Channels and symbols in a row: enough for a wide part.
  constexpr size_t kShapes[][2] = {{22, 784}, {7, 3025}, {5, 4096}};
  for (const auto& [channels, row] : kShapes)
    for (const size_t entries : {2, 5, 15, 16, 17, 31, 32, 33, 70})
      for (const uint32_t escapes : {0, 3, 400}) {
        const std::string problem = compare_kernels(channels, row, entries, escapes);
        if (problem.empty()) continue;
        std::printf("%zu rows of %zu, %zu entries, %u escapes of 1024: %s\n", channels, row,
                    entries, escapes, problem.c_str());
        status = 1;
      }
  for (const rans::Kernel& kernel : rans::kKernels) {
    if (!kernel.is_available()) continue;
    std::printf("%s\n", kernel.name);
    for (int i = 1; i < count; ++i) {
      const std::string problem = check(names[i], kernel);
      if (problem.empty()) continue;
      std::printf("%s: %s %s\n", kernel.name, names[i], problem.c_str());
      status = 1;
    }
  }
  return status;
}
