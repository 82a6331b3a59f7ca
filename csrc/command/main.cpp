// The command edge-encode without Python: images to feature files, on a device with libjpeg alone.
//
// Options, reports, refusals and exit statuses are those of the Python command
// (runtime/cli/edge_encode.py), and the feature files those of its engine `native`. It lacks
// formats other than JPEG and PNM, and the options that arguments.cpp refuses.
//
// Always holds: an image that fails stops no other. A report that cannot be printed does not stop
// the work.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "../include/edgecloud.h"
#include "arguments.hpp"
#include "failure.hpp"
#include "files.hpp"
#include "find.hpp"
#include "picture.hpp"

namespace command {
namespace {

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

  void say(const std::string& line) { print(printable(line) + "\n"); }
  void print(const std::string& text) {
    errno = 0;
    if (lost == 0 && (std::fputs(text.c_str(), file) < 0 || std::fflush(file) != 0))
      lost = errno ? errno : EIO;
  }
};

void complain(const std::string& text) {
  std::fprintf(stderr, "edge-encode: %s\n", printable(text).c_str());
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
    if (edgecloud_encoder_ask(encoder, &arguments.budget, &error))
      throw Failure(arguments.bundle + ": " + error.text);
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
    if (arguments_.raw_width == 0)
      return command::decode(read_file(image), name,
                             arguments_.fast_jpeg && !arguments_.as_is ? 2 * info_.resize : 0);
    check_pixels(name, arguments_.raw_height, arguments_.raw_width);
    const size_t size = 3 * arguments_.raw_width * arguments_.raw_height;
    Bytes pixels = read_file(image, std::max(size, kMaxFileBytes));
    if (pixels.size() != size)
      throw Failure(name + " has " + std::to_string(pixels.size()) + " bytes, and --raw asks for " +
                    std::to_string(size) + ": check the size and the format");
    return {arguments_.raw_height, arguments_.raw_width, std::move(pixels)};
  }

  // Python's round((length - size) / 2): halves go to the even neighbour.
  static size_t before(size_t length, size_t size) {
    const size_t rest = length - size;
    return rest / 2 + (rest % 4 == 3);
  }

  // Throws Failure for an image that gives too many symbols.
  void require_symbols(size_t height, size_t width) const {
    const uint64_t rows = height / info_.stride - info_.shrink,
                   columns = width / info_.stride - info_.shrink;
    const uint64_t symbols = info_.channels * rows * columns;
    if (symbols > info_.max_symbols)
      throw Failure("an image of " + std::to_string(width) + "x" + std::to_string(height) +
                    " pixels gives " + std::to_string(symbols) + " symbols, the bundle allows " +
                    std::to_string(info_.max_symbols) +
                    ": leave out --as-is, make it smaller, or export with a larger --max-pixels");
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
      require_symbols(height, width);
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
                    ", \"bytes\": %zu, \"bpp\": %.17g, \"width\": %zu, \"height\": %zu%s, "
                    "\"milliseconds\": {\"preprocess\": %.3f, \"encode\": %.3f, \"write\": %.3f, "
                    "\"total\": %.3f}}",
                    size, bpp, width, height, level_of(file, size).c_str(), times[0], times[1],
                    times[2], times[3]);
      report_.say("{\"status\": \"encoded\", \"image\": " + json(job.image) +
                  ", \"output\": " + json(job.output) + text);
    } else {
      std::snprintf(text, sizeof text, ": %zu bytes, %.3f bpp at %zux%zu, %.1f ms", size, bpp,
                    width, height, times[3]);
      report_.say(job.image + " -> " + (job.output == "-" ? "standard output" : job.output) + text);
    }
  }

  // The members of a report that only files of a variable-rate bundle have.
  static std::string level_of(const uint8_t* file, size_t size) {
    edgecloud_file_info info;
    if (edgecloud_file_parse(file, size, &info, nullptr) || info.step < 0) return "";
    char text[64];
    std::snprintf(text, sizeof text, ", \"level\": %g, \"kept_channels\": ", info.step / 16.0);
    return text + (info.kept < 0 ? "null" : std::to_string(info.kept));
  }

  void fail(const Job& job, const std::string& why) {
    const std::string name = job.image == "-" ? "standard input" : job.image;
    const std::string reason = why.find(name) == std::string::npos ? name + ": " + why : why;
    complain(reason);
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

void say_passed_over(const PassedOver& passed_over, bool as_json) {
  if (passed_over.empty()) return;
  if (!as_json) return complain(describe(passed_over));
  std::string members;
  for (const auto& [kind, count] : passed_over)
    members += (members.empty() ? "" : ", ") + json(kind) + ": " + std::to_string(count);
  std::fprintf(stderr, "{\"passed_over\": {%s}}\n", members.c_str());
}

// Checks before any work that outputs can be written, and replace no image or bundle file.
void check_outputs(const Arguments& arguments, const std::vector<Job>& jobs) {
  if (arguments.to_stdout && was_closed(1)) throw Failure("standard output is closed: name a file");
  refuse_same_files(jobs, arguments.bundle);
  if (jobs.size() == 1 && jobs[0].output == arguments.output)
    check_output(arguments.output);
  else
    check_folder(arguments.output);
}

int run(const Arguments& arguments, Report& report) {
  PassedOver passed_over;
  const std::vector<Job> jobs = find_jobs(arguments.images, arguments.output, passed_over);
  say_passed_over(passed_over, arguments.json);
  check_outputs(arguments, jobs);
  Command command(arguments, report);
  const Clock::time_point begin = Clock::now();
  size_t failed = 0;
  for (const Job& job : jobs) failed += !command.encode(job);
  if (jobs.size() > 1) {
    const size_t encoded = jobs.size() - failed;
    char text[128];
    std::snprintf(text, sizeof text, "%zu encoded, 0 skipped, %zu failed; %.1f images/s", encoded,
                  failed, 1e3 * static_cast<double>(encoded) / milliseconds(begin, Clock::now()));
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
    std::string answer;
    if (parse(count, values, arguments, answer)) {
      // With the feature file on standard output, the report goes to standard error.
      if (arguments.to_stdout) report.file = stderr;
      status = run(arguments, report);
    } else {
      report.print(answer);
    }
  } catch (const WrongUsage& wrong) {
    std::fprintf(stderr, "%sedge-encode: error: %s\n", kUsage, printable(wrong.what()).c_str());
    status = 2;
  } catch (const Failure& failure) {
    complain(failure.what());
    status = 1;
  } catch (const std::bad_alloc&) {
    complain("there is not enough memory: end other programs, or give it less to do at a time");
    status = 1;
  }
  // A reader that has closed its end, as `head` does, is no error.
  if (report.lost == 0 || report.lost == EPIPE || report.file == stderr) return status;
  complain(std::string("lines for standard output were lost: ") + std::strerror(report.lost));
  return status ? status : 1;
}

}  // namespace
}  // namespace command

int main(int count, char** values) {
  command::mend_streams();
  command::end_cleanly_on_signals();
  return command::run_command(count, values);
}
