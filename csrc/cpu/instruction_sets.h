// Run-time dispatch: the same kernels, compiled for several instruction sets; the best one is chosen once.
#pragma once

#include "convolution_pass.h"
#include "matching_rows.h"
#include "nms_columns.h"

namespace ga_scope::cpu {

enum class InstructionSet { portable, avx2, avx512 };

// The best set of this processor, or a lower one where GA_SCOPE_CPU_CAPABILITY says so
// (portable, avx2 or avx512; asking for one that the processor lacks is an error).
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

const KernelTable& portable_kernels();
#if defined(__x86_64__)
const KernelTable& avx2_kernels();
const KernelTable& avx512_kernels();
#endif

}  // namespace ga_scope::cpu
