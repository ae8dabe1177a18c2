// Greedy suppression within a group: the vectorised inner loop of nms.cpp.
#pragma once

#include <cstdint>

namespace ga_scope::cpu {

// The boxes of one group in the order of their scores, as a structure of arrays. `kept` has the same columns with
// room for whole vectors more: those that survived so far.
template <class Real>
struct GroupOfBoxes {
  static constexpr int kColumns = 5;  // x1, y1, x2, y2, area
  const Real* box[kColumns];
  Real* kept[kColumns];
  int64_t count;
};

template <class Real>
struct SuppressionKernels {
  // survives[i]: no earlier survivor's IoU with box i is `least` or above.
  void (*survivors)(const GroupOfBoxes<Real>& group, Real least, bool* survives);
};

template <class Real>
const SuppressionKernels<Real>& suppression_kernels();

}  // namespace ga_scope::cpu
