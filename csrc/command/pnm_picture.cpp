// Decodes a PNM, plain (P2, P3) or raw (P5, P6), of at most eight bits a level, to the levels that
// Pillow gives. The format: https://netpbm.sourceforge.net/doc/
#include <algorithm>
#include <cmath>

#include "picture.hpp"

namespace command {
namespace {

// Reads what lies before the levels of raw files, and all of plain files.
class Text {
 public:
  Text(const Bytes& file, const std::string& name) : file_(file), name_(name) {}

  size_t at() const { return at_; }

  [[noreturn]] void refuse(const std::string& why) const {
    throw Failure(name_ + " is damaged or cut short (" + why + "): copy it again");
  }

  // The next number, after white space and comments, and the character behind it. Throws Failure.
  size_t number(const char* what) {
    while (at_ < file_.size() && (is_space(file_[at_]) || file_[at_] == '#'))
      if (!skip_comment()) ++at_;
    size_t value = 0, digits = 0;
    for (; at_ < file_.size() && file_[at_] >= '0' && file_[at_] <= '9'; ++at_, ++digits) {
      if (digits == 9) refuse(std::string(what) + " has too many digits");
      value = 10 * value + (file_[at_] - '0');
    }
    // Readers differ in whether a comment ends a number, so white space has to follow it.
    skip_comment();
    if (digits == 0 || (at_ < file_.size() && !is_space(file_[at_])))
      refuse(std::string("no number where ") + what + " should be");
    ++at_;
    return value;
  }

 private:
  static bool is_space(uint8_t letter) {
    return letter == ' ' || (letter >= '\t' && letter <= '\r');
  }

  // Skips a comment with the end of its line; false if there is none here.
  bool skip_comment() {
    if (at_ >= file_.size() || file_[at_] != '#') return false;
    while (at_ < file_.size() && file_[at_] != '\n' && file_[at_] != '\r') ++at_;
    at_ += at_ < file_.size();
    return true;
  }

  const Bytes& file_;
  const std::string& name_;
  size_t at_ = 2;
};

}  // namespace

Picture decode_pnm(const Bytes& file, const std::string& name) {
  Text text(file, name);
  Picture picture;
  picture.width = text.number("its width");
  picture.height = text.number("its height");
  const size_t most = text.number("its largest level");
  if (picture.width == 0 || picture.height == 0) text.refuse("it has no pixels");
  if (most == 0 || most > 65535) text.refuse("its largest level is not from 1 to 65535");
  if (most > 255)
    throw Failure(name + " has levels up to " + std::to_string(most) +
                  ", and this command reads those up to 255: convert it to 8 bits, or use the "
                  "Python command");
  check_pixels(name, picture.height, picture.width);
  const bool is_grey = file[1] == '2' || file[1] == '5', is_plain = file[1] < '4';
  const size_t count = picture.height * picture.width * (is_grey ? 1 : 3);
  // A level of a plain file takes two bytes, but for the last.
  const size_t rest = file.size() - std::min(file.size(), text.at());
  if (is_plain ? rest < 2 * count - 1 : rest < count)
    text.refuse("its data ends before its picture does");
  uint8_t scaled[256];
  for (size_t level = 0; level < 256; ++level)
    scaled[level] = static_cast<uint8_t>(
        std::min(255.0, std::nearbyint(static_cast<double>(level) / static_cast<double>(most) *
                                       255.0)));  // halves to the even neighbour, as in Python
  picture.pixels.resize(3 * picture.height * picture.width);
  uint8_t* out = picture.pixels.data();
  const uint8_t* raw = file.data() + text.at();
  for (size_t i = 0; i < count; ++i) {
    const size_t level = is_plain ? text.number("a level") : raw[i];
    if (is_plain && level > most) text.refuse("a level is above the largest");
    for (int copy = is_grey ? 3 : 1; copy > 0; --copy) *out++ = scaled[level];
  }
  return picture;
}

}  // namespace command
