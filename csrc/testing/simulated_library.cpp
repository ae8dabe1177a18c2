// What tests ask a library of simulated kernels.
#include <torch/csrc/stable/library.h>

#include "simulated_grid.h"

namespace {

std::string cpu_capability() { return "simulated CUDA grid"; }

// The kernels launched since the last call, in order, separated by spaces.
std::string launches() { return std::exchange(ga_scope::cuda::launches, {}); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ga_scope, m) { m.def("simulated_launches() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(ga_scope, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
  m.impl("simulated_launches", TORCH_BOX(&launches));
}
