// From reset to main: memory, the stack's paint, and a stop on every fault.
//
// Always holds: main finds its static memory zeroed or initialised. Nothing else is set up: there
// are no interrupts, no clocks and no heap.
#include <cstddef>
#include <cstdint>

#include "semihosting.hpp"
#include "stack.hpp"

extern "C" {
extern uint32_t data_begin[], data_end[], data_in_flash[], bss_begin[], bss_end[];
int main();

[[noreturn]] void start() {
  // No calls of memset and memcpy: compilers would make them of loops without `volatile`.
  const uint32_t* from = data_in_flash;
  for (volatile uint32_t* to = data_begin; to != data_end; ++to) *to = *from++;
  for (volatile uint32_t* to = bss_begin; to != bss_end; ++to) *to = 0;
  semihosting::leave(main() == 0);
}

[[noreturn]] void fault() {
  semihosting::print("cortex-m: the processor met a fault\n");
  semihosting::leave(false);
}

// Paints the stack before it is used, hence in assembly.
[[noreturn, gnu::naked]] void reset() {
  asm volatile(
      "ldr r0, =stack_begin\n"
      "ldr r1, =stack_end\n"
      "ldr r2, =%c0\n"
      "1: str r2, [r0], #4\n"
      "cmp r0, r1\n"
      "bne 1b\n"
      "mov sp, r1\n"
      "b start\n"
      ".ltorg\n"
      :
      : "i"(stack::kPaint));
}

// The first words of flash: the stack's end, where to begin, and what follows faults.
[[gnu::section(".vectors"), gnu::used]] const void* const vectors[16] = {
    stack::stack_end,
    reinterpret_cast<const void*>(reset),
    reinterpret_cast<const void*>(fault),  // NMI
    reinterpret_cast<const void*>(fault),  // hard fault
    reinterpret_cast<const void*>(fault),  // memory management
    reinterpret_cast<const void*>(fault),  // bus fault
    reinterpret_cast<const void*>(fault),  // usage fault
};
}
