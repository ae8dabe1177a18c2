// How a warp works on samples: those of 32 rows, of one tap of one sampling group. Each lane works out where its own
// row samples; then the rows take turns, a team of lanes along the channels of each.
//
// With 64 channels in vectors of 4 a team is 16 lanes: two rows at a time, sixteen turns.
#pragma once

#include "convolution_view.h"
#include "numbers.h"

namespace ga_scope::cuda {

// What the warps of a launch share out: every tap of every sampling group, for each 32 rows of a chunk. Those of the
// same rows are neighbours, since they read the same pixels.
struct SampleTasks {
  int64_t rows, count;  // of the chunk
  int32_t team;         // lanes: a power of two
  int32_t vectors;      // of a sample
  Divisor per_rows, groups, kernel_w;

  template <class T>
  SampleTasks(const ConvolutionView<T>& view, int64_t rows, int vector)
      : rows(rows),
        count((rows + kLanes - 1) / kLanes * view.taps * view.sampling_groups),
        team(1),
        vectors(view.channels_per_sampling_group / vector),
        per_rows(int64_t(view.taps) * view.sampling_groups),
        groups(view.sampling_groups),
        kernel_w(view.kernel_w) {
    while (team < kLanes && team < vectors) team *= 2;
  }
};

struct SampleTask {
  int64_t first_row;  // of the chunk
  int32_t group, tap, ky, kx;

  GA_KERNEL SampleTask(const SampleTasks& tasks, int64_t number) {
    const int64_t rows = tasks.per_rows.divide(number);
    const int64_t pair = number - rows * tasks.per_rows.value();
    first_row = rows * kLanes;
    tap = static_cast<int32_t>(tasks.groups.divide(pair));
    group = static_cast<int32_t>(pair - tap * tasks.groups.value());
    ky = static_cast<int32_t>(tasks.kernel_w.divide(tap));
    kx = static_cast<int32_t>(tap - ky * tasks.kernel_w.value());
  }

  GA_KERNEL int rows_left(const SampleTasks& tasks) const {
    const int64_t left = tasks.rows - first_row;
    return left < kLanes ? static_cast<int>(left) : kLanes;
  }
};

// A deformed sample. Outside the map it has no weight, and nothing is read.
template <class Real>
struct Sample {
  bool inside;
  SampleAxis<Real> down, across;
  Real modulation;

  template <class T>
  GA_KERNEL Sample(const ConvolutionView<T>& view, const RowSampler<T>& row, int group, int tap, int ky, int kx,
                   bool of_gradient) {
    Real y, x;
    row.position(view, group, tap, ky, kx, y, x);
    inside = of_gradient ? row.has_gradient(y, x) : row.inside(y, x);
    if (!inside) y = x = Real(0);
    down = SampleAxis<Real>(y, row.height);
    across = SampleAxis<Real>(x, row.width);
    modulation = inside ? row.modulation(view, group, tap) : Real(0);
  }

  GA_KERNEL Real weight(int corner) const { return modulation * (down.weight[corner / 2] * across.weight[corner % 2]); }
};

// Where a row and channel lie in a chunk's columns (groups, rows, taps, C_in / groups): the sum of two numbers.
struct ColumnIndex {
  int32_t taps, channels_per_group;
  bool grouped;
  int64_t between_rows, between_groups;
  Divisor by_group;

  template <class T>
  ColumnIndex(const ConvolutionView<T>& view, int64_t rows)
      : taps(view.taps),
        channels_per_group(view.channels_per_group),
        grouped(view.groups > 1),
        between_rows(int64_t(view.taps) * view.channels_per_group),
        between_groups((rows * view.taps - 1) * view.channels_per_group),
        by_group(view.channels_per_group) {}

  GA_KERNEL int64_t of_row(int64_t row, int tap) const {
    return row * between_rows + int64_t(tap) * channels_per_group;
  }
  GA_KERNEL int64_t of_channel(int32_t channel) const {  // of all C_in
    return grouped ? channel + by_group.divide(channel) * between_groups : channel;
  }
};

}  // namespace ga_scope::cuda
