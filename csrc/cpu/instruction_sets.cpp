#include "instruction_sets.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace ga_scope::cpu {
namespace {

InstructionSet best_of_processor() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return InstructionSet::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    return InstructionSet::avx2;
  }
#endif
  return InstructionSet::portable;
}

InstructionSet choose() {
  const InstructionSet best = best_of_processor();
  const char* wanted = std::getenv("GA_SCOPE_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == '\0') return best;
  for (InstructionSet set : {InstructionSet::portable, InstructionSet::avx2, InstructionSet::avx512}) {
    if (std::string(wanted) == name(set) && set <= best) return set;
  }
  throw std::runtime_error(std::string("GA_SCOPE_CPU_CAPABILITY: expected portable, avx2 or avx512, at most ") +
                           name(best) + " on this processor, got " + wanted);
}

const KernelTable& kernels() {
  switch (instruction_set()) {
#if defined(__x86_64__)
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
    case InstructionSet::avx512: return "avx512";
    case InstructionSet::avx2: return "avx2";
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
  return kernels().convolution_bfloat16;
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
