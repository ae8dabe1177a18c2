// Run-time dispatch: the same kernels, compiled for several instruction sets; the best one is chosen once.
#pragma once

#include "convolution_pass.h"
#include "matching_rows.h"
#include "nms_columns.h"

namespace ga_scope::cpu {

// Each has what those before it have. bfloat16_reference is `portable` with products of bfloat16 as avx512_bf16 and amx
// have them, in C++: slow, and for tests on processors that have not.
enum class InstructionSet { bfloat16_reference, portable, avx2, avx512, avx512_bf16, amx };

// The best set of this processor, or a lower one where GA_SCOPE_CPU_CAPABILITY names it (asking for one that the
// processor lacks is an error).
InstructionSet instruction_set();
const char* name(InstructionSet set);

struct KernelTable {
  ConvolutionKernels<float> convolution_float;
  ConvolutionKernels<double> convolution_double;
  ConvolutionKernels<BFloat16> convolution_bfloat16;
  ConvolutionKernels<Half> convolution_half;
  MatchingKernels<float> matching_float;
  MatchingKernels<double> matching_double;
  SuppressionKernels<float> suppression_float;
  SuppressionKernels<double> suppression_double;
};

// Products of bfloat16 need a compiler that knows their instructions: GCC 10 and 11, Clang 9 and 11.
#if defined(__x86_64__) && __has_include(<avx512bf16intrin.h>)
#define GA_HAS_AVX512_BF16
#endif
#if defined(__x86_64__) && __has_include(<amxbf16intrin.h>)
#define GA_HAS_AMX
#endif

const KernelTable& portable_kernels();
const ConvolutionKernels<BFloat16>& reference_bfloat16_kernels();
#if defined(__x86_64__)
const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
const ConvolutionKernels<BFloat16>& avx512_bf16_kernels();
const ConvolutionKernels<BFloat16>& amx_kernels();
#endif

}  // namespace ga_scope::cpu
