// What the convolution kernels see: maps, positions and rows, as pointers and strides. Passed by value.
#pragma once

#include <cmath>

#include "../compute_type.h"
#include "../convolution.h"
#include "divisor.h"
#include "grid.h"

namespace ga_scope::cuda {

// An output position. Maps have fewer than 2^30 rows and columns (convolution.cu refuses others).
struct Row {
  int64_t image;
  int32_t level, y, x;
};

// A pyramid's maps (N, C, H, W) with the channels of a pixel side by side.
template <class T>
struct Maps {
  Pointer<T> data[kMaxLevels];
  int64_t image[kMaxLevels], y[kMaxLevels], x[kMaxLevels];  // strides in numbers

  GA_KERNEL Pointer<T> of(const Row& at) const { return data[at.level] + at.image * image[at.level]; }
  GA_KERNEL Pointer<T> pixel(const Row& at, int32_t py, int32_t px) const {
    return of(at) + (py * y[at.level] + px * x[at.level]);
  }
};

// Numbers per row: compact (rows, columns), or dense maps (N, columns, H, W) per level; any strides.
template <class T>
struct RowNumbers {
  Pointer<T> data[kMaxLevels];
  int64_t outer[kMaxLevels], column[kMaxLevels], y[kMaxLevels], x[kMaxLevels];  // outer: the row's or the image's
  bool compact;

  // The row's number in column 0; the next is column_stride() further.
  GA_KERNEL Pointer<T> at(int64_t row, const Row& at) const {
    if (compact) return data[0] + row * outer[0];
    return data[at.level] + (at.image * outer[at.level] + at.y * y[at.level] + at.x * x[at.level]);
  }
  GA_KERNEL int64_t column_stride(const Row& at) const { return column[compact ? 0 : at.level]; }
};

// One axis of a bilinear sample (../bilinear.h) as two pixels that are both on the map: one that is not is replaced by
// the other, and the other's weight divided between them. So a sample reads four pixels without a test, and an
// infinite one still counts once and for all, or not at all.
template <class Real>
struct SampleAxis {
  int32_t pixel[2];
  Real weight[2];
  Real slope[2];  // d weight / d position

  // For positions in [-1, size).
  GA_KERNEL SampleAxis(Real position, int32_t size) {
    const Real whole = std::floor(position), fraction = position - whole;
    const int32_t low = static_cast<int32_t>(whole);
    pixel[0] = clamped(low, 0, size - 1);
    pixel[1] = clamped(low + 1, 0, size - 1);
    const bool above = low < 0, below = low + 1 >= size;
    const Real half = Real(0.5) * (above ? fraction : Real(1) - fraction);
    weight[0] = above || below ? half : Real(1) - fraction;
    weight[1] = above || below ? half : fraction;
    slope[0] = above ? Real(0.5) : below ? Real(-0.5) : Real(-1);
    slope[1] = below ? Real(-0.5) : above ? Real(0.5) : Real(1);
  }
  SampleAxis() = default;  // nothing known
};

// A call of either operator. Rows are its locations in order: row r is locations[r], or location r itself.
template <class T>
struct ConvolutionView {
  using Real = ComputeType<T>;

  int32_t kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int32_t taps, groups, channels_per_group;
  int32_t sampling_groups, channels_per_sampling_group;  // channels that sample the same places
  bool deformed, modulated;                              // not deformed: the regular grid, one sampling group
  int64_t rows;
  int32_t num_levels;
  int32_t height[kMaxLevels], width[kMaxLevels];  // of the input
  int64_t first[kMaxLevels];                      // of an image's locations, of each level
  Divisor locations_per_image, output_width[kMaxLevels];
  int64_t all_locations;
  Pointer<const int64_t> locations;  // null: all
  int64_t location_stride;
  Maps<const T> input;
  RowNumbers<const Real> offset, mask;
  Pointer<const Real> offset_weight;  // (2 * sampling_groups * taps, offset_inputs), contiguous; or null
  int32_t offset_inputs;

  GA_KERNEL Row row(int64_t r) const {
    int64_t index = r;
    if (locations != nullptr) {
      index = locations[r * location_stride];
      if (!within(static_cast<uint64_t>(index), static_cast<uint64_t>(all_locations))) {
        refuse_location(index, r, all_locations);
      }
    }
    Row at;
    at.image = locations_per_image.divide(index);
    int64_t rest = index - at.image * locations_per_image.value();
    at.level = 0;
    while (at.level + 1 < num_levels && rest >= first[at.level + 1]) ++at.level;
    rest -= first[at.level];
    at.y = static_cast<int32_t>(output_width[at.level].divide(rest));
    at.x = static_cast<int32_t>(rest - at.y * output_width[at.level].value());
    return at;
  }
};

// Where the taps of one row sample: what is the same for all of them.
template <class T>
struct RowSampler {
  using Real = ComputeType<T>;
  int32_t y, x;  // of tap 0 on the regular grid
  int32_t height, width;
  Pointer<const Real> offset, mask;
  int64_t offset_stride, mask_stride;

  RowSampler() = default;
  GA_KERNEL RowSampler(const ConvolutionView<T>& view, int64_t r, const Row& at)
      : y(static_cast<int32_t>(int64_t(at.y) * view.stride_h - view.padding_h)),
        x(static_cast<int32_t>(int64_t(at.x) * view.stride_w - view.padding_w)),
        height(view.height[at.level]),
        width(view.width[at.level]) {
    if (view.deformed) offset = view.offset.at(r, at), offset_stride = view.offset.column_stride(at);
    if (view.modulated) mask = view.mask.at(r, at), mask_stride = view.mask.column_stride(at);
  }

  // On the regular grid: whether tap (ky, kx) is on the map, and where.
  GA_KERNEL bool on_grid(const ConvolutionView<T>& view, int ky, int kx, int32_t& py, int32_t& px) const {
    py = y + ky * view.dilation_h, px = x + kx * view.dilation_w;
    return within(static_cast<uint32_t>(py), static_cast<uint32_t>(height)) &&
           within(static_cast<uint32_t>(px), static_cast<uint32_t>(width));
  }

  // Where a tap of a sampling group samples.
  GA_KERNEL void position(const ConvolutionView<T>& view, int group, int tap, int ky, int kx, Real& py,
                          Real& px) const {
    const int column = 2 * (group * view.taps + tap);
    Real dy = 0, dx = 0;
    if (view.offset_weight == nullptr) {
      dy = offset[column * offset_stride];
      dx = offset[(column + 1) * offset_stride];
    } else {
      const Pointer<const Real> weight = view.offset_weight + int64_t(column) * view.offset_inputs;
      GA_UNROLL_TWICE for (int i = 0; i < view.offset_inputs; ++i) {
        const Real number = offset[i * offset_stride];
        dy += weight[i] * number;
        dx += weight[view.offset_inputs + i] * number;
      }
    }
    py = Real(y + ky * view.dilation_h) + dy, px = Real(x + kx * view.dilation_w) + dx;
  }
  // False outside (-1, H) x (-1, W), and for NaN, which is within nothing.
  GA_KERNEL bool inside(Real py, Real px) const {
    return within(py, Real(height)) && within(px, Real(width)) && within(Real(-1), py) && within(Real(-1), px);
  }
  // The same with -1, where the sample is 0 but has a gradient (../bilinear.h).
  GA_KERNEL bool has_gradient(Real py, Real px) const {
    return within(py, Real(height)) && within(px, Real(width)) && !within(py, Real(-1)) && !within(px, Real(-1));
  }
  GA_KERNEL Real modulation(const ConvolutionView<T>& view, int group, int tap) const {
    return view.modulated ? mask[(group * view.taps + tap) * mask_stride] : Real(1);
  }
};

}  // namespace ga_scope::cuda
