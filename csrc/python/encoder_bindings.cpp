// The Python module runtime.engine._encoder: the integer encoder. Its arguments and results are
// documented in runtime/engine/_encoder.pyi.
//
// Always holds: pixels are used without a copy. An array of another type or layout is refused,
// never converted. The GIL is released while the C++ code works, and several threads may encode
// with one encoder.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "../encoder/encoder.hpp"
#include "../encoder/team.hpp"

namespace py = pybind11;

namespace {

constexpr size_t kMaxThreads = 256;

// An encoder, and what its calls need: each takes a set of threads with a workspace that no other
// call uses, and gives it back.
class SharedEncoder {
 public:
  SharedEncoder(const py::bytes& weights, size_t threads, const std::string& kernel)
      : threads_(threads) {
    const encoder::Kernel* found = encoder::find_kernel(kernel.c_str());
    if (!found) throw std::invalid_argument("this machine has no kernel " + kernel);
    if (threads < 1 || threads > kMaxThreads)
      throw std::invalid_argument("threads must be 1 to " + std::to_string(kMaxThreads));
    const std::string_view bytes = weights;
    check(encoder_.load(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), *found));
  }

  py::array_t<int16_t> encode(const py::array_t<uint8_t, py::array::c_style>& pixels) {
    const auto patch = static_cast<py::ssize_t>(encoder::kPatch);
    if (pixels.ndim() != 4 || pixels.shape(3) != 3 || pixels.shape(1) % patch != 0 ||
        pixels.shape(2) % patch != 0)
      throw std::invalid_argument(
          "pixels must have the shape [images, rows, columns, 3], rows and columns multiples of 8");
    const py::ssize_t images = pixels.shape(0), rows = pixels.shape(1) / patch,
                      columns = pixels.shape(2) / patch;
    py::array_t<int16_t> symbols(
        {images, static_cast<py::ssize_t>(encoder::kLatent), rows, columns});
    const uint8_t* from = pixels.data();
    int16_t* to = symbols.mutable_data();
    if (symbols.size() == 0) return symbols;
    encoder::Status status = encoder::Status::ok;
    {
      py::gil_scoped_release release;
      std::unique_ptr<Context> context = take();
      for (py::ssize_t image = 0; image < images && status == encoder::Status::ok; ++image)
        status =
            encoder_.encode(from + image * (pixels.size() / images), static_cast<size_t>(rows),
                            static_cast<size_t>(columns), to + image * (symbols.size() / images),
                            context->workspace, context->team);
      give_back(std::move(context));
    }
    check(status);
    return symbols;
  }

  py::bytes fingerprint() const {
    return {reinterpret_cast<const char*>(encoder_.fingerprint()), encoder::kFingerprintBytes};
  }
  const char* kernel() const { return encoder_.kernel().name; }
  py::object latent_fraction() const {
    const int fraction = encoder_.latent_fraction();
    return fraction < 0 ? py::object(py::none()) : py::object(py::int_(fraction));
  }

 private:
  struct Context {
    explicit Context(size_t threads) : team(threads) {}
    encoder::Workspace workspace;
    encoder::Team team;
  };

  static void check(encoder::Status status) {
    if (status == encoder::Status::no_memory) throw std::bad_alloc();
    if (status != encoder::Status::ok) throw std::invalid_argument(encoder::reason(status));
  }
  std::unique_ptr<Context> take() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!idle_.empty()) {
        std::unique_ptr<Context> context = std::move(idle_.back());
        idle_.pop_back();
        return context;
      }
    }
    return std::make_unique<Context>(threads_);
  }
  void give_back(std::unique_ptr<Context> context) {
    std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(context));
  }

  encoder::Encoder encoder_;
  size_t threads_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Context>> idle_;
};

}  // namespace

PYBIND11_MODULE(_encoder, module) {
  module.doc() = "The integer encoder; see csrc/encoder/encoder.hpp";
  py::list kernels;
  for (const encoder::Kernel& kernel : encoder::kKernels)
    if (kernel.is_available()) kernels.append(kernel.name);
  module.attr("KERNELS") = py::tuple(kernels);
  py::class_<SharedEncoder>(module, "Encoder")
      .def(py::init<const py::bytes&, size_t, const std::string&>(), py::arg("weights"),
           py::arg("threads") = 1, py::arg("kernel") = "")
      .def("encode", &SharedEncoder::encode, py::arg("pixels").noconvert())
      .def_property_readonly("fingerprint", &SharedEncoder::fingerprint)
      .def_property_readonly("kernel", &SharedEncoder::kernel)
      .def_property_readonly("latent_fraction", &SharedEncoder::latent_fraction);
}
