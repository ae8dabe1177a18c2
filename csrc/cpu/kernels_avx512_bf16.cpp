#include "kernel_headers.h"

#ifdef GA_HAS_AVX512_BF16
#define GA_VECTOR_BYTES 64
#define GA_BFLOAT16_PRODUCT 1

namespace ga_scope::cpu {
namespace avx512_bf16 {
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512bf16")
#endif
#include "kernels.inl"

#include "bfloat16.inl"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
}  // namespace avx512_bf16

const ConvolutionKernels<BFloat16>& avx512_bf16_kernels() {
  static constexpr ConvolutionKernels<BFloat16> table = avx512_bf16::bfloat16::convolution_table();
  return table;
}
}  // namespace ga_scope::cpu
#endif
