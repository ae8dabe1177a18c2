// Marks the inline functions that every back end shares: the CPU kernels, the CUDA kernels, and the
// test module that runs the CUDA kernels' index logic on a machine without a GPU.
#pragma once

#ifdef __CUDACC__
#define GA_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define GA_HOST_DEVICE inline
#endif

// Between these two, no product is fused into a sum (a multiply-add rounds once where the formula rounds twice). What
// is compared for equality must not depend on the instruction set, nor on what a compiler fuses in one place and not
// in another. In device code product() of overlap.h does the same.
#if defined(__CUDACC__)
#define GA_EXACT_BEGIN
#define GA_EXACT_END
#elif defined(__clang__)
#define GA_EXACT_BEGIN _Pragma("clang fp contract(off)")
#define GA_EXACT_END _Pragma("clang fp contract(fast)")
#else
#define GA_EXACT_BEGIN _Pragma("GCC push_options") _Pragma("GCC optimize(\"fp-contract=off\")")
#define GA_EXACT_END _Pragma("GCC pop_options")
#endif
