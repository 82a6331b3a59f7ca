// See files.hpp. POSIX calls in place of <filesystem>, which would add a megabyte to the command.
#include "files.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <set>

namespace command {
namespace {

using Identity = std::pair<dev_t, ino_t>;

const char* const kSuffixes[] = {".jpg", ".jpeg", ".jpe", ".jfif", ".ppm", ".pgm", ".pnm"};

// The temporary file that is being written; a signal removes it.
char g_temporary[4096];

// The part of a path behind its last slash, and the part before it with the slash.
std::string base_of(const std::string& path) { return path.substr(path.rfind('/') + 1); }
std::string folder_of(const std::string& path) { return path.substr(0, path.rfind('/') + 1); }

// Where the suffix of a path begins, which its last part must not begin with; else its end.
size_t suffix_at(const std::string& path) {
  const size_t dot = path.rfind('.'), begin = folder_of(path).size();
  return dot == std::string::npos || dot <= begin ? path.size() : dot;
}

bool is_picture(const std::string& path) {
  std::string suffix = path.substr(suffix_at(path));
  for (char& letter : suffix)
    if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter + 32);
  return std::find(std::begin(kSuffixes), std::end(kSuffixes), suffix) != std::end(kSuffixes);
}

bool is_folder(const std::string& path) {
  struct stat about;
  return stat(path.c_str(), &about) == 0 && S_ISDIR(about.st_mode);
}

struct Found {
  std::string image, name;  // the name is the path below the argument
};

// Adds the pictures in `root`/`below` and in folders in it; links to folders are not followed.
void walk(const std::string& root, const std::string& below, std::vector<Found>& found,
          PassedOver& passed_over) {
  const std::string folder = root + below;
  const std::unique_ptr<DIR, int (*)(DIR*)> open(opendir(folder.c_str()), closedir);
  if (!open) throw Failure(explain(folder, errno));
  while (const dirent* entry = readdir(open.get())) {
    if (entry->d_name[0] == '.') continue;
    const std::string name = below + entry->d_name, path = root + name;
    struct stat link, about;
    if (lstat(path.c_str(), &link) == 0 && S_ISDIR(link.st_mode))
      walk(root, name + "/", found, passed_over);
    else if (is_picture(path) && stat(path.c_str(), &about) == 0 && S_ISREG(about.st_mode))
      found.push_back({path, name});
    else
      ++passed_over.count;
  }
}

std::vector<Found> in_folder(const std::string& argument, PassedOver& passed_over) {
  std::vector<Found> found;
  walk(argument.back() == '/' ? argument : argument + "/", "", found, passed_over);
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

// Sixteen hexadecimal digits that no other file has.
std::string random_digits() {
  uint8_t bytes[8] = {};
  const int source = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
  if (source < 0 || read(source, bytes, sizeof bytes) != sizeof bytes)
    std::snprintf(reinterpret_cast<char*>(bytes), sizeof bytes, "%d", getpid());
  if (source >= 0) close(source);
  std::string digits;
  for (const uint8_t byte : bytes) {
    digits += "0123456789abcdef"[byte >> 4];
    digits += "0123456789abcdef"[byte & 15];
  }
  return digits;
}

// A temporary file beside a target, which is locked, so that it is not taken for a leftover.
int open_temporary(const std::string& target, std::string& temporary) {
  temporary =
      folder_of(target) + "." + base_of(target).substr(0, 40) + "." + random_digits() + ".partial";
  if (temporary.size() >= sizeof g_temporary) cannot_write(target, ENAMETOOLONG);
  const int file = open(temporary.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file >= 0) {
    std::strcpy(g_temporary, temporary.c_str());
    flock(file, LOCK_EX);
  }
  return file;
}

void replace(const std::string& name, const std::string& target, const uint8_t* data, size_t size) {
  std::string temporary;
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

// Makes the folders that a path lies in. Throws Failure.
void make_folders(const std::string& name, const std::string& path) {
  for (size_t slash = path.find('/', 1); slash != std::string::npos;
       slash = path.find('/', slash + 1))
    if (mkdir(path.substr(0, slash).c_str(), 0777) != 0 && errno != EEXIST) {
      const int number = errno;
      if (!is_folder(path.substr(0, slash))) cannot_write(name, number);
    }
}

// What a symbolic link points to in the end; the path itself if it is none. Throws Failure.
std::string followed(const std::string& name) {
  std::string target = name;
  char text[4096];
  for (int links = 0;; ++links) {
    const ssize_t length = readlink(target.c_str(), text, sizeof text);
    if (length < 0) return target;
    if (links == 40 || length == static_cast<ssize_t>(sizeof text)) cannot_write(name, ELOOP);
    const std::string next(text, static_cast<size_t>(length));
    target = next[0] == '/' ? next : folder_of(target) + next;
  }
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
    if (argument != "-" && is_folder(argument)) {
      const std::vector<Found> more = in_folder(argument, passed_over);
      found.insert(found.end(), more.begin(), more.end());
    } else {
      found.push_back({argument, argument == "-" ? "stdin" : base_of(argument)});
    }
  }
  const bool alone = found.size() == 1 && arguments.size() == 1 && found[0].image == arguments[0];
  if (output == "-") {
    if (!alone)
      throw WrongUsage(
          "standard output takes one feature file: name a folder with -o for several images");
    return {{found[0].image, "-"}};
  }
  if (alone && !is_folder(output) && output.back() != '/') return {{found[0].image, output}};
  struct stat about;
  if (stat(output.c_str(), &about) == 0 && !S_ISDIR(about.st_mode))
    throw WrongUsage("-o " + output + " is a file: name a folder for several images");
  std::vector<Job> jobs;
  const std::string folder = output.back() == '/' ? output : output + "/";
  for (const Found& one : found)
    jobs.push_back({one.image, folder + one.name.substr(0, suffix_at(one.name)) + ".bin"});
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
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir(bundle.c_str()), closedir);
  while (const dirent* entry = folder ? readdir(folder.get()) : nullptr)
    inputs.push_back(bundle + "/" + entry->d_name);
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
  const std::string target = followed(name);
  struct stat about;
  const bool exists = stat(target.c_str(), &about) == 0;
  if (exists && S_ISDIR(about.st_mode)) cannot_write(name, EISDIR);
  if (exists && !S_ISREG(about.st_mode))
    return write_in_place(name, open(target.c_str(), O_WRONLY | O_CLOEXEC), data, size);
  // A rename would need no write permission for the file, but its owner has taken that away.
  if (exists && access(target.c_str(), W_OK) != 0) cannot_write(name, EACCES);
  make_folders(name, target);
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
