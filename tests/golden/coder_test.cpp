// The golden cases from C++: `coder_test CASE.txt...` prints nothing and exits 0, or says what is wrong.
#include <cstdio>
#include <fstream>
#include <iterator>
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

}  // namespace

int main(int count, char** names) {
  int status = 0;
  for (int i = 1; i < count; ++i)
    for (const rans::Path path : {rans::Path::portable, rans::Path::avx2}) {
      const std::string problem = rans::is_here(path) ? check(names[i], path) : "";
      if (!problem.empty()) std::printf("%s %s\n", names[i], problem.c_str()), status = 1;
    }
  return status;
}
