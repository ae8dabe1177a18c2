#include "instruction_sets.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace ga_scope::cpu {
namespace {

#if defined(__x86_64__)

// What no compiler's __builtin_cpu_supports knew in every version: a bit of EAX, ECX or EDX.
bool cpuid(unsigned leaf, unsigned subleaf, unsigned (*bits)(unsigned a, unsigned c, unsigned d)) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d) && (bits(a, c, d) & 1);
}

bool has_f16c() {
  return cpuid(1, 0, [](unsigned, unsigned c, unsigned) { return c >> 29; });
}

bool has_avx512_bf16() {
  return cpuid(7, 1, [](unsigned a, unsigned, unsigned) { return a >> 5; });
}

// Tiles have a large state: the system keeps it for the processes alone that ask for permission, once.
bool has_amx() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return cpuid(7, 0, [](unsigned, unsigned, unsigned d) { return d >> 22 & d >> 24; }) &&  // AMX-BF16, AMX-TILE
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

#endif

InstructionSet best_of_processor() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
#ifdef GA_HAS_AMX
    if (has_avx512_bf16() && has_amx()) return InstructionSet::amx;
#endif
#ifdef GA_HAS_AVX512_BF16
    if (has_avx512_bf16()) return InstructionSet::avx512_bf16;
#endif
    return InstructionSet::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c()) {
    return InstructionSet::avx2;
  }
#endif
  return InstructionSet::portable;
}

constexpr InstructionSet kSets[] = {
    InstructionSet::bfloat16_reference, InstructionSet::portable, InstructionSet::avx2, InstructionSet::avx512,
    InstructionSet::avx512_bf16,        InstructionSet::amx};

InstructionSet choose() {
  const InstructionSet best = best_of_processor();
  const char* wanted = std::getenv("GA_SCOPE_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == '\0') return best;
  std::string names;
  for (InstructionSet set : kSets) {
    if (set > best) break;
    if (std::string(wanted) == name(set)) return set;
    names += std::string(names.empty() ? "" : ", ") + name(set);
  }
  throw std::runtime_error("GA_SCOPE_CPU_CAPABILITY: expected, on this processor, one of " + names + ", got " + wanted);
}

const KernelTable& kernels() {
  switch (instruction_set()) {
#if defined(__x86_64__)
    case InstructionSet::amx:
    case InstructionSet::avx512_bf16:
    case InstructionSet::avx512: return avx512_kernels();
    case InstructionSet::avx2: return avx2_kernels();
#endif
    default: return portable_kernels();
  }
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet set = choose();
  return set;
}

const char* name(InstructionSet set) {
  switch (set) {
    case InstructionSet::amx: return "amx";
    case InstructionSet::avx512_bf16: return "avx512_bf16";
    case InstructionSet::avx512: return "avx512";
    case InstructionSet::avx2: return "avx2";
    case InstructionSet::bfloat16_reference: return "bfloat16_reference";
    default: return "portable";
  }
}

template <>
const ConvolutionKernels<float>& convolution_kernels<float>() {
  return kernels().convolution_float;
}
template <>
const ConvolutionKernels<double>& convolution_kernels<double>() {
  return kernels().convolution_double;
}
template <>
const ConvolutionKernels<BFloat16>& convolution_kernels<BFloat16>() {
  switch (instruction_set()) {
#ifdef GA_HAS_AMX
    case InstructionSet::amx: return amx_kernels();
#endif
#ifdef GA_HAS_AVX512_BF16
    case InstructionSet::avx512_bf16: return avx512_bf16_kernels();
#endif
    case InstructionSet::bfloat16_reference: return reference_bfloat16_kernels();
    default: return kernels().convolution_bfloat16;
  }
}
template <>
const ConvolutionKernels<Half>& convolution_kernels<Half>() {
  return kernels().convolution_half;
}
template <>
const MatchingKernels<float>& matching_kernels<float>() {
  return kernels().matching_float;
}
template <>
const MatchingKernels<double>& matching_kernels<double>() {
  return kernels().matching_double;
}
template <>
const SuppressionKernels<float>& suppression_kernels<float>() {
  return kernels().suppression_float;
}
template <>
const SuppressionKernels<double>& suppression_kernels<double>() {
  return kernels().suppression_double;
}

}  // namespace ga_scope::cpu

namespace {
std::string cpu_capability() { return ga_scope::cpu::name(ga_scope::cpu::instruction_set()); }
}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ga_scope, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}
