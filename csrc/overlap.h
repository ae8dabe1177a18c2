// Overlap of boxes (x1, y1, x2, y2), and vIoU: the best IoU that an anchor centred on a location can have
// with a box when its width and height are free (Guided Anchoring, Eq. 5).
#pragma once

#include <type_traits>

#include "host_device.h"

GA_EXACT_BEGIN

namespace ga_scope {

// A product that is rounded before anything is added to it. With every operation rounded once, IoU is bit for bit what
// torch computes operation by operation, and the same on every processor: ties are ties everywhere.
GA_HOST_DEVICE float product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

GA_HOST_DEVICE double product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

template <class Real>
struct Box {
  Real x1, y1, x2, y2;

  GA_HOST_DEVICE Real width() const { return x2 - x1; }
  GA_HOST_DEVICE Real height() const { return y2 - y1; }
  GA_HOST_DEVICE Real area() const { return product(width(), height()); }
  // False for NaN, too.
  GA_HOST_DEVICE bool valid() const { return x2 > x1 && y2 > y1; }
  GA_HOST_DEVICE bool contains(Real x, Real y) const { return x >= x1 && x <= x2 && y >= y1 && y <= y2; }
};

// smaller and larger are one instruction each on a device, which takes the other number where one is NaN.
template <class Real>
GA_HOST_DEVICE Real smaller(Real a, Real b) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_floating_point_v<Real>) return min(a, b);
#endif
  return a < b ? a : b;
}

template <class Real>
GA_HOST_DEVICE Real larger(Real a, Real b) {
#ifdef __CUDA_ARCH__
  if constexpr (std::is_floating_point_v<Real>) return max(a, b);
#endif
  return a > b ? a : b;
}

template <class Real>
GA_HOST_DEVICE Real clamped(Real value, Real low, Real high) {
  return smaller(larger(value, low), high);
}

// Overlap of a centred interval of the given size with the interval of length `extent` that reaches `before` to one
// side of the centre and `after` to the other (signed: negative where the centre lies outside). An interval that is
// covered counts with its own length, whose rounding does not depend on where the centre lies: all the anchors that
// cover a box tie.
template <class Real>
GA_HOST_DEVICE Real centred_overlap(Real size, Real before, Real after, Real extent) {
  const Real half = size * Real(0.5);
  const Real overlap = larger(smaller(half, before) + smaller(half, after), Real(0));
  return (before <= half) & (after <= half) ? extent : overlap;
}

// 0 where nothing overlaps, 0 / 0 of empty shapes included.
template <class Real>
GA_HOST_DEVICE Real ratio_of_overlap(Real intersection, Real other_areas) {
#ifdef __CUDA_ARCH__
  if (!(intersection > Real(0))) return Real(0);  // most pairs; on a CPU the branch would keep loops scalar
#endif
  return larger(intersection / (other_areas - intersection), Real(0));
}

template <class Real>
GA_HOST_DEVICE Real intersection(const Box<Real>& a, const Box<Real>& b) {
  const Real w = larger(smaller(a.x2, b.x2) - larger(a.x1, b.x1), Real(0));
  const Real h = larger(smaller(a.y2, b.y2) - larger(a.y1, b.y1), Real(0));
  return product(w, h);
}

template <class Real>
GA_HOST_DEVICE Real box_iou(const Box<Real>& a, const Box<Real>& b) {
  return ratio_of_overlap(intersection(a, b), a.area() + b.area());
}

// The part of the anchor's area that lies in the box; 0 where one of them is not valid.
template <class Real>
GA_HOST_DEVICE Real part_inside(const Box<Real>& anchor, const Box<Real>& box) {
  return anchor.valid() && box.valid() ? intersection(anchor, box) / anchor.area() : Real(0);
}

// The sizes between which the best one lies. For a fixed height, IoU as a function of the width rises up
// to 2 min(before, after), where the anchor touches the nearer side; is monotone from there to
// 2 max(before, after), where it touches the farther side; and falls beyond, where it only grows outside
// the box. Its maximum over [low, high] is therefore at one of the two, clamped. The same holds for the
// height, whatever the width, so the maximum over both is among 2 x 2 candidates.
template <class Real>
struct SizeCandidates {
  Real near_size, far_size;
  Real near_overlap, far_overlap;
};

template <class Real>
GA_HOST_DEVICE SizeCandidates<Real> size_candidates(Real before, Real after, Real extent, Real low, Real high) {
  SizeCandidates<Real> c;
  c.near_size = clamped(Real(2) * smaller(before, after), low, high);
  c.far_size = clamped(Real(2) * larger(before, after), low, high);
  c.near_overlap = centred_overlap(c.near_size, before, after, extent);
  c.far_overlap = centred_overlap(c.far_size, before, after, extent);
  return c;
}

// The same for sizes from 0 to infinity, where half a size is one of the distances: near, twice its half overlaps; far,
// the box is covered. Where both are equal, one is left.
template <class Real>
GA_HOST_DEVICE SizeCandidates<Real> free_size_candidates(Real before, Real after, Real extent) {
  SizeCandidates<Real> c;
  c.near_size = before == after ? Real(0) : larger(Real(2) * smaller(before, after), Real(0));
  c.far_size = Real(2) * larger(before, after);
  c.near_overlap = c.near_size;
  c.far_overlap = extent;
  return c;
}

template <class Real>
GA_HOST_DEVICE Real iou_of_sides(Real overlap_w, Real overlap_h, Real width, Real height, Real box_area) {
  return ratio_of_overlap(product(overlap_w, overlap_h), product(width, height) + box_area);
}

template <class Real>
GA_HOST_DEVICE Real best_of_candidates(const SizeCandidates<Real>& w, const SizeCandidates<Real>& h, Real box_area) {
  Real best = iou_of_sides(w.near_overlap, h.near_overlap, w.near_size, h.near_size, box_area);
  best = larger(best, iou_of_sides(w.near_overlap, h.far_overlap, w.near_size, h.far_size, box_area));
  best = larger(best, iou_of_sides(w.far_overlap, h.near_overlap, w.far_size, h.near_size, box_area));
  return larger(best, iou_of_sides(w.far_overlap, h.far_overlap, w.far_size, h.far_size, box_area));
}

// How far along an axis an anchor's centre can be from the centre of a box of this extent and still reach
// `least` IoU. Dropping the other axis can only raise IoU: with i, u the 1-D intersection and union and
// j <= min(h, H) the overlap of the heights, i j / (w h + W H - i j) <= i j / (w j + W j - i j) = i / u. In
// one dimension, at distance d the best anchor touches the farther side and gives W / (W + 2 d) (touching
// the nearer one gives 1 - 2 d / W, which is less). So d <= W (1 - least) / (2 least).
template <class Real>
GA_HOST_DEVICE Real reach(Real extent, Real least) {
  return extent * (Real(1) - least) / (Real(2) * least);
}

}  // namespace ga_scope

GA_EXACT_END
