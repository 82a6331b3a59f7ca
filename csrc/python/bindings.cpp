// The Python module runtime.codec._coder: the rANS coder, rounding, the JPEG check and resizing.
// Its arguments and results are documented in runtime/codec/_coder.pyi.
//
// Always holds: numpy arrays are used without a copy. An array of another type or layout is
// refused, never converted. Every size is checked before memory is allocated, and the GIL is
// released while the C++ code works.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>

#include "../coder/compressai_stream.hpp"
#include "../coder/quantise.hpp"
#include "../coder/rans.hpp"
#include "../images/resize.hpp"
#include "../jpeg/jpeg.hpp"

namespace py = pybind11;

namespace {

constexpr size_t kMaxResize = 1 << 12;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// The kernel of that name, or the fastest one if it is "".
const rans::Kernel& find_kernel(const std::string& name) {
  for (const rans::Kernel& kernel : rans::kKernels)
    if (kernel.is_available() && (name.empty() || name == kernel.name)) return kernel;
  throw std::invalid_argument("this machine has no kernel " + name);
}

void check_dimensions(const Array<uint32_t>& cdf, const Array<uint32_t>& lengths,
                      const Array<int32_t>& offsets) {
  if (lengths.ndim() != 1 || offsets.ndim() != 1 || cdf.ndim() != 1 ||
      lengths.size() != offsets.size())
    throw std::invalid_argument(
        "cdf, lengths and offsets must be one-dimensional, and the last two equally long");
}

rans::Tables make_tables(const Array<uint32_t>& cdf, const Array<uint32_t>& lengths,
                         const Array<int32_t>& offsets, const std::string& kernel) {
  check_dimensions(cdf, lengths, offsets);
  return rans::Tables(cdf.data(), static_cast<size_t>(cdf.size()), lengths.data(), offsets.data(),
                      static_cast<size_t>(lengths.size()), find_kernel(kernel));
}

rans::CompressAiStream make_stream(const Array<uint32_t>& cdf, const Array<uint32_t>& lengths,
                                   const Array<int32_t>& offsets) {
  make_tables(cdf, lengths, offsets, "");  // throws if the arrays are not valid
  return rans::CompressAiStream(cdf.data(), lengths.data(), offsets.data(),
                                static_cast<size_t>(lengths.size()));
}

// `channels`: those that have context tables, in increasing order. For each of them: a row of
// `thresholds`, and lengths[k] values of `cdf`, its 25 CDFs one after the other. Calls
// work(channel, thresholds, values, number of values) for each.
template <typename Work>
void for_each_context(const Array<uint32_t>& channels, const Array<int32_t>& thresholds,
                      const Array<uint32_t>& cdf, const Array<uint32_t>& lengths,
                      const Work& work) {
  const py::ssize_t count = channels.size(), levels = static_cast<py::ssize_t>(rans::kLevels);
  if (channels.ndim() != 1 || thresholds.ndim() != 2 || thresholds.shape(0) != count ||
      thresholds.shape(1) != levels - 1 || cdf.ndim() != 1 || lengths.ndim() != 1 ||
      lengths.size() != count)
    throw std::invalid_argument(
        "context tables must have the shapes channels [n], thresholds [n, 4], cdf [values], "
        "lengths [n]");
  size_t begin = 0;
  for (py::ssize_t k = 0; k < count; ++k) {
    const size_t length = lengths.data()[k];
    if (length > static_cast<size_t>(cdf.size()) - begin)
      throw std::invalid_argument("context tables are cut short");
    work(channels.data()[k], thresholds.data() + (levels - 1) * k, cdf.data() + begin, length);
    begin += length;
  }
  if (begin != static_cast<size_t>(cdf.size()))
    throw std::invalid_argument("CDF values are left over after the last context table");
}

void add_contexts(rans::Tables& tables, const Array<uint32_t>& channels,
                  const Array<int32_t>& thresholds, const Array<uint32_t>& cdf,
                  const Array<uint32_t>& lengths) {
  for_each_context(channels, thresholds, cdf, lengths,
                   [&](size_t channel, const int32_t* bounds, const uint32_t* values,
                       size_t count) { tables.add_contexts(channel, bounds, values, count); });
}

// Throws what making tables of these arrays would throw, and makes none.
void check_tables(const Array<uint32_t>& cdf, const Array<uint32_t>& lengths,
                  const Array<int32_t>& offsets, const Array<uint32_t>& channels,
                  const Array<int32_t>& thresholds, const Array<uint32_t>& context_cdf,
                  const Array<uint32_t>& context_lengths) {
  check_dimensions(cdf, lengths, offsets);
  const size_t count = static_cast<size_t>(lengths.size());
  rans::Tables::check(cdf.data(), static_cast<size_t>(cdf.size()), lengths.data(), offsets.data(),
                      count);
  for_each_context(
      channels, thresholds, context_cdf, context_lengths,
      [&](size_t channel, const int32_t* bounds, const uint32_t* values, size_t values_count) {
        if (channel >= count) throw std::invalid_argument("context tables of no channel");
        rans::Tables::check_contexts(channel, lengths.data()[channel] - 1, bounds, values,
                                     values_count);
      });
}

// Checks symbols [channels, row], and returns `row`.
size_t row_of(size_t channels, const Array<int16_t>& symbols) {
  if (symbols.ndim() != 2 || static_cast<size_t>(symbols.shape(0)) != channels)
    throw std::invalid_argument("symbols must have the shape [channels, row]");
  return static_cast<size_t>(symbols.shape(1));
}

// Calls encode(buffer), which writes to the end of a buffer of `capacity` bytes and returns how
// many.
template <typename Encode>
py::bytes encoded(size_t capacity, const Encode& encode) {
  // Not initialised: `capacity` is for the worst case, and pages that are not written cost nothing.
  std::unique_ptr<uint8_t[]> buffer(new uint8_t[capacity]);
  size_t size;
  {
    py::gil_scoped_release release;
    size = encode(buffer.get());
  }
  return py::bytes(reinterpret_cast<const char*>(buffer.get() + capacity - size), size);
}

py::bytes encode(const rans::Tables& tables, const Array<int16_t>& symbols) {
  const size_t row = row_of(tables.channels(), symbols);
  const int16_t* values = symbols.data();
  return encoded(tables.max_payload(row),
                 [&](uint8_t* buffer) { return tables.encode(values, row, buffer); });
}

void check_planes(size_t channels, const Array<int16_t>& symbols) {
  if (symbols.ndim() != 3 || static_cast<size_t>(symbols.shape(0)) != channels)
    throw std::invalid_argument("symbols must have the shape [channels, rows, columns]");
}

py::bytes encode_small(const rans::Tables& tables, const Array<int16_t>& symbols) {
  check_planes(tables.channels(), symbols);
  const size_t rows = static_cast<size_t>(symbols.shape(1)),
               columns = static_cast<size_t>(symbols.shape(2));
  const int16_t* values = symbols.data();
  return encoded(tables.max_payload(rows * columns), [&](uint8_t* buffer) {
    return tables.encode_small(values, rows, columns, buffer);
  });
}

py::bytes encode_stream(const rans::CompressAiStream& tables, const Array<int16_t>& symbols) {
  const size_t row = row_of(tables.channels(), symbols);
  std::vector<uint8_t> bytes;
  {
    py::gil_scoped_release release;
    const std::vector<uint32_t> words = tables.encode(symbols.data(), row);
    bytes.reserve(4 * words.size());
    for (size_t w = words.size(); w-- > 0;)
      for (int shift = 0; shift < 32; shift += 8)
        bytes.push_back(static_cast<uint8_t>(words[w] >> shift));
  }
  return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

// Calls check(bytes, size). Returns None if it finds nothing wrong, else the reason.
template <typename Check>
py::object reason_or_none(const py::buffer& data, const Check& check) {
  const py::buffer_info info = data.request();
  if (info.ndim != 1 || info.itemsize != 1 || (info.size > 0 && info.strides[0] != 1))
    throw std::invalid_argument("the data must be contiguous bytes");
  const char* why;
  {
    py::gil_scoped_release release;
    why = reason(check(static_cast<const uint8_t*>(info.ptr), static_cast<size_t>(info.size)));
  }
  if (*why == 0) return py::none();
  return py::str(why);
}

template <typename Tables>
py::object decode(const Tables& tables, const py::buffer& payload, Array<int16_t>& out) {
  const size_t row = row_of(tables.channels(), out);
  int16_t* values = out.mutable_data();
  return reason_or_none(payload, [&](const uint8_t* bytes, size_t size) {
    return tables.decode(bytes, size, row, values);
  });
}

py::object decode_small(const rans::Tables& tables, const py::buffer& payload,
                        Array<int16_t>& out) {
  check_planes(tables.channels(), out);
  const size_t rows = static_cast<size_t>(out.shape(1)),
               columns = static_cast<size_t>(out.shape(2));
  int16_t* values = out.mutable_data();
  return reason_or_none(payload, [&](const uint8_t* bytes, size_t size) {
    return tables.decode_small(bytes, size, rows, columns, values);
  });
}

// Scales and rounds a latent [channels, rows, columns] by a gain for each channel. Returns whether
// all of it is finite.
bool quantise(const Array<float>& latent, const Array<float>& gains, Array<int16_t>& out) {
  if (latent.ndim() != 3 || out.ndim() != 3 || gains.ndim() != 1 ||
      gains.size() != latent.shape(0) || out.shape(0) != latent.shape(0) ||
      out.shape(1) != latent.shape(1) || out.shape(2) != latent.shape(2))
    throw std::invalid_argument(
        "latent and symbols must have the shape [channels, rows, columns], and gains [channels]");
  const size_t channels = static_cast<size_t>(latent.shape(0));
  const size_t row = static_cast<size_t>(latent.shape(1)) * static_cast<size_t>(latent.shape(2));
  const float *values = latent.data(), *gain = gains.data();
  int16_t* symbols = out.mutable_data();
  py::gil_scoped_release release;
  bool finite = true;
  for (size_t c = 0; c < channels; ++c)
    finite &= rans::quantise(values + c * row, gain[c], row, symbols + c * row);
  return finite;
}

// Resizes and crops pixels [height, width, 3] to [crop, crop, 3].
Array<uint8_t> prepare(const Array<uint8_t>& pixels, size_t resize, size_t crop) {
  if (pixels.ndim() != 3 || pixels.shape(2) != 3 || pixels.size() == 0)
    throw std::invalid_argument("pixels must have the shape [height, width, 3]");
  if (crop < 1 || crop > resize || resize > kMaxResize)
    throw std::invalid_argument("crop and resize must be 1 <= crop <= resize <= 4096");
  const size_t height = static_cast<size_t>(pixels.shape(0)),
               width = static_cast<size_t>(pixels.shape(1));
  Array<uint8_t> out({crop, crop, size_t{3}});
  const uint8_t* from = pixels.data();
  uint8_t* to = out.mutable_data();
  py::gil_scoped_release release;
  images::prepare({from, height, width, 3 * width}, resize, crop, to);
  return out;
}

py::object jpeg_damage(const py::buffer& data) { return reason_or_none(data, &jpeg::find_damage); }

}  // namespace

PYBIND11_MODULE(_coder, module) {
  module.doc() = "rANS coder with static integer tables; see csrc/coder/rans.hpp";
  module.attr("NARROW_LANES") = rans::kNarrowLanes;
  module.attr("WIDE_LANES") = rans::kWideLanes;
  py::list kernels;
  for (const rans::Kernel& kernel : rans::kKernels)
    if (kernel.is_available()) kernels.append(kernel.name);
  module.attr("KERNELS") = py::tuple(kernels);
  module.attr("LEVELS") = rans::kLevels;
  module.attr("NOT_A_SYMBOL") = rans::kNotASymbol;
  py::class_<rans::Tables>(module, "Tables")
      .def(py::init(&make_tables), py::arg("cdf").noconvert(), py::arg("lengths").noconvert(),
           py::arg("offsets").noconvert(), py::arg("kernel") = "")
      .def("encode", &encode, py::arg("symbols").noconvert())
      .def("decode", &decode<rans::Tables>, py::arg("payload"), py::arg("out").noconvert())
      .def("add_contexts", &add_contexts, py::arg("channels").noconvert(),
           py::arg("thresholds").noconvert(), py::arg("cdf").noconvert(),
           py::arg("lengths").noconvert())
      .def("encode_small", &encode_small, py::arg("symbols").noconvert())
      .def("decode_small", &decode_small, py::arg("payload"), py::arg("out").noconvert());
  module.def("check_tables", &check_tables, py::arg("cdf").noconvert(),
             py::arg("lengths").noconvert(), py::arg("offsets").noconvert(),
             py::arg("channels").noconvert(), py::arg("thresholds").noconvert(),
             py::arg("context_cdf").noconvert(), py::arg("context_lengths").noconvert());
  module.def("quantise", &quantise, py::arg("latent").noconvert(), py::arg("gains").noconvert(),
             py::arg("out").noconvert());
  module.def("prepare", &prepare, py::arg("pixels").noconvert(), py::arg("resize"),
             py::arg("crop"));
  module.def("jpeg_damage", &jpeg_damage, py::arg("data"));
  py::class_<rans::CompressAiStream>(module, "CompressAiStream")
      .def(py::init(&make_stream), py::arg("cdf").noconvert(), py::arg("lengths").noconvert(),
           py::arg("offsets").noconvert())
      .def("encode", &encode_stream, py::arg("symbols").noconvert())
      .def("decode", &decode<rans::CompressAiStream>, py::arg("payload"),
           py::arg("out").noconvert());
}
