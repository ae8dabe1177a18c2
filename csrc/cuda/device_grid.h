// The grid of grid.h on a GPU: blocks, barriers, memory, and the tensor cores' warp instructions.
#pragma once

#include "../compute_type.h"
#include "device_launch.h"

#define GA_KERNEL __device__ __forceinline__
#define GA_UNROLL _Pragma("unroll")
#define GA_UNROLL_TWICE _Pragma("unroll 2")
#define GA_NO_UNROLL _Pragma("unroll 1")
#define GA_SCOPE_DISPATCH_KEY CUDA

namespace ga_scope::cuda {

constexpr bool kSimulated = false;

// Where in the source a call is: the simulated grid asks, the device does not.
struct Where {
  static constexpr __host__ __device__ Where current() { return {}; }
};

// ---- memory -------------------------------------------------------------------------------------

template <class T>
using Pointer = T*;

template <class T>
__device__ __forceinline__ uintptr_t address_of(T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer);
}

// `bytes` i times further on, as one multiplication with a wide result and addition; the compiler prefers more.
template <class T>
__device__ __forceinline__ T* element(T* base, int32_t i, int32_t bytes) {
  T* result;
  asm("mad.wide.s32 %0, %1, %2, %3;" : "=l"(result) : "r"(i), "r"(bytes), "l"(base));
  return result;
}

// A number of bytes further on, not negative.
template <class T>
__device__ __forceinline__ const T* further(const T* base, int32_t bytes) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(base) + static_cast<uint32_t>(bytes));
}

template <class T>
Pointer<T> pointer_to(const torch::stable::Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Numbers that a kernel holds in registers and moves at once: of 2 to 16 bytes. Loaded are those that no kernel of the
// launch writes.
template <int kBytes>
struct Words;
template <>
struct Words<2> {
  using type = unsigned short;
};
template <>
struct Words<4> {
  using type = unsigned int;
};
template <>
struct Words<8> {
  using type = uint2;
};
template <>
struct Words<16> {
  using type = uint4;
};
template <class T>
__device__ __forceinline__ T load_number(const T* from) {
  return __ldg(from);
}
template <class Vector, class T>
__device__ __forceinline__ Vector load_vector(const T* from) {
  using Words = typename Words<sizeof(Vector)>::type;
  const Words words = __ldg(reinterpret_cast<const Words*>(from));
  Vector vector;
  *reinterpret_cast<Words*>(&vector) = words;
  return vector;
}
// The same, of 16 bytes, on its side of keep_order(): the compiler moves read-only loads wherever it likes.
template <class Vector, class T>
__device__ __forceinline__ Vector load_vector_here(const T* from) {
#if __CUDA_ARCH__ >= 1000
  return load_vector<Vector>(from);
#endif
  uint4 words;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(__cvta_generic_to_global(from))
               : "memory");
  Vector vector;
  *reinterpret_cast<uint4*>(&vector) = words;
  return vector;
}
// Written as an instruction, or the compiler takes vectors apart.
template <class Vector, class T>
__device__ __forceinline__ void store_vector(T* to, const Vector& vector) {
  using Words = typename Words<sizeof(Vector)>::type;
  __stwb(reinterpret_cast<Words*>(to), *reinterpret_cast<const Words*>(&vector));
}
template <class Vector>
__device__ __forceinline__ void store_shared(void* to, const Vector& vector) {
  *static_cast<Vector*>(to) = vector;
}
// 16 bytes, or zeros where `flag` has the bits `zeros`: two predicated stores; the compiler would select word by word.
template <class Vector>
__device__ __forceinline__ void store_shared_unless(void* to, const Vector& vector, float flag, uint32_t zeros) {
  const uint4 words = *reinterpret_cast<const uint4*>(&vector);
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.u32 p, %5, %7;\n"
      "@p st.shared.v4.b32 [%0], {%1, %2, %3, %4};\n"
      "@!p st.shared.v4.b32 [%0], {%6, %6, %6, %6};\n"
      "}\n" ::"r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
      "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w), "r"(__float_as_uint(flag)), "r"(0), "r"(zeros)
      : "memory");
}

template <class T, int kCount>
struct Array {
  T value[kCount];

  __device__ __forceinline__ T& operator[](int i) { return value[i]; }
  __device__ __forceinline__ const T& operator[](int i) const { return value[i]; }
};

template <class I, class N>
__device__ __forceinline__ bool within(I i, N end) {
  return i < end;
}
template <class I>
__device__ __forceinline__ I clamped(I i, I low, I high) {
  return min(max(i, low), high);
}
__host__ __device__ __forceinline__ int swizzle(int bits, Where) { return bits; }

// ---- a block ------------------------------------------------------------------------------------

struct Warp;

struct DeviceBlock {
  __device__ __forceinline__ int64_t index() const { return blockIdx.x; }
  __device__ __forceinline__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ __forceinline__ Warp warp() const;
  __device__ __forceinline__ Warp warp_anew() const;

  template <class Shared>
  __device__ __forceinline__ Shared& shared() const {
    extern __shared__ __align__(128) unsigned char bytes[];
    return *reinterpret_cast<Shared*>(bytes);
  }

  __device__ __forceinline__ void sync() const { __syncthreads(); }
  // The compiler leaves accesses to memory on their side of this: it would gather loads and issue them late.
  __device__ __forceinline__ void keep_order() const {
#if __CUDA_ARCH__ < 1000  // later, registers do not suffice for it
    __syncwarp();
#endif
  }
  // Threads that wait for one barrier wait at one place of the code (PTX: bar.sync is barrier.sync.aligned): where
  // roles differ, one arrives and the other waits.
  __device__ __forceinline__ void sync(int barrier, int threads) const {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
  }
  __device__ __forceinline__ void arrive(int barrier, int threads) const {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
  }
};

// One block per multiprocessor is enough: without that word the compiler spills registers to fit more.
template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1) run(const __grid_constant__ Kernel kernel) {
  DeviceBlock block;
  kernel(block);
}

// ---- numbers and atomics ------------------------------------------------------------------------

template <class Real>
__device__ __forceinline__ void atomic_add(Real* to, Real value) {
  atomicAdd(to, value);
}
// Four neighbours at once, on a 16-byte boundary.
__device__ __forceinline__ void atomic_add4(float* to, const float (&value)[4]) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "f"(value[0]),
               "f"(value[1]), "f"(value[2]), "f"(value[3])
               : "memory");
#else
  for (int i = 0; i < 4; ++i) atomicAdd(to + i, value[i]);
#endif
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
__host__ __device__ __forceinline__ uint64_t multiply_high(uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH__
  return __umul64hi(a, b);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
#endif
}

// Of the bits that are set; there is one.
__device__ __forceinline__ int lowest_bit(uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }
__device__ __forceinline__ int highest_bit(uint32_t bits) { return 31 - __clz(static_cast<int>(bits)); }

__device__ __forceinline__ float round_to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
}
// Two numbers of 16 bits in a word.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t word;
  if constexpr (std::is_same_v<T, BFloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  }
  return word;
}

// Ends the launch with a message, as torch's own indexing does. The numbers are for the simulated grid alone: to print
// them takes local memory in every kernel.
[[noreturn]] __device__ __forceinline__ void refuse_location(int64_t, int64_t, int64_t) {
  __assert_fail("locations: expected values in [0, number of output positions)", "ga_scope", 0, "kernel");
}

// ---- copies -------------------------------------------------------------------------------------

// 16 bytes from global to shared memory, or zeros where not valid; landed for this thread after wait_for_copies.
template <class Block, class T>
__device__ __forceinline__ void copy_async(Block&, void* to, const T* from, bool valid) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
}
template <class Block, class T>
__device__ __forceinline__ void copy_async(Block&, void* to, const T* from) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}
// The copies so far are a group.
template <class Block>
__device__ __forceinline__ void commit_copies(Block&) {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most the last kLeft groups have not landed.
template <int kLeft, class Block>
__device__ __forceinline__ void wait_for_copies(Block&) {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// ---- warps --------------------------------------------------------------------------------------

struct Warp {
  int index, lane;

  // Another lane's value.
  template <class Value>
  __device__ __forceinline__ Value shuffle(Value value, int from) const {
    return __shfl_sync(0xffffffffu, value, from);
  }
  template <class Value>
  __device__ __forceinline__ Value shuffle_xor(Value value, int mask) const {
    return __shfl_xor_sync(0xffffffffu, value, mask);
  }
  template <class T>
  __device__ __forceinline__ T* shuffle(T* pointer, int from) const {
    return reinterpret_cast<T*>(__shfl_sync(0xffffffffu, reinterpret_cast<unsigned long long>(pointer), from));
  }
  // Bit i: lane i's condition.
  __device__ __forceinline__ uint32_t ballot(bool condition) const { return __ballot_sync(0xffffffffu, condition); }

  // Where a lane reads in a tile of shared memory.
  using Address = uint32_t;
  static __device__ __forceinline__ Address address(const unsigned char* tile, int byte) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(tile)) + byte;
  }

  // Four 8 x 8 matrices of 16-bit numbers (8 x 4 of 32-bit ones); lanes 8 m .. 8 m + 7 name the rows of matrix m,
  // at (address ^ flip) + offset. Worked out inside the assembly, or the compiler keeps every sum in a register.
  __device__ __forceinline__ void load_matrices(uint32_t (&to)[4], Address address, int flip, int offset) const {
    asm volatile(
        "{\n"
        ".reg .b32 at;\n"
        "xor.b32 at, %4, %5;\n"
        "add.u32 at, at, %6;\n"
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [at];\n"
        "}\n"
        : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
        : "r"(address), "r"(flip), "r"(offset)
        : "memory");
  }

  // sums (16 x 8) += a (16 x K) b (K x 8), K = 32 bytes.
  template <class T>
  __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) const {
#define GA_MMA(shape, type)                                                      \
  asm volatile("mma.sync.aligned." shape ".row.col.f32." type "." type           \
               ".f32 "                                                           \
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
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

__device__ __forceinline__ Warp DeviceBlock::warp() const {
  return {static_cast<int>(threadIdx.x) / 32, static_cast<int>(threadIdx.x) % 32};
}
// Asked anew, so that nothing worked out from it lives in registers through a loop.
__device__ __forceinline__ Warp DeviceBlock::warp_anew() const {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return {thread / 32, thread % 32};
}

}  // namespace ga_scope::cuda
