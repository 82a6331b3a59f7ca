// The command edge-encode without Python: images to feature files, on a device with libjpeg alone.
//
// Options, reports, refusals and exit statuses are those of the Python command
// (runtime/cli/edge_encode.py), and the feature files those of its engine `native`. It lacks
// formats other than JPEG and PNM, and the options that kOnlyPython lists.
//
// Always holds: an image that fails stops no other. A report that cannot be printed does not stop
// the work.
#include <getopt.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "../include/edgecloud.h"
#include "failure.hpp"
#include "files.hpp"
#include "picture.hpp"

namespace command {
namespace {

const char kHelp[] =
    "usage: edge-encode [-h] -o FILE_OR_DIR [--bundle DIR] [--as-is] [--fast-jpeg]\n"
    "                   [--raw WIDTHxHEIGHT] [--small | --no-small] [--threads N] [--json]\n"
    "                   [--version] IMAGE [IMAGE ...]\n"
    "\n"
    "Encode images to feature files.\n"
    "\n"
    "  IMAGE                 JPEG or PNM file, folder, or - for standard input\n"
    "  -o, --output FILE_OR_DIR\n"
    "                        feature file, or - for standard output, or folder: it gets a\n"
    "                        NAME.bin for each image, in the same subfolders as the images\n"
    "  --bundle DIR          default: $EDGECLOUD_BUNDLE, else bundles/ours_n4\n"
    "  --as-is               do not resize as the bundle says; crop to multiples of 8\n"
    "  --fast-jpeg           decode large JPEGs at a fraction of their size: pixels differ a\n"
    "                        little\n"
    "  --raw WIDTHxHEIGHT    images are RGB pixels of one byte a level, without a header\n"
    "  --small, --no-small   write smaller files, which take some microseconds more (default:\n"
    "                        as the bundle says)\n"
    "  --threads N           threads of the encoder (default: one for each core)\n"
    "  --json                print a JSON object for each image\n"
    "  -h, --help            show this help message and exit\n"
    "  --version             show program's version number and exit\n"
    "\n"
    "Exit status: 0 done, 1 an image failed (the others are encoded), 2 wrong usage.\n";

const char* const kOnlyPython[] = {"pack",   "workers",  "rate", "max-bytes", "target-bytes",
                                   "resume", "provider", "tune", "precision"};

struct Arguments {
  std::vector<std::string> images;
  std::string output, bundle;
  bool as_is = false, fast_jpeg = false, json = false;
  size_t raw_width = 0, raw_height = 0;
  edgecloud_options encoder = {};
};

struct CloseBundle {
  void operator()(edgecloud_bundle* bundle) const { edgecloud_bundle_close(bundle); }
};
struct FreeEncoder {
  void operator()(edgecloud_encoder* encoder) const { edgecloud_encoder_free(encoder); }
};

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

// Where reports go, and why lines for it were lost, if they were.
struct Report {
  std::FILE* file = stdout;
  int lost = 0;

  void say(const std::string& line) {
    errno = 0;
    if (std::fprintf(file, "%s\n", printable(line).c_str()) < 0 || std::fflush(file) != 0)
      if (lost == 0) lost = errno ? errno : EIO;
  }
};

// A whole number in a range, for an option.
size_t number(const std::string& option, const std::string& text, size_t least, size_t most) {
  const bool digits = !text.empty() && text.size() < 10 &&
                      text.find_first_not_of("0123456789") == std::string::npos;
  const size_t value = digits ? std::stoul(text) : 0;
  if (!digits || value < least || value > most)
    throw WrongUsage("argument " + option + ": '" + text + "' is not a whole number from " +
                     std::to_string(least) + " to " + std::to_string(most));
  return value;
}

enum Option {
  kOutput = 'o',
  kHelpOption = 'h',
  kBundle = 256,
  kAsIs,
  kFast,
  kRaw,
  kSmall,
  kNoSmall,
  kThreads,
  kJson,
  kVersion,
  kPython
};

void take(Arguments& arguments, int option, const std::string& value, const std::string& name) {
  switch (option) {
    case kOutput:
      if (value.empty())
        throw WrongUsage("the name of the output is empty: name a file or a folder");
      arguments.output = value;
      break;
    case kBundle: arguments.bundle = value; break;
    case kAsIs: arguments.as_is = true; break;
    case kFast: arguments.fast_jpeg = true; break;
    case kRaw: {
      const size_t x = value.find('x');
      if (x == std::string::npos)
        throw WrongUsage("argument --raw: '" + value + "' is not WIDTHxHEIGHT, such as 640x480");
      arguments.raw_width = number("--raw", value.substr(0, x), 1, 1 << 20);
      arguments.raw_height = number("--raw", value.substr(x + 1), 1, 1 << 20);
      break;
    }
    case kSmall: arguments.encoder.profile = 2; break;
    case kNoSmall: arguments.encoder.profile = 1; break;
    case kThreads:
      arguments.encoder.threads = static_cast<int>(number("--threads", value, 1, 256));
      break;
    case kJson: arguments.json = true; break;
    case kPython:
      throw WrongUsage("--" + name +
                       " is an option of the Python command alone: "
                       "pip install edgecloud-features");
    default: throw WrongUsage("see edge-encode --help");
  }
}

// Reads the command line; false if it only asked for help or the version. Throws WrongUsage.
bool parse(int count, char** values, Arguments& arguments) {
  std::vector<option> options = {
      {"output", 1, nullptr, kOutput},   {"help", 0, nullptr, kHelpOption},
      {"bundle", 1, nullptr, kBundle},   {"as-is", 0, nullptr, kAsIs},
      {"fast-jpeg", 0, nullptr, kFast},  {"raw", 1, nullptr, kRaw},
      {"small", 0, nullptr, kSmall},     {"no-small", 0, nullptr, kNoSmall},
      {"threads", 1, nullptr, kThreads}, {"json", 0, nullptr, kJson},
      {"version", 0, nullptr, kVersion}};
  for (const char* name : kOnlyPython) options.push_back({name, 2, nullptr, kPython});
  options.push_back({nullptr, 0, nullptr, 0});
  int index = 0;
  for (int found; (found = getopt_long(count, values, "o:h", options.data(), &index)) != -1;) {
    if (found == kHelpOption) return std::fputs(kHelp, stdout), false;
    if (found == kVersion) return std::printf("edge-encode %s\n", edgecloud_version()), false;
    take(arguments, found, optarg ? optarg : "",
         found == kPython ? options[static_cast<size_t>(index)].name : "");
  }
  arguments.images.assign(values + optind, values + count);
  if (arguments.images.empty()) throw WrongUsage("the following arguments are required: IMAGE");
  if (arguments.output.empty()) throw WrongUsage("say where the feature files go, with -o");
  if (arguments.output == "-" && arguments.json)
    throw WrongUsage("standard output carries the feature file: use --json with -o FILE");
  if (arguments.bundle.empty()) {
    const char* variable = std::getenv("EDGECLOUD_BUNDLE");
    arguments.bundle = variable && *variable ? variable : "bundles/ours_n4";
  }
  if (arguments.encoder.threads == 0)
    arguments.encoder.threads =
        static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, 256u));
  return true;
}

// Encodes images with one bundle.
class Command {
 public:
  Command(const Arguments& arguments, Report& report) : arguments_(arguments), report_(report) {
    edgecloud_error error;
    edgecloud_bundle* bundle = nullptr;
    edgecloud_encoder* encoder = nullptr;
    if (access((arguments.bundle + "/edge.tables").c_str(), F_OK) != 0)
      throw Failure("no bundle for this command in " + arguments.bundle +
                    " (it needs edge.tables and edge.weights): name another with --bundle or "
                    "$EDGECLOUD_BUNDLE, or export it again");
    if (edgecloud_bundle_open(arguments.bundle.c_str(), &bundle, &error)) throw Failure(error.text);
    bundle_.reset(bundle);
    if (edgecloud_encoder_new(bundle, &arguments.encoder, &encoder, &error))
      throw Failure(error.text);
    encoder_.reset(encoder);
    edgecloud_bundle_describe(bundle, &info_);
  }

  // Encodes and reports one image; false if it failed.
  bool encode(const Job& job) {
    try {
      work(job);
      return true;
    } catch (const Failure& failure) {
      fail(job, failure.what());
    } catch (const std::bad_alloc&) {
      fail(job, job.image + " does not fit into memory: make it smaller first");
    }
    return false;
  }

 private:
  Picture decode(const std::string& image) const {
    const std::string name = image == "-" ? "standard input" : image;
    Bytes file = read_file(image);
    if (arguments_.raw_width == 0)
      return command::decode(file, name,
                             arguments_.fast_jpeg && !arguments_.as_is ? 2 * info_.resize : 0);
    const size_t size = 3 * arguments_.raw_width * arguments_.raw_height;
    if (file.size() != size)
      throw Failure(name + " has " + std::to_string(file.size()) + " bytes, and --raw asks for " +
                    std::to_string(size) + ": check the size and the format");
    check_pixels(name, arguments_.raw_height, arguments_.raw_width);
    return {arguments_.raw_height, arguments_.raw_width, std::move(file)};
  }

  // Python's round((length - size) / 2): halves go to the even neighbour.
  static size_t before(size_t length, size_t size) {
    const size_t rest = length - size;
    return rest / 2 + (rest % 4 == 3);
  }

  void work(const Job& job) {
    const Clock::time_point begin = Clock::now();
    Picture picture = decode(job.image);
    const size_t row = 3 * picture.width;
    size_t height = info_.crop, width = info_.crop, row_bytes = 3 * width;
    const uint8_t* pixels = picture.pixels.data();
    edgecloud_error error;
    Bytes prepared;
    if (arguments_.as_is) {
      height = picture.height / 8 * 8, width = picture.width / 8 * 8, row_bytes = row;
      if (height == 0 || width == 0)
        throw Failure("an image of " + std::to_string(picture.width) + "x" +
                      std::to_string(picture.height) +
                      " pixels is under 8 a side: leave out --as-is, or enlarge it");
      pixels += before(picture.height, height) * row + 3 * before(picture.width, width);
    } else {
      prepared.resize(height * row_bytes);
      if (edgecloud_prepare(bundle_.get(), pixels, picture.height, picture.width, 0,
                            prepared.data(), &error))
        throw Failure(error.text);
      pixels = prepared.data();
    }
    const Clock::time_point decoded = Clock::now();
    const uint8_t* file = nullptr;
    size_t size = 0;
    if (edgecloud_encode(encoder_.get(), pixels, height, width, row_bytes, &file, &size, &error))
      throw Failure(error.text);
    const Clock::time_point encoded = Clock::now();
    write_file(job.output, file, size);
    const Clock::time_point end = Clock::now();
    const double bpp = 8.0 * static_cast<double>(size) / static_cast<double>(height * width);
    const double times[] = {milliseconds(begin, decoded), milliseconds(decoded, encoded),
                            milliseconds(encoded, end), milliseconds(begin, end)};
    char text[320];
    if (arguments_.json) {
      std::snprintf(text, sizeof text,
                    ", \"bytes\": %zu, \"bpp\": %.17g, \"width\": %zu, \"height\": %zu, "
                    "\"milliseconds\": {\"preprocess\": %.3f, \"encode\": %.3f, \"write\": %.3f, "
                    "\"total\": %.3f}}",
                    size, bpp, width, height, times[0], times[1], times[2], times[3]);
      report_.say("{\"status\": \"encoded\", \"image\": " + json(job.image) +
                  ", \"output\": " + json(job.output) + text);
    } else {
      std::snprintf(text, sizeof text, ": %zu bytes, %.3f bpp at %zux%zu, %.1f ms", size, bpp,
                    width, height, times[3]);
      report_.say(job.image + " -> " + (job.output == "-" ? "standard output" : job.output) + text);
    }
  }

  void fail(const Job& job, const std::string& why) {
    const std::string name = job.image == "-" ? "standard input" : job.image;
    const std::string reason = why.find(name) == std::string::npos ? name + ": " + why : why;
    std::fprintf(stderr, "edge-encode: %s\n", printable(reason).c_str());
    if (arguments_.json)
      report_.say("{\"status\": \"failed\", \"image\": " + json(job.image) +
                  ", \"error\": " + json(reason) + "}");
  }

  const Arguments& arguments_;
  Report& report_;
  std::unique_ptr<edgecloud_bundle, CloseBundle> bundle_;
  std::unique_ptr<edgecloud_encoder, FreeEncoder> encoder_;
  edgecloud_bundle_info info_;
};

int run(const Arguments& arguments, Report& report) {
  PassedOver passed_over;
  const std::vector<Job> jobs = find_jobs(arguments.images, arguments.output, passed_over);
  if (passed_over.count > 0)
    std::fprintf(stderr, "edge-encode: passed over %zu that %s\n", passed_over.count,
                 passed_over.count == 1 ? "is no JPEG or PNM file" : "are no JPEG or PNM files");
  refuse_same_files(jobs, arguments.bundle);
  Command command(arguments, report);
  const Clock::time_point begin = Clock::now();
  size_t failed = 0;
  for (const Job& job : jobs) failed += !command.encode(job);
  if (jobs.size() > 1) {
    char text[128];
    std::snprintf(
        text, sizeof text, "%zu encoded, 0 skipped, %zu failed; %.1f images/s",
        jobs.size() - failed, failed,
        1e3 * static_cast<double>(jobs.size() - failed) / milliseconds(begin, Clock::now()));
    if (arguments.json)
      std::fprintf(stderr, "%s\n", text);
    else
      report.say(text);
  }
  return failed ? 1 : 0;
}

int run_command(int count, char** values) {
  Report report;
  int status = 0;
  try {
    Arguments arguments;
    if (parse(count, values, arguments)) {
      // With the feature file on standard output, the report goes to standard error.
      if (arguments.output == "-" || arguments.output == "/dev/stdout") report.file = stderr;
      status = run(arguments, report);
    }
  } catch (const WrongUsage& wrong) {
    std::fprintf(stderr, "edge-encode: error: %s\n", printable(wrong.what()).c_str());
    return 2;
  } catch (const Failure& failure) {
    std::fprintf(stderr, "edge-encode: %s\n", printable(failure.what()).c_str());
    return 1;
  } catch (const std::bad_alloc&) {
    std::fputs("edge-encode: there is not enough memory: end other programs\n", stderr);
    return 1;
  }
  errno = 0;
  if (std::fflush(stdout) != 0 && report.lost == 0) report.lost = errno ? errno : EIO;
  // A reader that has closed its end, as `head` does, is no error.
  if (report.lost == 0 || report.lost == EPIPE || report.file == stderr) return status;
  std::fprintf(stderr, "edge-encode: lines for standard output were lost: %s\n",
               std::strerror(report.lost));
  return 1;
}

}  // namespace
}  // namespace command

int main(int count, char** values) {
  command::end_cleanly_on_signals();
  return command::run_command(count, values);
}
