// Boxes in host memory.
#pragma once

#include <cstdint>
#include <span>
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

// Boxes of a batch: those of image n are [starts[n], starts[n + 1]).
template <class Real>
struct BoxesOfImages {
  BoxesOfImages(const Tensor& tensor, const std::vector<int64_t>& counts)
      : boxes(read_boxes<Real>(tensor)), starts(starts_of(counts)) {}

  std::span<const Box<Real>> of(int64_t image) const {
    return {boxes.data() + starts[image], boxes.data() + starts[image + 1]};
  }

  std::vector<Box<Real>> boxes;
  std::vector<int64_t> starts;
};

}  // namespace ga_scope::cpu
