// Encodes images with a bundle, one after the other: the integer encoder, then the coder. With a
// variable-rate bundle the encoder runs once, and its latent is scaled, rounded and coded as often
// as a budget needs.
//
// Always holds: the bundle does not change. An encoder is for one thread at a time.
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../encoder/encoder.hpp"
#ifndef EDGECLOUD_NO_THREADS
#include "../encoder/team.hpp"
#endif
#include "../images/resize.hpp"
#include "budget.hpp"
#include "edge_tables.hpp"
#include "feature_file.hpp"
#include "refused.hpp"

namespace edgecloud {

struct Contents {
  EdgeTables tables;
  std::vector<uint8_t> weights;  // none if the bundle has no encoder
};
using Shared = std::shared_ptr<const Contents>;

inline bool is_encodable(const Rule& rule, size_t height, size_t width) {
  const uint64_t symbols = rule.symbols(height, width);
  return height % kBlock == 0 && width % kBlock == 0 && symbols > 0 && symbols != UINT64_MAX;
}

// Throws Refused.
inline void require_encodable(const Rule& rule, size_t height, size_t width) {
  if (is_encodable(rule, height, width)) return;
  const std::string image =
      "an image of " + std::to_string(width) + "x" + std::to_string(height) + " pixels ";
  const auto refuse = [&](const std::string& why) {
    throw Refused(EDGECLOUD_BAD_IMAGE, image + why);
  };
  if (height == 0 || width == 0 || height % kBlock || width % kBlock)
    refuse("has sides that are not multiples of 8: prepare it first");
  if (rule.symbols(height, width) == 0) refuse("leaves no symbols: enlarge it");
  refuse("gives more than the " + std::to_string(rule.max_symbols) +
         " symbols that the bundle allows: make it smaller, or export with a larger --max-pixels");
}

class Encoder {
 public:
  // Throws std::bad_alloc.
  Encoder(Shared contents, bool small, size_t threads, const encoder::Kernel& kernel)
      : contents_(std::move(contents)), small_(small), team_(threads) {
    const std::vector<uint8_t>& weights = contents_->weights;
    if (encoder_.load(weights.data(), weights.size(), kernel) != encoder::Status::ok)
      throw std::bad_alloc();  // the weights were read before
  }

  const char* kernel() const { return encoder_.kernel().name; }
  bool varies() const { return tables().varies(); }

  // What files are to be from now on, of a variable-rate bundle. A new stream begins.
  void ask(const Budget& budget) {
    budget_ = budget;
    controller_.reset();
    if (budget.target_bytes > 0) controller_.emplace(budget.target_bytes);
  }

  // Gives the feature file, which is valid until the next call. Throws Refused, std::bad_alloc.
  const uint8_t* encode(images::View image, size_t* size) {
    const Rule& rule = tables().rule;
    require_encodable(rule, image.height, image.width);
    height_ = image.height, width_ = image.width;
    rows_ = rule.rows(height_), columns_ = rule.rows(width_);
    symbols_.resize(rule.channels * rows_ * columns_);
    if (encoder_.encode(whole(image), rows_, columns_, symbols_.data(), workspace_, team_) !=
        encoder::Status::ok)
      throw std::bad_alloc();
    if (!varies()) return code(tables().levels[0].tables, -1, -1, size);
    const float unit = 1.0f / static_cast<float>(1 << encoder_.latent_fraction());
    latent_.resize(symbols_.size());
    for (size_t i = 0; i < latent_.size(); ++i) latent_[i] = unit * symbols_[i];
    result_ = of_budget();
    *size = result_.size();
    return result_.data();
  }

 private:
  const EdgeTables& tables() const { return contents_->tables; }

  // The pixels without gaps between the rows.
  const uint8_t* whole(images::View image) {
    const size_t row = 3 * image.width;
    if (image.row_bytes == row) return image.pixels;
    pixels_.resize(row * image.height);
    for (size_t y = 0; y < image.height; ++y)
      std::memcpy(pixels_.data() + y * row, image.pixels + y * image.row_bytes, row);
    return pixels_.data();
  }

  // The file of symbols_, or of the channels of a cut file at its beginning; valid until the next
  // call. The step is -1 with one rate, `kept` is -1 in a whole file.
  const uint8_t* code(const rans::Tables& tables, int step, int kept, size_t* size) {
    const size_t most = tables.max_payload(rows_ * columns_);
    if (!file_.reserve(kMaxHeader + most + kCrcBytes)) throw std::bad_alloc();
    uint8_t* buffer = file_.data() + kMaxHeader;
    size_t payload = 0;
    if (kept != 0)
      payload = small_ ? tables.encode_small(symbols_.data(), rows_, columns_, buffer)
                       : tables.encode(symbols_.data(), rows_ * columns_, buffer);
    if (payload >> 28)
      throw Refused(EDGECLOUD_BAD_IMAGE, "the image gives a payload of 2^28 bytes: crop it");
    uint8_t* end = buffer + most;
    const uint8_t* print = this->tables().rule.fingerprint.data();
    const uint8_t* begin = step < 0 ? wrap(end - payload, payload, print, small_, height_, width_)
                                    : wrap_variable(end - payload, payload, print, small_, step,
                                                    kept, height_, width_);
    *size = static_cast<size_t>(end + kCrcBytes - begin);
    return begin;
  }

  // The file of a step.
  File at(int step) {
    tables().rates.symbols(latent_.data(), rows_ * columns_, step, symbols_.data());
    size_t size = 0;
    const uint8_t* file = code(tables().at(step), step, -1, &size);
    return {file, file + size};
  }

  File of_budget() {
    if (controller_) return next_of_stream();
    const int step = budget_.step < 0 ? kMaxStep : budget_.step;
    if (budget_.max_bytes > 0) return within(step);
    return at(budget_.step < 0 ? tables().rates.default_step : step);
  }

  // The next file of a stream with a mean.
  File next_of_stream() {
    int step = controller_->step();
    File file;
    if (step < 0) {
      Found found = search(controller_->target(), kMaxStep);
      step = std::max(found.step, 0);
      file = found.step < 0 ? at(0) : std::move(found.file);
    } else {
      file = at(step);
    }
    const size_t size = file.size();
    if (budget_.max_bytes > 0 && size > budget_.max_bytes) file = within(step);
    controller_->record(step, size, file.size());
    return file;
  }

  // A file of at most budget_.max_bytes, of a step up to `top`, or a cut one.
  File within(int top) {
    Found found = search(static_cast<double>(budget_.max_bytes), top);
    return found.step < 0 ? cut() : std::move(found.file);
  }

  Found search(double max_bytes, int top) {
    // A level that was asked for mostly fits.
    const int first = top == kMaxStep ? tables().rates.default_step : top;
    return edgecloud::search([this](int step) { return at(step); }, max_bytes, top, first);
  }

  // A file of level 0 with as many channels as fit.
  File cut() {
    File found = cut_to(0);
    if (found.size() > budget_.max_bytes)
      throw Refused(EDGECLOUD_SMALL_BUDGET,
                    std::to_string(budget_.max_bytes) + " bytes are too few: a feature file of " +
                        std::to_string(width_) + "x" + std::to_string(height_) +
                        " pixels has at least " + std::to_string(found.size()) + ", allow so many");
    for (int low = 0, over = tables().most_kept() + 1; over - low > 1;) {
      const int kept = (low + over) / 2;
      File file = cut_to(kept);
      if (file.size() <= budget_.max_bytes)
        found = std::move(file), low = kept;
      else
        over = kept;
    }
    return found;
  }

  File cut_to(int kept) {
    const Rates& rates = tables().rates;
    const size_t count = rows_ * columns_, channels = static_cast<size_t>(kept);
    for (size_t place = 0; place < channels; ++place)
      rans::quantise(latent_.data() + rates.order[place] * count, rates.gains[rates.order[place]],
                     count, symbols_.data() + place * count);
    size_t size = 0;
    const uint8_t* file = nullptr;
    if (kept == 0) {
      file = code(tables().levels[0].tables, 0, 0, &size);
    } else {
      const Level level = tables().lowest.of(rates.order.data(), channels);
      file = code(level.tables, 0, kept, &size);
    }
    return {file, file + size};
  }

  Shared contents_;
  bool small_;
  Budget budget_;
  std::optional<Controller> controller_;
  encoder::Encoder encoder_;
  encoder::Workspace workspace_;
#ifdef EDGECLOUD_NO_THREADS
  struct Team : encoder::OneThread {
    explicit Team(size_t) {}
  };
#else
  using Team = encoder::Team;
#endif
  Team team_;
  encoder::Block file_;
  std::vector<int16_t> symbols_;
  std::vector<float> latent_;
  File result_;
  std::vector<uint8_t> pixels_;
  size_t height_ = 0, width_ = 0, rows_ = 0, columns_ = 0;  // of the image in work
};

}  // namespace edgecloud
