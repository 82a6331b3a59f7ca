// How much of the stack was ever in use: `reset` paints all of it, and what was written since then
// has another colour.
#pragma once

#include <cstddef>
#include <cstdint>

namespace stack {

extern "C" const uint32_t stack_begin[], stack_end[];
inline constexpr uint32_t kPaint = 0xa5c3e1f7;

inline size_t bytes() { return static_cast<size_t>(stack_end - stack_begin) * 4; }
inline size_t used() {
  const volatile uint32_t* at = stack_begin;
  while (at != stack_end && *at == kPaint) ++at;
  return static_cast<size_t>(stack_end - at) * 4;
}

}  // namespace stack
