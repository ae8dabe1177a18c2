#include "kernel_headers.h"

#define GA_VECTOR_BYTES 16

namespace ga_scope::cpu {
namespace portable {
#include "kernels.inl"

#include "kernel_table.inl"
#define GA_BFLOAT16_PRODUCT 0
#include "bfloat16.inl"
}  // namespace portable

const KernelTable& portable_kernels() {
  static constexpr KernelTable table = portable::kernel_table();
  return table;
}

const ConvolutionKernels<BFloat16>& reference_bfloat16_kernels() {
  static constexpr ConvolutionKernels<BFloat16> table = portable::bfloat16::convolution_table();
  return table;
}
}  // namespace ga_scope::cpu
