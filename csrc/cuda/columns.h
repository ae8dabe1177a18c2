// The simple path's kernels: they lay a chunk of rows out as columns for torch's matrix products, and the products'
// rows where they belong.
//
// A chunk's columns are (groups, rows, taps * C_in / groups), its outputs (groups, rows, C_out / groups).
#pragma once

#include "for_each.h"
#include "samples.h"

namespace ga_scope::cuda {

// weight (C_out, C_in / groups, kernel_h, kernel_w) in any strides -> packed (C_out, taps, C_in / groups).
template <class T>
struct PackWeight {
  Pointer<const T> weight;
  int64_t stride_out, stride_in, stride_y, stride_x;
  Divisor channels, taps, kernel_w;
  bool to_tf32;
  Pointer<T> packed;

  GA_KERNEL void operator()(int64_t i) const {
    const int64_t row = channels.divide(i), channel = i - row * channels.value();
    const int64_t out = taps.divide(row), tap = row - out * taps.value();
    const int64_t y = kernel_w.divide(tap), x = tap - y * kernel_w.value();
    const T number = weight[out * stride_out + channel * stride_in + y * stride_y + x * stride_x];
    if constexpr (sizeof(T) == 4) {
      packed[i] = to_tf32 ? round_to_tf32(number) : number;
    } else {
      packed[i] = number;
    }
  }
};

// Columns of the chunk of `rows` rows from `first` on, kVector channels at a time. A warp per task of samples.h.
template <class T, int kVector>
struct GatherColumns {
  using Real = ComputeType<T>;
  using Vector = Numbers<T, kVector>;
  static constexpr int kThreads = 256, kWarps = kThreads / kLanes;
  using Shared = NoShared;
  ConvolutionView<T> view;
  int64_t first;
  SampleTasks tasks;
  ColumnIndex index;
  Pointer<T> columns;

  GatherColumns(const ConvolutionView<T>& view, int64_t first, int64_t rows, const Pointer<T>& columns)
      : view(view), first(first), tasks(view, rows, kVector), index(view, rows), columns(columns) {}

  int64_t blocks() const { return (tasks.count + kWarps - 1) / kWarps; }

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    const auto warp = block.warp();
    const SampleTask task(tasks, block.index() * kWarps + warp.index);  // past the last it has no rows left
    const int64_t r = first + clamped(task.first_row + warp.lane, int64_t(0), tasks.rows - 1);
    const Row at = view.row(r);
    const RowSampler<T> row(view, r, at);
    if (view.deformed) {
      const Sample<Real> sample(view, row, task.group, task.tap, task.ky, task.kx, false);
      Pointer<const T> pixel[4];
      Real weight[4];
      GA_UNROLL for (int c = 0; c < 4; ++c) {
        pixel[c] = sample.inside ? view.input.pixel(at, sample.down.pixel[c / 2], sample.across.pixel[c % 2]) : nullptr;
        weight[c] = sample.weight(c);
      }
      gather(warp, task, pixel, weight);
    } else {
      int32_t y, x;
      const bool inside = row.on_grid(view, task.ky, task.kx, y, x);
      const Pointer<const T> pixel[1] = {inside ? view.input.pixel(at, y, x) : nullptr};
      const Real weight[1] = {Real(1)};
      gather(warp, task, pixel, weight);
    }
  }

 private:
  template <class Warp, int kPixels>
  GA_KERNEL void gather(const Warp& warp, const SampleTask& task, const Pointer<const T> (&pixel)[kPixels],
                        const Real (&weight)[kPixels]) const {
    const int member = warp.lane & (tasks.team - 1), team = warp.lane - member;
    const int left = task.rows_left(tasks);
    for (int v = member; v - member < tasks.vectors; v += tasks.team) {
      const int channel = task.group * view.channels_per_sampling_group + v * kVector;
      Pointer<T> to = columns + (index.of_row(task.first_row + team, task.tap) + index.of_channel(channel));
      GA_NO_UNROLL for (int turn = 0; turn < tasks.team; ++turn, to += index.between_rows) {
        Pointer<const T> from[kPixels];
        Real share[kPixels];
        GA_UNROLL for (int c = 0; c < kPixels; ++c) {
          from[c] = warp.shuffle(pixel[c], team + turn);
          share[c] = warp.shuffle(weight[c], team + turn);
        }
        if (!within(team + turn, left) || !within(v, tasks.vectors)) continue;
        Real sum[kVector] = {};
        if (from[0] != nullptr) {
          Vector vector[kPixels];
          GA_UNROLL for (int c = 0; c < kPixels; ++c) vector[c] = load_vector<Vector>(from[c] + channel);
          GA_UNROLL for (int c = 0; c < kPixels; ++c) {
            Real numbers[kVector];
            vector[c].widen(numbers);
            GA_UNROLL for (int i = 0; i < kVector; ++i) sum[i] += share[c] * numbers[i];
          }
        }
        store_vector(to, Vector::narrow(sum));
      }
    }
  }
};

// Between a chunk's matrix (groups, rows, per group) and numbers per row: a block has 32 rows of a group. Whichever of
// rows and columns lie side by side in either, 32 lanes read and write neighbours.
struct RowTiles {
  static constexpr int kThreads = 256, kWarps = kThreads / kLanes;
  int64_t first, rows;
  int32_t per_group;
  int32_t groups;
  Divisor by_group;
  bool rows_side_by_side;

  RowTiles(int64_t first, int64_t rows, int64_t groups, int64_t per_group, bool rows_side_by_side)
      : first(first),
        rows(rows),
        per_group(static_cast<int32_t>(per_group)),
        groups(static_cast<int32_t>(groups)),
        by_group(groups),
        rows_side_by_side(rows_side_by_side) {}

  int64_t blocks() const { return (rows + kLanes - 1) / kLanes * groups; }
};

template <class Number>
struct RowTile {
  Array<Number, kLanes*(kLanes + 1)> number;  // a column more than there are, to spread a column over the banks

  GA_KERNEL Number& at(int row, int column) { return number[row * (kLanes + 1) + column]; }
};

// Sums of a chunk, each of `parts` matrices with the others', plus bias.
template <class T, class Sum>
struct StoreRows {
  static constexpr int kThreads = RowTiles::kThreads;
  using Shared = RowTile<T>;
  ConvolutionView<T> view;
  RowTiles tiles;
  Pointer<const Sum> sums;
  int32_t parts;
  Pointer<const T> bias;  // or null
  int64_t bias_stride;
  RowNumbers<T> output;

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    Shared& tile = block.template shared<Shared>();
    const auto warp = block.warp();
    const int64_t down = tiles.by_group.divide(block.index()), first_row = down * kLanes;
    const int group = static_cast<int>(block.index() - down * tiles.groups);
    // Of the lane's row.
    const int64_t r = tiles.first + clamped(first_row + warp.lane, int64_t(0), tiles.rows - 1);
    const Row at = view.row(r);
    const Pointer<T> own = output.at(r, at);
    const int64_t own_stride = output.column_stride(at);
    for (int column = 0; column < tiles.per_group; column += kLanes) {
      const int j = group * tiles.per_group + column;  // of all columns
      for (int i = warp.index; i < kLanes; i += RowTiles::kWarps) {
        Pointer<T> to = nullptr;
        int64_t stride = 0;
        if (!tiles.rows_side_by_side) to = warp.shuffle(own, i), stride = warp.shuffle(own_stride, i);
        if (!within(first_row + i, tiles.rows) || !within(column + warp.lane, tiles.per_group)) continue;
        const T number = sum(group, first_row + i, column + warp.lane, j + warp.lane);
        if (tiles.rows_side_by_side) {
          tile.at(i, warp.lane) = number;
        } else {
          to[(j + warp.lane) * stride] = number;
        }
      }
      if (!tiles.rows_side_by_side) continue;
      block.sync();
      if (within(first_row + warp.lane, tiles.rows)) {
        for (int i = warp.index; i < kLanes && within(column + i, tiles.per_group); i += RowTiles::kWarps) {
          own[(j + i) * own_stride] = tile.at(warp.lane, i);
        }
      }
      block.sync();
    }
  }

 private:
  GA_KERNEL T sum(int group, int64_t row, int column, int j) const {
    using Real = ComputeType<T>;
    const int64_t matrix = tiles.groups * tiles.rows * tiles.per_group;
    const Pointer<const Sum> from = sums + ((group * tiles.rows + row) * tiles.per_group + column);
    Real total = static_cast<Real>(from[0]);
    for (int p = 1; p < parts; ++p) total += static_cast<Real>(from[p * matrix]);
    if (bias != nullptr) total += static_cast<Real>(bias[j * bias_stride]);
    return static_cast<T>(total);
  }
};

// The opposite: numbers per row as a chunk's matrix.
template <class T, class Number>
struct CollectRows {
  static constexpr int kThreads = RowTiles::kThreads;
  using Shared = RowTile<Number>;
  ConvolutionView<T> view;
  RowTiles tiles;
  RowNumbers<const Number> from;
  Pointer<Number> matrix;

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    Shared& tile = block.template shared<Shared>();
    const auto warp = block.warp();
    const int64_t down = tiles.by_group.divide(block.index()), first_row = down * kLanes;
    const int group = static_cast<int>(block.index() - down * tiles.groups);
    const int64_t r = tiles.first + clamped(first_row + warp.lane, int64_t(0), tiles.rows - 1);
    const Row at = view.row(r);
    const Pointer<const Number> own = from.at(r, at);
    const int64_t own_stride = from.column_stride(at);
    for (int column = 0; column < tiles.per_group; column += kLanes) {
      const int j = group * tiles.per_group + column;
      if (tiles.rows_side_by_side) {
        for (int i = warp.index; i < kLanes && within(column + i, tiles.per_group); i += RowTiles::kWarps) {
          tile.at(warp.lane, i) = own[(j + i) * own_stride];
        }
        block.sync();
      }
      for (int i = warp.index; i < kLanes; i += RowTiles::kWarps) {
        Pointer<const Number> number = nullptr;
        int64_t stride = 0;
        if (!tiles.rows_side_by_side) number = warp.shuffle(own, i), stride = warp.shuffle(own_stride, i);
        if (!within(first_row + i, tiles.rows) || !within(column + warp.lane, tiles.per_group)) continue;
        matrix[(group * tiles.rows + first_row + i) * tiles.per_group + column + warp.lane] =
            tiles.rows_side_by_side ? tile.at(i, warp.lane) : number[(j + warp.lane) * stride];
      }
      if (tiles.rows_side_by_side) block.sync();
    }
  }
};

}  // namespace ga_scope::cuda
