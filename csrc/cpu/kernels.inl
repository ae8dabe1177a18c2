// Everything that is compiled once per instruction set. A kernels_*.cpp file includes the headers below
// first, so that nothing of theirs is compiled for the set, then this file inside its namespace.

#include "simd.inl"

#include "gemm.inl"

#include "pack.inl"

#include "gather.inl"

#include "convolution_forward.inl"

#include "convolution_backward.inl"

#include "matching.inl"

#include "nms.inl"

template <class T>
int64_t columns_of(int64_t used) {
  return padded<ComputeType<T>>(used) + Vec<ComputeType<T>>::width;
}

template <class T>
int64_t packed_bytes(int64_t depth, int64_t out) {
  return depth * padded<ComputeType<T>>(out) * static_cast<int64_t>(sizeof(ComputeType<T>));
}

template <class T>
int64_t packed_adjoint_bytes(int64_t depth, int64_t out) {
  return packed_bytes<T>(out, depth);
}

template <class T>
constexpr ConvolutionKernels<T> convolution_table() {
  return {.layout = {.vector_width = Vec<ComputeType<T>>::width,
                     .micro_rows = kRows,
                     .tile_rows = 60,
                     .super_tile_rows = 240,
                     .column_bytes = sizeof(ComputeType<T>),
                     .depth_multiple = 1,
                     .columns = columns_of<T>,
                     .packed = packed_bytes<T>,
                     .packed_adjoint = packed_adjoint_bytes<T>,
                     .grad_output = grad_output_bytes<T>,
                     .weight_sums = weight_sums_of<T>,
                     .weight_units = weight_units_of<T>},
          .pack = pack_weight<T>,
          .pack_adjoint = pack_weight_adjoint<T>,
          .transpose = transpose<T, T>,
          .transpose_gradient = transpose<ComputeType<T>, T>,
          .forward = convolution_forward<T>,
          .backward_rows = convolution_backward_rows<T>,
          .backward_weight = convolution_backward_weight<T>,
          .collect_weight = collect_weight_gradient<T>,
          .backward_input = convolution_backward_input<T>};
}
