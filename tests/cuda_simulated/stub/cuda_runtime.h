// The part of the CUDA runtime that csrc/cuda/device_launch.h calls: it writes every call down, and fails where told to.
#pragma once

#include <cstddef>
#include <iostream>
#include <string>

#define __global__
#define __grid_constant__

enum cudaError_t { cudaSuccess = 0, cudaErrorMade = 1 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = struct Stream*;

struct dim3 {
  unsigned x, y = 1, z = 1;
  dim3(unsigned x) : x(x) {}
};

inline std::string failing;  // the call that fails
inline int major_version = 9;
inline const void* launched_arguments = nullptr;

template <class... Parts>
cudaError_t called(const std::string& name, const Parts&... parts) {
  std::cout << name;
  ((std::cout << ' ' << parts), ...);
  std::cout << '\n';
  return name == failing ? cudaErrorMade : cudaSuccess;
}

inline cudaError_t cudaGetLastError() { return called("cudaGetLastError"); }
inline const char* cudaGetErrorString(cudaError_t) { return "a made error"; }
inline cudaError_t cudaSetDevice(int device) { return called("cudaSetDevice", device); }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int device) {
  constexpr int kValues[] = {132, 227 << 10};
  *value = what == cudaDevAttrComputeCapabilityMajor ? major_version : kValues[what];
  return called("cudaDeviceGetAttribute", what, device);
}
inline cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute, int value) {
  return called("cudaFuncSetAttribute", function != nullptr, value);
}
inline cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t shared,
                                    cudaStream_t stream) {
  launched_arguments = arguments[0];
  return called("cudaLaunchKernel", function != nullptr, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared,
                stream);
}
