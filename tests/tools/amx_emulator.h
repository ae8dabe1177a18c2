// The five AMX instructions of the bfloat16 product, carried out when a processor that lacks them traps: so that their
// machine code runs, and is tested, on any x86-64. Intel's manual, volume 2: LDTILECFG, TILERELEASE, TILELOADD,
// TILESTORED, TDPBF16PS. Anything else that traps ends the program.
#pragma once

#include <signal.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx {

struct Tile {
  uint8_t bytes[16][64];
};
inline Tile tiles[8];
inline int rows[8], row_bytes[8];
inline long executed = 0;  // products

inline void load_config(const uint8_t* config) {
  if (config[0] != 1 || config[1] != 0) std::abort();  // the palette; no interrupted load to go on with
  for (int t = 0; t < 8; ++t) {
    row_bytes[t] = config[16 + 2 * t] | config[17 + 2 * t] << 8;
    rows[t] = config[48 + t];
    if (row_bytes[t] > 64 || rows[t] > 16) std::abort();
  }
}

inline float number(const uint8_t* bfloat16) {
  const uint32_t bits = (bfloat16[0] | bfloat16[1] << 8) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// The even products of a row and a column are summed apart from the odd ones.
inline void multiply(int to, int a, int b) {
  if (rows[to] != rows[a] || row_bytes[to] != row_bytes[b] || row_bytes[a] / 4 != rows[b]) std::abort();
  for (int m = 0; m < rows[a]; ++m) {
    for (int n = 0; n < row_bytes[b] / 4; ++n) {
      float even = 0, odd = 0, sum;
      for (int k = 0; k < row_bytes[a] / 4; ++k) {
        even += number(tiles[a].bytes[m] + 4 * k) * number(tiles[b].bytes[k] + 4 * n);
        odd += number(tiles[a].bytes[m] + 4 * k + 2) * number(tiles[b].bytes[k] + 4 * n + 2);
      }
      std::memcpy(&sum, tiles[to].bytes[m] + 4 * n, sizeof(sum));
      sum += even + odd;
      std::memcpy(tiles[to].bytes[m] + 4 * n, &sum, sizeof(sum));
    }
  }
  ++executed;
}

inline void trap(int, siginfo_t*, void* context) {
  constexpr int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  greg_t* const registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const uint8_t* const start = reinterpret_cast<const uint8_t*>(registers[REG_RIP]);
  // A three-byte VEX prefix: C4, R X B and the map, W vvvv L pp; then opcode, ModRM, SIB and displacement.
  const uint8_t opcode = start[3], mod = start[4] >> 6, reg = start[4] >> 3 & 7, rm = start[4] & 7, pp = start[2] & 3;
  if (start[0] != 0xc4 || (start[1] & 31) != 2) std::_Exit(132);
  const int high_index = start[1] & 64 ? 0 : 8, high_base = start[1] & 32 ? 0 : 8;
  const uint8_t* next = start + 5;
  uint8_t* address = nullptr;
  int64_t stride = 0;
  if (mod != 3) {
    int base = rm;
    if (rm == 4) {
      const uint8_t sib = *next++;
      const int index = (sib >> 3 & 7) + high_index;
      base = sib & 7;
      if (index != 4) stride = registers[kRegisters[index]] << (sib >> 6);
    }
    if (mod == 0 && base == 5) std::_Exit(133);  // no register to start from: compilers do not write that here
    address = reinterpret_cast<uint8_t*>(registers[kRegisters[base + high_base]]);
    if (mod == 1) address += static_cast<int8_t>(*next++);
    if (mod == 2) {
      int32_t displacement;
      std::memcpy(&displacement, next, sizeof(displacement));
      address += displacement, next += sizeof(displacement);
    }
  }
  if (opcode == 0x49 && pp == 0 && mod != 3) {
    load_config(address + stride);
  } else if (opcode == 0x49 && pp == 0) {
    std::memset(rows, 0, sizeof(rows));  // tilerelease
  } else if (opcode == 0x4b && pp == 3) {
    for (int i = 0; i < rows[reg]; ++i) std::memcpy(tiles[reg].bytes[i], address + i * stride, row_bytes[reg]);
  } else if (opcode == 0x4b && pp == 2) {
    for (int i = 0; i < rows[reg]; ++i) std::memcpy(address + i * stride, tiles[reg].bytes[i], row_bytes[reg]);
  } else if (opcode == 0x5c && pp == 2 && mod == 3) {
    multiply(reg, rm, 15 - (start[2] >> 3 & 15));
  } else {
    std::_Exit(134);
  }
  registers[REG_RIP] = reinterpret_cast<greg_t>(next);
}

inline void emulate() {
  struct sigaction action = {};
  action.sa_sigaction = trap;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
}

}  // namespace amx
