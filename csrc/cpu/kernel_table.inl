// The kernels of an instruction set. Included after kernels.inl.

constexpr KernelTable kernel_table() {
  return {
      convolution_table<float>(), convolution_table<double>(), convolution_table<BFloat16>(),
      convolution_table<Half>(),  matching_table<float>(),     matching_table<double>(),
      suppression_table<float>(), suppression_table<double>(),
  };
}
