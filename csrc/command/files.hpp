// Reading inputs and writing outputs, as runtime/files.py does for the Python command.
//
// Always holds: an output file appears whole or not at all, under a temporary name first. A
// symbolic link stays, and the file that it points to is replaced. A device or a pipe is written
// into. No output replaces an input.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "find.hpp"
#include "picture.hpp"

namespace command {

// Refuses outputs that are inputs, each other, or files of the bundle, under any name. Throws
// Failure.
void refuse_same_files(const std::vector<Job>& jobs, const std::string& bundle);

// Refuse, before any work, a name that no file can be written under, and a folder that cannot be
// made or written into. Throw Failure.
void check_output(const std::string& name);
void check_folder(const std::string& folder);

inline constexpr size_t kMaxFileBytes = size_t{256} << 20;  // larger than any image file

// The contents of a file, or of standard input for "-": `most` bytes at most. Throws Failure.
Bytes read_file(const std::string& name, size_t most = kMaxFileBytes);

// Writes an output, whole or not at all. Throws Failure.
void write_file(const std::string& name, const uint8_t* data, size_t size);

// The number N for /dev/stdout, /dev/fd/N, "-" (1) and other names of this process's descriptors,
// else -1.
int own_descriptor(const std::string& name);

// Opens the standard streams that are closed, for otherwise the next file that is opened would get
// such a number and receive what is printed. Makes them blocking. To be called first.
void mend_streams();
// Whether standard input (0), output (1) or error (2) was closed. Images and feature files are
// neither read from there nor written there.
bool was_closed(int stream);

// Makes SIGINT, SIGTERM and SIGHUP end the process with a line and status 128 + number, after the
// temporary file is removed.
void end_cleanly_on_signals();

}  // namespace command
