// What can go wrong, and the texts for it. There are no exceptions on the microcontroller.
#pragma once

namespace cortex {

enum class Status {
  ok,
  not_open,
  not_tables,
  unknown_version,
  unknown_shape,
  damaged_tables,
  bad_weights,
  other_weights,
  has_blocks,
  wide_part,
  bad_size,
  too_many_lines,
  lines_missing,
  far_symbol,
  large_file,
};

// Why something is refused, for users. "" for ok.
inline const char* reason(Status status) {
  switch (status) {
    case Status::not_open: return "no bundle is open: call open first";
    case Status::not_tables: return "edge.tables is not a file of tables: export the bundle again";
    case Status::unknown_version:
      return "edge.tables is of all rates or of another release: export with one rate";
    case Status::unknown_shape: return "edge.tables is not of ours_n0: build with such a bundle";
    case Status::damaged_tables: return "edge.tables is damaged: copy it again";
    case Status::bad_weights: return "edge.weights is damaged or of another version: copy it again";
    case Status::other_weights: return "edge.weights and edge.tables are of different bundles";
    case Status::has_blocks: return "edge.weights has residual blocks: build with ours_n0";
    case Status::wide_part: return "plain files of this size need sixteen lanes: use small files";
    case Status::bad_size: return "a picture's sides are multiples of 8 pixels, from 8 to 224";
    case Status::too_many_lines: return "there are more lines than the picture's height";
    case Status::lines_missing: return "there are fewer lines than the picture's height";
    case Status::far_symbol: return "a symbol is outside -128..127, for which there is no memory";
    case Status::large_file: return "the feature file is larger than the memory that is left";
    case Status::ok: break;
  }
  return "";
}

}  // namespace cortex
