// What a library of simulated kernels answers when asked for its instruction set.
#include <torch/csrc/stable/library.h>

#include <string>

namespace {
std::string cpu_capability() { return "simulated CUDA grid"; }
}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ga_scope, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}
