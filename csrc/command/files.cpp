// See files.hpp. POSIX calls in place of <filesystem>, which would add a megabyte to the command.
#include "files.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>

namespace command {
namespace {

using Identity = std::pair<dev_t, ino_t>;

// The temporary file that is being written; a signal removes it.
char g_temporary[PATH_MAX];
std::atomic<bool> g_has_temporary{false};
bool g_was_closed[3];  // of the standard streams

bool identity(const std::string& name, int stream, Identity& out) {
  struct stat about;
  const int failed = name == "-" ? fstat(stream, &about) : stat(name.c_str(), &about);
  if (failed || !S_ISREG(about.st_mode)) return false;
  out = {about.st_dev, about.st_ino};
  return true;
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
  // Before the file is made, because a signal may come in between.
  std::strcpy(g_temporary, temporary.c_str());
  g_has_temporary = true;
  const int file = open(temporary.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file >= 0)
    flock(file, LOCK_EX);
  else
    g_has_temporary = false;
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
  g_has_temporary = false;
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

// What a name stands for, symbolic links followed, in its real folder. Names in /proc, such as
// those of descriptors, are not followed further. Throws Failure.
std::string followed(const std::string& name) {
  std::string target = name;
  char text[PATH_MAX];
  for (int links = 0;; ++links) {
    const std::string folder = folder_of(target);
    if (realpath(folder.empty() ? "." : folder.c_str(), text))
      target = std::string(text) + (text[1] ? "/" : "") + base_of(target);
    if (target.compare(0, 6, "/proc/") == 0) return target;
    const ssize_t length = readlink(target.c_str(), text, sizeof text);
    if (length < 0) return target;
    if (links == 40 || length == static_cast<ssize_t>(sizeof text)) cannot_write(name, ELOOP);
    const std::string next(text, static_cast<size_t>(length));
    target = next[0] == '/' ? next : folder_of(target) + next;
  }
}

bool is_regular(const std::string& path) {
  struct stat about;
  return stat(path.c_str(), &about) == 0 && S_ISREG(about.st_mode);
}

bool exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

void on_signal(int number) {
  if (g_has_temporary) unlink(g_temporary);
  const char* line = number == SIGINT    ? "edge-encode: interrupted\n"
                     : number == SIGTERM ? "edge-encode: stopped by SIGTERM\n"
                                         : "edge-encode: stopped by SIGHUP\n";
  if (write(2, line, std::strlen(line)) < 0) _exit(128 + number);
  _exit(128 + number);
}

}  // namespace

void refuse_same_files(const std::vector<Job>& jobs, const std::string& bundle) {
  std::map<Identity, std::string> existing;
  std::map<std::string, std::string> targets;
  Identity found;
  for (const Job& job : jobs) {
    if (identity(job.output, 1, found)) existing[found] = job.output;
    if (job.output == "-") continue;
    const auto [other, is_new] = targets.emplace(followed(job.output), job.output);
    if (!is_new)
      throw Failure(other->second + " and " + job.output +
                    " are one file: name another for one of the outputs");
  }
  std::vector<std::string> inputs;
  for (const Job& job : jobs) inputs.push_back(job.image);
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir(bundle.c_str()), closedir);
  while (const dirent* entry = folder ? readdir(folder.get()) : nullptr)
    inputs.push_back(bundle + (bundle.back() == '/' ? "" : "/") + entry->d_name);
  for (const std::string& input : inputs) {
    if (!identity(input, 0, found) || existing.count(found) == 0) continue;
    const std::string& output = existing[found];
    const std::string same = ", which is " + (output == "-" ? "standard output" : output);
    throw Failure("the output would replace the input " +
                  (input == "-" ? "on standard input" : input) + (output == input ? "" : same) +
                  ": name another output");
  }
}

void check_output(const std::string& name) {
  if (name == "-") return;
  if (name.back() == '/' || is_folder(name))
    throw Failure(name + " is a folder: name a file in it");
  const std::string target = followed(name);
  if (exists(target) && access(target.c_str(), W_OK) != 0)
    throw Failure(is_regular(target) ? name + " cannot be written (" + std::strerror(errno) +
                                           "): name another file"
                                     : name + " cannot be written into: name another file");
  if (!exists(target)) check_folder(folder_of(target));
  if (is_regular(target) && own_descriptor(name) < 0) check_folder(folder_of(target));
}

void check_folder(const std::string& name) {
  std::string folder = name;
  if (folder.empty() || folder[0] != '/') {
    char here[PATH_MAX];
    if (!getcwd(here, sizeof here)) throw Failure(explain(".", errno));
    folder = std::string(here) + "/" + folder;
  }
  struct stat about;
  for (;;) {
    while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
    if (lstat(folder.c_str(), &about) == 0) break;
    folder = folder_of(folder);
  }
  if (!is_folder(folder))
    throw Failure(folder +
                  " is not a folder, so no files can be written into it: name another folder");
  if (access(folder.c_str(), W_OK | X_OK) != 0)
    throw Failure("the folder " + folder +
                  " cannot be written into: change its permissions, or name another");
}

Bytes read_file(const std::string& name, size_t most) {
  if (name == "-" && was_closed(0)) throw Failure("standard input is closed: name a file");
  const int file = name == "-" ? dup(0) : open(name.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    if (errno == ENOENT || errno == ENOTDIR)
      throw Failure("no such file: " + (name.empty() ? "a name of no characters" : name));
    if (errno == ENAMETOOLONG) throw Failure("no such file, for the name is too long: " + name);
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
  if (is_folder(target)) cannot_write(name, EISDIR);
  if (exists(target) && (!is_regular(target) || target.compare(0, 6, "/proc/") == 0))
    return write_in_place(name, open(target.c_str(), O_WRONLY | O_CLOEXEC), data, size);
  // A rename would need no write permission for the file, but its owner has taken that away.
  if (exists(target) && access(target.c_str(), W_OK) != 0) cannot_write(name, EACCES);
  make_folders(name, target);
  replace(name, target, data, size);
}

int own_descriptor(const std::string& name) {
  if (name == "-") return 1;
  const std::string target = followed(name);
  const std::string mine = "/proc/" + std::to_string(getpid()) + "/fd/";
  const bool own = target.compare(0, mine.size(), mine) == 0 && target.size() > mine.size() &&
                   target.size() < mine.size() + 10 &&
                   target.find_first_not_of("0123456789", mine.size()) == std::string::npos;
  return own ? std::atoi(target.c_str() + mine.size()) : -1;
}

void mend_streams() {
  for (int stream = 0; stream < 3; ++stream) {
    const int flags = fcntl(stream, F_GETFL);
    if (flags >= 0) {
      if (flags & O_NONBLOCK) fcntl(stream, F_SETFL, flags & ~O_NONBLOCK);
      continue;
    }
    g_was_closed[stream] = true;
    if (open("/dev/null", O_RDWR) < 0) _exit(1);  // it gets the lowest number, which is `stream`
  }
}

bool was_closed(int stream) { return g_was_closed[stream]; }

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
