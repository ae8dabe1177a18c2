#include "kernel_headers.h"

#if defined(__x86_64__)
#define GA_VECTOR_BYTES 64

namespace ga_scope::cpu {
namespace avx512 {
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#include "kernels.inl"

#include "kernel_table.inl"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
}  // namespace avx512

const KernelTable& avx512_kernels() {
  static constexpr KernelTable table = avx512::kernel_table();
  return table;
}
}  // namespace ga_scope::cpu
#endif
