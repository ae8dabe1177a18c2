// Convolution as one kernel: the gather and the matrix product, tile by tile, without a columns buffer.
//
// A block computes kTileRows rows by 256 output channels, so that with up to 256 channels each sample is
// gathered once. Depth runs over (tap, channel) in chunks of 128 bytes. Four producer warps fill one stage
// of shared memory, the rows' interpolated samples and the weight's slice, while eight consumer warps
// multiply the other with the tensor cores, summing in float32 registers. Where a row samples in chunk k + 1
// is worked out, one row per producer, while chunk k is gathered.
//
// One launch covers all levels and images: a tile is any kTileRows consecutive rows.
#pragma once

#include "convolution_view.h"
#include "fused_tile.h"

namespace ga_scope::cuda {

template <class T, int kTileRows>
struct FusedConvolution {
  static constexpr int kTileColumns = 256;
  static constexpr int kConsumerWarps = 8, kProducers = 128;
  static constexpr int kThreads = 32 * kConsumerWarps + kProducers;
  static constexpr int kWarpsDown = 2, kWarpsAcross = 4;
  static constexpr int kWarpRows = kTileRows / kWarpsDown, kWarpColumns = kTileColumns / kWarpsAcross;
  static constexpr int kChunk = kTileBytes / sizeof(T);  // channels

  struct Stage {
    unsigned char columns[kTileRows * kTileBytes];
    unsigned char weight[kTileColumns * kTileBytes];
  };
  // Numbers from the image's first pixel to each corner's, or -1; and its weight.
  struct TileSample {
    int32_t pixel[4];
    float weight[4];
  };
  struct TileRow {
    const T* image;  // null past the last row
    int32_t level, number, y, x;
  };
  // Which part of the result the block computes; in shared memory, for want of registers.
  struct Place {
    int64_t first_row;
    int group, first_column, columns, chunks_per_tap, steps;  // columns: of the group
  };
  struct Shared {
    alignas(128) Stage stage[2];
    TileSample sample[2][kTileRows];
    TileRow row[kTileRows];
    float bias[kTileColumns];
    Place place;
  };

  ConvolutionView<T> view;
  const T* weight;  // packed (C_out, taps, C_in / groups)
  const T* bias;    // or null
  int64_t bias_stride;
  RowNumbers<T> output;

  // Column tiles of a convolution group; the tiles of a row follow each other, for its pixels' sake.
  GA_HOST_DEVICE int64_t column_tiles() const {
    return (view.shape.out_channels_per_group() + kTileColumns - 1) / kTileColumns;
  }
  int64_t blocks() const { return (view.rows + kTileRows - 1) / kTileRows * view.shape.groups * column_tiles(); }

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    Shared& shared = block.template shared<Shared>();
    const Tile tile{*this, shared};
    block.each([&](int thread) {
      if (thread == 0) shared.place = place_of(block.index());
    });
    block.each([&](int thread) {
      if (thread < kTileRows) tile.prepare_row(thread);
      for (int i = thread; i < kTileColumns; i += kThreads) tile.prepare_bias(i);
    });
    block.pipeline(tile, shared.place.steps);
  }

  GA_KERNEL Place place_of(int64_t index) const {
    const int64_t across = view.shape.groups * column_tiles();
    const int64_t down = index / across, rest = index - down * across;
    Place place;
    place.first_row = down * kTileRows;
    place.group = static_cast<int>(rest / column_tiles());
    place.first_column = static_cast<int>(rest - place.group * column_tiles()) * kTileColumns;
    place.columns = static_cast<int>(view.shape.out_channels_per_group());
    place.chunks_per_tap = static_cast<int>(view.shape.in_channels_per_group() / kChunk);
    place.steps = static_cast<int>(view.shape.taps()) * place.chunks_per_tap;
    return place;
  }

  struct Tile {
    static constexpr int kConsumerWarps = FusedConvolution::kConsumerWarps;
    static constexpr int kProducers = FusedConvolution::kProducers;
    static constexpr int kBlocksDown = kWarpRows / 16, kBlocksAcross = kWarpColumns / 8;

    const FusedConvolution& kernel;
    Shared& shared;

    // ---- producers --------------------------------------------------------------------------------

    GA_KERNEL void prepare_bias(int i) const {
      const Place& place = shared.place;
      const int64_t out = int64_t(place.group) * place.columns + place.first_column + i;
      const bool given = kernel.bias != nullptr && place.first_column + i < place.columns;
      shared.bias[i] = given ? static_cast<float>(kernel.bias[out * kernel.bias_stride]) : 0.0f;
    }

    GA_KERNEL void prepare_row(int r) const {
      TileRow& row = shared.row[r];
      if (shared.place.first_row + r >= kernel.view.rows) {
        row.image = nullptr;
      } else {
        const Location at = kernel.view.row(shared.place.first_row + r);
        row = {kernel.view.input.of(at), at.level, static_cast<int32_t>(at.image), static_cast<int32_t>(at.y),
               static_cast<int32_t>(at.x)};
      }
      shared.sample[0][r] = sample(r, 0);
    }

    GA_KERNEL int first_channel(int step) const {  // of all C_in
      return (shared.place.group * shared.place.chunks_per_tap + step % shared.place.chunks_per_tap) * kChunk;
    }

    GA_KERNEL TileSample sample(int r, int step) const {
      TileSample result;
      GA_UNROLL for (int corner = 0; corner < 4; ++corner) result.pixel[corner] = -1, result.weight[corner] = 0;
      const TileRow& row = shared.row[r];
      if (row.image == nullptr) return result;
      const ConvolutionView<T>& view = kernel.view;
      const int sampling_group = first_channel(step) / static_cast<int>(view.shape.channels_per_sampling_group());
      Sample<float> sample;
      const Location at{row.number, row.y, row.x, row.level};
      if (!view.sample(shared.place.first_row + r, at, sampling_group, step / shared.place.chunks_per_tap, sample))
        return result;
      const int64_t stride_y = view.input.y[row.level], stride_x = view.input.x[row.level];
      GA_UNROLL for (int corner = 0; corner < 4; ++corner) {
        if (!sample.tap.inside[corner]) continue;
        const int64_t y = sample.tap.top + corner / 2, x = sample.tap.left + corner % 2;
        result.pixel[corner] = static_cast<int32_t>(y * stride_y + x * stride_x);
        result.weight[corner] = sample.weight(corner);
      }
      return result;
    }

    GA_KERNEL void produce(int step, int producer) const {
      Stage& stage = shared.stage[step % 2];
      copy_weight(stage, step, producer);
      TileSample next;
      const bool has_next = step + 1 < shared.place.steps && producer < kTileRows;
      if (has_next) next = sample(producer, step + 1);
      gather(stage, step, producer);
      if (has_next) shared.sample[(step + 1) % 2][producer] = next;
      copies_done();
    }

    GA_KERNEL void copy_weight(Stage& stage, int step, int producer) const {
      constexpr int kNumbers = kVectorBytes / sizeof(T);
      const Place& place = shared.place;
      const int64_t depth = int64_t(place.steps) * kChunk;
      const int vector = producer % kVectorsPerRow;
      const T* source =
          kernel.weight + (int64_t(place.group) * place.columns + place.first_column) * depth + int64_t(step) * kChunk;
      GA_UNROLL for (int i = 0; i < kTileColumns * kVectorsPerRow / kProducers; ++i) {
        const int column = producer / kVectorsPerRow + i * (kProducers / kVectorsPerRow);
        const bool valid = place.first_column + column < place.columns;
        const T* from = source + (valid ? column : 0) * depth + vector * kNumbers;
        copy_async(stage.weight + tile_byte(column, vector), from, valid);
      }
    }

    // Eight neighbouring producers read 128 contiguous bytes of each of a row's four pixels.
    GA_KERNEL void gather(Stage& stage, int step, int producer) const {
      constexpr int kRowsAtOnce = kProducers / kVectorsPerRow, kBatch = 4;
      const int vector = producer % kVectorsPerRow;
      const int channel = first_channel(step) + vector * (kVectorBytes / int(sizeof(T)));
      for (int r0 = producer / kVectorsPerRow; r0 < kTileRows; r0 += kBatch * kRowsAtOnce) {
        Vector pixel[kBatch][4];
        GA_UNROLL for (int b = 0; b < kBatch; ++b) {
          const int r = r0 + b * kRowsAtOnce;
          const TileSample& sample = shared.sample[step % 2][r];
          const T* image = shared.row[r].image + channel;
          GA_UNROLL for (int corner = 0; corner < 4; ++corner) {
            pixel[b][corner] = Vector{{0, 0, 0, 0}};
            if (sample.pixel[corner] >= 0) {
              pixel[b][corner] = load_global<Vector>(image + sample.pixel[corner]);
            }
          }
        }
        GA_UNROLL for (int b = 0; b < kBatch; ++b) {
          const int r = r0 + b * kRowsAtOnce;
          *reinterpret_cast<Vector*>(stage.columns + tile_byte(r, vector)) =
              interpolate(pixel[b], shared.sample[step % 2][r].weight);
        }
      }
    }

    static GA_KERNEL Vector interpolate(const Vector (&pixel)[4], const float (&weight)[4]) {
      constexpr int kPerWord = 4 / sizeof(T);
      Vector result;
      GA_UNROLL for (int w = 0; w < 4; ++w) {
        float sum[kPerWord] = {};
        GA_UNROLL for (int corner = 0; corner < 4; ++corner) {
          float numbers[kPerWord];
          widen<T>(pixel[corner].word[w], numbers);
          GA_UNROLL for (int i = 0; i < kPerWord; ++i) sum[i] += weight[corner] * numbers[i];
        }
        result.word[w] = narrow<T>(sum);
      }
      return result;
    }

    // ---- consumers --------------------------------------------------------------------------------

    template <class Warp>
    struct Sums {
      typename Warp::template PerLane<float, 4> block[kBlocksDown][kBlocksAcross];
    };

    // Warps of the same columns are neighbours: a multiprocessor's four schedulers take warps in turn, so that
    // with few output channels, where the last warps have nothing to do, all four still work.
    GA_KERNEL int warp_row(int warp) const { return warp % kWarpsDown * kWarpRows; }
    GA_KERNEL int warp_column(int warp) const { return warp / kWarpsDown * kWarpColumns; }

    template <class Warp>
    GA_KERNEL void consume(int step, const Warp& warp, Sums<Warp>& sums) const {
      const Stage& stage = shared.stage[step % 2];
      const int row = warp_row(warp.index), column = warp_column(warp.index);
      if (shared.place.first_column + column >= shared.place.columns) return;  // nothing to compute for this warp
      // Matrices of a: upper, lower eight rows of the first 16 bytes; then of the second.
      const auto a_address =
          warp.address(stage.columns, [&](int lane) { return tile_byte(row + lane % 16, lane / 16); });
      // Matrices of b: first, second 16 bytes of eight output channels; then of the next eight.
      const auto b_address = warp.address(
          stage.weight, [&](int lane) { return tile_byte(column + lane / 16 * 8 + lane % 8, lane / 8 % 2); });
      GA_UNROLL for (int k = 0; k < kTileBytes / kStepBytes; ++k) {
        typename Warp::template PerLane<uint32_t, 4> a[kBlocksDown];
        GA_UNROLL for (int i = 0; i < kBlocksDown; ++i) {
          warp.load_matrices(a[i], a_address, k * kStepBytes, 16 * i * kTileBytes);
        }
        GA_UNROLL for (int j = 0; j < kBlocksAcross; j += 2) {
          typename Warp::template PerLane<uint32_t, 4> b;
          warp.load_matrices(b, b_address, k * kStepBytes, 8 * j * kTileBytes);
          GA_UNROLL for (int half = 0; half < 2; ++half) {
            GA_UNROLL for (int i = 0; i < kBlocksDown; ++i) {
              warp.template multiply<T>(sums.block[i][j + half], a[i], b, half);
            }
          }
        }
      }
    }

    // Lane (g, t) holds the sums of rows g and g + 8, columns 2 t and 2 t + 1, of each 16 x 8 block.
    template <class Warp>
    GA_KERNEL void finish(const Warp& warp, Sums<Warp>& sums) const {
      const Place& place = shared.place;
      warp.each([&](int lane) {
        GA_UNROLL for (int i = 0; i < kBlocksDown; ++i) {
          GA_UNROLL for (int half = 0; half < 2; ++half) {
            const int r = warp_row(warp.index) + 16 * i + 8 * half + lane / 4;
            const TileRow& row = shared.row[r];
            if (row.image == nullptr) continue;
            const Location at{row.number, row.y, row.x, row.level};
            const int64_t stride = kernel.output.column_stride(at);
            const int column = warp_column(warp.index) + 2 * (lane % 4);
            T* to = kernel.output.at(place.first_row + r, at) +
                    (int64_t(place.group) * place.columns + place.first_column + column) * stride;
            const bool pairs =
                stride == 1 && place.columns % 2 == 0 && reinterpret_cast<uintptr_t>(to) % sizeof(Pair) == 0;
            GA_UNROLL for (int j = 0; j < kBlocksAcross; ++j) {
              const float (&sum)[4] = sums.block[i][j][lane];
              const Pair pair{static_cast<T>(sum[2 * half] + shared.bias[column + 8 * j]),
                              static_cast<T>(sum[2 * half + 1] + shared.bias[column + 8 * j + 1])};
              const int left = place.columns - (place.first_column + column + 8 * j);
              if (pairs) {
                if (left > 0) *reinterpret_cast<Pair*>(to + 8 * j) = pair;
              } else {
                if (left > 0) to[8 * j * stride] = pair.first;
                if (left > 1) to[(8 * j + 1) * stride] = pair.second;
              }
            }
          }
        }
      });
    }

    struct alignas(2 * sizeof(T)) Pair {
      T first, second;
    };
  };
};

}  // namespace ga_scope::cuda
