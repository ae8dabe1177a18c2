// Launching kernels: the host's side of the grid of grid.h. Tests compile this file against a stub of the CUDA runtime.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace ga_scope::cuda {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next launch would find this error and report it as its own
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// A function of torch's CUDA library, which this one is not linked with, so that it loads beside any torch. Where
// CUDA tensors exist that library is loaded, but not into the global scope: it has to be named.
inline void* find_in_torch(const char* name) {
  void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
  void* function = library ? dlsym(library, name) : nullptr;
  if (function == nullptr) throw std::runtime_error(std::string("ga_scope: no ") + name + " in libtorch_cuda.so");
  return function;
}

// The kernel of a struct: what runs on the device (device_grid.h).
template <class Kernel>
__global__ void run(const __grid_constant__ Kernel kernel);

template <class Kernel>
int64_t shared_bytes_of(const Kernel& kernel) {
  if constexpr (requires { kernel.shared_bytes(); }) {
    return kernel.shared_bytes();
  } else {
    return std::is_empty_v<typename Kernel::Shared> ? 0 : static_cast<int64_t>(sizeof(typename Kernel::Shared));
  }
}

// The current device and stream while an operator runs.
class Device {
 public:
  explicit Device(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    using GetStream = int32_t (*)(int32_t, void**);
    static const auto get_stream = reinterpret_cast<GetStream>(find_in_torch("aoti_torch_get_current_cuda_stream"));
    const int index = tensor.get_device_index();
    check_cuda(cudaSetDevice(index), "cudaSetDevice");  // of the runtime linked here; the guard sets torch's
    void* stream = nullptr;
    if (get_stream(index, &stream) != 0) throw std::runtime_error("ga_scope: cannot get torch's current CUDA stream");
    stream_ = static_cast<cudaStream_t>(stream);
    processors_ = attribute(cudaDevAttrMultiProcessorCount, index);
    shared_bytes_ = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, index);
    major_ = attribute(cudaDevAttrComputeCapabilityMajor, index);
  }

  int processors() const { return processors_; }
  int64_t shared_bytes() const { return shared_bytes_; }
  bool has_tensor_cores() const { return major_ >= 8; }

  // Runs `blocks` blocks on the stream. Errors name the kernel.
  template <class Kernel>
  void launch(const char* name, const Kernel& kernel, int64_t blocks) const {
    if (blocks == 0) return;
    if (blocks > INT32_MAX) throw std::runtime_error(std::string(name) + ": more than 2^31 blocks");
    const auto function = reinterpret_cast<const void*>(&run<Kernel>);
    const int shared = static_cast<int>(shared_bytes_of(kernel));
    if (shared > 48 << 10) {
      check_cuda(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), name);
    }
    void* arguments[] = {const_cast<Kernel*>(&kernel)};
    check_cuda(cudaLaunchKernel(function, dim3(static_cast<unsigned>(blocks)), dim3(Kernel::kThreads), arguments,
                                static_cast<size_t>(shared), stream_),
               name);
  }

 private:
  static int attribute(cudaDeviceAttr what, int device) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, what, device), "cudaDeviceGetAttribute");
    return value;
  }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
  int processors_ = 0, shared_bytes_ = 0, major_ = 0;
};

}  // namespace ga_scope::cuda
