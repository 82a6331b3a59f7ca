// The list of kernels, and which one a machine runs.
#pragma once

#include "avx2.hpp"
#include "avx512.hpp"
#include "avxvnni.hpp"
#include "kernel.hpp"
#include "neon.hpp"
#include "portable.hpp"
#include "wasm.hpp"

namespace encoder {

// The fastest first.
inline constexpr Kernel kKernels[] = {
#if defined(ENCODER_X86)
    avx512::kKernel,   avxvnni::kKernel, avx2::kKernel,
#endif
#if defined(ENCODER_NEON)
    neon_dot::kKernel, neon::kKernel,
#endif
#if defined(ENCODER_WASM)
    wasm::kKernel,
#endif
    portable::kKernel,
};

// The fastest kernel of this machine, or the one that is called `name`; null if it has none such.
inline const Kernel* find_kernel(const char* name = "") {
  for (const Kernel& kernel : kKernels)
    if (kernel.is_available() && (*name == 0 || std::strcmp(name, kernel.name) == 0))
      return &kernel;
  return nullptr;
}

}  // namespace encoder
