// Runs the list kTargets of the file that includes this: the one that -DFUZZ_TARGET names under
// libFuzzer, or each in turn with random inputs.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
#if defined(FUZZ_TARGET)
  FUZZ_TARGET(input);
#else
  kTargets[input.byte() % std::size(kTargets)](input);
#endif
  return 0;
}

#if !defined(FUZZ_TARGET)
int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 60;
  const auto start = std::chrono::steady_clock::now();
  std::mt19937 random(count > 2 ? static_cast<uint32_t>(std::atoi(arguments[2])) : 1);
  long inputs = 0;
  for (; std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds;
       ++inputs) {
    std::vector<uint8_t> data(random() % (random() % 4 ? 200 : 4000));
    for (uint8_t& byte : data) byte = static_cast<uint8_t>(random());
    LLVMFuzzerTestOneInput(data.data(), data.size());
  }
  std::printf("%ld random inputs in %.0f s, no failure\n", inputs, seconds);
}
#endif
