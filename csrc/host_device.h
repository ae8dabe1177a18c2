// Marks the inline functions that every back end shares: the CPU kernels, the CUDA kernels, and the
// test module that runs the CUDA kernels' index logic on a machine without a GPU.
#pragma once

#ifdef __CUDACC__
#define GA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GA_HOST_DEVICE inline
#endif
