// Everything that is compiled once per instruction set. A kernels_*.cpp file includes the headers below
// first, so that nothing of theirs is compiled for the set, then this file inside its namespace.

#include "simd.inl"

#include "gemm.inl"

#include "convolution.inl"

#include "matching.inl"

#include "nms.inl"

constexpr KernelTable kernel_table() {
  return {
      convolution_table<float>(), convolution_table<double>(), convolution_table<BFloat16>(),
      convolution_table<Half>(),  matching_table<float>(),     matching_table<double>(),
      suppression_table<float>(), suppression_table<double>(),
  };
}
