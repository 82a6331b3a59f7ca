// What goes wrong with one image or one output, and text for people.
#pragma once

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

namespace command {

// Ends the work on one image; its text is for the user.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// The arguments contradict each other or name impossible things: nothing is done.
struct WrongUsage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What the system says of errno, and a remedy if one is known.
inline std::string explain(const std::string& name, int number) {
  const char* remedy = number == EACCES || number == EPERM
                           ? ": change its permissions, or name another"
                       : number == EROFS  ? ": name a place that can be written to"
                       : number == ENOSPC ? ": free some space"
                       : number == EMFILE ? ": raise the limit for open files (ulimit -n)"
                                          : "";
  return name + ": " + std::strerror(number) + remedy;
}

// The text with escapes for control characters, because a terminal would obey those in a file's
// name.
inline std::string printable(const std::string& text) {
  std::string out;
  for (const char letter : text) {
    const unsigned value = static_cast<unsigned char>(letter);
    if (value >= 32 && value != 127) {
      out += letter;
    } else {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\x%02x", value);
      out += escape;
    }
  }
  return out;
}

// A JSON string. Bytes that are not ASCII are taken for UTF-8.
inline std::string json(const std::string& text) {
  std::string out = "\"";
  for (const char letter : text) {
    const unsigned value = static_cast<unsigned char>(letter);
    if (letter == '"' || letter == '\\') {
      out += '\\';
      out += letter;
    } else if (value >= 32) {
      out += letter;
    } else {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", value);
      out += escape;
    }
  }
  return out + "\"";
}

}  // namespace command
