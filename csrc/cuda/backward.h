// Kernels of the convolutions' backward, over chunks of rows as columns.h lays them out.
#pragma once

#include "for_each.h"
#include "samples.h"

namespace ga_scope::cuda {

template <class T, class Real>
struct AddTo {
  Pointer<const T> from;
  Pointer<Real> sums;

  GA_KERNEL void operator()(int64_t i) const { sums[i] += static_cast<Real>(from[i]); }
};

// From the gradient of a chunk's columns: that of the input, added to what is there, and those of the positions and the
// modulation. kVector channels at a time, a warp per task of samples.h.
template <class T, int kVector>
struct BackwardSamples {
  using Real = ComputeType<T>;
  using Vector = Numbers<T, kVector>;
  static constexpr int kThreads = 256, kWarps = kThreads / kLanes;
  using Shared = NoShared;
  ConvolutionView<T> view;
  int64_t first;
  SampleTasks tasks;
  ColumnIndex index;
  Pointer<const T> grad_columns;
  Maps<Real> grad_input;         // no data: not wanted
  RowNumbers<Real> grad_offset;  // row 0 of it: grad_offset_first
  RowNumbers<Real> grad_mask;
  int64_t grad_offset_first;

  BackwardSamples(const ConvolutionView<T>& view, int64_t first, int64_t rows, const Pointer<const T>& grad_columns,
                  const Maps<Real>& grad_input, const RowNumbers<Real>& grad_offset, int64_t grad_offset_first,
                  const RowNumbers<Real>& grad_mask)
      : view(view),
        first(first),
        tasks(view, rows, kVector),
        index(view, rows),
        grad_columns(grad_columns),
        grad_input(grad_input),
        grad_offset(grad_offset),
        grad_mask(grad_mask),
        grad_offset_first(grad_offset_first) {}

  int64_t blocks() const { return (tasks.count + kWarps - 1) / kWarps; }

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    const auto warp = block.warp();
    const SampleTask task(tasks, block.index() * kWarps + warp.index);  // past the last it has no rows left
    const int64_t r = first + clamped(task.first_row + warp.lane, int64_t(0), tasks.rows - 1);
    const Row at = view.row(r);
    const RowSampler<T> row(view, r, at);
    if (view.deformed) {
      deformed(warp, task, r, at, row);
    } else {
      int32_t y, x;
      const bool inside = row.on_grid(view, task.ky, task.kx, y, x);
      const Pointer<const T> pixel[1] = {inside ? view.input.pixel(at, y, x) : nullptr};
      const Pointer<Real> grad[1] = {inside ? grad_input.pixel(at, y, x) : nullptr};
      const Real weight[1] = {Real(1)};
      Real products[1];
      scatter<false>(warp, task, pixel, grad, weight, products);
    }
  }

 private:
  template <class Warp>
  GA_KERNEL void deformed(const Warp& warp, const SampleTask& task, int64_t r, const Row& at,
                          const RowSampler<T>& row) const {
    const Sample<Real> sample(view, row, task.group, task.tap, task.ky, task.kx, true);
    Pointer<const T> pixel[4];
    Pointer<Real> grad[4];
    Real weight[4], products[4] = {};
    GA_UNROLL for (int c = 0; c < 4; ++c) {
      const int32_t y = sample.down.pixel[c / 2], x = sample.across.pixel[c % 2];
      pixel[c] = sample.inside ? view.input.pixel(at, y, x) : nullptr;
      grad[c] = grad_input.data[0] != nullptr ? grad_input.pixel(at, y, x) : nullptr;
      weight[c] = sample.weight(c);
    }
    scatter<true>(warp, task, pixel, grad, weight, products);
    if (!within(task.first_row + warp.lane, tasks.rows)) return;
    Real dy = 0, dx = 0, value = 0;
    GA_UNROLL for (int c = 0; c < 4; ++c) {
      dy += sample.down.slope[c / 2] * sample.across.weight[c % 2] * products[c];
      dx += sample.down.weight[c / 2] * sample.across.slope[c % 2] * products[c];
      value += sample.down.weight[c / 2] * sample.across.weight[c % 2] * products[c];
    }
    const int column = task.group * view.taps + task.tap;
    const Pointer<Real> offset = grad_offset.at(r - grad_offset_first, at);
    const int64_t stride = grad_offset.column_stride(at);
    offset[2 * column * stride] = sample.modulation * dy;
    offset[(2 * column + 1) * stride] = sample.modulation * dx;
    if (view.modulated) grad_mask.at(r, at)[column * grad_mask.column_stride(at)] = value;
  }

  // Adds the samples' gradients to their pixels' and leaves with each lane, of its row, the sums over channels of
  // gradient times pixel (kProducts).
  template <bool kProducts, class Warp, int kPixels>
  GA_KERNEL void scatter(const Warp& warp, const SampleTask& task, const Pointer<const T> (&pixel)[kPixels],
                         const Pointer<Real> (&grad)[kPixels], const Real (&weight)[kPixels],
                         Real (&products)[kPixels]) const {
    const int member = warp.lane & (tasks.team - 1), team = warp.lane - member;
    const int left = task.rows_left(tasks);
    const bool wants_input = grad_input.data[0] != nullptr;
    for (int v = member; v - member < tasks.vectors; v += tasks.team) {
      const int channel = task.group * view.channels_per_sampling_group + v * kVector;
      Pointer<const T> columns =
          grad_columns + (index.of_row(task.first_row + team, task.tap) + index.of_channel(channel));
      GA_NO_UNROLL for (int turn = 0; turn < tasks.team; ++turn, columns += index.between_rows) {
        Pointer<const T> from[kPixels];
        Pointer<Real> to[kPixels];
        Real share[kPixels], sum[kPixels] = {};
        GA_UNROLL for (int c = 0; c < kPixels; ++c) {
          from[c] = warp.shuffle(pixel[c], team + turn);
          to[c] = warp.shuffle(grad[c], team + turn);
          share[c] = warp.shuffle(weight[c], team + turn);
        }
        if (within(team + turn, left) && within(v, tasks.vectors) && from[0] != nullptr) {
          Real gradient[kVector];
          load_vector<Vector>(columns).widen(gradient);
          if (kProducts) {
            Vector vector[kPixels];
            GA_UNROLL for (int c = 0; c < kPixels; ++c) vector[c] = load_vector<Vector>(from[c] + channel);
            GA_UNROLL for (int c = 0; c < kPixels; ++c) {
              Real numbers[kVector];
              vector[c].widen(numbers);
              GA_UNROLL for (int i = 0; i < kVector; ++i) sum[c] += gradient[i] * numbers[i];
            }
          }
          if (wants_input) {
            GA_UNROLL for (int c = 0; c < kPixels; ++c) add(to[c] + channel, share[c], gradient);
          }
        }
        if (kProducts) {
          GA_UNROLL for (int mask = kLanes / 2; mask > 0; mask /= 2) {
            if (mask >= tasks.team) continue;
            GA_UNROLL for (int c = 0; c < kPixels; ++c) sum[c] += warp.shuffle_xor(sum[c], mask);
          }
          GA_UNROLL for (int c = 0; c < kPixels; ++c) products[c] += member == turn ? sum[c] : Real(0);
        }
      }
    }
  }

  static GA_KERNEL void add(const Pointer<Real>& to, Real share, const Real (&gradient)[kVector]) {
    if constexpr (sizeof(Real) == 4 && kVector % 4 == 0) {
      GA_UNROLL for (int i = 0; i < kVector; i += 4) {
        const float part[4] = {share * gradient[i], share * gradient[i + 1], share * gradient[i + 2],
                               share * gradient[i + 3]};
        atomic_add4(to + i, part);
      }
    } else {
      GA_UNROLL for (int i = 0; i < kVector; ++i) atomic_add(to + i, share * gradient[i]);
    }
  }
};

// With offset_weight: the gradient of the offsets' inputs, from those of the chunk's offsets (2 G K, rows).
template <class T>
struct ReduceOffsets {
  using Real = ComputeType<T>;
  ConvolutionView<T> view;
  int64_t first, rows;
  Divisor by_rows;
  Pointer<const Real> grad_offset;
  RowNumbers<Real> grad_inputs;

  GA_KERNEL void operator()(int64_t i) const {
    const int64_t input = by_rows.divide(i), row = i - input * rows;
    const int count = 2 * view.sampling_groups * view.taps;
    Real total = 0;
    for (int j = 0; j < count; ++j) {
      total += grad_offset[j * rows + row] * view.offset_weight[int64_t(j) * view.offset_inputs + input];
    }
    const Row at = view.row(first + row);
    grad_inputs.at(first + row, at)[input * grad_inputs.column_stride(at)] = total;
  }
};

// ---- deterministic backward of the input --------------------------------------------------------
//
// Every pixel of every sample of the chunk is an entry. Sorted by the pixel and sampling group that it adds to, stably,
// the entries of one sum lie side by side in a fixed order.

constexpr int64_t kNowhere = INT64_MAX;

// Numbers of a pyramid's pixels, level by level, image by image.
struct MapPixels {
  int64_t before[kMaxLevels + 1];  // a level

  template <class T>
  MapPixels(const ConvolutionView<T>& view, int64_t images) {
    before[0] = 0;
    for (int l = 0; l < view.num_levels; ++l) before[l + 1] = before[l] + images * view.height[l] * view.width[l];
  }
};

// Of sample n of a chunk: n = (tap * groups + group) * rows + row.
struct SampleNumber {
  int64_t row;
  int32_t group, tap, ky, kx;

  GA_KERNEL SampleNumber(const SampleTasks& tasks, const Divisor& by_rows, int64_t number) {
    const int64_t pair = by_rows.divide(number);
    row = number - pair * by_rows.value();
    tap = static_cast<int32_t>(tasks.groups.divide(pair));
    group = static_cast<int32_t>(pair - tap * tasks.groups.value());
    ky = static_cast<int32_t>(tasks.kernel_w.divide(tap));
    kx = static_cast<int32_t>(tap - ky * tasks.kernel_w.value());
  }
};

// keys[4 n + c]: the number of pixel c of sample n, over all maps, times the sampling groups, plus the group; and its
// weight.
template <class T>
struct SortKeys {
  using Real = ComputeType<T>;
  ConvolutionView<T> view;
  int64_t first;
  MapPixels pixels;
  SampleTasks tasks;
  Divisor by_rows;
  Pointer<int64_t> keys;
  Pointer<Real> weights;

  GA_KERNEL void operator()(int64_t number) const {
    const SampleNumber unit(tasks, by_rows, number);
    const Row at = view.row(first + unit.row);
    const int64_t map = pixels.before[at.level] + at.image * (int64_t(view.height[at.level]) * view.width[at.level]);
    const auto key = [&](int32_t y, int32_t x) {
      return (map + int64_t(y) * view.width[at.level] + x) * view.sampling_groups + unit.group;
    };
    const RowSampler<T> row(view, first + unit.row, at);
    if (view.deformed) {
      const Sample<Real> sample(view, row, unit.group, unit.tap, unit.ky, unit.kx, true);
      for (int c = 0; c < 4; ++c) {
        keys[4 * number + c] = sample.inside ? key(sample.down.pixel[c / 2], sample.across.pixel[c % 2]) : kNowhere;
        weights[4 * number + c] = sample.weight(c);
      }
    } else {
      int32_t y, x;
      const bool inside = row.on_grid(view, unit.ky, unit.kx, y, x);
      for (int c = 0; c < 4; ++c) {
        keys[4 * number + c] = c == 0 && inside ? key(y, x) : kNowhere;
        weights[4 * number + c] = Real(1);
      }
    }
  }
};

// The warp at the first of a run of equal keys adds the run up, lanes along channels.
template <class T, int kVector>
struct SumSorted {
  using Real = ComputeType<T>;
  using Vector = Numbers<T, kVector>;
  static constexpr int kThreads = 256, kWarps = kThreads / kLanes;
  using Shared = NoShared;
  ConvolutionView<T> view;
  MapPixels pixels;
  SampleTasks tasks;
  ColumnIndex index;
  Divisor by_rows;
  int64_t entries;
  Pointer<const int64_t> keys, order;  // sorted; and the entry that each was
  Pointer<const Real> weights;
  Pointer<const T> grad_columns;
  Maps<Real> grad_input;

  int64_t blocks() const { return (entries + kWarps - 1) / kWarps; }

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    const auto warp = block.warp();
    const int64_t begin = block.index() * kWarps + warp.index;
    if (!within(begin, entries)) return;
    const int64_t key = keys[begin];
    if (key != kNowhere && (begin == 0 || keys[begin - 1] != key)) add_run(warp.lane, begin, key);
  }

 private:
  GA_KERNEL void add_run(int lane, int64_t begin, int64_t key) const {
    for (int v = lane; within(v, tasks.vectors); v += kLanes) {
      Real total[kVector] = {};
      int group = 0;
      for (int64_t e = begin; within(e, entries) && keys[e] == key; ++e) {
        const SampleNumber unit(tasks, by_rows, order[e] / 4);
        group = unit.group;
        const int channel = group * view.channels_per_sampling_group + v * kVector;
        Real gradient[kVector];
        load_vector<Vector>(grad_columns + (index.of_row(unit.row, unit.tap) + index.of_channel(channel)))
            .widen(gradient);
        const Real weight = weights[order[e]];
        GA_UNROLL for (int i = 0; i < kVector; ++i) total[i] += weight * gradient[i];
      }
      const Pointer<Real> to = pixel(key) + (group * view.channels_per_sampling_group + v * kVector);
      GA_UNROLL for (int i = 0; i < kVector; ++i) to[i] += total[i];
    }
  }

  // Of a key; once for a run, so plain divisions will do.
  GA_KERNEL Pointer<Real> pixel(int64_t key) const {
    int64_t rest = tasks.groups.divide(key);
    Row at;
    at.level = 0;
    while (at.level + 1 < view.num_levels && rest >= pixels.before[at.level + 1]) ++at.level;
    rest -= pixels.before[at.level];
    const int64_t row = rest / view.width[at.level];
    at.image = row / view.height[at.level];
    return grad_input.pixel(at, static_cast<int32_t>(row - at.image * view.height[at.level]),
                            static_cast<int32_t>(rest - row * view.width[at.level]));
  }
};

}  // namespace ga_scope::cuda
