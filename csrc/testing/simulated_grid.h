// The grid of cuda/grid.h on the host, for tests: every thread of a block is a fiber, and which one runs is drawn at
// random. What a GPU leaves undefined is an error here, or a wrong number:
//
//   shared memory     full of NaN at the start; indices of its arrays are checked
//   global memory     pointers know what they may point at
//   barriers          of threads that wait for each other in vain, or at different places
//   warp operations   of lanes that do not all come
//   copies            land when their thread waits for them; until then their target is NaN
//   vectors           are aligned
//   ldmatrix          reads eight rows from different banks
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../compute_type.h"
#include "fibers.h"
#include "mutations.h"

#define GA_KERNEL inline
#define GA_UNROLL
#define GA_UNROLL_TWICE
#define GA_NO_UNROLL
#define GA_SCOPE_DISPATCH_KEY CPU

namespace ga_scope::cuda {

using testing::mutations;
using testing::Where;

constexpr bool kSimulated = true;
constexpr int kWarpLanes = 32;

[[noreturn]] inline void fail(const std::string& text) { throw std::runtime_error(text); }

inline bool same(const Where& a, const Where& b) { return a.line() == b.line() && a.column() == b.column(); }
inline std::string place_of(const Where& where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line());
}

// ---- memory -------------------------------------------------------------------------------------

// A pointer to numbers of a tensor that knows where they end.
template <class T>
class Pointer {
 public:
  Pointer() = default;
  Pointer(std::nullptr_t) {}
  Pointer(T* at, const void* begin, const void* end)
      : at_(at), begin_(reinterpret_cast<uintptr_t>(begin)), end_(reinterpret_cast<uintptr_t>(end)) {}
  template <class U>
    requires std::is_same_v<const U, T>
  Pointer(const Pointer<U>& other) : at_(other.at_), begin_(other.begin_), end_(other.end_) {}

  T& operator*() const { return *check(sizeof(T)); }
  T& operator[](int64_t i) const { return *(*this + i); }
  Pointer operator+(int64_t i) const {
    Pointer result = *this;
    result.at_ = reinterpret_cast<T*>(address() + i * static_cast<int64_t>(sizeof(T)));
    return result;
  }
  Pointer& operator+=(int64_t i) { return *this = *this + i; }
  explicit operator bool() const { return at_ != nullptr; }
  bool operator==(std::nullptr_t) const { return at_ == nullptr; }
  uintptr_t address() const { return reinterpret_cast<uintptr_t>(at_); }

  // The address, if this many bytes from there on belong to the tensor.
  T* check(size_t bytes) const {
    if (address() < begin_ || address() + bytes > end_) {
      fail("global memory: " + std::to_string(bytes) + " bytes at " +
           std::to_string(static_cast<int64_t>(address() - begin_)) + " of " + std::to_string(end_ - begin_));
    }
    return at_;
  }

 private:
  template <class U>
  friend class Pointer;
  T* at_ = nullptr;
  uintptr_t begin_ = 0, end_ = 0;
};

template <class T>
Pointer<T> pointer_to(const torch::stable::Tensor& tensor) {
  int64_t numbers = 1;
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    numbers = tensor.size(d) == 0 ? 0 : numbers + (tensor.size(d) - 1) * tensor.stride(d);
    if (numbers == 0) break;
  }
  auto* begin = static_cast<unsigned char*>(tensor.data_ptr());
  return {reinterpret_cast<T*>(begin), begin, begin + numbers * static_cast<int64_t>(tensor.element_size())};
}

template <class T>
uintptr_t address_of(const Pointer<T>& pointer) {
  return pointer.address();
}

// `bytes` i times further on.
template <class T>
Pointer<T> element(const Pointer<T>& base, int32_t i, int32_t bytes) {
  return base + int64_t(i) * bytes / static_cast<int64_t>(sizeof(T));
}

// A number of bytes further on, not negative.
template <class T>
Pointer<T> further(const Pointer<T>& base, int32_t bytes) {
  if (bytes < 0 || bytes % sizeof(T) != 0) fail("further: " + std::to_string(bytes) + " bytes");
  return base + bytes / static_cast<int64_t>(sizeof(T));
}

inline void check_aligned(const char* what, uintptr_t address, size_t bytes) {
  if (address % bytes != 0) fail(std::string(what) + ": not aligned to " + std::to_string(bytes) + " bytes");
}

template <class T>
T load_number(const Pointer<const T>& from) {
  return *from;
}
// Numbers that a kernel holds in registers and moves at once.
template <class Vector, class T>
Vector load_vector(const Pointer<const T>& from) {
  check_aligned("load_vector", from.address(), sizeof(Vector));
  Vector vector;
  std::memcpy(&vector, from.check(sizeof vector), sizeof vector);
  return vector;
}
template <class Vector, class T>
Vector load_vector_here(const Pointer<const T>& from) {
  return load_vector<Vector>(from);
}
template <class Vector, class T>
void store_vector(const Pointer<T>& to, const Vector& vector) {
  check_aligned("store_vector", to.address(), sizeof vector);
  std::memcpy(to.check(sizeof vector), &vector, sizeof vector);
}
template <class Vector>
void store_shared(void* to, const Vector& vector) {
  check_aligned("store_shared", reinterpret_cast<uintptr_t>(to), sizeof vector);
  std::memcpy(to, &vector, sizeof vector);
}
// Or zeros where `flag` has the bits `zeros`.
template <class Vector>
void store_shared_unless(void* to, const Vector& vector, float flag, uint32_t zeros) {
  uint32_t bits;
  std::memcpy(&bits, &flag, sizeof bits);
  store_shared(to, bits == zeros ? Vector{} : vector);
}

// An array of shared memory.
template <class T, int kCount>
struct Array {
  T value[kCount];

  T& operator[](int64_t i) { return value[check(i)]; }
  const T& operator[](int64_t i) const { return value[check(i)]; }

 private:
  static int64_t check(int64_t i) {
    if (i < 0 || i >= kCount) fail("shared memory: index " + std::to_string(i) + " of " + std::to_string(kCount));
    return i;
  }
};

// i < end, and the number of those that lie in [low, high]: bounds, which tests delete one by one.
template <class I, class N>
bool within(I i, N end, const Where& where = Where::current()) {
  return mutations.deletes("bound", where) || i < end;
}
template <class I>
I clamped(I i, I low, I high, const Where& where = Where::current()) {
  return mutations.deletes("clamp", where) ? i : std::min(std::max(i, low), high);
}
// Bits that spread addresses over the banks of shared memory.
inline int swizzle(int bits, const Where& where) { return mutations.deletes("swizzle", where) ? 0 : bits; }

// ---- a block ------------------------------------------------------------------------------------

// What the threads of the block that runs share.
class BlockState {
 public:
  static constexpr int kBarriers = 16;

  BlockState(testing::Fibers& fibers, int threads) : fibers_(fibers), threads_(threads), warps_(threads / kWarpLanes) {
    for (auto& barrier : barriers_) barrier.lanes.assign(warps_.size(), 0);
  }

  // Arrives at a barrier that `expected` threads come to, and waits there or not.
  void arrive(int number, int expected, bool wait, bool same_place, const Where& where) {
    Barrier& barrier = barriers_[number];
    const int thread = fibers_.running();
    if (barrier.arrived == 0) barrier.expected = expected, barrier.where = where;
    if (barrier.expected != expected)
      fail("barrier: of " + std::to_string(barrier.expected) + " threads and of others");
    if (same_place && !same(barrier.where, where)) {
      fail("barrier: threads of a block at " + place_of(barrier.where) + " and at " + place_of(where));
    }
    if (++barrier.lanes[thread / kWarpLanes] > kWarpLanes) fail("barrier: a warp came twice, at " + place_of(where));
    if (wait) barrier.waiting.push_back(thread);
    if (++barrier.arrived < expected) {
      if (wait) fibers_.wait({"a barrier", where.file_name(), static_cast<int>(where.line())});
      return;
    }
    for (int& lanes : barrier.lanes) {
      if (lanes % kWarpLanes != 0) fail("barrier: part of a warp, at " + place_of(where));
      lanes = 0;
    }
    barrier.arrived = 0;
    for (int other : std::exchange(barrier.waiting, {})) {
      if (other != thread) fibers_.make_ready(other);
    }
  }

  // The lanes of a warp meet; the last one does the work on what all of them bring.
  template <class Part, class Work>
  void meet(const char* what, Part& part, const Where& where, const Work& work) {
    const int thread = fibers_.running();
    Meeting& meeting = warps_[thread / kWarpLanes];
    if (meeting.arrived == 0) meeting.what = what, meeting.where = where;
    if (!same(meeting.where, where) || meeting.what != what) {
      fail(std::string("a warp at ") + meeting.what + ", " + place_of(meeting.where) + ", and at " + what + ", " +
           place_of(where));
    }
    meeting.parts[thread % kWarpLanes] = &part;
    if (++meeting.arrived < kWarpLanes) {
      fibers_.wait({what, where.file_name(), static_cast<int>(where.line())});
      return;
    }
    Part* parts[kWarpLanes];
    for (int lane = 0; lane < kWarpLanes; ++lane) parts[lane] = static_cast<Part*>(meeting.parts[lane]);
    work(parts);
    meeting.arrived = 0;
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      if (lane != thread % kWarpLanes) fibers_.make_ready(thread / kWarpLanes * kWarpLanes + lane);
    }
  }

 private:
  struct Barrier {
    int arrived = 0, expected = 0;
    Where where;
    std::vector<int> waiting, lanes;  // lanes: that have come, of each warp
  };
  struct Meeting {
    int arrived = 0;
    const char* what;
    Where where;
    void* parts[kWarpLanes];
  };

  testing::Fibers& fibers_;
  int threads_;
  Barrier barriers_[kBarriers];
  std::vector<Meeting> warps_;
};

struct Warp;

// A thread's view of its block.
class SimulatedBlock {
 public:
  SimulatedBlock(BlockState& state, int64_t index, int threads, int thread, unsigned char* memory)
      : state_(state), index_(index), threads_(threads), thread_(thread), memory_(memory) {}

  int64_t index() const { return index_; }
  int thread() const { return thread_; }
  Warp warp() const;
  Warp warp_anew() const;

  template <class Shared>
  Shared& shared() const {
    return *reinterpret_cast<Shared*>(memory_);
  }

  void sync(const Where& where = Where::current()) {
    if (!mutations.deletes("barrier", where)) state_.arrive(0, threads_, true, true, where);
  }
  void keep_order() const {}  // for the compiler alone
  void sync(int barrier, int threads, const Where& where = Where::current()) const {
    if (!mutations.deletes("barrier", where)) state_.arrive(barrier, threads, true, false, where);
  }
  void arrive(int barrier, int threads, const Where& where = Where::current()) const {
    if (!mutations.deletes("arrival", where)) state_.arrive(barrier, threads, false, false, where);
  }

  void copy(void* to, const void* from, size_t bytes) {
    std::memset(to, 0xff, 16);  // what a copy's target holds until it has landed
    copies_.push_back({to, from, bytes, groups_});
  }
  void commit() { ++groups_; }
  void land(int groups_left) {
    size_t kept = 0;
    for (const Copy& copy : copies_) {
      if (copy.group + groups_left >= groups_) {
        copies_[kept++] = copy;
      } else {
        std::memset(copy.to, 0, 16);
        std::memcpy(copy.to, copy.from, copy.bytes);
      }
    }
    copies_.resize(kept);
  }
  // When the thread has ended.
  void check_ended() const {
    if (!copies_.empty()) fail("copies: a thread ended without waiting for its own");
  }

 private:
  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    int group;
  };

  BlockState& state_;
  int64_t index_;
  int threads_, thread_;
  unsigned char* memory_;
  std::vector<Copy> copies_;
  int groups_ = 0;
  friend struct Warp;
};

// ---- the device ---------------------------------------------------------------------------------

// A plausible device: few processors, so that small tests meet every tile. Tests may ask for another.
struct SimulatedDevice {
  int processors = 2;
  int64_t shared_bytes = 227 << 10;
};
inline SimulatedDevice simulated_device;
inline std::string launches;  // the kernels that ran, for tests to ask

template <class Kernel>
int64_t shared_bytes_of(const Kernel& kernel) {
  if constexpr (requires { kernel.shared_bytes(); }) {
    return kernel.shared_bytes();
  } else {
    return sizeof(typename Kernel::Shared);
  }
}

class Device {
 public:
  explicit Device(const torch::stable::Tensor&) {}
  int processors() const { return simulated_device.processors; }
  int64_t shared_bytes() const { return simulated_device.shared_bytes; }
  bool has_tensor_cores() const { return true; }

  template <class Kernel>
  void launch(const char* name, const Kernel& kernel, int64_t blocks) const {
    launches += (launches.empty() ? "" : " ") + std::string(name);
    static testing::Fibers fibers(1);
    const size_t bytes = (shared_bytes_of(kernel) + 127) / 128 * 128;
    if (static_cast<int64_t>(bytes) > shared_bytes()) fail(std::string(name) + ": shared memory");
    const std::unique_ptr<unsigned char, decltype(&std::free)> memory(
        static_cast<unsigned char*>(std::aligned_alloc(128, bytes)), &std::free);
    for (int64_t index = 0; index < blocks; ++index) {
      std::memset(memory.get(), 0xff, bytes);  // NaN in every floating-point type
      BlockState state(fibers, Kernel::kThreads);
      fibers.run(Kernel::kThreads, kWarpLanes, [&](int thread) {
        SimulatedBlock block(state, index, Kernel::kThreads, thread, memory.get());
        kernel(block);
        block.check_ended();
      });
    }
  }
};

// ---- numbers and atomics ------------------------------------------------------------------------

template <class Real>
inline void atomic_add(const Pointer<Real>& to, Real value) {
  *to += value;
}
// Four neighbours at once, on a 16-byte boundary.
inline void atomic_add4(const Pointer<float>& to, const float (&value)[4]) {
  check_aligned("atomic_add4", to.address(), 16);
  for (int i = 0; i < 4; ++i) to[i] += value[i];
}
template <class Integer>
void atomic_max(const Pointer<Integer>& to, Integer value) {
  *to = std::max(*to, value);
}
template <class Integer>
void atomic_min(const Pointer<Integer>& to, Integer value) {
  *to = std::min(*to, value);
}
inline uint64_t read_now(const Pointer<uint64_t>& from) { return *from; }
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
inline uint64_t multiply_high(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}

// Of the bits that are set; there is one.
inline int lowest_bit(uint32_t bits) { return std::countr_zero(bits); }
inline int highest_bit(uint32_t bits) { return 31 - std::countl_zero(bits); }

// To 10 fraction bits, ties away from zero.
inline float round_to_tf32(float value) {
  uint32_t bits = static_cast<uint32_t>(bits_of(value));
  if ((bits & 0x7f800000u) != 0x7f800000u) bits = (bits + 0x1000u) & ~0x1fffu;
  return float_of_bits(bits);
}
template <class T>
uint32_t pack(float low, float high) {
  return static_cast<uint32_t>(T(low).x) | static_cast<uint32_t>(T(high).x) << 16;
}

[[noreturn]] inline void refuse_location(int64_t location, int64_t row, int64_t limit) {
  fail("locations: expected values in [0, " + std::to_string(limit) + "), got " + std::to_string(location) + " at " +
       std::to_string(row));
}

// ---- copies -------------------------------------------------------------------------------------

// 16 bytes from global to shared memory, or zeros where not valid; landed for this thread after wait_for_copies.
template <class Block, class T>
void copy_async(Block& block, void* to, const Pointer<const T>& from, bool valid = true) {
  check_aligned("copy_async: target", reinterpret_cast<uintptr_t>(to), 16);
  check_aligned("copy_async: source", from.address(), 16);
  block.copy(to, valid ? from.check(16) : nullptr, valid ? 16 : 0);
}
// The copies so far are a group.
template <class Block>
void commit_copies(Block& block) {
  block.commit();
}
// Until at most the last kLeft groups have not landed.
template <int kLeft, class Block>
void wait_for_copies(Block& block, const Where& where = Where::current()) {
  if (!mutations.deletes("wait", where)) block.land(kLeft);
}

// ---- warps --------------------------------------------------------------------------------------

struct Warp {
  const SimulatedBlock& block;
  int index, lane;

  // Another lane's value.
  template <class Value>
  Value shuffle(Value value, int from, const Where& where = Where::current()) const {
    struct Part {
      Value value, result;
      int from;
    } part{value, value, from};
    block.state_.meet("shuffle", part, where, [](Part** parts) {
      for (int lane = 0; lane < kWarpLanes; ++lane) parts[lane]->result = parts[parts[lane]->from]->value;
    });
    return part.result;
  }
  template <class Value>
  Value shuffle_xor(Value value, int mask, const Where& where = Where::current()) const {
    return shuffle(value, lane ^ mask, where);
  }
  template <class T>
  Pointer<T> shuffle(const Pointer<T>& pointer, int from, const Where& where = Where::current()) const {
    struct Part {
      Pointer<T> value, result;
      int from;
    } part{pointer, pointer, from};
    block.state_.meet("shuffle", part, where, [](Part** parts) {
      for (int lane = 0; lane < kWarpLanes; ++lane) parts[lane]->result = parts[parts[lane]->from]->value;
    });
    return part.result;
  }
  // Bit i: lane i's condition.
  uint32_t ballot(bool condition, const Where& where = Where::current()) const {
    struct Part {
      bool condition;
      uint32_t result;
    } part{condition, 0};
    block.state_.meet("ballot", part, where, [](Part** parts) {
      uint32_t bits = 0;
      for (int lane = 0; lane < kWarpLanes; ++lane) bits |= uint32_t(parts[lane]->condition) << lane;
      for (int lane = 0; lane < kWarpLanes; ++lane) parts[lane]->result = bits;
    });
    return part.result;
  }

  // Where a lane reads in a tile of shared memory.
  using Address = uintptr_t;
  static Address address(const unsigned char* tile, int byte) { return reinterpret_cast<uintptr_t>(tile) + byte; }

  // ldmatrix, of the row that each lane names, at (address ^ flip) + offset: lane i receives row i / 4, word i % 4 of
  // each of four 8 x 8 matrices, whose rows lanes 8 m .. 8 m + 7 name.
  void load_matrices(uint32_t (&to)[4], Address address, int flip, int offset,
                     const Where& where = Where::current()) const {
    struct Part {
      uintptr_t row;
      uint32_t* to;
    } part{(address ^ flip) + offset, to};
    block.state_.meet("load_matrices", part, where, [](Part** parts) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        uint32_t banks = 0;
        for (int i = 0; i < 8; ++i) {
          const uintptr_t row = parts[8 * matrix + i]->row;
          check_aligned("load_matrices", row, 16);
          banks |= 1u << (row / 16 % 8);
        }
        if (banks != 0xff) fail("load_matrices: rows of a matrix share banks");
        for (int lane = 0; lane < kWarpLanes; ++lane) {
          const uintptr_t row = parts[8 * matrix + lane / 4]->row;
          std::memcpy(&parts[lane]->to[matrix], reinterpret_cast<const unsigned char*>(row) + 4 * (lane % 4), 4);
        }
      }
    });
  }

  // mma.m16n8k16 (16-bit) and m16n8k8 (tf32), sums (16 x 8) += a b: with g = lane / 4 and t = lane % 4, register 0 of a
  // is row g and word t of the lower half of K, register 1 row g + 8, registers 2 and 3 the same of the upper half; b's
  // two are column g of either half; those of the sums are (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
  template <class T>
  void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                const Where& where = Where::current()) const {
    struct Part {
      float* sums;
      const uint32_t* a;
      uint32_t b[2];
    } part{sums, a, {b0, b1}};
    block.state_.meet("multiply", part, where, [](Part** parts) {
      constexpr int kPerWord = 4 / sizeof(T), kHalf = 4 * kPerWord;
      float rows[16][2 * kHalf], columns[8][2 * kHalf];
      for (int lane = 0; lane < kWarpLanes; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int word = 0; word < 4; ++word)
          unpack<T>(parts[lane]->a[word], &rows[g + word % 2 * 8][word / 2 * kHalf + t * kPerWord]);
        for (int word = 0; word < 2; ++word) unpack<T>(parts[lane]->b[word], &columns[g][word * kHalf + t * kPerWord]);
      }
      for (int lane = 0; lane < kWarpLanes; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i) {
          const float* row = rows[g + i / 2 * 8];
          const float* column = columns[2 * t + i % 2];
          float total = parts[lane]->sums[i];
          for (int k = 0; k < 2 * kHalf; ++k) total += row[k] * column[k];
          parts[lane]->sums[i] = total;
        }
      }
    });
  }

 private:
  template <class T>
  static void unpack(uint32_t word, float* to) {
    if constexpr (sizeof(T) == 4) {  // the tensor cores do not see the lowest 13 bits
      *to = float_of_bits(word & ~0x1fffu);
    } else {
      T values[2];
      std::memcpy(values, &word, 4);
      to[0] = static_cast<float>(values[0]), to[1] = static_cast<float>(values[1]);
    }
  }
};

inline Warp SimulatedBlock::warp() const { return {*this, thread_ / kWarpLanes, thread_ % kWarpLanes}; }
inline Warp SimulatedBlock::warp_anew() const { return warp(); }

}  // namespace ga_scope::cuda
