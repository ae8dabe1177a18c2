// Bilinear sampling of a map at a real position, as torchvision.ops.deform_conv2d defines it: outside
// (-1, H) x (-1, W) the sample is 0, and of the four surrounding pixels those off the map count as 0.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ga_scope {

// The four pixels around a position, in the order (top, left), (top, right), (bottom, left), (bottom, right).
template <class Real>
struct BilinearTap {
  int64_t top, left;  // may be -1; the opposite side is top + 1, left + 1
  Real fraction_y, fraction_x;
  bool inside[4];  // whether the pixel is on the map

  GA_HOST_DEVICE Real weight(int corner) const {
    const Real wy = corner < 2 ? Real(1) - fraction_y : fraction_y;
    const Real wx = corner % 2 == 0 ? Real(1) - fraction_x : fraction_x;
    return wy * wx;
  }
  // d weight / d y and d weight / d x: the position's gradient. At y = -1 exactly, where the sample is
  // still 0, it is the derivative from inside, which is what torchvision gives.
  GA_HOST_DEVICE Real weight_dy(int corner) const {
    const Real wx = corner % 2 == 0 ? Real(1) - fraction_x : fraction_x;
    return corner < 2 ? -wx : wx;
  }
  GA_HOST_DEVICE Real weight_dx(int corner) const {
    const Real wy = corner < 2 ? Real(1) - fraction_y : fraction_y;
    return corner % 2 == 0 ? -wy : wy;
  }
};

// False where every sample is 0: off the map, or a position that is NaN or infinite. Only positions
// inside [-1, H) x [-1, W) are converted to integers, so no value can overflow or read out of bounds.
template <class Real>
GA_HOST_DEVICE bool bilinear_tap(Real y, Real x, int64_t height, int64_t width, BilinearTap<Real>& tap) {
  if (!(y >= Real(-1) && y < Real(height) && x >= Real(-1) && x < Real(width))) return false;
  // Floor: truncation, and one less where that rounded a negative value up.
  tap.top = static_cast<int64_t>(y) - (y < Real(static_cast<int64_t>(y)));
  tap.left = static_cast<int64_t>(x) - (x < Real(static_cast<int64_t>(x)));
  tap.fraction_y = y - Real(tap.top);
  tap.fraction_x = x - Real(tap.left);
  const bool top = tap.top >= 0, bottom = tap.top + 1 < height;
  const bool left = tap.left >= 0, right = tap.left + 1 < width;
  tap.inside[0] = top && left;
  tap.inside[1] = top && right;
  tap.inside[2] = bottom && left;
  tap.inside[3] = bottom && right;
  return true;
}

}  // namespace ga_scope
