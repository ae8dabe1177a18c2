#include "kernel_headers.h"

#if defined(__x86_64__)
#define GA_VECTOR_BYTES 32

namespace ga_scope::cpu {
namespace avx2 {
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#include "kernels.inl"

#include "kernel_table.inl"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
}  // namespace avx2

const KernelTable& avx2_kernels() {
  static constexpr KernelTable table = avx2::kernel_table();
  return table;
}
}  // namespace ga_scope::cpu
#endif
