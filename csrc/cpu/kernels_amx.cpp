#include "kernel_headers.h"

#ifdef GA_HAS_AMX
#define GA_VECTOR_BYTES 64
#define GA_BFLOAT16_PRODUCT 2

namespace ga_scope::cpu {
namespace amx {
#if defined(__clang__)
#pragma clang attribute push(                                                                                 \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512bf16,amx-tile,amx-bf16"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,avx512bf16,amx-tile,amx-bf16")
#endif
#include "kernels.inl"

#include "bfloat16.inl"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
}  // namespace amx

const ConvolutionKernels<BFloat16>& amx_kernels() {
  static constexpr ConvolutionKernels<BFloat16> table = amx::bfloat16::convolution_table();
  return table;
}
}  // namespace ga_scope::cpu
#endif
