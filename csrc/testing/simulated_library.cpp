// What tests ask a library of simulated kernels.
#include <torch/csrc/stable/library.h>

#define GA_SCOPE_SIMULATED
#include "../cuda/divisor.h"

namespace {

std::string cpu_capability() { return "simulated CUDA grid"; }

// The kernels launched since the last call, in order, separated by spaces.
std::string launches() { return std::exchange(ga_scope::cuda::launches, {}); }

// The device from now on.
void set_device(int64_t processors, int64_t shared_bytes) {
  ga_scope::cuda::simulated_device = {static_cast<int>(processors), shared_bytes};
}

// numbers / divisor as the kernels work it out.
std::vector<int64_t> divide(std::vector<int64_t> numbers, int64_t divisor) {
  const ga_scope::cuda::Divisor by(divisor);
  for (int64_t& number : numbers) number = by.divide(number);
  return numbers;
}

// What keeps kernels right (../testing/mutations.h): its places that later calls pass, as a list of lines; and leaving
// one of these out, or "" none.
void record_sites() { ga_scope::testing::mutations.record(); }
std::string recorded_sites() { return ga_scope::testing::mutations.sites(); }
void delete_site(std::string site) { ga_scope::testing::mutations.remove(site); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(ga_scope, m) {
  m.def("simulated_launches() -> str");
  m.def("simulated_device(int processors, int shared_bytes) -> ()");
  m.def("simulated_divide(int[] numbers, int divisor) -> int[]");
  m.def("simulated_record() -> ()");
  m.def("simulated_recorded() -> str");
  m.def("simulated_delete(str site) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(ga_scope, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
  m.impl("simulated_launches", TORCH_BOX(&launches));
  m.impl("simulated_device", TORCH_BOX(&set_device));
  m.impl("simulated_divide", TORCH_BOX(&divide));
  m.impl("simulated_record", TORCH_BOX(&record_sites));
  m.impl("simulated_recorded", TORCH_BOX(&recorded_sites));
  m.impl("simulated_delete", TORCH_BOX(&delete_site));
}
