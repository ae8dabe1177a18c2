// Overlaps of many anchors with one box: the vectorised inner loops of matching.cpp.
#pragma once

#include <cstdint>

#include "../overlap.h"

namespace ga_scope::cpu {

// Anchors centred on x[0 .. count) at one height y. Exact mode: sizes in [low, high].
// Sampled mode: `shapes` pairs (width, height).
template <class Real>
struct RowOfAnchors {
  const Real* x;
  Real y;
  int64_t count;
  Real low, high;
  const Real* shapes;
  int64_t num_shapes;  // 0: exact
};

// Boxes as a structure of arrays.
template <class Real>
struct BoxColumns {
  const Real *x1, *y1, *x2, *y2, *area;
  int64_t count;
};

template <class Real>
struct MatchingKernels {
  // iou[i]: the best IoU of the anchors at x[i] with the box.
  void (*viou)(const RowOfAnchors<Real>& row, const Box<Real>& box, Real* iou);
  void (*iou)(const BoxColumns<Real>& boxes, const Box<Real>& box, Real* iou);
  // Where iou[i] > best[i]: best[i] = iou[i], index[i] = box. Returns the largest iou.
  Real (*update)(const Real* iou, int64_t count, int32_t box, Real* best, int32_t* index);
};

template <class Real>
const MatchingKernels<Real>& matching_kernels();

}  // namespace ga_scope::cpu
