// See find.hpp. POSIX calls in place of <filesystem>, which would add a megabyte to the command.
#include "find.hpp"

#include <dirent.h>
#include <glob.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <set>

#include "failure.hpp"

namespace command {
namespace {

// Pillow's suffixes of the formats that are decoded.
const std::set<std::string> kSuffixes = {".jpg", ".jpeg", ".jpe", ".jfif", ".ppm", ".pgm", ".pnm"};
constexpr size_t kMaxKinds = 5;    // named one by one in a message
constexpr size_t kMaxSuffix = 10;  // characters; a longer one is taken for a part of the name

struct Found {
  std::string image, name;  // the name is the path below the argument
};

// Where the suffix of a path begins; its end if it has none. A name's first dot begins none.
size_t suffix_at(const std::string& path) {
  const size_t dot = path.rfind('.'), begin = folder_of(path).size();
  return dot == std::string::npos || dot <= begin || dot + 1 == path.size() ? path.size() : dot;
}

std::string suffix_of(const std::string& path) {
  std::string suffix = path.substr(suffix_at(path));
  for (char& letter : suffix)
    if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
  return suffix;
}

// A path without empty parts and ".", as Python's pathlib writes it; "" for the current folder.
std::string tidy(const std::string& path) {
  std::string out = path[0] == '/' ? "/" : "";
  for (size_t begin = 0, end; begin < path.size(); begin = end + 1) {
    end = std::min(path.find('/', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    if (part.empty() || part == ".") continue;
    if (!out.empty() && out.back() != '/') out += '/';
    out += part;
  }
  return out;
}

// A path with a slash at its end, unless it is empty.
std::string as_folder(const std::string& path) {
  return path.empty() || path.back() == '/' ? path : path + "/";
}

// Collects what the arguments name.
class Finder {
 public:
  explicit Finder(PassedOver& passed_over) : all_passed_over_(passed_over) {}

  // Throws Failure.
  std::vector<Found> find(const std::string& argument) {
    found_.clear();
    passed_over_.clear();
    const size_t magic = argument.find_first_of("*?[");
    struct stat about;
    if (argument != "-" && is_folder(argument)) {
      walk(as_folder(tidy(argument)), "");
    } else if (magic != std::string::npos && stat(argument.c_str(), &about) != 0) {
      match(argument, magic);
    } else {
      return {{argument, argument == "-" ? "stdin" : base_of(argument)}};
    }
    for (const auto& [kind, count] : passed_over_) all_passed_over_[kind] += count;
    if (found_.empty())
      throw Failure("no image in " + argument +
                    (passed_over_.empty() ? "" : ", " + describe(passed_over_)) +
                    ": name a folder or a pattern that has some");
    std::sort(found_.begin(), found_.end(),
              [](const Found& a, const Found& b) { return a.image < b.image; });
    return found_;
  }

 private:
  // Adds what `root`/`below` has and folders in it; links to folders are not followed.
  void walk(const std::string& root, const std::string& below) {
    const std::string folder = root + below;
    const std::unique_ptr<DIR, int (*)(DIR*)> open(opendir(folder.empty() ? "." : folder.c_str()),
                                                   closedir);
    if (!open) throw Failure(explain(tidy(folder), errno));
    while (const dirent* entry = readdir(open.get())) {
      if (entry->d_name[0] == '.') continue;
      const std::string name = below + entry->d_name;
      struct stat link;
      if (lstat((root + name).c_str(), &link) == 0 && S_ISDIR(link.st_mode))
        walk(root, name + "/");
      else
        add(root, name, "");
    }
  }

  // Adds what a pattern matches; names begin at its first part with a character of a pattern.
  void match(const std::string& pattern, size_t magic) {
    if (pattern.find("**") != std::string::npos)
      throw Failure(pattern + " has **, which the Python command alone knows: name a folder");
    glob_t matched = {};
    const std::unique_ptr<glob_t, void (*)(glob_t*)> freed(&matched, globfree);
    const int status = glob(pattern.c_str(), GLOB_NOESCAPE | GLOB_NOSORT, nullptr, &matched);
    if (status == GLOB_NOSPACE) throw std::bad_alloc();
    const std::string suffix = suffix_of(pattern);
    const bool spelt_out = suffix.find_first_of("*?[") == std::string::npos;
    const std::string root = as_folder(tidy(folder_of(pattern.substr(0, magic))));
    for (size_t i = 0; status == 0 && i < matched.gl_pathc; ++i) {
      const std::string path = tidy(matched.gl_pathv[i]);
      struct stat link;
      if (lstat(path.c_str(), &link) == 0 && S_ISDIR(link.st_mode)) continue;
      add(root, path.substr(root.size()), spelt_out ? suffix : "");
    }
  }

  // Adds an entry that is no folder to the images, or to what is passed over.
  void add(const std::string& root, const std::string& name, const std::string& spelt_out) {
    const std::string path = root + name, suffix = suffix_of(name);
    struct stat about, link;
    if (stat(path.c_str(), &about) == 0 && S_ISREG(about.st_mode)) {
      if (kSuffixes.count(suffix) || (!suffix.empty() && suffix == spelt_out))
        found_.push_back({path, name});
      else
        ++passed_over_[!suffix.empty() && suffix.size() <= kMaxSuffix ? suffix : "no suffix"];
      return;
    }
    const bool has_entry = lstat(path.c_str(), &link) == 0;
    const mode_t mode = has_entry ? link.st_mode : 0;
    ++passed_over_[is_folder(path)                  ? "linked folder"
                   : S_ISFIFO(mode)                 ? "pipe"
                   : S_ISSOCK(mode)                 ? "socket"
                   : S_ISCHR(mode) || S_ISBLK(mode) ? "device"
                   : S_ISLNK(mode)                  ? "broken link"
                                                    : "other"];
  }

  PassedOver& all_passed_over_;
  PassedOver passed_over_;  // of one argument
  std::vector<Found> found_;
};

void refuse_repeated(const std::vector<Job>& jobs) {
  std::map<std::string, size_t> counts;
  for (const Job& job : jobs) ++counts[job.output];
  std::string names;
  size_t repeated = 0;
  for (const auto& [output, count] : counts)
    if (count > 1 && ++repeated <= 3) names += (names.empty() ? "" : ", ") + output;
  if (repeated > 3) names += " and " + std::to_string(repeated - 3) + " more";
  if (repeated > 0)
    throw WrongUsage("several images would be written to " + names +
                     ": encode them to different folders");
}

}  // namespace

std::string base_of(const std::string& path) { return path.substr(path.rfind('/') + 1); }
std::string folder_of(const std::string& path) { return path.substr(0, path.rfind('/') + 1); }

bool is_folder(const std::string& path) {
  struct stat about;
  return stat(path.c_str(), &about) == 0 && S_ISDIR(about.st_mode);
}

std::string describe(const PassedOver& passed_over) {
  std::vector<std::pair<std::string, size_t>> kinds(passed_over.begin(), passed_over.end());
  std::stable_sort(kinds.begin(), kinds.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  size_t total = 0, others = 0;
  std::string list;
  for (size_t i = 0; i < kinds.size(); ++i) {
    const auto& [kind, count] = kinds[i];
    total += count;
    if (i >= kMaxKinds)
      others += count;
    else
      list += (i ? ", " : "") + kind + " " + std::to_string(count);
  }
  if (others) list += ", others " + std::to_string(others);
  return "passed over " + std::to_string(total) +
         (total == 1 ? " that is no JPEG or PNM file (" : " that are no JPEG or PNM files (") +
         list + ")";
}

std::vector<Job> find_jobs(const std::vector<std::string>& arguments, const std::string& output,
                           PassedOver& passed_over) {
  Finder finder(passed_over);
  std::vector<Found> found;
  for (const std::string& argument : arguments)
    for (Found& one : finder.find(argument)) found.push_back(std::move(one));
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
  const std::string folder = as_folder(tidy(output));
  for (const Found& one : found)
    jobs.push_back({one.image, folder + one.name.substr(0, suffix_at(one.name)) + ".bin"});
  refuse_repeated(jobs);
  return jobs;
}

}  // namespace command
