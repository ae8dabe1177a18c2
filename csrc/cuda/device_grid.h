// The grid of grid.h on a GPU: launches, barriers, atomics, and the tensor cores' warp instructions.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../compute_type.h"

#define GA_KERNEL __device__ __forceinline__
#define GA_UNROLL _Pragma("unroll")
#define GA_UNROLL_TWICE _Pragma("unroll 2")
#define GA_SCOPE_DISPATCH_KEY CUDA

namespace ga_scope::cuda {

constexpr bool kSimulated = false;

// ---- launching ----------------------------------------------------------------------------------

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
    check_cuda(cudaDeviceGetAttribute(&processors_, cudaDevAttrMultiProcessorCount, index), "cudaDeviceGetAttribute");
    check_cuda(cudaDeviceGetAttribute(&shared_bytes_, cudaDevAttrMaxSharedMemoryPerBlockOptin, index),
               "cudaDeviceGetAttribute");
    check_cuda(cudaDeviceGetAttribute(&major_, cudaDevAttrComputeCapabilityMajor, index), "cudaDeviceGetAttribute");
  }

  int processors() const { return processors_; }
  int64_t shared_bytes() const { return shared_bytes_; }
  bool has_tensor_cores() const { return major_ >= 8; }

  template <class Kernel>
  void launch(const char* name, const Kernel& kernel, int64_t blocks) const;

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
  int processors_ = 0, shared_bytes_ = 0, major_ = 0;
};

// ---- the block ----------------------------------------------------------------------------------

struct DeviceWarp;

struct DeviceBlock {
  template <class Value>
  struct PerThread {
    Value value{};
    __device__ Value& operator[](int) { return value; }
  };

  __device__ int64_t index() const { return blockIdx.x; }

  template <class Shared>
  __device__ Shared& shared() const {
    extern __shared__ __align__(128) unsigned char bytes[];
    return *reinterpret_cast<Shared*>(bytes);
  }

  template <class Work>
  __device__ void each(const Work& work) const {
    work(static_cast<int>(threadIdx.x));
    __syncthreads();
  }

  template <class Pipeline>
  __device__ void pipeline(const Pipeline& work, int steps) const;
};

// The two roles wait at different places of the program: a named barrier, which counts arrivals, allows that.
template <int kThreads>
__device__ __forceinline__ void wait_for_all() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

// One block per multiprocessor is enough: without that word the compiler spills registers to fit more.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1) run(const __grid_constant__ Kernel kernel) {
  DeviceBlock block;
  kernel(block);
}

template <class Kernel>
void Device::launch(const char* name, const Kernel& kernel, int64_t blocks) const {
  if (blocks == 0) return;
  if (blocks > INT32_MAX) throw std::runtime_error(std::string(name) + ": more than 2^31 blocks");
  constexpr int kShared = sizeof(typename Kernel::Shared);
  if constexpr (kShared > 48 << 10) {
    check_cuda(cudaFuncSetAttribute(run<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), name);
  }
  run<Kernel><<<static_cast<unsigned>(blocks), Kernel::kThreads, kShared, stream_>>>(kernel);
  check_cuda(cudaGetLastError(), name);
}

// ---- atomics ------------------------------------------------------------------------------------

template <class Real>
__device__ __forceinline__ void atomic_add(Real* to, Real value) {
  atomicAdd(to, value);
}
__device__ __forceinline__ void atomic_max(uint64_t* to, uint64_t value) {
  atomicMax(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(value));
}
__device__ __forceinline__ void atomic_max(int64_t* to, int64_t value) {
  atomicMax(reinterpret_cast<long long*>(to), static_cast<long long>(value));
}
__device__ __forceinline__ void atomic_min(int64_t* to, int64_t value) {
  atomicMin(reinterpret_cast<long long*>(to), static_cast<long long>(value));
}
// A read that other blocks may be changing.
__device__ __forceinline__ uint64_t read_now(const uint64_t* from) {
  return *reinterpret_cast<const volatile uint64_t*>(from);
}
__device__ __forceinline__ uint64_t bits_of(float value) { return __float_as_uint(value); }
__device__ __forceinline__ uint64_t bits_of(double value) { return static_cast<uint64_t>(__double_as_longlong(value)); }
__device__ __forceinline__ float float_of_bits(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ double double_of_bits(uint64_t bits) {
  return __longlong_as_double(static_cast<long long>(bits));
}

// 16 bytes that no kernel of the launch writes.
template <class Vector>
__device__ __forceinline__ Vector load_global(const void* from) {
  const uint4 words = __ldg(static_cast<const uint4*>(from));
  return {{words.x, words.y, words.z, words.w}};
}

// ---- copies and tensor cores --------------------------------------------------------------------

// 16 bytes from global to shared memory, or zeros. Complete for this thread after copies_done().
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ __forceinline__ float round_to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
}

// The 32 threads of a consumer warp. PerLane holds a lane's registers.
struct DeviceWarp {
  int index, lane;

  // Asked anew, so that nothing worked out from it lives in registers through a loop.
  static __device__ __forceinline__ DeviceWarp current() {
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return {thread / 32, thread % 32};
  }

  template <class Value, int kCount>
  struct PerLane {
    Value value[kCount] = {};
    __device__ Value (&operator[](int)) [kCount] { return value; }
  };

  template <class Work>
  __device__ void each(const Work& work) const {
    work(lane);
  }

  // Where a lane reads in a tile of shared memory.
  struct Address {
    uint32_t byte;
  };

  template <class ByteOfLane>
  __device__ Address address(const unsigned char* tile, const ByteOfLane& byte_of_lane) const {
    return {static_cast<uint32_t>(__cvta_generic_to_shared(tile)) + byte_of_lane(lane)};
  }

  // Four 8 x 8 matrices of 16-bit numbers (8 x 4 of 32-bit ones); lanes 8 m .. 8 m + 7 name the rows of matrix m,
  // at (address ^ flip) + offset. Worked out inside the assembly, or the compiler keeps every sum in a register.
  __device__ void load_matrices(PerLane<uint32_t, 4>& to, Address address, int flip, int offset) const {
    asm volatile(
        "{\n"
        ".reg .b32 at;\n"
        "xor.b32 at, %4, %5;\n"
        "add.u32 at, at, %6;\n"
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [at];\n"
        "}\n"
        : "=r"(to.value[0]), "=r"(to.value[1]), "=r"(to.value[2]), "=r"(to.value[3])
        : "r"(address.byte), "r"(flip), "r"(offset)
        : "memory");
  }

  // sums (16 x 8) += a (16 x K) b (K x 8), K = 32 bytes; b is registers 2 * half and 2 * half + 1.
  template <class T>
  __device__ void multiply(PerLane<float, 4>& sums, const PerLane<uint32_t, 4>& a, const PerLane<uint32_t, 4>& b,
                           int half) const {
    float* c = sums.value;
    const uint32_t b0 = b.value[2 * half], b1 = b.value[2 * half + 1];
#define GA_MMA(shape, type)                                                      \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type           \
               ".f32 "                                                           \
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                  \
               : "r"(a.value[0]), "r"(a.value[1]), "r"(a.value[2]), "r"(a.value[3]), "r"(b0), "r"(b1))
    if constexpr (sizeof(T) == 4) {
      GA_MMA("m16n8k8", "tf32");
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      GA_MMA("m16n8k16", "bf16");
    } else {
      GA_MMA("m16n8k16", "f16");
    }
#undef GA_MMA
  }
};

template <class Pipeline>
__device__ __forceinline__ void DeviceBlock::pipeline(const Pipeline& work, int steps) const {
  constexpr int kConsumers = 32 * Pipeline::kConsumerWarps;
  constexpr int kThreads = kConsumers + Pipeline::kProducers;
  const int thread = threadIdx.x;
  if (thread < kConsumers) {
    const DeviceWarp warp{thread / 32, thread % 32};
    typename Pipeline::template Sums<DeviceWarp> sums;
    wait_for_all<kThreads>();
    for (int step = 0; step < steps; ++step) {
      work.consume(step, warp, sums);
      wait_for_all<kThreads>();
    }
    work.finish(DeviceWarp::current(), sums);
  } else {
    const int producer = thread - kConsumers;
    work.produce(0, producer);
    wait_for_all<kThreads>();
    for (int step = 0; step < steps; ++step) {
      if (step + 1 < steps) work.produce(step + 1, producer);
      wait_for_all<kThreads>();
    }
  }
}

}  // namespace ga_scope::cuda
