#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace ga_scope::cpu {

// work(begin, end) on ranges of [0, count), at least `grain` wide, on torch's threads.
template <class Work>
void parallel(int64_t count, int64_t grain, const Work& work) {
  if (count > 0) torch::stable::parallel_for(0, count, grain, work);
}

inline int64_t num_threads() { return torch::stable::get_num_threads(); }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Uninitialised, cache-line aligned scratch memory.
template <class Real>
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t count) { reserve(count); }

  // At least `count` numbers; what they held is lost.
  void reserve(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(Real) + 127) / 64 * 64;
    if (bytes <= bytes_) return;
    data_.reset();  // first: both at once would be a peak
    data_.reset(static_cast<Real*>(std::aligned_alloc(64, bytes)));
    bytes_ = data_ ? bytes : 0;
    if (!data_) throw std::bad_alloc();
  }
  Real* get() const { return data_.get(); }
  explicit operator bool() const { return static_cast<bool>(data_); }

 private:
  struct Free {
    void operator()(Real* data) const { std::free(data); }
  };
  std::unique_ptr<Real, Free> data_;
  size_t bytes_ = 0;
};

}  // namespace ga_scope::cpu
