// What goes wrong with one image or one output, and text for people and for JSON.
//
// Always holds: a text that is printed has no control characters, because a terminal would obey
// those in a file's name.
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
  const char* remedy = "";
  switch (number) {
    case EACCES:
    case EPERM: remedy = ": change its permissions, or name another"; break;
    case EROFS: remedy = ": name a place that can be written to"; break;
    case ENOSPC:
    case EDQUOT: remedy = ": free some space"; break;
    case EFBIG: remedy = ": raise the limit for the size of files (ulimit -f)"; break;
    case EMFILE: remedy = ": raise the limit for open files (ulimit -n)"; break;
    case ENAMETOOLONG: remedy = ": give it a shorter name"; break;
    case ELOOP: remedy = ": repair the symbolic links"; break;
    default: break;
  }
  return name + ": " + std::strerror(number) + remedy;
}

namespace detail {

// The number of bytes of the UTF-8 character that `text` has at `at`; 0 if it is none. `value`
// receives its code point.
inline size_t utf8_length(const std::string& text, size_t at, unsigned& value) {
  const auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned>(static_cast<unsigned char>(text[i])) : 0u;
  };
  value = byte(at);
  if (value < 0x80) return 1;
  const size_t length = value >= 0xf0 ? 4 : value >= 0xe0 ? 3 : 2;
  if (value < 0xc2 || value > 0xf4) return 0;
  value &= 0x7fu >> length;
  for (size_t i = 1; i < length; ++i) {
    if (byte(at + i) >> 6 != 2) return 0;
    value = value << 6 | (byte(at + i) & 63);
  }
  const bool is_short = length == 3 ? value < 0x800 : length == 4 && value < 0x10000;
  return is_short || value > 0x10ffff || (value >= 0xd800 && value < 0xe000) ? 0 : length;
}

inline void append_escape(std::string& out, const char* form, unsigned value) {
  char escape[8];
  std::snprintf(escape, sizeof escape, form, value);
  out += escape;
}

// `text` with escapes, `control` being the form of those for control characters. A byte that is not
// UTF-8 becomes the surrogate that Python gives it.
inline std::string escaped(const std::string& text, const char* control, const char* quoted) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    unsigned value = 0;
    const size_t length = utf8_length(text, at, value);
    if (length == 0)
      append_escape(out, "\\u%04x", 0xdc00u + static_cast<unsigned char>(text[at]));
    else if (value < 32 || (value >= 127 && value < 160))
      append_escape(out, control, value);
    else if (length == 1 && std::strchr(quoted, text[at]))
      (out += '\\') += text[at];
    else
      out.append(text, at, length);
    at += length ? length : 1;
  }
  return out;
}

}  // namespace detail

// The text as a line for a person.
inline std::string printable(const std::string& text) {
  return detail::escaped(text, "\\x%02x", "");
}

// The text as a JSON string.
inline std::string json(const std::string& text) {
  return "\"" + detail::escaped(text, "\\u%04x", "\"\\") + "\"";
}

}  // namespace command
