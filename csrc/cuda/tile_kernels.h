// The simple path: kernels that lay a chunk of rows out as matrices for torch's matrix products, and back.
//
// A chunk's columns are (groups, rows, taps * C_in / groups), its outputs (groups, rows, C_out / groups).
#pragma once

#include "convolution_view.h"
#include "for_each.h"

namespace ga_scope::cuda {

// weight (C_out, C_in / groups, kernel_h, kernel_w) in any strides -> packed (C_out, taps, C_in / groups).
template <class T>
struct PackWeight {
  const T* weight;
  int64_t stride_out, stride_in, stride_y, stride_x;
  int64_t channels, taps, kernel_w;
  bool to_tf32;
  T* packed;

  GA_HOST_DEVICE int64_t source(int64_t i) const {
    const int64_t channel = i % channels, tap = i / channels % taps, out = i / (channels * taps);
    return out * stride_out + channel * stride_in + tap / kernel_w * stride_y + tap % kernel_w * stride_x;
  }
  GA_KERNEL void operator()(int64_t i) const {
    const T value = weight[source(i)];
    if constexpr (sizeof(T) == 4) {
      packed[i] = to_tf32 ? round_to_tf32(value) : value;
    } else {
      packed[i] = value;
    }
  }
};

// Sums in packed order -> the weight's gradient (C_out, C_in / groups, taps), contiguous.
template <class T>
struct UnpackWeight {
  const ComputeType<T>* sums;
  int64_t channels, taps;
  T* weight;

  GA_KERNEL void operator()(int64_t i) const {
    const int64_t tap = i % taps, channel = i / taps % channels, out = i / (channels * taps);
    weight[i] = static_cast<T>(sums[(out * taps + tap) * channels + channel]);
  }
};

template <class T, class Real>
struct AddTo {
  const T* from;
  Real* sums;

  GA_KERNEL void operator()(int64_t i) const { sums[i] += static_cast<Real>(from[i]); }
};

// A warp's share of work on samples: unit u of a chunk is sample (row, sampling group, tap).
struct SampleUnit {
  int64_t row;  // within the chunk
  int group, tap;
};

template <class T>
GA_HOST_DEVICE SampleUnit sample_unit(const ConvolutionView<T>& view, int64_t unit) {
  const int64_t taps = view.shape.taps(), groups = view.shape.sampling_groups();
  return {unit / (groups * taps), static_cast<int>(unit / taps % groups), static_cast<int>(unit % taps)};
}

// Where channel c of a tap lies in a chunk's columns.
struct ColumnIndex {
  int64_t rows, taps, channels_per_group;

  GA_HOST_DEVICE int64_t operator()(int64_t row, int64_t tap, int64_t channel) const {
    const int64_t group = channel / channels_per_group;
    return ((group * rows + row) * taps + tap) * channels_per_group + (channel - group * channels_per_group);
  }
};

constexpr int kLanes = 32;

// Columns of the chunk of `rows` rows from `first` on. One warp per sample, lanes along its channels.
template <class T>
struct GatherColumns {
  using Real = ComputeType<T>;
  static constexpr int kThreads = 256;
  using Shared = NoShared;
  ConvolutionView<T> view;
  int64_t first, rows;
  T* columns;

  GA_HOST_DEVICE int64_t units() const { return rows * view.shape.sampling_groups() * view.shape.taps(); }
  int64_t blocks() const { return (units() + kThreads / kLanes - 1) / (kThreads / kLanes); }

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    block.each([&](int thread) {
      const int64_t number = block.index() * (kThreads / kLanes) + thread / kLanes;
      if (number < units()) gather(sample_unit(view, number), thread % kLanes);
    });
  }

 private:
  GA_KERNEL void gather(const SampleUnit& unit, int lane) const {
    const Location at = view.row(first + unit.row);
    Sample<Real> sample;
    const bool any = view.sample(first + unit.row, at, unit.group, unit.tap, sample);
    const T* map = view.input.of(at);
    const int64_t stride_y = view.input.y[at.level], stride_x = view.input.x[at.level];
    const ColumnIndex index{rows, view.shape.taps(), view.shape.in_channels_per_group()};
    const int64_t width = view.shape.channels_per_sampling_group();
    for (int64_t c = unit.group * width + lane; c < (unit.group + 1) * width; c += kLanes) {
      Real value = 0;
      GA_UNROLL for (int corner = 0; corner < 4; ++corner) {
        if (!any || !sample.tap.inside[corner]) continue;
        const T* pixel = map + (sample.tap.top + corner / 2) * stride_y + (sample.tap.left + corner % 2) * stride_x;
        value += sample.weight(corner) * static_cast<Real>(pixel[c]);
      }
      columns[index(unit.row, unit.tap, c)] = static_cast<T>(value);
    }
  }
};

// 32 rows x all columns per block, whichever of the two is contiguous in the maps along the lanes.
template <class Copy>
struct ForEachNumber {
  static constexpr int kThreads = 256;
  using Shared = NoShared;
  Copy copy;
  int64_t rows, columns;
  bool rows_along_lanes;

  int64_t blocks() const { return (rows + kLanes - 1) / kLanes; }

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    block.each([&](int thread) {
      constexpr int kWarps = kThreads / kLanes;
      const int lane = thread % kLanes, warp = thread / kLanes;
      const int64_t begin = block.index() * kLanes;
      if (rows_along_lanes) {
        if (begin + lane < rows) copy(begin + lane, warp, columns, kWarps);
      } else {
        for (int64_t r = begin + warp; r < begin + kLanes && r < rows; r += kWarps) copy(r, lane, columns, kLanes);
      }
    });
  }
};

// Outputs of a chunk (groups, rows, columns per group), plus bias, to where they belong.
template <class T>
struct StoreRows {
  ConvolutionView<T> view;
  int64_t first, rows, per_group;
  const T* sums;
  const T* bias;  // or null
  int64_t bias_stride;
  RowNumbers<T> output;

  GA_KERNEL void operator()(int64_t row, int64_t begin, int64_t end, int64_t step) const {
    using Real = ComputeType<T>;
    const Location at = view.row(first + row);
    T* to = output.at(first + row, at);
    const int64_t stride = output.column_stride(at);
    for (int64_t j = begin; j < end; j += step) {
      const int64_t group = j / per_group;
      const Real sum = static_cast<Real>(sums[(group * rows + row) * per_group + (j - group * per_group)]);
      to[j * stride] = static_cast<T>(bias ? sum + static_cast<Real>(bias[j * bias_stride]) : sum);
    }
  }
};

// The opposite: numbers per row as a chunk's matrix (groups, rows, columns per group).
template <class T, class Number>
struct CollectRows {
  ConvolutionView<T> view;
  int64_t first, rows, per_group;
  RowNumbers<const Number> from;
  Number* matrix;

  GA_KERNEL void operator()(int64_t row, int64_t begin, int64_t end, int64_t step) const {
    const Location at = view.row(first + row);
    const Number* numbers = from.at(first + row, at);
    const int64_t stride = from.column_stride(at);
    for (int64_t j = begin; j < end; j += step) {
      const int64_t group = j / per_group;
      matrix[(group * rows + row) * per_group + (j - group * per_group)] = numbers[j * stride];
    }
  }
};

// ---- backward -----------------------------------------------------------------------------------

// From a chunk's gradient of the columns: the gradients of offset and mask, and, if the input's gradient is
// given here, that too, by atomic additions. One warp per sample; its lanes' parts of the position's gradient
// are added up in order by one thread.
template <class T>
struct BackwardSamples {
  using Real = ComputeType<T>;
  static constexpr int kThreads = 256;
  struct Shared {
    Real part[kThreads][3];  // d y, d x, d modulation
  };
  ConvolutionView<T> view;
  int64_t first, rows;
  const T* grad_columns;
  Maps<Real> grad_input;  // data null: not wanted, or summed by SumSorted
  bool positions;         // whether grad_offset (and grad_mask) are wanted
  RowNumbers<Real> grad_offset, grad_mask;
  int64_t grad_offset_first;  // the row that grad_offset's first row stands for

  GA_HOST_DEVICE int64_t units() const { return rows * view.shape.sampling_groups() * view.shape.taps(); }
  int64_t blocks() const { return (units() + kThreads / kLanes - 1) / (kThreads / kLanes); }

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    Shared& shared = block.template shared<Shared>();
    block.each([&](int thread) {
      const int64_t number = block.index() * (kThreads / kLanes) + thread / kLanes;
      if (number < units()) correlate(sample_unit(view, number), thread % kLanes, shared.part[thread]);
    });
    block.each([&](int thread) {
      const int64_t number = block.index() * (kThreads / kLanes) + thread / kLanes;
      if (positions && thread % kLanes == 0 && number < units()) store(sample_unit(view, number), &shared.part[thread]);
    });
  }

 private:
  GA_KERNEL void correlate(const SampleUnit& unit, int lane, Real (&part)[3]) const {
    const Location at = view.row(first + unit.row);
    Sample<Real> sample;
    Real dy = 0, dx = 0, value = 0;
    if (view.sample(first + unit.row, at, unit.group, unit.tap, sample)) {
      const T* map = view.input.of(at);
      const int level = at.level;
      const ColumnIndex index{rows, view.shape.taps(), view.shape.in_channels_per_group()};
      const int64_t width = view.shape.channels_per_sampling_group();
      for (int64_t c = unit.group * width + lane; c < (unit.group + 1) * width; c += kLanes) {
        const Real grad = static_cast<Real>(grad_columns[index(unit.row, unit.tap, c)]);
        GA_UNROLL for (int corner = 0; corner < 4; ++corner) {
          if (!sample.tap.inside[corner]) continue;
          const int64_t y = sample.tap.top + corner / 2, x = sample.tap.left + corner % 2;
          const Real product = grad * static_cast<Real>(map[y * view.input.y[level] + x * view.input.x[level] + c]);
          dy += sample.tap.weight_dy(corner) * product;
          dx += sample.tap.weight_dx(corner) * product;
          value += sample.tap.weight(corner) * product;
          if (grad_input.data[0]) {
            Real* to = grad_input.of(at) + y * grad_input.y[level] + x * grad_input.x[level] + c;
            atomic_add(to, sample.weight(corner) * grad);
          }
        }
      }
      dy *= sample.modulation, dx *= sample.modulation;
    }
    part[0] = dy, part[1] = dx, part[2] = value;
  }

  GA_KERNEL void store(const SampleUnit& unit, const Real (*part)[3]) const {
    Real total[3] = {0, 0, 0};
    for (int lane = 0; lane < kLanes; ++lane) {
      GA_UNROLL for (int i = 0; i < 3; ++i) total[i] += part[lane][i];
    }
    const int64_t row = first + unit.row, column = unit.group * view.shape.taps() + unit.tap;
    const Location at = view.row(row);
    Real* offset = grad_offset.at(row - grad_offset_first, at);
    const int64_t stride = grad_offset.column_stride(at);
    offset[2 * column * stride] = total[0];
    offset[(2 * column + 1) * stride] = total[1];
    if (view.modulated) grad_mask.at(row, at)[column * grad_mask.column_stride(at)] = total[2];
  }
};

// With offset_weight: the gradient of the offsets' inputs, from those of the offsets (chunk rows, 2 G K).
template <class T>
struct ReduceOffsets {
  using Real = ComputeType<T>;
  ConvolutionView<T> view;
  int64_t first;
  const Real* grad_offset;
  RowNumbers<Real> grad_inputs;

  GA_KERNEL void operator()(int64_t i) const {
    const int64_t row = i / view.offset_inputs, input = i % view.offset_inputs;
    const int64_t count = view.shape.offsets_per_location();
    Real total = 0;
    for (int64_t j = 0; j < count; ++j) {
      total += grad_offset[row * count + j] * view.offset_weight[j * view.offset_inputs + input];
    }
    const Location at = view.row(first + row);
    grad_inputs.at(first + row, at)[input * grad_inputs.column_stride(at)] = total;
  }
};

// ---- deterministic backward of the input --------------------------------------------------------
//
// Every corner of every sample of the chunk is an entry. Sorted by the pixel and sampling group that it adds
// to, stably, the entries of one sum lie side by side in a fixed order.

constexpr int64_t kNowhere = INT64_MAX;

// keys[4 * unit + corner]: the pixel's number, over all maps, times the sampling groups, plus the group.
template <class T>
struct SortKeys {
  ConvolutionView<T> view;
  int64_t first, images;
  int64_t* keys;

  GA_KERNEL void operator()(int64_t number) const {
    const SampleUnit unit = sample_unit(view, number);
    const Location at = view.row(first + unit.row);
    Sample<ComputeType<T>> sample;
    const bool any = view.sample(first + unit.row, at, unit.group, unit.tap, sample);
    const LevelShape& map = view.input_levels[at.level];
    const int64_t map_first = map.first * images + at.image * map.height * map.width;
    for (int corner = 0; corner < 4; ++corner) {
      const int64_t y = sample.tap.top + corner / 2, x = sample.tap.left + corner % 2;
      const bool on_map = any && sample.tap.inside[corner];
      const int64_t pixel = map_first + y * map.width + x;
      keys[4 * number + corner] = on_map ? pixel * view.shape.sampling_groups() + unit.group : kNowhere;
    }
  }
};

// The warp at the first of a run of equal keys adds the run up, lanes along channels.
template <class T>
struct SumSorted {
  using Real = ComputeType<T>;
  static constexpr int kThreads = 256;
  using Shared = NoShared;
  ConvolutionView<T> view;
  int64_t first, rows, entries;
  const int64_t *keys, *order;  // sorted; and the entry that each was
  const T* grad_columns;
  Maps<Real> grad_input;

  int64_t blocks() const { return (entries + kThreads / kLanes - 1) / (kThreads / kLanes); }

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    block.each([&](int thread) {
      const int64_t begin = block.index() * (kThreads / kLanes) + thread / kLanes;
      if (begin >= entries || keys[begin] == kNowhere) return;
      if (begin == 0 || keys[begin - 1] != keys[begin]) add_run(begin, thread % kLanes);
    });
  }

 private:
  GA_KERNEL void add_run(int64_t begin, int lane) const {
    const ColumnIndex index{rows, view.shape.taps(), view.shape.in_channels_per_group()};
    const int64_t width = view.shape.channels_per_sampling_group();
    for (int64_t c = lane; c < width; c += kLanes) {
      Real total = 0;
      Real* to = nullptr;
      for (int64_t e = begin; e < entries && keys[e] == keys[begin]; ++e) {
        const SampleUnit unit = sample_unit(view, order[e] / 4);
        const int corner = static_cast<int>(order[e] % 4);
        const Location at = view.row(first + unit.row);
        Sample<Real> sample;
        view.sample(first + unit.row, at, unit.group, unit.tap, sample);
        const int64_t channel = unit.group * width + c;
        total += sample.weight(corner) * static_cast<Real>(grad_columns[index(unit.row, unit.tap, channel)]);
        const int64_t y = sample.tap.top + corner / 2, x = sample.tap.left + corner % 2;
        to = grad_input.of(at) + y * grad_input.y[at.level] + x * grad_input.x[at.level] + channel;
      }
      *to += total;
    }
  }
};

}  // namespace ga_scope::cuda
