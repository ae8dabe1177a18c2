// In what precision numbers of each storage type are computed.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

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

}  // namespace ga_scope
