// The storage types, and in what precision numbers of each are computed.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace ga_scope {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Arithmetic is in float, or in double for double.
template <class T>
struct ComputeTypeOf {
  using type = float;
};
template <>
struct ComputeTypeOf<double> {
  using type = double;
};
template <class T>
using ComputeType = typename ComputeTypeOf<T>::type;

template <class T>
constexpr torch::headeronly::ScalarType compute_dtype() {
  return std::is_same_v<ComputeType<T>, double> ? torch::headeronly::ScalarType::Double
                                                : torch::headeronly::ScalarType::Float;
}

// visit(T()) for the storage type T of that name.
template <class Visit>
void visit_dtype(torch::headeronly::ScalarType dtype, const Visit& visit) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Double: return visit(double{});
    case ScalarType::BFloat16: return visit(BFloat16{});
    case ScalarType::Half: return visit(Half{});
    default: return visit(float{});
  }
}

}  // namespace ga_scope
