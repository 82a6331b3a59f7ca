// The command line of edge-encode: what runtime/cli/edge_encode.py takes, but for the options that
// need Python.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "../include/edgecloud.h"

namespace command {

struct Arguments {
  std::vector<std::string> images;
  std::string output, bundle;
  bool as_is = false, fast_jpeg = false, json = false;
  bool to_stdout = false;                // whether the feature file goes to standard output
  size_t raw_width = 0, raw_height = 0;  // of --raw; 0 without it
  edgecloud_options encoder = {};
  edgecloud_budget budget = {};
};

// The first lines of the help, which also stand before a message about wrong usage.
extern const char kUsage[];

// Reads the command line; false if it asked for the help or the version alone, which `answer` then
// receives. Throws WrongUsage.
bool parse(int count, char** values, Arguments& arguments, std::string& answer);

}  // namespace command
