// Fuzz target of the coder: tables from any bytes, payloads of any bytes, symbols of any values.
//
//   make fuzz            a minute of it; FUZZ_SECONDS=600 make fuzz for longer
//
// With clang this is a libFuzzer target; without, main() below feeds it random inputs. Under the
// address and undefined-behaviour sanitizers both find what reads or writes outside its bounds; the
// checks here find what is accepted and is not what an encoder writes, and paths that differ.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <set>
#include <vector>

#include "compressai_stream.hpp"
#include "rans.hpp"

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

// Hands out the input's bytes, then zeros.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : at_(data), end_(data + size) {}
  uint32_t byte() { return at_ == end_ ? 0 : *at_++; }
  uint32_t below(uint32_t limit) {
    const uint32_t value = byte() | byte() << 8 | byte() << 16;
    return value % limit;
  }
  size_t left() const { return static_cast<size_t>(end_ - at_); }
  const uint8_t* rest() const { return at_; }

 private:
  const uint8_t* at_;
  const uint8_t* end_;
};

struct Lists {
  std::vector<uint32_t> cdf, lengths;
  std::vector<int32_t> offsets;
};

rans::Tables make(const Lists& lists, rans::Path path) {
  return {lists.cdf.data(), lists.cdf.size(), lists.lengths.data(), lists.offsets.data(), lists.lengths.size(), path};
}

Lists valid_lists(Input& input) {
  Lists lists;
  const uint32_t channels = 1 + input.below(5), kind = input.byte();
  for (uint32_t c = 0; c < channels; ++c) {
    std::set<uint32_t> inner;
    const uint32_t count = 1 + input.below(kind & 1 ? 40 : 4);
    // Skewed tables are coded in runs.
    while (inner.size() < count && (input.left() || inner.empty()))
      inner.insert(kind & 2 ? (input.byte() & 1 ? 1 + input.below(400) : 65535 - input.below(400)) : 1 + input.below(65535));
    lists.cdf.push_back(0);
    lists.cdf.insert(lists.cdf.end(), inner.begin(), inner.end());
    lists.cdf.push_back(65536);
    lists.lengths.push_back(static_cast<uint32_t>(inner.size()) + 2);
    lists.offsets.push_back(static_cast<int32_t>(input.below(65535 - static_cast<uint32_t>(inner.size()))) - 32767);
  }
  return lists;
}

size_t any_row(Input& input) { return input.byte() & 3 ? input.below(70) : 3000 + input.below(9000); }

std::vector<int16_t> any_symbols(Input& input, const Lists& lists, size_t row) {
  const size_t count = lists.lengths.size() * row;
  const uint32_t likely = input.byte();
  std::vector<int16_t> symbols(count);
  uint32_t state = 1 + input.below(1 << 23);  // where the input ends, a generator goes on
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525 + 1013904223 + input.byte();
    const int32_t first = lists.offsets[i / row], entries = static_cast<int32_t>(lists.lengths[i / row]) - 2;
    const int32_t inside = first + static_cast<int32_t>((state >> 8) % static_cast<uint32_t>(entries));
    const int32_t anywhere = static_cast<int32_t>((state >> 8) % 65535) - 32767;
    symbols[i] = static_cast<int16_t>((state >> 24) <= likely ? inside : (state & 64 ? first + entries / 2 : anywhere));
  }
  return symbols;
}

std::vector<uint8_t> encode(const rans::Tables& tables, const std::vector<int16_t>& symbols, size_t row) {
  std::vector<uint8_t> buffer(tables.max_payload(row));
  const size_t size = tables.encode(symbols.data(), row, buffer.data());
  return {buffer.end() - static_cast<std::ptrdiff_t>(size), buffer.end()};
}

void any_tables(Input& input) {
  Lists lists;
  const uint32_t channels = input.below(4);
  for (uint32_t c = 0; c < channels; ++c) {
    lists.lengths.push_back(input.below(7));
    lists.offsets.push_back(static_cast<int32_t>(input.below(1 << 17)) - (1 << 16));
  }
  while (input.left()) lists.cdf.push_back(input.byte() & 1 ? input.below(1 << 17) : 65536);
  try {
    make(lists, rans::Path::portable);
  } catch (const std::invalid_argument&) {
  }
}

void any_payload(Input& input) {
  const Lists lists = valid_lists(input);
  const size_t row = any_row(input);
  // Of its exact size, so that a sanitizer sees a read beyond it.
  std::vector<uint8_t> payload;
  if (input.byte() & 1) {
    payload = encode(make(lists, rans::Path::portable), any_symbols(input, lists, row), row);
    for (uint32_t edits = input.below(4); edits > 0; --edits) {
      const uint32_t kind = input.byte() % 3;
      if (kind == 0) payload.resize(payload.size() + 2 * input.below(4), static_cast<uint8_t>(input.byte() & 1 ? 0 : input.byte()));
      if (kind == 1) payload.resize(input.below(static_cast<uint32_t>(payload.size()) + 1));
      if (kind == 2 && !payload.empty()) payload[input.below(static_cast<uint32_t>(payload.size()))] ^= static_cast<uint8_t>(input.byte());
    }
    payload.shrink_to_fit();
  } else {
    payload.assign(input.rest(), input.rest() + input.left());
  }
  std::vector<int16_t> symbols(lists.lengths.size() * row);
  const rans::CompressAiStream stream(lists.cdf.data(), lists.lengths.data(), lists.offsets.data(), lists.lengths.size());
  if (stream.decode(payload.data(), payload.size(), row, symbols.data()) == rans::Status::ok)
    require(4 * stream.encode(symbols.data(), row).size() == payload.size(), "a stream of another length than is written was accepted");
  for (const auto& [path, name] : rans::kPaths) {
    if (!rans::is_here(path)) continue;
    const rans::Tables tables = make(lists, path);
    if (tables.decode(payload.data(), payload.size(), row, symbols.data()) != rans::Status::ok) continue;
    require(encode(tables, symbols, row) == payload, "a payload was accepted that the encoder does not write");
  }
}

void round_trip(Input& input) {
  const Lists lists = valid_lists(input);
  const size_t row = any_row(input), count = lists.lengths.size() * row;
  const std::vector<int16_t> symbols = any_symbols(input, lists, row);
  std::vector<int16_t> decoded(count);
  std::vector<uint8_t> first;
  for (const auto& [path, name] : rans::kPaths) {
    if (!rans::is_here(path)) continue;
    const rans::Tables tables = make(lists, path);
    const std::vector<uint8_t> payload = encode(tables, symbols, row);
    require(first.empty() || payload == first, "two paths write different bytes");
    first = payload;
    require(tables.decode(payload.data(), payload.size(), row, decoded.data()) == rans::Status::ok && decoded == symbols,
            "symbols do not come back");
  }
  const rans::CompressAiStream stream(lists.cdf.data(), lists.lengths.data(), lists.offsets.data(), lists.lengths.size());
  const std::vector<uint32_t> words = stream.encode(symbols.data(), row);
  std::vector<uint8_t> bytes;
  for (size_t w = words.size(); w-- > 0;)
    for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<uint8_t>(words[w] >> shift));
  require(stream.decode(bytes.data(), bytes.size(), row, decoded.data()) == rans::Status::ok && decoded == symbols,
          "symbols do not come back from a stream");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  switch (input.byte() % 3) {
    case 0: any_tables(input); break;
    case 1: any_payload(input); break;
    default: round_trip(input);
  }
  return 0;
}

#if !defined(RANS_LIBFUZZER)
int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 60;
  const auto start = std::chrono::steady_clock::now();
  std::mt19937 random(count > 2 ? static_cast<uint32_t>(std::atoi(arguments[2])) : 1);
  long inputs = 0;
  for (; std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds; ++inputs) {
    std::vector<uint8_t> data(random() % (random() % 4 ? 200 : 4000));
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(random());
    LLVMFuzzerTestOneInput(data.data(), data.size());
  }
  std::printf("%ld random inputs in %.0f s, none of them broke a promise\n", inputs, seconds);
}
#endif
