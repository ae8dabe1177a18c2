#include "kernel_headers.h"

#define GA_VECTOR_BYTES 16

namespace ga_scope::cpu {
namespace portable {
#include "kernels.inl"
}  // namespace portable

const KernelTable& portable_kernels() {
  static constexpr KernelTable table = portable::kernel_table();
  return table;
}
}  // namespace ga_scope::cpu
