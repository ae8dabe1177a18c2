// Convolution as one kernel: the gather and the matrix product, tile by tile, without a columns buffer.
//
// A block computes kTileRows rows by 256 output channels, so that with up to 256 channels each sample is gathered once.
// Its depth is cut into steps of 128 bytes of channels of one tap; the taps of the same channels follow each other, so
// that what they read of the map stays in L1. Four producer warps fill a ring of stages in shared memory with the rows'
// interpolated samples and the weight's slice, eight consumer warps multiply them with the tensor cores, summing in
// float32 registers. A producer has the pixels of its next four vectors under way while it interpolates one, and works
// out where its row samples two steps later.
//
// One launch covers all levels and images: a tile is any kTileRows consecutive rows. Where these are few, several
// blocks share a tile's depth and write their sums for another kernel to add up.
#pragma once

#include "convolution_view.h"
#include "fused_plan.h"
#include "fused_tile.h"

namespace ga_scope::cuda {

template <class T, int kTileRows>
struct FusedConvolution {
  static constexpr int kConsumerWarps = 8, kProducerWarps = 4;
  static constexpr int kConsumers = kConsumerWarps * kLanes, kProducers = kProducerWarps * kLanes;
  static constexpr int kThreads = kConsumers + kProducers;
  static constexpr int kWarpsDown = 2, kWarpsAcross = 4;
  static constexpr int kWarpRows = kTileRows / kWarpsDown, kWarpColumns = kTileColumns / kWarpsAcross;
  static constexpr int kChunk = kTileBytes / sizeof(T);                              // channels
  static constexpr int kNumbers = kVectorBytes / sizeof(T), kFloat = sizeof(float);  // of a vector; bytes
  static constexpr int kRowsAtOnce = kProducers / kVectorsPerRow;                    // of a producer's vectors
  static constexpr int kVectors = kTileRows / kRowsAtOnce, kAhead = 4;  // a producer's, of a step; under way
  // Barriers.
  static constexpr int kAmongProducers = 1, kFull = 2, kEmpty = kFull + kMostStages;
  static_assert(kTileRows <= kProducers && kVectors >= kAhead && kEmpty + kMostStages <= 16);
  using Stage = TileStage<kTileRows>;
  using Vector = Numbers<T, kNumbers>;

  // A row of the tile; past the last one, the last again.
  struct TileRow {
    Pointer<const T> image;
    Pointer<T> output;
    int64_t column_stride;
  };
  // Which part of the result the block computes.
  struct Place {
    int64_t first_row;
    int32_t group, first_column, columns;  // columns: of the group
    int32_t part, first_step, steps;
  };
  // At the beginning of shared memory; samples and stages follow.
  struct alignas(128) Shared {
    Array<TileRow, kTileRows> row;
    Array<float, kTileColumns> bias;
    Place place;
  };

  ConvolutionView<T> view;
  FusedPlan plan;
  Divisor by_tile, by_group, by_part;
  Pointer<const T> weight;  // (C_out, taps, C_in / groups), rounded to what the tensor cores take
  Pointer<const T> bias;    // or null
  int64_t bias_stride;
  RowNumbers<T> output;
  Pointer<float> sums;  // (splits, rows, C_out), instead of output where the depth is in parts
  int32_t columns;      // output channels of a group
  int32_t chunks;       // of a group's channels
  int32_t chunks_per_sampling_group;

  static int64_t column_tiles(int64_t columns) { return (columns + kTileColumns - 1) / kTileColumns; }
  int64_t blocks() const { return (view.rows + kTileRows - 1) / kTileRows * by_tile.value(); }
  GA_HOST_DEVICE int64_t shared_bytes() const {
    return sizeof(Shared) + plan.sample_slots * kTileRows * sizeof(TileSample) + plan.stages * sizeof(Stage);
  }

  template <class Block>
  GA_KERNEL void operator()(Block& block) const {
    Shared& shared = block.template shared<Shared>();
    if (block.thread() == 0) shared.place = place_of(block.index());
    block.sync();
    if (block.thread() < kConsumers) {
      set_bias(shared, block.thread());  // all threads' is there, and so are the rows, when the first stage is full
      consume(block, shared);
    } else {
      const Producer<Block> producer(*this, block, shared);
      block.sync(kAmongProducers, kProducers);  // the rows are each other's
      view.deformed ? producer.gather() : producer.copy();
    }
  }

  // The parts of a tile's depth follow each other, then its columns, for its pixels' sake.
  GA_KERNEL Place place_of(int64_t index) const {
    const int64_t down = by_tile.divide(index), across = index - down * by_tile.value();
    const int64_t tile = by_part.divide(across), steps = int64_t(view.taps) * chunks;
    Place place;
    place.part = static_cast<int32_t>(across - tile * plan.splits);
    place.group = static_cast<int32_t>(by_group.divide(tile));
    place.first_row = down * kTileRows;
    place.first_column = static_cast<int32_t>(tile - place.group * by_group.value()) * kTileColumns;
    place.columns = columns;
    place.first_step = static_cast<int32_t>(by_part.divide(place.part * steps));
    place.steps = static_cast<int32_t>(by_part.divide((place.part + 1) * steps)) - place.first_step;
    return place;
  }

  GA_KERNEL void set_bias(Shared& shared, int column) const {
    const Place& place = shared.place;
    const bool given = bias != nullptr && within(place.first_column + column, place.columns);
    const int64_t out = int64_t(place.group) * place.columns + place.first_column + column;
    shared.bias[column] = given ? static_cast<float>(bias[out * bias_stride]) : 0.0f;
  }

  GA_KERNEL TileSample* samples(Shared& shared) const { return reinterpret_cast<TileSample*>(&shared + 1); }
  GA_KERNEL Stage& stage(Shared& shared, int number) const {
    return reinterpret_cast<Stage*>(samples(shared) + plan.sample_slots * kTileRows)[number];
  }

  // ---- producers ----------------------------------------------------------------------------------

  template <class Block>
  struct Producer {
    static constexpr int kHeld = 4;                    // of a row's inputs of the offsets
    static constexpr int kCopies = kVectors / 2;       // vectors beside which a step's weight is copied
    static constexpr uint32_t kNothing = 0x80000000u;  // -0

    const FusedConvolution& kernel;
    Block& block;
    Shared& shared;
    const Place place;
    const int number, vector, first;  // vector: of a row; first: its first row
    const int first_chunk, first_tap;
    RowSampler<T> sampler;       // of row `number`, whose samples it works out, if the tile has it
    int32_t stride_y, stride_x;  // of its map, in bytes

    GA_KERNEL Producer(const FusedConvolution& kernel, Block& block, Shared& shared)
        : kernel(kernel),
          block(block),
          shared(shared),
          place(shared.place),
          number(block.thread() - kConsumers),
          vector(number % kVectorsPerRow),
          first(number / kVectorsPerRow),
          first_chunk(place.first_step / kernel.view.taps),
          first_tap(place.first_step - first_chunk * kernel.view.taps) {
      const ConvolutionView<T>& view = kernel.view;
      const int64_t r = clamped(place.first_row + number, int64_t(0), view.rows - 1);
      const Row at = view.row(r);
      sampler = RowSampler<T>(view, r, at);
      stride_y = static_cast<int32_t>(view.input.y[at.level] * sizeof(T));
      stride_x = static_cast<int32_t>(view.input.x[at.level] * sizeof(T));
      if (!has_row()) return;
      TileRow& row = shared.row[number];
      row.image = view.input.of(at) + place.group * kernel.chunks * kChunk;
      row.output = kernel.output.at(r, at);
      row.column_stride = kernel.output.column_stride(at);
    }

    // Steps of a deformed convolution: samples are interpolated.
    GA_KERNEL void gather() const {
      Slots slots(*this);
      SampleCursor later(*this);
      int tap = first_tap;
      Pointer<const T> weight = first_weight();
      Pointer<const T> channels[kVectors];  // of the step that is loaded
      GA_UNROLL for (int i = 0; i < kVectors; ++i) channels[i] = image_of(i) + first_chunk * kChunk;
      for (int s = 0; s < 2 && s < place.steps; ++s, later.advance(*this)) {
        if (wanted(s, later)) later.locate(*this, s == 0 ? slots.here : slots.next, later.read(*this));
      }
      block.sync(kAmongProducers, kProducers);
      // A sample is read from shared memory a vector before it is used: for the pixels to load, and their weights.
      Vector pixel[kAhead][4];
      GA_UNROLL for (int i = 0; i < kAhead; ++i) load(pixel[i], channels[i], pixels_of(slots.here, i));
      Pixels pixels = pixels_of(slots.here, kAhead % kVectors);
      Weights weights = weights_of(slots.here, 0);
      const bool whole = place.columns - place.first_column >= kTileColumns;
      GA_NO_UNROLL for (int s = 0, turn = 0; s < place.steps; ++s) {
        if (s >= kernel.plan.stages) block.sync(kEmpty + turn, kThreads);
        Stage& stage = kernel.stage(shared, turn);
        if (!whole) copy_weight(stage, weight);
        // Two steps later, read early and used late.
        const bool wants = s + 2 < place.steps && wanted(s + 2, later);
        typename SampleCursor::Position position{};
        if (wants) position = later.read(*this);
        // After the last step nobody needs what is loaded: this step's again.
        const bool last = s + 1 == place.steps;
        const int32_t next_channels = !last && tap + 1 == kernel.view.taps ? kTileBytes : 0;
        const int32_t next_slot = last ? slots.here : slots.next;
        if (kAhead == kVectors) pixels = pixels_of(next_slot, 0);  // they were not there a vector ago
        GA_UNROLL for (int i = 0; i < kVectors; ++i) {
          const int next = (i + 1) % kVectors, ahead = (i + kAhead) % kVectors, after = (i + kAhead + 1) % kVectors;
          const Pixels loaded = pixels;
          const Weights used = weights;
          weights = weights_of(i + 1 < kVectors ? slots.here : next_slot, next);
          if (i + kAhead + 1 < 2 * kVectors) {
            pixels = pixels_of(i + kAhead + 1 < kVectors ? slots.here : next_slot, after);
          }
          // Not all at once, and early enough to land in this step.
          if (whole && i < kCopies) copy_weight(stage, weight, i);
          if (i + 1 == kCopies) commit_copies(block);
          interpolate(stage, pixel[i % kAhead], used, i);
          if (i + kAhead == kVectors) {
            GA_UNROLL for (auto& at : channels) at = further(at, next_channels);
          }
          load(pixel[i % kAhead], channels[ahead], loaded);
          block.keep_order();
        }
        if (wants) later.locate(*this, slots.later, position);
        later.advance(*this);
        slots.advance(*this);
        next_weight(weight, tap);
        block.sync(kAmongProducers, kProducers);
        wait_for_copies<0>(block);
        block.arrive(kFull + turn, kThreads);
        turn = turn + 1 == kernel.plan.stages ? 0 : turn + 1;
      }
    }

    // Steps on the regular grid: pixels are copied, a stage's while those of the next are under way if there is room.
    GA_KERNEL void copy() const {
      Slots slots(*this);
      GridCursor later(*this);
      int tap = first_tap;
      Pointer<const T> weight = first_weight();
      int32_t channel = first_chunk * kChunk + vector * kNumbers;
      const bool late = kernel.plan.stages > 2;
      later.locate(*this, slots.here);
      later.advance(*this);
      block.sync(kAmongProducers, kProducers);
      GA_NO_UNROLL for (int s = 0, turn = 0; s < place.steps; ++s) {
        if (s >= kernel.plan.stages) block.sync(kEmpty + turn, kThreads);
        Stage& stage = kernel.stage(shared, turn);
        copy_weight(stage, weight);
        unsigned char* to = stage.columns + tile_byte(first, vector);
        GA_UNROLL for (int i = 0; i < kVectors; ++i) {
          const int row = first + i * kRowsAtOnce;
          const int32_t pixel = samples()[slots.here + row].pixel[0];
          const Pointer<const T> from = further(shared.row[row].image + channel, clamped(pixel, 0, INT32_MAX));
          copy_async(block, to + i * kRowsAtOnce * kTileBytes, from, pixel >= 0);
        }
        commit_copies(block);
        later.locate(*this, slots.next);
        later.advance(*this);
        slots.advance(*this);
        if (next_weight(weight, tap)) channel += kChunk;
        block.sync(kAmongProducers, kProducers);
        if (late) {
          wait_for_copies<1>(block);
          if (s > 0) block.arrive(kFull + (turn > 0 ? turn : kernel.plan.stages) - 1, kThreads);
        } else {
          wait_for_copies<0>(block);
          block.arrive(kFull + turn, kThreads);
        }
        turn = turn + 1 == kernel.plan.stages ? 0 : turn + 1;
      }
      if (!late) return;
      wait_for_copies<0>(block);
      block.arrive(kFull + (place.steps - 1) % kernel.plan.stages, kThreads);
    }

   private:
    GA_KERNEL bool has_row() const { return kTileRows == kProducers || within(number, kTileRows); }
    GA_KERNEL TileSample* samples() const { return kernel.samples(shared); }
    GA_KERNEL Pointer<const T> image_of(int i) const {
      return shared.row[first + i * kRowsAtOnce].image + vector * kNumbers;
    }

    // ---- the weight's slice of a step, from column `first` of the tile and this producer's vector on

    GA_KERNEL int32_t depth() const { return kernel.view.taps * kernel.view.channels_per_group; }
    GA_KERNEL Pointer<const T> first_weight() const {
      const int64_t column = int64_t(place.group) * place.columns + place.first_column;
      return kernel.weight +
             (column * depth() + first_tap * kernel.view.channels_per_group + first_chunk * kChunk + vector * kNumbers);
    }
    // True where the next chunk begins.
    GA_KERNEL bool next_weight(Pointer<const T>& weight, int& tap) const {
      tap = tap + 1 == kernel.view.taps ? 0 : tap + 1;
      weight += tap == 0 ? kChunk - depth() + kernel.view.channels_per_group : kernel.view.channels_per_group;
      return tap == 0;
    }
    // Part `part` of kCopies, of a whole tile.
    GA_KERNEL void copy_weight(Stage& stage, const Pointer<const T>& weight, int part) const {
      constexpr int kRows = kTileColumns / kRowsAtOnce / kCopies;
      unsigned char* to = stage.weight + tile_byte(first, vector);
      Pointer<const T> from = weight + int64_t(first + part * kRows * kRowsAtOnce) * depth();
      const int64_t between = int64_t(kRowsAtOnce) * depth();
      GA_UNROLL for (int i = 0; i < kRows; ++i, from += between) {
        copy_async(block, to + (part * kRows + i) * kRowsAtOnce * kTileBytes, from);
      }
    }
    GA_KERNEL void copy_weight(Stage& stage, const Pointer<const T>& weight) const {
      const int left = place.columns - place.first_column;
      unsigned char* to = stage.weight + tile_byte(first, vector);
      if (left >= kTileColumns) {
        Pointer<const T> from = weight + int64_t(first) * depth();
        const int64_t between = int64_t(kRowsAtOnce) * depth();
        GA_UNROLL for (int i = 0; i < kTileColumns / kRowsAtOnce; ++i, from += between) {
          copy_async(block, to + i * kRowsAtOnce * kTileBytes, from);
        }
      } else {  // columns past the last are copies of it, and nobody reads them
        GA_NO_UNROLL for (int i = 0; i * kRowsAtOnce < left; ++i) {
          const int column = clamped(first + i * kRowsAtOnce, 0, left - 1);
          copy_async(block, to + i * kRowsAtOnce * kTileBytes, weight + int64_t(column) * depth());
        }
      }
    }

    // ---- samples: where the producer's own row reads

    // The first samples of this step, the next and the one after.
    struct Slots {
      int32_t here, next, later;

      GA_KERNEL explicit Slots(const Producer& self) {
        later = self.kernel.plan.keeps_samples ? self.first_tap * kTileRows : 0;
        advance(self), advance(self);
      }
      GA_KERNEL void advance(const Producer& self) {
        here = next, next = later;
        later = later + kTileRows == self.kernel.plan.sample_slots * kTileRows ? 0 : later + kTileRows;
      }
    };

    struct GridCursor {
      int32_t tap, ky, kx;

      GA_KERNEL explicit GridCursor(const Producer& self)
          : tap(self.first_tap), ky(tap / self.kernel.view.kernel_w), kx(tap - ky * self.kernel.view.kernel_w) {}
      // True where the next chunk begins.
      GA_KERNEL bool advance(const Producer& self) {
        ++tap, ++kx;
        if (kx == self.kernel.view.kernel_w) kx = 0, ++ky;
        const bool next_chunk = tap == self.kernel.view.taps;
        if (next_chunk) tap = ky = 0;
        return next_chunk;
      }
      GA_KERNEL void locate(const Producer& self, int slot) const {
        if (!self.has_row()) return;
        int32_t y, x;
        const bool inside = self.sampler.on_grid(self.kernel.view, ky, kx, y, x);
        self.samples()[slot + self.number].pixel[0] = inside ? y * self.stride_y + x * self.stride_x : -1;
      }
    };

    // The offsets of a step: where they are, and what follows from them.
    struct SampleCursor : GridCursor {
      int32_t chunk, column;  // of the sampling group's; of all groups' taps
      float held[kHeld];

      struct Position {
        float y, x, modulation;
      };

      GA_KERNEL explicit SampleCursor(const Producer& self) : GridCursor(self) {
        const ConvolutionView<T>& view = self.kernel.view;
        const int of_all = self.place.group * self.kernel.chunks + self.first_chunk;
        const int group = of_all / self.kernel.chunks_per_sampling_group;
        chunk = of_all - group * self.kernel.chunks_per_sampling_group;
        column = group * view.taps + this->tap;
        GA_UNROLL for (int i = 0; i < kHeld; ++i) {
          held[i] = within(i, view.offset_inputs) ? self.sampler.offset[i * self.sampler.offset_stride] : 0.0f;
        }
      }

      // The next tap's column follows, and that of the next sampling group; another chunk of a group has the same.
      GA_KERNEL void advance(const Producer& self) {
        ++column;
        if (!GridCursor::advance(self)) return;
        ++chunk;
        if (chunk == self.kernel.chunks_per_sampling_group) {
          chunk = 0;
        } else {
          column -= self.kernel.view.taps;
        }
      }

      GA_KERNEL Position read(const Producer& self) const {
        const ConvolutionView<T>& view = self.kernel.view;
        const RowSampler<T>& row = self.sampler;
        const int32_t stride = static_cast<int32_t>(row.offset_stride) * kFloat;
        Position position{0.0f, 0.0f, 1.0f};
        if (view.modulated) {
          const int32_t mask_stride = static_cast<int32_t>(row.mask_stride) * kFloat;
          position.modulation = load_number(element(row.mask, column, mask_stride));
        }
        if (view.offset_weight != nullptr) {
          const Pointer<const float> y = element(view.offset_weight, 2 * column, view.offset_inputs * kFloat);
          const Pointer<const float> x = y + view.offset_inputs;
          GA_UNROLL for (int i = 0; i < kHeld; ++i) {
            if (!within(i, view.offset_inputs)) continue;
            position.y += load_number(y + i) * held[i], position.x += load_number(x + i) * held[i];
          }
          GA_NO_UNROLL for (int i = kHeld; i < view.offset_inputs; ++i) {
            const float input = load_number(element(row.offset, i, stride));
            position.y += load_number(y + i) * input, position.x += load_number(x + i) * input;
          }
        } else {
          position.y = load_number(element(row.offset, 2 * column, stride));
          position.x = load_number(element(row.offset, 2 * column + 1, stride));
        }
        return position;
      }

      GA_KERNEL void locate(const Producer& self, int slot, const Position& position) const {
        const RowSampler<T>& row = self.sampler;
        float y = float(row.y + this->ky * self.kernel.view.dilation_h) + position.y;
        float x = float(row.x + this->kx * self.kernel.view.dilation_w) + position.x;
        const bool inside = row.inside(y, x);
        if (!inside) y = x = 0.0f;
        const SampleAxis<float> down(y, row.height), across(x, row.width);
        TileSample sample;
        GA_UNROLL for (int c = 0; c < 4; ++c) {
          sample.pixel[c] = down.pixel[c / 2] * self.stride_y + across.pixel[c % 2] * self.stride_x;
          sample.weight[c] = position.modulation * (down.weight[c / 2] * across.weight[c % 2]);
        }
        // -0 says that nothing is sampled; x + 0 is never that.
        sample.weight[0] = inside ? sample.weight[0] + 0.0f : float_of_bits(kNothing);
        store_shared(&self.samples()[slot + self.number], sample);
      }
    };

    // What a sampling group's first chunk worked out, or the block's first with it, is kept for the others.
    GA_KERNEL bool wanted(int s, const SampleCursor& step) const {
      const int anew = kernel.plan.keeps_samples ? kernel.view.taps : INT32_MAX;
      return has_row() && (s < anew || step.chunk == 0);
    }

    struct Pixels {
      int32_t at[4];
    };
    struct Weights {
      float of[4];
    };
    GA_KERNEL Pixels pixels_of(int slot, int i) const {
      const TileSample& sample = samples()[slot + first + i * kRowsAtOnce];
      return {sample.pixel[0], sample.pixel[1], sample.pixel[2], sample.pixel[3]};
    }
    GA_KERNEL Weights weights_of(int slot, int i) const {
      const TileSample& sample = samples()[slot + first + i * kRowsAtOnce];
      return {sample.weight[0], sample.weight[1], sample.weight[2], sample.weight[3]};
    }

    // Eight neighbouring producers read 128 contiguous bytes of each of a row's four pixels.
    GA_KERNEL void load(Vector (&pixel)[4], const Pointer<const T>& channels, const Pixels& pixels) const {
      GA_UNROLL for (int c = 0; c < 4; ++c) { pixel[c] = load_vector_here<Vector>(further(channels, pixels.at[c])); }
    }
    GA_KERNEL void interpolate(Stage& stage, const Vector (&pixel)[4], const Weights& weights, int i) const {
      float sum[kNumbers] = {};
      GA_UNROLL for (int c = 0; c < 4; ++c) {
        float numbers[kNumbers];
        pixel[c].widen(numbers);
        GA_UNROLL for (int n = 0; n < kNumbers; ++n) sum[n] += weights.of[c] * numbers[n];
      }
      store_shared_unless(stage.columns + tile_byte(first, vector) + i * kRowsAtOnce * kTileBytes, to_operand<T>(sum),
                          weights.of[0], kNothing);
    }
  };

  // ---- consumers ----------------------------------------------------------------------------------

  static constexpr int kBlocksDown = kWarpRows / 16, kBlocksAcross = kWarpColumns / 8;
  using Sums = float[kBlocksDown][kBlocksAcross][4];

  // Warps of the same columns are neighbours: a multiprocessor's four schedulers take warps in turn, so that with few
  // output channels, where the last warps have nothing to do, all four still work.
  static GA_KERNEL int warp_row(int warp) { return warp % kWarpsDown * kWarpRows; }
  static GA_KERNEL int warp_column(int warp) { return warp / kWarpsDown * kWarpColumns; }

  template <class Block>
  GA_KERNEL void consume(Block& block, Shared& shared) const {
    Sums sums = {};
    const auto warp = block.warp();
    const int steps = shared.place.steps;
    const bool idle = shared.place.first_column + warp_column(warp.index) >= shared.place.columns;
    GA_NO_UNROLL for (int s = 0, turn = 0; s < steps; ++s) {
      block.sync(kFull + turn, kThreads);
      if (!idle) multiply(warp, stage(shared, turn), sums);
      if (s + plan.stages < steps) block.arrive(kEmpty + turn, kThreads);
      turn = turn + 1 == plan.stages ? 0 : turn + 1;
    }
    finish(block, shared, sums);
  }

  template <class Warp>
  GA_KERNEL void multiply(const Warp& warp, const Stage& stage, Sums& sums) const {
    // Matrices of a: upper, lower eight rows of the first 16 bytes; then of the second.
    const auto a_address =
        Warp::address(stage.columns, tile_byte(warp_row(warp.index) + warp.lane % 16, warp.lane / 16));
    // Matrices of b: first, second 16 bytes of eight output channels; then of the next eight.
    const auto b_address = Warp::address(
        stage.weight, tile_byte(warp_column(warp.index) + warp.lane / 16 * 8 + warp.lane % 8, warp.lane / 8 % 2));
    GA_UNROLL for (int k = 0; k < kTileBytes / kStepBytes; ++k) {
      uint32_t a[kBlocksDown][4];
      GA_UNROLL for (int i = 0; i < kBlocksDown; ++i) {
        warp.load_matrices(a[i], a_address, k * kStepBytes, 16 * i * kTileBytes);
      }
      GA_UNROLL for (int j = 0; j < kBlocksAcross; j += 2) {
        uint32_t b[4];
        warp.load_matrices(b, b_address, k * kStepBytes, 8 * j * kTileBytes);
        GA_UNROLL for (int half = 0; half < 2; ++half) {
          GA_UNROLL for (int i = 0; i < kBlocksDown; ++i) {
            warp.template multiply<T>(sums[i][j + half], a[i], b[2 * half], b[2 * half + 1]);
          }
        }
      }
    }
  }

  // Lane (g, t) holds the sums of rows g and g + 8, columns 2 t and 2 t + 1, of each 16 x 8 block.
  template <class Block>
  GA_KERNEL void finish(Block& block, Shared& shared, const Sums& sums) const {
    const auto warp = block.warp_anew();
    const Place& place = shared.place;
    const int column = warp_column(warp.index) + 2 * (warp.lane % 4);
    const int64_t out = int64_t(place.group) * place.columns + place.first_column + column;
    GA_UNROLL for (int i = 0; i < kBlocksDown; ++i) {
      GA_UNROLL for (int half = 0; half < 2; ++half) {
        const int row = warp_row(warp.index) + 16 * i + 8 * half + warp.lane / 4;
        const TileRow& to = shared.row[row];
        if (!within(place.first_row + row, view.rows)) continue;
        if (plan.splits > 1) {
          const int64_t above = place.part * view.rows + place.first_row + row;
          store_row(this->sums + (above * view.groups * place.columns + out), 1, sums[i], half, column, place,
                    [](int) { return 0.0f; });
        } else {
          store_row(to.output + out * to.column_stride, to.column_stride, sums[i], half, column, place,
                    [&](int j) { return shared.bias[j]; });
        }
      }
    }
  }

  template <class Number, class Bias>
  static GA_KERNEL void store_row(const Pointer<Number>& to, int64_t stride, const float (&sum)[kBlocksAcross][4],
                                  int half, int column, const Place& place, const Bias& bias) {
    using Pair = Numbers<Number, 2>;
    const int left = place.columns - place.first_column - column;
    const bool pairs = stride == 1 && place.columns % 2 == 0 && address_of(to) % sizeof(Pair) == 0;
    GA_UNROLL for (int j = 0; j < kBlocksAcross; ++j) {
      const float number[2] = {sum[j][2 * half] + bias(column + 8 * j),
                               sum[j][2 * half + 1] + bias(column + 8 * j + 1)};
      if (pairs) {
        if (within(8 * j, left)) store_vector(to + 8 * j, Pair::narrow(number));
      } else {
        if (within(8 * j, left)) to[8 * j * stride] = static_cast<Number>(number[0]);
        if (within(8 * j + 1, left)) to[(8 * j + 1) * stride] = static_cast<Number>(number[1]);
      }
    }
  }
};

}  // namespace ga_scope::cuda
