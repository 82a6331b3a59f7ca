// Files and texts of the machine that debugs or simulates the microcontroller.
//
// Source: Arm, "Semihosting for AArch32 and AArch64", 2022. On a device without a debugger the
// breakpoint is a fault: replace these calls there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace semihosting {

enum Operation : uint32_t {
  kOpen = 0x01,
  kClose = 0x02,
  kPrint = 0x04,
  kWrite = 0x05,
  kRead = 0x06,
  kArguments = 0x15,
  kExit = 0x18,
};

inline int32_t call(uint32_t operation, const void* block) {
  register uint32_t r0 asm("r0") = operation;
  register const void* r1 asm("r1") = block;
  asm volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return static_cast<int32_t>(r0);
}

inline void print(const char* text) { call(kPrint, text); }

// Opens a file to read or to write; a negative number if there is none.
inline int32_t open(const char* name, bool write) {
  const uint32_t block[] = {reinterpret_cast<uint32_t>(name), write ? 5u : 1u, std::strlen(name)};
  return call(kOpen, block);
}

// These three give whether all bytes were moved.
inline bool read(int32_t file, void* to, size_t size) {
  const uint32_t block[] = {static_cast<uint32_t>(file), reinterpret_cast<uint32_t>(to), size};
  return call(kRead, block) == 0;
}
inline bool write(int32_t file, const void* from, size_t size) {
  const uint32_t block[] = {static_cast<uint32_t>(file), reinterpret_cast<uint32_t>(from), size};
  return call(kWrite, block) == 0;
}
inline bool close(int32_t file) { return call(kClose, &file) == 0; }

// The command's arguments, separated by spaces. False if they do not fit.
inline bool arguments(char* to, size_t size) {
  const uint32_t block[] = {reinterpret_cast<uint32_t>(to), size};
  return call(kArguments, block) == 0;
}

// Ends the simulation. Without `good` qemu's exit status is 1.
[[noreturn]] inline void leave(bool good) {
  call(kExit, reinterpret_cast<const void*>(good ? 0x20026 : 0x20023));
  for (;;) {
  }
}

}  // namespace semihosting
