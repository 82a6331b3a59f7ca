// Which images the arguments name, and the output of each, as runtime/images/find.py defines them
// for the Python command.
//
// Always holds: no two images have the same output. Images come in the order of the arguments,
// sorted within a folder or pattern. A folder that cannot be read is an error, not an empty folder.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

namespace command {

// An image and its feature file; "-" is standard input or output.
struct Job {
  std::string image, output;
};

// The part of a path behind its last slash, and the part before it with the slash.
std::string base_of(const std::string& path);
std::string folder_of(const std::string& path);
bool is_folder(const std::string& path);

// How many files in folders and patterns are no images, by suffix or kind.
using PassedOver = std::map<std::string, size_t>;

// One line about them for a person.
std::string describe(const PassedOver& passed_over);

// The images that the arguments name and where each is written to with `-o output`. A folder stands
// for all JPEG and PNM files in it and below, but for hidden ones. A pattern with *, ? or []
// stands for those that it matches, and for files of the suffix that it spells out.
// Throws WrongUsage and Failure.
std::vector<Job> find_jobs(const std::vector<std::string>& arguments, const std::string& output,
                           PassedOver& passed_over);

}  // namespace command
