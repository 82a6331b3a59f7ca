// See files.hpp.
#include "files.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <random>
#include <set>
#include <system_error>

namespace command {
namespace {

namespace fs = std::filesystem;
using Identity = std::pair<dev_t, ino_t>;

const char* const kSuffixes[] = {".jpg", ".jpeg", ".jpe", ".jfif", ".ppm", ".pgm", ".pnm"};

// The temporary file that is being written; a signal removes it.
char g_temporary[4096];

bool is_picture(const fs::path& path) {
  std::string suffix = path.extension();
  for (char& letter : suffix) letter = static_cast<char>(std::tolower(letter));
  return std::find(std::begin(kSuffixes), std::end(kSuffixes), suffix) != std::end(kSuffixes);
}

bool is_hidden(const fs::path& path) { return path.filename().string().front() == '.'; }

struct Found {
  std::string image, name;  // the name is the path below the argument
};

std::vector<Found> in_folder(const std::string& argument, PassedOver& passed_over) {
  std::vector<Found> found;
  const fs::path root(argument);
  try {
    for (fs::recursive_directory_iterator at(root), end; at != end; ++at) {
      const bool is_folder = at->is_directory() && !at->is_symlink();
      if (is_hidden(at->path())) {
        if (is_folder) at.disable_recursion_pending();
      } else if (!is_folder) {
        std::error_code ignored;
        if (is_picture(at->path()) && at->is_regular_file(ignored))
          found.push_back({at->path(), at->path().lexically_relative(root).generic_string()});
        else
          ++passed_over.count;
      }
    }
  } catch (const fs::filesystem_error& error) {
    throw Failure(explain(error.path1(), error.code().value()));
  }
  std::sort(found.begin(), found.end(),
            [](const Found& a, const Found& b) { return a.image < b.image; });
  if (found.empty())
    throw Failure("no image in " + argument + ": name a folder that has JPEG or PNM files");
  return found;
}

bool identity(const std::string& name, int stream, Identity& out) {
  struct stat about;
  const int failed = name == "-" ? fstat(stream, &about) : stat(name.c_str(), &about);
  if (failed || !S_ISREG(about.st_mode)) return false;
  out = {about.st_dev, about.st_ino};
  return true;
}

// The number N for /dev/stdout, /dev/fd/N and other names of this process's descriptors, else -1.
int own_descriptor(const std::string& name) {
  if (name == "-" || name == "/dev/stdout") return 1;
  if (name == "/dev/stderr") return 2;
  for (const char* prefix : {"/dev/fd/", "/proc/self/fd/"}) {
    const size_t length = std::strlen(prefix);
    if (name.compare(0, length, prefix) == 0 && name.size() > length &&
        name.find_first_not_of("0123456789", length) == std::string::npos)
      return std::atoi(name.c_str() + length);
  }
  return -1;
}

[[noreturn]] void cannot_write(const std::string& name, int number) {
  throw Failure("cannot write " + explain(name == "-" ? "standard output" : name, number));
}

bool write_all(int file, const uint8_t* data, size_t size) {
  while (size > 0) {
    const ssize_t written = write(file, data, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    data += written, size -= static_cast<size_t>(written);
  }
  return true;
}

void write_in_place(const std::string& name, int file, const uint8_t* data, size_t size) {
  if (file < 0) cannot_write(name, errno);
  const bool written = write_all(file, data, size);
  const int number = errno;
  const bool closed = close(file) == 0;
  if (!written || !closed) cannot_write(name, written ? errno : number);
}

// A temporary file beside a target, which is locked, so that it is not taken for a leftover.
int open_temporary(const fs::path& target, fs::path& temporary) {
  std::random_device random;
  char digits[17];
  std::snprintf(digits, sizeof digits, "%08x%08x", random(), random());
  temporary = target.parent_path() /
              ("." + target.filename().string().substr(0, 40) + "." + digits + ".partial");
  if (temporary.string().size() >= sizeof g_temporary) cannot_write(target, ENAMETOOLONG);
  const int file = open(temporary.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file >= 0) {
    std::strcpy(g_temporary, temporary.c_str());
    flock(file, LOCK_EX);
  }
  return file;
}

void replace(const std::string& name, const fs::path& target, const uint8_t* data, size_t size) {
  fs::path temporary;
  const int file = open_temporary(target, temporary);
  if (file < 0) cannot_write(name, errno);
  struct stat before;
  if (stat(target.c_str(), &before) == 0 && fchmod(file, before.st_mode & 07777) != 0) errno = 0;
  const bool written = write_all(file, data, size) && fsync(file) == 0 &&
                       std::rename(temporary.c_str(), target.c_str()) == 0;
  const int number = errno;
  if (!written) unlink(temporary.c_str());
  g_temporary[0] = 0;
  close(file);
  if (!written) cannot_write(name, number);
}

void on_signal(int number) {
  if (g_temporary[0]) unlink(g_temporary);
  const char* line = number == SIGINT    ? "edge-encode: interrupted\n"
                     : number == SIGTERM ? "edge-encode: stopped by SIGTERM\n"
                                         : "edge-encode: stopped by SIGHUP\n";
  if (write(2, line, std::strlen(line)) < 0) _exit(128 + number);
  _exit(128 + number);
}

void refuse_repeated(const std::vector<Job>& jobs) {
  std::set<std::string> seen;
  for (const Job& job : jobs)
    if (!seen.insert(job.output).second)
      throw WrongUsage("several images would be written to " + job.output +
                       ": encode them to different folders");
}

}  // namespace

std::vector<Job> find_jobs(const std::vector<std::string>& arguments, const std::string& output,
                           PassedOver& passed_over) {
  std::vector<Found> found;
  for (const std::string& argument : arguments) {
    std::error_code ignored;
    if (argument != "-" && fs::is_directory(argument, ignored)) {
      const std::vector<Found> more = in_folder(argument, passed_over);
      found.insert(found.end(), more.begin(), more.end());
    } else {
      found.push_back({argument, argument == "-" ? "stdin" : fs::path(argument).filename()});
    }
  }
  const bool alone = found.size() == 1 && arguments.size() == 1 && found[0].image == arguments[0];
  if (output == "-") {
    if (!alone)
      throw WrongUsage(
          "standard output takes one feature file: name a folder with -o for several images");
    return {{found[0].image, "-"}};
  }
  std::error_code ignored;
  const bool is_folder = fs::is_directory(output, ignored);
  if (alone && !is_folder && output.back() != '/') return {{found[0].image, output}};
  if (fs::exists(output, ignored) && !is_folder)
    throw WrongUsage("-o " + output + " is a file: name a folder for several images");
  std::vector<Job> jobs;
  for (const Found& one : found) {
    fs::path target = fs::path(output) / one.name;
    jobs.push_back({one.image, target.replace_extension(".bin")});
  }
  refuse_repeated(jobs);
  return jobs;
}

void refuse_same_files(const std::vector<Job>& jobs, const std::string& bundle) {
  std::map<Identity, std::string> outputs;
  Identity found;
  for (const Job& job : jobs)
    if (identity(job.output, 1, found) && !outputs.emplace(found, job.output).second)
      throw Failure(outputs[found] + " and " + job.output +
                    " are one file: name another for one of the outputs");
  std::vector<std::string> inputs;
  for (const Job& job : jobs) inputs.push_back(job.image);
  std::error_code ignored;
  for (fs::directory_iterator at(bundle, ignored), end; at != end; at.increment(ignored))
    inputs.push_back(at->path());
  for (const std::string& input : inputs)
    if (identity(input, 0, found) && outputs.count(found))
      throw Failure("the output would replace the input " +
                    (input == "-" ? "on standard input" : input) + ": name another output");
}

Bytes read_file(const std::string& name, size_t most) {
  const int file = name == "-" ? dup(0) : open(name.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    if (name == "-") throw Failure("standard input is closed: name a file");
    if (errno == ENOENT || errno == ENOTDIR) throw Failure("no such file: " + name);
    throw Failure(explain(name, errno));
  }
  struct stat about;
  Bytes bytes;
  if (fstat(file, &about) == 0 && S_ISREG(about.st_mode) && about.st_size > 0 &&
      static_cast<uint64_t>(about.st_size) <= most)
    bytes.reserve(static_cast<size_t>(about.st_size) + 1);
  ssize_t got = 1;
  for (size_t size = 0; got > 0 && size <= most;
       size += static_cast<size_t>(std::max<ssize_t>(got, 0))) {
    bytes.resize(std::max(bytes.capacity(), size + (size_t{1} << 16)));
    do got = read(file, bytes.data() + size, bytes.size() - size);
    while (got < 0 && errno == EINTR);
    bytes.resize(size + static_cast<size_t>(std::max<ssize_t>(got, 0)));
  }
  const int number = errno;
  close(file);
  const std::string shown = name == "-" ? "standard input" : name;
  if (got < 0) throw Failure(explain(shown, number));
  if (bytes.size() > most)
    throw Failure(shown + " has more than " + std::to_string(most) +
                  " bytes, no image is so large: make it smaller first");
  return bytes;
}

void write_file(const std::string& name, const uint8_t* data, size_t size) {
  if (const int own = own_descriptor(name); own >= 0)
    return write_in_place(name, dup(own), data, size);
  std::error_code failed;
  fs::path target = name;
  for (int links = 0; fs::is_symlink(target, failed); ++links) {
    if (links == 40) cannot_write(name, ELOOP);
    const fs::path next = fs::read_symlink(target, failed);
    target = next.is_absolute() ? next : target.parent_path() / next;
  }
  struct stat about;
  if (stat(target.c_str(), &about) == 0 && !S_ISREG(about.st_mode)) {
    if (S_ISDIR(about.st_mode)) cannot_write(name, EISDIR);
    return write_in_place(name, open(target.c_str(), O_WRONLY | O_CLOEXEC), data, size);
  }
  if (errno != ENOENT && access(target.c_str(), F_OK) == 0 && access(target.c_str(), W_OK) != 0)
    cannot_write(name, EACCES);
  if (target.has_parent_path()) {
    fs::create_directories(target.parent_path(), failed);
    if (failed) cannot_write(name, failed.value());
  }
  replace(name, target, data, size);
}

void end_cleanly_on_signals() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before;
    if (sigaction(number, nullptr, &before) == 0 && before.sa_handler == SIG_DFL)
      sigaction(number, &action, nullptr);
  }
  std::signal(SIGPIPE, SIG_IGN);
}

}  // namespace command
