// The grid of cuda/grid.h on the host, for tests: blocks one after the other, the threads between two
// barriers in a random order, shared memory full of NaN at the start, tensor-core instructions lane by
// lane as the PTX manual lays their registers out.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../compute_type.h"

#define GA_KERNEL inline
#define GA_UNROLL
#define GA_UNROLL_TWICE
#define GA_SCOPE_DISPATCH_KEY CPU

namespace ga_scope::cuda {

constexpr bool kSimulated = true;

// A plausible device: few processors, so that small tests meet both tile heights.
class Device {
 public:
  explicit Device(const torch::stable::Tensor&) {}
  int processors() const { return 2; }
  int64_t shared_bytes() const { return 227 << 10; }
  bool has_tensor_cores() const { return true; }

  template <class Kernel>
  void launch(const char* name, const Kernel& kernel, int64_t blocks) const;
};

inline std::string launches;  // the kernels that ran, for tests to ask

inline std::vector<int> random_order(int count) {
  static std::minstd_rand random(1);
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  // A rotation, forwards or backwards: cheap, and every pair of threads meets in both orders.
  std::rotate(order.begin(), order.begin() + random() % std::max(count, 1), order.end());
  if (random() % 2) std::reverse(order.begin(), order.end());
  return order;
}

struct SimulatedWarp;

struct SimulatedBlock {
  int64_t block;
  int threads;
  unsigned char* memory;

  template <class Value>
  struct PerThread {
    std::vector<Value> value = std::vector<Value>(1024);
    Value& operator[](int thread) { return value[thread]; }
  };

  int64_t index() const { return block; }

  template <class Shared>
  Shared& shared() const {
    return *reinterpret_cast<Shared*>(memory);
  }

  template <class Work>
  void each(const Work& work) const {
    for (int thread : random_order(threads)) work(thread);
  }

  template <class Pipeline>
  void pipeline(const Pipeline& work, int steps) const;
};

template <class Kernel>
void Device::launch(const char* name, const Kernel& kernel, int64_t blocks) const {
  launches += (launches.empty() ? "" : " ") + std::string(name);
  constexpr size_t kBytes = (sizeof(typename Kernel::Shared) + 127) / 128 * 128;
  if (static_cast<int64_t>(kBytes) > shared_bytes()) throw std::runtime_error(std::string(name) + ": shared memory");
  unsigned char* memory = static_cast<unsigned char*>(std::aligned_alloc(128, kBytes));
  for (int64_t index = 0; index < blocks; ++index) {
    std::memset(memory, 0xff, kBytes);  // NaN in every floating-point type
    SimulatedBlock block{index, Kernel::kThreads, memory};
    kernel(block);
  }
  std::free(memory);
}

// ---- atomics ------------------------------------------------------------------------------------

template <class Real>
inline void atomic_add(Real* to, Real value) {
  *to += value;
}
inline void atomic_max(uint64_t* to, uint64_t value) { *to = std::max(*to, value); }
inline void atomic_max(int64_t* to, int64_t value) { *to = std::max(*to, value); }
inline void atomic_min(int64_t* to, int64_t value) { *to = std::min(*to, value); }
inline uint64_t read_now(const uint64_t* from) { return *from; }
inline uint64_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline uint64_t bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}
inline double double_of_bits(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

template <class Vector>
Vector load_global(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) throw std::runtime_error("load_global: misaligned");
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

// ---- copies and tensor cores --------------------------------------------------------------------

inline void copy_async(void* to, const void* from, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0) throw std::runtime_error("copy_async: misaligned target");
  if (!valid) {
    std::memset(to, 0, 16);
    return;
  }
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) throw std::runtime_error("copy_async: misaligned source");
  std::memcpy(to, from, 16);
}
inline void copies_done() {}

// To 10 fraction bits, ties away from zero.
inline float round_to_tf32(float value) {
  uint32_t bits = static_cast<uint32_t>(bits_of(value));
  if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & ~0x1fffu;
  return float_of_bits(bits);
}

struct SimulatedWarp {
  int index;

  template <class Value, int kCount>
  struct PerLane {
    Value value[32][kCount] = {};
    Value (&operator[](int lane)) [kCount] { return value[lane]; }
  };

  template <class Work>
  void each(const Work& work) const {
    for (int lane = 0; lane < 32; ++lane) work(lane);
  }

  struct Address {
    uintptr_t byte[32];
  };

  template <class ByteOfLane>
  Address address(const unsigned char* tile, const ByteOfLane& byte_of_lane) const {
    Address result;
    for (int lane = 0; lane < 32; ++lane) result.byte[lane] = reinterpret_cast<uintptr_t>(tile) + byte_of_lane(lane);
    return result;
  }

  // ldmatrix: lane i receives row i / 4, word i % 4 of each matrix.
  void load_matrices(PerLane<uint32_t, 4>& to, const Address& address, int flip, int offset) const {
    for (int matrix = 0; matrix < 4; ++matrix) {
      for (int lane = 0; lane < 32; ++lane) {
        const uintptr_t row = (address.byte[8 * matrix + lane / 4] ^ flip) + offset;
        if (row % 16 != 0) throw std::runtime_error("load_matrices: misaligned row");
        std::memcpy(&to.value[lane][matrix], reinterpret_cast<const unsigned char*>(row) + 4 * (lane % 4), 4);
      }
    }
  }

  // mma.m16n8k16 (16-bit) and m16n8k8 (tf32): with g = lane / 4 and t = lane % 4, register 0 of A is row g and
  // word t of the lower half of K, register 1 row g + 8, registers 2 and 3 the same of the upper half; those
  // of B are column g of either half; those of C are (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
  template <class T>
  void multiply(PerLane<float, 4>& sums, const PerLane<uint32_t, 4>& a, const PerLane<uint32_t, 4>& b, int half) const {
    constexpr int kPerWord = 4 / sizeof(T), kHalf = 4 * kPerWord;
    float rows[16][2 * kHalf], columns[8][2 * kHalf];
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int word = 0; word < 4; ++word)
        unpack<T>(a.value[lane][word], &rows[g + word % 2 * 8][word / 2 * kHalf + t * kPerWord]);
      for (int word = 0; word < 2; ++word)
        unpack<T>(b.value[lane][2 * half + word], &columns[g][word * kHalf + t * kPerWord]);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        const float* row = rows[g + i / 2 * 8];
        const float* column = columns[2 * t + i % 2];
        float total = sums.value[lane][i];
        for (int k = 0; k < 2 * kHalf; ++k) total += row[k] * column[k];
        sums.value[lane][i] = total;
      }
    }
  }

 private:
  template <class T>
  static void unpack(uint32_t word, float* to) {
    T values[4 / sizeof(T)];
    std::memcpy(values, &word, 4);
    for (size_t i = 0; i < 4 / sizeof(T); ++i) to[i] = static_cast<float>(values[i]);
  }
};

template <class Pipeline>
void SimulatedBlock::pipeline(const Pipeline& work, int steps) const {
  std::vector<typename Pipeline::template Sums<SimulatedWarp>> sums(Pipeline::kConsumerWarps);
  const auto produce = [&](int step) {
    for (int producer : random_order(Pipeline::kProducers)) work.produce(step, producer);
  };
  const auto consume = [&](int step) {
    for (int warp : random_order(Pipeline::kConsumerWarps)) work.consume(step, SimulatedWarp{warp}, sums[warp]);
  };
  produce(0);
  for (int step = 0; step < steps; ++step) {
    // Between two barriers either role may be first.
    const bool producers_first = step % 2 == 0;
    if (producers_first && step + 1 < steps) produce(step + 1);
    consume(step);
    if (!producers_first && step + 1 < steps) produce(step + 1);
  }
  for (int warp : random_order(Pipeline::kConsumerWarps)) work.finish(SimulatedWarp{warp}, sums[warp]);
}

}  // namespace ga_scope::cuda
