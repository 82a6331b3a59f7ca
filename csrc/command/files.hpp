// Inputs, outputs and the names that they have, as runtime/images/find.py and runtime/files.py
// define them for the Python command.
//
// Always holds: an output file appears whole or not at all, under a temporary name first. A
// symbolic link stays, and the file that it points to is replaced. A device or a pipe is written
// into. No output replaces an input.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "picture.hpp"

namespace command {

// An image and its feature file; "-" is standard input or output.
struct Job {
  std::string image, output;
};

// What folders have that are no images.
struct PassedOver {
  size_t count = 0;
};

// The images that the arguments name and where each is written to with `-o output`. A folder stands
// for all JPEG and PNM files in it and below, but for hidden ones, in the order of their names.
// Throws WrongUsage and Failure.
std::vector<Job> find_jobs(const std::vector<std::string>& arguments, const std::string& output,
                           PassedOver& passed_over);

// Refuses outputs that are inputs, each other, or files of the bundle, under any name. Throws
// Failure.
void refuse_same_files(const std::vector<Job>& jobs, const std::string& bundle);

// The contents of a file, or of standard input for "-": `most` bytes at most. Throws Failure.
Bytes read_file(const std::string& name, size_t most = size_t{256} << 20);

// Writes an output, whole or not at all. Throws Failure.
void write_file(const std::string& name, const uint8_t* data, size_t size);

// Makes SIGINT, SIGTERM and SIGHUP end the process with a line and status 128 + number, after the
// temporary file is removed.
void end_cleanly_on_signals();

}  // namespace command
