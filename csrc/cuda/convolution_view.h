// What the convolution kernels see: maps, positions and rows, as pointers and strides. Passed by value.
#pragma once

#include "../bilinear.h"
#include "../compute_type.h"
#include "../convolution.h"
#include "grid.h"

namespace ga_scope::cuda {

// A pyramid's maps (N, C, H, W) with the channels of a pixel side by side.
template <class T>
struct Maps {
  T* data[kMaxLevels];
  int64_t image[kMaxLevels], y[kMaxLevels], x[kMaxLevels];  // strides in numbers

  GA_HOST_DEVICE T* of(const Location& at) const { return data[at.level] + at.image * image[at.level]; }
};

// Numbers per row: compact (rows, columns), or dense maps (N, columns, H, W) per level; any strides.
template <class T>
struct RowNumbers {
  T* data[kMaxLevels];
  int64_t outer[kMaxLevels], column[kMaxLevels], y[kMaxLevels], x[kMaxLevels];  // outer: the row's or the image's
  bool compact;

  // The row's number in column 0; the next is column_stride() further.
  GA_HOST_DEVICE T* at(int64_t row, const Location& at) const {
    if (compact) return data[0] + row * outer[0];
    return data[at.level] + at.image * outer[at.level] + at.y * y[at.level] + at.x * x[at.level];
  }
  GA_HOST_DEVICE int64_t column_stride(const Location& at) const { return column[compact ? 0 : at.level]; }
};

// Where one tap of one sampling group of a row reads: four pixels, weighted.
template <class Real>
struct Sample {
  BilinearTap<Real> tap;
  Real modulation;

  GA_HOST_DEVICE Real weight(int corner) const { return modulation * tap.weight(corner); }
};

// A call of either operator. Rows are its locations in order: row r is locations[r], or location r itself.
template <class T>
struct ConvolutionView {
  using Real = ComputeType<T>;

  ConvolutionShape shape;
  int64_t rows, locations_per_image;
  int num_levels;
  LevelShape input_levels[kMaxLevels], output_levels[kMaxLevels];
  const int64_t* locations;  // null: all
  int64_t location_stride;
  Maps<const T> input;
  bool modulated;
  RowNumbers<const Real> offset, mask;
  const Real* offset_weight;  // (2 * offset_groups * taps, offset_inputs), contiguous; or null
  int64_t offset_inputs;

  GA_HOST_DEVICE Location row(int64_t r) const {
    const int64_t index = locations ? locations[r * location_stride] : r;
    return decode_location(index, output_levels, num_levels, locations_per_image);
  }

  // False where nothing on the map is read. On the regular grid only corner 0 is inside.
  GA_HOST_DEVICE bool sample(int64_t r, const Location& at, int group, int tap, Sample<Real>& sample) const {
    const LevelShape& map = input_levels[at.level];
    const int ky = tap / static_cast<int>(shape.kernel_w), kx = tap - ky * static_cast<int>(shape.kernel_w);
    const int64_t y = at.y * shape.stride_h - shape.padding_h + ky * shape.dilation_h;
    const int64_t x = at.x * shape.stride_w - shape.padding_w + kx * shape.dilation_w;
    sample.modulation = Real(1);
    if (shape.offset_groups == 0) {
      const bool inside = y >= 0 && y < map.height && x >= 0 && x < map.width;
      sample.tap = {y, x, Real(0), Real(0), {inside, false, false, false}};
      return inside;
    }
    const int64_t column = group * shape.taps() + tap;
    Real dy, dx;
    read_offset(r, at, column, dy, dx);
    if (modulated) sample.modulation = mask.at(r, at)[column * mask.column_stride(at)];
    return bilinear_tap(Real(y) + dy, Real(x) + dx, map.height, map.width, sample.tap);
  }

 private:
  GA_HOST_DEVICE void read_offset(int64_t r, const Location& at, int64_t column, Real& dy, Real& dx) const {
    const Real* numbers = offset.at(r, at);
    const int64_t stride = offset.column_stride(at);
    if (offset_weight == nullptr) {
      dy = numbers[2 * column * stride];
      dx = numbers[(2 * column + 1) * stride];
      return;
    }
    const Real* weight = offset_weight + 2 * column * offset_inputs;
    dy = dx = Real(0);
    GA_UNROLL_TWICE for (int64_t i = 0; i < offset_inputs; ++i) {
      dy += weight[i] * numbers[i * stride];
      dx += weight[offset_inputs + i] * numbers[i * stride];
    }
  }
};

}  // namespace ga_scope::cuda
