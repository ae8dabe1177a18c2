// Ground-truth boxes in host memory.
#pragma once

#include <cstdint>
#include <vector>

#include "../boxes.h"
#include "../overlap.h"

namespace ga_scope::cpu {

template <class Real>
std::vector<Box<Real>> read_boxes(const Tensor& boxes) {
  const Real* data = static_cast<const Real*>(boxes.data_ptr());
  const int64_t row = boxes.stride(0), column = boxes.stride(1);
  std::vector<Box<Real>> out(boxes.size(0));
  for (int64_t i = 0; i < boxes.size(0); ++i) {
    const Real* at = data + i * row;
    out[i] = {at[0], at[column], at[2 * column], at[3 * column]};
  }
  return out;
}

}  // namespace ga_scope::cpu
