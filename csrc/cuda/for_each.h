// Kernels over a plain range.
#pragma once

#include "grid.h"

namespace ga_scope::cuda {

// body(i) for i in [0, count).
template <class Body>
struct ForEach {
  static constexpr int kThreads = 256;
  using Shared = NoShared;
  Body body;
  int64_t count;

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    const int64_t i = block.index() * kThreads + block.thread();
    if (within(i, count)) body(i);
  }
};

template <class Body>
void for_each(const Device& device, const char* name, int64_t count, const Body& body) {
  using Kernel = ForEach<Body>;
  device.launch(name, Kernel{body, count}, (count + Kernel::kThreads - 1) / Kernel::kThreads);
}

template <class Number>
struct Fill {
  Pointer<Number> numbers;
  Number value;

  GA_KERNEL void operator()(int64_t i) const { numbers[i] = value; }
};

}  // namespace ga_scope::cuda
