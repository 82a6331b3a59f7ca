// The golden cases from C++: `coder_test CASE.txt...` prints the paths that are here and exits 0,
// or says what is wrong. Besides, all paths that are here have to write the portable one's bytes,
// and read them back, for rows and tables that vectors do not divide.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "rans.hpp"

namespace {

std::vector<long> numbers(std::istream& file) {
  std::string line;
  std::getline(file, line);
  std::istringstream words(line);
  return {std::istream_iterator<long>(words), {}};
}

std::string check(const std::string& name, const rans::Path& path) {
  std::ifstream file(name);
  const std::vector<long> size = numbers(file);
  if (size.size() != 2 && size.size() != 3) return "is no case";
  const bool small = size.size() == 3;
  const size_t channels = static_cast<size_t>(size[0]), rows = static_cast<size_t>(size[1]),
               columns = small ? static_cast<size_t>(size[2]) : 1;
  const size_t row = rows * columns;
  std::vector<uint32_t> cdf, lengths;
  std::vector<int32_t> offsets;
  for (size_t c = 0; c < channels; ++c) {
    const std::vector<long> table = numbers(file);
    offsets.push_back(static_cast<int32_t>(table[0]));
    cdf.insert(cdf.end(), table.begin() + 1, table.end());
    lengths.push_back(static_cast<uint32_t>(table.size() - 1));
  }
  rans::Tables tables(cdf.data(), cdf.size(), lengths.data(), offsets.data(), channels, path);
  for (size_t c = 0; small && c < channels; ++c) {
    const std::vector<long> own = numbers(file);
    if (own.empty()) continue;
    const std::vector<int32_t> thresholds(own.begin(), own.begin() + 4);
    const std::vector<uint32_t> values(own.begin() + 4, own.end());
    tables.add_contexts(c, thresholds.data(), values.data(), values.size());
  }
  std::vector<int16_t> symbols;
  for (size_t c = 0; c < channels; ++c)
    for (const long value : numbers(file)) symbols.push_back(static_cast<int16_t>(value));
  if (symbols.size() != channels * row) return "has another number of symbols than it says";
  std::string hex;
  file >> hex;
  std::vector<uint8_t> golden;
  for (size_t i = 0; i < hex.size(); i += 2)
    golden.push_back(static_cast<uint8_t>(std::stoi(hex.substr(i, 2), nullptr, 16)));

  const auto decode = [&](const std::vector<uint8_t>& payload, int16_t* values) {
    return small ? tables.decode_small(payload.data(), payload.size(), rows, columns, values)
                 : tables.decode(payload.data(), payload.size(), row, values);
  };
  std::vector<uint8_t> buffer(tables.max_payload(row));
  const size_t written = small ? tables.encode_small(symbols.data(), rows, columns, buffer.data())
                               : tables.encode(symbols.data(), row, buffer.data());
  if (std::vector<uint8_t>(buffer.end() - static_cast<std::ptrdiff_t>(written), buffer.end()) !=
      golden)
    return "is encoded to other bytes";
  std::vector<int16_t> decoded(channels * row);
  if (decode(golden, decoded.data()) != rans::Status::ok) return "is refused";
  if (decoded != symbols) return "is decoded to other symbols";
  for (size_t length = 0; length < golden.size(); ++length) {
    // A copy of that size, so that a sanitizer sees a read beyond it.
    const std::vector<uint8_t> cut(golden.begin(),
                                   golden.begin() + static_cast<std::ptrdiff_t>(length));
    if (decode(cut, decoded.data()) == rans::Status::ok) return "is accepted when cut short";
  }
  return "";
}

// `entries` symbols of falling frequency and an escape.
std::vector<uint32_t> falling(size_t entries) {
  std::vector<uint32_t> cdf{0};
  for (size_t k = 0; k < entries; ++k) {
    const uint32_t left = 65536 - cdf.back() -
                          static_cast<uint32_t>(entries - k);  // one for each entry that is to come
    cdf.push_back(cdf.back() + 1 + left / 3);
  }
  cdf.push_back(65536);
  return cdf;
}

std::string agree(size_t channels, size_t row, size_t entries, uint32_t escapes_of_1024) {
  const std::vector<uint32_t> table = falling(entries);
  std::vector<uint32_t> cdf, lengths(channels, static_cast<uint32_t>(table.size()));
  for (size_t c = 0; c < channels; ++c) cdf.insert(cdf.end(), table.begin(), table.end());
  const std::vector<int32_t> offsets(channels, -1);
  std::vector<int16_t> symbols(channels * row), decoded(channels * row);
  uint32_t state = 1;
  for (int16_t& symbol : symbols) {
    state = state * 1664525 + 1013904223;
    const uint32_t k =
        static_cast<uint32_t>(std::upper_bound(table.begin(), table.end() - 1, state >> 16) -
                              table.begin()) -
        1;
    symbol = static_cast<int16_t>((state & 1023) < escapes_of_1024 || k == entries
                                      ? 30000 - static_cast<int32_t>(state >> 16) / 2
                                      : static_cast<int32_t>(k) - 1);
  }
  std::vector<uint8_t> first;
  for (const rans::Path& path : rans::kPaths) {
    if (!path.is_here()) continue;
    const rans::Tables tables(cdf.data(), cdf.size(), lengths.data(), offsets.data(), channels,
                              path);
    std::vector<uint8_t> payload(tables.max_payload(row));
    payload.erase(payload.begin(), payload.end() - static_cast<std::ptrdiff_t>(tables.encode(
                                                       symbols.data(), row, payload.data())));
    if (first.empty()) first = payload;
    if (payload != first)
      return std::string(path.name) + " writes other bytes than the path before it";
    if (tables.decode(payload.data(), payload.size(), row, decoded.data()) != rans::Status::ok)
      return std::string(path.name) + " refuses what it wrote";
    if (decoded != symbols) return std::string(path.name) + " decodes other symbols";
  }
  return "";
}

}  // namespace

int main(int count, char** names) {
  int status = 0;
  constexpr size_t kShapes[][2] = {
      {22, 784}, {7, 3025}, {5, 4096}};  // of channels and rows, of which there are wide parts
  for (const auto& [channels, row] : kShapes)
    for (const size_t entries : {2, 5, 15, 16, 17, 31, 32, 33, 70})
      for (const uint32_t escapes : {0, 3, 400}) {
        const std::string problem = agree(channels, row, entries, escapes);
        if (!problem.empty())
          std::printf("%zu rows of %zu, %zu entries, %u escapes of 1024: %s\n", channels, row,
                      entries, escapes, problem.c_str()),
              status = 1;
      }
  for (const rans::Path& path : rans::kPaths) {
    if (!path.is_here()) continue;
    std::printf("%s\n", path.name);
    for (int i = 1; i < count; ++i) {
      const std::string problem = check(names[i], path);
      if (!problem.empty())
        std::printf("%s: %s %s\n", path.name, names[i], problem.c_str()), status = 1;
    }
  }
  return status;
}
