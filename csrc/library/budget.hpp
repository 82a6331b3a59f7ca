// How large a variable-rate feature file becomes: what a caller asks for, and the search for it.
// runtime/codec/budget.py and controller.py are the same in Python, and give the reasons.
//
// Always holds: a size is that of a finished file, never an estimate.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "rates.hpp"

namespace edgecloud {

// What is asked for; the defaults ask for nothing.
struct Budget {
  int step = -1;            // -1: no level
  size_t max_bytes = 0;     // 0: no limit of a file
  double target_bytes = 0;  // 0: no mean of the stream
};

// The step that is nearest to a level from 0 to 15; halves go to the even step.
inline int step_of(double level) {
  return static_cast<int>(std::nearbyint(level * kStepsPerLevel));
}

using File = std::vector<uint8_t>;

struct Found {
  File file;      // empty: none was found
  int step = -1;  // of the file
};

namespace detail {

inline constexpr double kGrowth = 0.01;  // of ln(bytes) in a step
inline constexpr double kFilled = 0.98;  // a file of this part of its bytes is good enough
inline constexpr size_t kMaxTries = 6, kInterpolated = 3;

struct Tried {
  int step;
  size_t size;
};

// The step between `low` and `over`, both excluded, to try next.
inline int next_step(const Tried* tried, size_t count, double max_bytes, int low, int over) {
  const auto find = [&](int step) {
    return std::find_if(tried, tried + count, [&](const Tried& one) { return one.step == step; });
  };
  const auto distance = [&](const Tried& one) {
    return std::fabs(std::log(static_cast<double>(one.size) / max_bytes));
  };
  const Tried *best = find(low), *other = find(over), *end = tried + count;
  if (best != end && other != end) {
    if (count > kInterpolated) return (low + over) / 2;  // bytes jump somewhere in between
  } else {
    const auto nearer = [&](const Tried& a, const Tried& b) { return distance(a) < distance(b); };
    best = std::min_element(tried, end, nearer);
    other = nullptr;
    for (const Tried* one = tried; one != end; ++one)
      if (one != best && (!other || nearer(*one, *other))) other = one;
  }
  double growth = kGrowth;
  if (other)
    growth =
        std::clamp(std::log(static_cast<double>(other->size) / static_cast<double>(best->size)) /
                       (other->step - best->step),
                   kGrowth / 8, 8 * kGrowth);
  const double guess = best->step + std::log(max_bytes / static_cast<double>(best->size)) / growth;
  return static_cast<int>(std::clamp(std::floor(guess), low + 1.0, over - 1.0));
}

}  // namespace detail

// The file of a high step, up to `top`, that has at most so many bytes. `at` gives the file of a
// step; `first` is the step to try first.
template <class At>
Found search(const At& at, double max_bytes, int top, int first) {
  using namespace detail;
  Tried tried[kMaxTries];
  Found found;
  int over = top + 1;  // does not fit, or is not allowed; found.step fits
  int step = first;
  for (size_t count = 1; count <= kMaxTries; ++count) {
    File file = at(step);
    const size_t size = file.size();
    tried[count - 1] = {step, size};
    if (static_cast<double>(size) <= max_bytes)
      found = {std::move(file), step};
    else
      over = step;
    if (over - found.step <= 1 || static_cast<double>(found.file.size()) >= kFilled * max_bytes)
      break;
    // The last try is the step that is most likely to fit, unless one does already.
    step = count + 1 == kMaxTries && found.step < 0
               ? 0
               : next_step(tried, count, max_bytes, found.step, over);
  }
  return found;
}

// Keeps the mean size of a stream's files near a target.
class Controller {
 public:
  explicit Controller(double target) : target_(target) {}
  double target() const { return target_; }
  // The step for the next image; -1 for the first: nothing is known yet.
  int step() const {
    if (images_ == 0) return -1;
    const double allowance = std::clamp(target_ + saved_ / kHorizon, target_ / 2, 2 * target_);
    return static_cast<int>(std::clamp(
        std::nearbyint(std::log(allowance / scale_) / detail::kGrowth), 0.0, double{kMaxStep}));
  }
  // Notes the file of an image: the bytes of the file of `step`, and of the one that was written.
  void record(int step, size_t size, size_t spent) {
    ++images_;
    const double found = static_cast<double>(size) * std::exp(-detail::kGrowth * step);
    scale_ += (found - scale_) * std::max(kWeight, 1 / images_);
    saved_ = std::clamp(saved_ + target_ - static_cast<double>(spent), -kHorizon * target_,
                        kHorizon * target_);
  }

 private:
  static constexpr double kHorizon = 32, kWeight = 1.0 / 16;
  double target_, images_ = 0, saved_ = 0, scale_ = 0;
};

}  // namespace edgecloud
