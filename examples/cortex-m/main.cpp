// Encodes a picture on a microcontroller, under qemu or a debugger:
//
//   ... -semihosting-config enable=on,target=native,arg=224,arg=224,arg=IN.rgb,arg=OUT.bin
//
// The arguments are height, width, a file of RGB pixels without a header, and the feature file to
// write. A report goes to the console: bytes of the file, ticks of SysTick for opening the bundle,
// for the picture's rows, and for the coder, and the most bytes of stack.
//
// A device replaces the file by its camera: eight lines at a time are all that it has to hold.
#include "encoder.hpp"
#include "semihosting.hpp"
#include "stack.hpp"

extern "C" {
// bundle.S
extern const uint8_t edge_tables[], edge_tables_end[], edge_weights[], edge_weights_end[];
}

namespace {

cortex::Encoder encoder;
char arguments[256];

// SysTick counts the processor's clock down, in 24 bits.
class Stopwatch {
 public:
  Stopwatch() {
    volatile uint32_t* const timer = reinterpret_cast<volatile uint32_t*>(0xe000e010);
    timer[1] = kMost, timer[2] = 0, timer[0] = 5;
    last_ = now();
  }
  // Ticks since the last call, or since the beginning: less than 2^24.
  uint32_t lap() {
    const uint32_t before = last_;
    last_ = now();
    return (before - last_) & kMost;
  }

 private:
  static constexpr uint32_t kMost = 0xffffff;
  static uint32_t now() { return *reinterpret_cast<const volatile uint32_t*>(0xe000e018); }
  uint32_t last_;
};

void print(const char* name, uint32_t number) {
  char text[11] = {};
  char* at = text + sizeof text - 1;
  do *--at = static_cast<char>('0' + number % 10);
  while (number /= 10);
  semihosting::print(name);
  semihosting::print(" ");
  semihosting::print(at);
  semihosting::print("\n");
}

bool refuse(const char* why) {
  semihosting::print("cortex-m: ");
  semihosting::print(why);
  semihosting::print("\n");
  return false;
}
bool is_ok(cortex::Status status) {
  return status == cortex::Status::ok || refuse(cortex::reason(status));
}

// Takes the next argument; "" if there is none.
char* next(char*& at) {
  char* word = at;
  while (*at && *at != ' ') ++at;
  if (*at) *at++ = 0;
  return word;
}
size_t number(const char* digits) {
  size_t value = 0;
  for (; *digits >= '0' && *digits <= '9' && value < 100000; ++digits)
    value = 10 * value + static_cast<size_t>(*digits - '0');
  return *digits ? 0 : value;
}

// Encodes a file of pixels. Adds the ticks of all `push` to `rows`.
bool encode_rows(const char* input, size_t height, size_t width, Stopwatch& watch, uint32_t& rows) {
  if (!is_ok(encoder.begin(height, width))) return false;
  const int32_t file = semihosting::open(input, false);
  if (file < 0) return refuse("there is no such file of pixels");
  for (size_t y = 0; y < height; y += cortex::kPatch) {
    if (!semihosting::read(file, encoder.lines(), 3 * cortex::kPatch * width))
      return refuse("the file has fewer pixels than height x width x 3 bytes");
    watch.lap();
    const cortex::Status status = encoder.push();
    rows += watch.lap();
    if (!is_ok(status)) return false;
  }
  return semihosting::close(file);
}

bool run() {
  if (!semihosting::arguments(arguments, sizeof arguments))
    return refuse("the arguments are too long");
  char* at = arguments;
  const size_t height = number(next(at)), width = number(next(at));
  const char *input = next(at), *output = next(at);
  if (!*output) return refuse("give HEIGHT WIDTH INPUT OUTPUT");

  Stopwatch watch;
  if (!is_ok(encoder.open(edge_tables, static_cast<size_t>(edge_tables_end - edge_tables),
                          edge_weights, static_cast<size_t>(edge_weights_end - edge_weights))))
    return false;
  const uint32_t open = watch.lap();
  uint32_t rows = 0;
  if (!encode_rows(input, height, width, watch, rows)) return false;
  const uint8_t* feature_file;
  size_t size;
  watch.lap();
  const cortex::Status status = encoder.finish(&feature_file, &size);
  const uint32_t coder = watch.lap();
  if (!is_ok(status)) return false;
  const int32_t file = semihosting::open(output, true);
  if (file < 0 || !semihosting::write(file, feature_file, size) || !semihosting::close(file))
    return refuse("the feature file cannot be written");
  print("bytes", size);
  print("open_ticks", open);
  print("rows_ticks", rows);
  print("coder_ticks", coder);
  print("stack_bytes", stack::used());
  return true;
}

}  // namespace

int main() { return run() ? 0 : 1; }
