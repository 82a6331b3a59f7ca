// The coder from C++, on all paths that are here: `coder_test CASE.txt...` goes over the golden cases,
// and over symbols of its own that all paths have to write alike and read back. Exits 0, and prints
// the paths, or says what is wrong.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "../../csrc/rans.hpp"

namespace {

std::vector<long> numbers(std::istream& file) {
  std::string line;
  std::getline(file, line);
  std::istringstream words(line);
  return {std::istream_iterator<long>(words), {}};
}

std::string check(const std::string& name, rans::Path path) {
  std::ifstream file(name);
  const std::vector<long> size = numbers(file);
  if (size.size() != 2) return "is no case";
  const size_t channels = static_cast<size_t>(size[0]), row = static_cast<size_t>(size[1]);
  std::vector<uint32_t> cdf, lengths;
  std::vector<int32_t> offsets;
  for (size_t c = 0; c < channels; ++c) {
    const std::vector<long> table = numbers(file);
    offsets.push_back(static_cast<int32_t>(table[0]));
    cdf.insert(cdf.end(), table.begin() + 1, table.end());
    lengths.push_back(static_cast<uint32_t>(table.size() - 1));
  }
  std::vector<int16_t> symbols;
  for (size_t c = 0; c < channels; ++c)
    for (const long value : numbers(file)) symbols.push_back(static_cast<int16_t>(value));
  if (symbols.size() != channels * row) return "has another number of symbols than it says";
  std::string hex;
  file >> hex;
  std::vector<uint8_t> golden;
  for (size_t i = 0; i < hex.size(); i += 2) golden.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));

  const rans::Tables tables(cdf.data(), cdf.size(), lengths.data(), offsets.data(), channels, path);
  std::vector<uint8_t> buffer(tables.max_payload(row));
  const size_t written = tables.encode(symbols.data(), row, buffer.data());
  if (std::vector<uint8_t>(buffer.end() - static_cast<std::ptrdiff_t>(written), buffer.end()) != golden) return "is encoded to other bytes";
  std::vector<int16_t> decoded(channels * row);
  if (tables.decode(golden.data(), golden.size(), row, decoded.data()) != rans::Status::ok) return "is refused";
  if (decoded != symbols) return "is decoded to other symbols";
  for (size_t length = 0; length < golden.size(); ++length) {
    // A copy of that size, so that a sanitizer sees a read beyond it.
    const std::vector<uint8_t> cut(golden.begin(), golden.begin() + static_cast<std::ptrdiff_t>(length));
    if (tables.decode(cut.data(), length, row, decoded.data()) == rans::Status::ok) return "is accepted when cut short";
  }
  return "";
}

// A plain table of `entries` symbols and an escape, most mass in the middle.
std::vector<uint32_t> plain_table(uint32_t entries) {
  std::vector<uint32_t> cdf = {0};
  double total = 0, sum = 0;
  const auto weight = [&](uint32_t k) { return 1.0 / (1 + 4.0 * (k > entries / 2 ? k - entries / 2 : entries / 2 - k)); };
  for (uint32_t k = 0; k < entries; ++k) total += weight(k);
  for (uint32_t k = 0; k < entries; ++k) cdf.push_back(static_cast<uint32_t>((sum += weight(k)) / total * (65000 - entries)) + k + 1);
  cdf[1] = 1;  // as seldom as can be
  cdf.push_back(65536);
  return cdf;
}

// Channels that are plain but for one, so many that there is a wide part. Of the symbols about one in 50
// is any of its table's, and one in `escape_each` any at all; 0 is for none.
std::string compare_paths(size_t row, uint32_t entries, uint32_t escape_each) {
  const size_t channels = rans::kWideSymbols / row + 3;
  std::vector<uint32_t> cdf, lengths;
  std::vector<int32_t> offsets;
  for (size_t c = 0; c < channels; ++c) {
    const std::vector<uint32_t> table = c == 3 ? std::vector<uint32_t>{0, 100, 65000, 65500, 65536} : plain_table(entries);
    cdf.insert(cdf.end(), table.begin(), table.end());
    lengths.push_back(static_cast<uint32_t>(table.size()));
    offsets.push_back(-static_cast<int32_t>(c) - 1);
  }
  // Only what is the same with every standard library.
  std::mt19937 random(static_cast<uint32_t>(row + entries + escape_each));
  std::vector<int16_t> symbols;
  const uint32_t* table = cdf.data();
  for (size_t c = 0; c < channels; table += lengths[c++])
    for (size_t i = 0; i < row; ++i) {
      const uint32_t slot = random() % table[lengths[c] - 2];
      int32_t symbol = offsets[c];
      while (slot >= table[symbol - offsets[c] + 1]) ++symbol;
      if (random() % 50 == 0) symbol = offsets[c] + static_cast<int32_t>(random() % (lengths[c] - 2));
      if (escape_each && random() % escape_each == 0) symbol = static_cast<int32_t>(random() % 65535) - 32767;
      symbols.push_back(static_cast<int16_t>(symbol));
    }
  std::vector<uint8_t> expected;
  const auto check = [&](rans::Path path) -> std::string {
    const rans::Tables tables(cdf.data(), cdf.size(), lengths.data(), offsets.data(), channels, path);
    std::vector<uint8_t> buffer(tables.max_payload(row));
    const size_t size = tables.encode(symbols.data(), row, buffer.data());
    const std::vector<uint8_t> payload(buffer.end() - static_cast<std::ptrdiff_t>(size), buffer.end());
    if (path == rans::Path::portable) expected = payload;
    if (payload != expected) return "writes other bytes than portable";
    std::vector<int16_t> decoded(symbols.size());
    if (tables.decode(payload.data(), payload.size(), row, decoded.data()) != rans::Status::ok) return "refuses what it wrote";
    return decoded == symbols ? "" : "reads other symbols back";
  };
  std::string problem = check(rans::Path::portable);
  if (!problem.empty()) return "portable " + problem;
  for (const auto& [path, name] : rans::kPaths)
    if (rans::is_here(path) && !(problem = check(path)).empty()) return name + (" " + problem);
  return "";
}

}  // namespace

int main(int count, char** names) {
  int status = 0;
  for (const auto& [path, name] : rans::kPaths) {
    if (!rans::is_here(path)) continue;
    std::printf("%s\n", name);
    for (int i = 1; i < count; ++i) {
      const std::string problem = check(names[i], path);
      if (!problem.empty()) std::printf("%s: %s %s\n", name, names[i], problem.c_str()), status = 1;
    }
  }
  for (const size_t row : {784, 3025, 4096})
    for (const uint32_t entries : {2, 5, 16, 17, 32, 70})
      for (const uint32_t escape_each : {0, 300, 9}) {
        const std::string problem = compare_paths(row, entries, escape_each);
        if (problem.empty()) continue;
        std::printf("%s: row %zu, %u entries, one escape in %u\n", problem.c_str(), row, entries, escape_each), status = 1;
      }
  return status;
}
