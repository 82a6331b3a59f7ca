// See arguments.hpp.
#include "arguments.hpp"

#include <getopt.h>

#include <algorithm>
#include <cstdlib>
#include <thread>

#include "failure.hpp"
#include "files.hpp"

namespace command {
namespace {

constexpr size_t kMaxFeatureFile = size_t{1} << 24;  // bytes; as in Python

const char kHelp[] =
    "\n"
    "Encode images to feature files.\n"
    "\n"
    "positional arguments:\n"
    "  IMAGE                 JPEG or PNM file, folder, pattern in quotes, or - for standard\n"
    "                        input\n"
    "\n"
    "options:\n"
    "  -h, --help            show this help message and exit\n"
    "  -o FILE_OR_DIR, --output FILE_OR_DIR\n"
    "                        feature file, or - for standard output, or folder: it gets a\n"
    "                        NAME.bin for each image, in the same subfolders as the images\n"
    "  --bundle DIR          default: $EDGECLOUD_BUNDLE, else bundles/ours_n4\n"
    "  --as-is               do not resize as the bundle says (usually to 224x224); crop to\n"
    "                        multiples of 8\n"
    "  --fast-jpeg           decode large JPEGs at a fraction of their size: pixels differ a\n"
    "                        little\n"
    "  --raw WIDTHxHEIGHT    images are RGB pixels of one byte a level, rows from the top,\n"
    "                        without a header\n"
    "  --rate LEVEL          with a variable-rate bundle: the rate level, 0 (fewest bytes) to 15\n"
    "                        (default: as the bundle says)\n"
    "  --max-bytes N         with a variable-rate bundle: no feature file has more bytes; the\n"
    "                        highest level that fits is taken, but none above --rate\n"
    "  --target-bytes N      with a variable-rate bundle: the mean of all feature files, which\n"
    "                        the level follows\n"
    "  --small, --no-small   write smaller files, which take some microseconds more (default:\n"
    "                        as the bundle says)\n"
    "  --threads N           threads of the encoder (default: one for each core)\n"
    "  --json                print a JSON object for each image: bytes, bpp, milliseconds by\n"
    "                        stage\n"
    "  --version             show program's version number and exit\n"
    "\n"
    "Exit status: 0 done, 1 an image failed (the others are encoded), 2 wrong usage.\n";

enum Option {
  kOutput = 'o',
  kShowHelp = 'h',
  kBundle = 256,
  kAsIs,
  kFast,
  kRaw,
  kRate,
  kMaxBytes,
  kTargetBytes,
  kSmall,
  kNoSmall,
  kThreads,
  kJson,
  kVersion,
  kPython
};

const option kOptions[] = {{"output", 1, nullptr, kOutput},
                           {"help", 0, nullptr, kShowHelp},
                           {"bundle", 1, nullptr, kBundle},
                           {"as-is", 0, nullptr, kAsIs},
                           {"fast-jpeg", 0, nullptr, kFast},
                           {"raw", 1, nullptr, kRaw},
                           {"rate", 1, nullptr, kRate},
                           {"max-bytes", 1, nullptr, kMaxBytes},
                           {"target-bytes", 1, nullptr, kTargetBytes},
                           {"small", 0, nullptr, kSmall},
                           {"no-small", 0, nullptr, kNoSmall},
                           {"threads", 1, nullptr, kThreads},
                           {"json", 0, nullptr, kJson},
                           {"version", 0, nullptr, kVersion},
                           {"pack", 2, nullptr, kPython},
                           {"workers", 2, nullptr, kPython},
                           {"resume", 0, nullptr, kPython},
                           {"provider", 2, nullptr, kPython},
                           {"precision", 2, nullptr, kPython},
                           {"tune", 0, nullptr, kPython},
                           {nullptr, 0, nullptr, 0}};

// A whole number in a range, for an option.
size_t number(const char* option, const std::string& text, size_t least, size_t most) {
  const bool digits = !text.empty() && text.size() < 10 &&
                      text.find_first_not_of("0123456789") == std::string::npos;
  const size_t value = digits ? std::stoul(text) : 0;
  if (!digits || value < least || value > most)
    throw WrongUsage(std::string("argument ") + option + ": '" + text +
                     "' is not a whole number from " + std::to_string(least) + " to " +
                     std::to_string(most));
  return value;
}

// A number in a range, for an option.
double real(const char* option, const std::string& text, double least, size_t most) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end || text.find_first_not_of("+-.0123456789eE") != std::string::npos ||
      !(value >= least && value <= static_cast<double>(most)))
    throw WrongUsage(std::string("argument ") + option + ": '" + text + "' is not a number from " +
                     std::to_string(static_cast<int>(least)) + " to " + std::to_string(most));
  return value;
}

void read_size(const std::string& text, Arguments& arguments) {
  const size_t x = text.find('x');
  if (x == std::string::npos)
    throw WrongUsage("argument --raw: '" + text + "' is not WIDTHxHEIGHT, such as 640x480");
  arguments.raw_width = number("--raw", text.substr(0, x), 1, 1 << 24);
  arguments.raw_height = number("--raw", text.substr(x + 1), 1, 1 << 24);
}

void take(int found, const char* name, const char* given, const std::string& value,
          Arguments& arguments) {
  switch (found) {
    case kOutput:
      if (value.empty())
        throw WrongUsage("the name of the output is empty: name a file or a folder");
      arguments.output = value;
      break;
    case kBundle: arguments.bundle = value; break;
    case kAsIs: arguments.as_is = true; break;
    case kFast: arguments.fast_jpeg = true; break;
    case kRaw: read_size(value, arguments); break;
    case kRate:
      arguments.budget.has_rate = 1;
      arguments.budget.rate = real("--rate", value, 0, 15);
      break;
    case kMaxBytes:
      arguments.budget.max_bytes = number("--max-bytes", value, 1, kMaxFeatureFile);
      break;
    case kTargetBytes:
      arguments.budget.target_bytes = real("--target-bytes", value, 1, kMaxFeatureFile);
      break;
    case kSmall: arguments.encoder.profile = 2; break;
    case kNoSmall: arguments.encoder.profile = 1; break;
    case kThreads:
      arguments.encoder.threads = static_cast<int>(number("--threads", value, 1, 256));
      break;
    case kJson: arguments.json = true; break;
    case kPython:
      throw WrongUsage(std::string("--") + name +
                       " is an option of the Python command alone: "
                       "pip install edgecloud-features");
    case ':': throw WrongUsage(std::string("argument ") + given + ": expected one argument");
    default: throw WrongUsage(std::string("unrecognized arguments: ") + given);
  }
}

}  // namespace

const char kUsage[] =
    "usage: edge-encode [-h] -o FILE_OR_DIR [--bundle DIR] [--as-is] [--fast-jpeg]\n"
    "                   [--raw WIDTHxHEIGHT] [--rate LEVEL] [--max-bytes N]\n"
    "                   [--target-bytes N] [--small | --no-small] [--threads N] [--json]\n"
    "                   [--version]\n"
    "                   IMAGE [IMAGE ...]\n";

bool parse(int count, char** values, Arguments& arguments, std::string& answer) {
  opterr = 0;  // getopt's own messages name no remedy
  int index = 0;
  for (int found; (found = getopt_long(count, values, ":o:h", kOptions, &index)) != -1;) {
    if (found == kShowHelp) return answer = std::string(kUsage) + kHelp, false;
    if (found == kVersion)
      return answer = std::string("edge-encode ") + edgecloud_version() + "\n", false;
    // For a short option getopt does not advance before its last letter.
    const char letter[] = {'-', static_cast<char>(optopt), 0};
    const bool is_letter = optopt > 0 && optopt < 256;
    take(found, found == kPython ? kOptions[index].name : "",
         is_letter ? letter : values[std::max(optind - 1, 0)], optarg ? optarg : "", arguments);
  }
  arguments.images.assign(values + optind, values + count);
  if (arguments.images.empty()) throw WrongUsage("the following arguments are required: IMAGE");
  if (arguments.output.empty()) throw WrongUsage("say where the feature files go, with -o");
  arguments.to_stdout = own_descriptor(arguments.output) == 1;
  if (arguments.to_stdout && arguments.json)
    throw WrongUsage("standard output carries the feature file: use --json with -o FILE");
  const edgecloud_budget& budget = arguments.budget;
  if (budget.has_rate && budget.target_bytes > 0)
    throw WrongUsage("--rate and --target-bytes each choose the level: leave out one of both");
  if (budget.max_bytes > 0 && static_cast<double>(budget.max_bytes) < budget.target_bytes)
    throw WrongUsage("--max-bytes is below --target-bytes: the mean cannot be above the most");
  if (arguments.bundle.empty()) {
    const char* variable = std::getenv("EDGECLOUD_BUNDLE");
    arguments.bundle = variable && *variable ? variable : "bundles/ours_n4";
  }
  if (arguments.encoder.threads == 0)
    arguments.encoder.threads =
        static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 256u));
  return true;
}

}  // namespace command
