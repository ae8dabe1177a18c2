// Backward works on super-tiles of rows: first, in parallel over rows, gather the columns, multiply the output's
// gradient with the weight and correlate for the offsets; then, in parallel over parts of the weight, and over channels
// and lines of the input, add to the gradients of the weight and the input. A super-tile grows with the number of
// threads, so that each has as much to do between two barriers, whatever their number.
//
// Each number is summed by one thread in the order of the rows: results are the same for any number of threads, without
// atomics.
#pragma once

#include "pass_builder.h"

namespace ga_scope::cpu {

template <class T>
class Backward {
 public:
  using Real = ComputeType<T>;

  struct Gradients {
    std::vector<Tensor> input, offset, mask;  // offset, mask: in the arithmetic's dtype
    Tensor weight, offset_weight;
  };

  Backward(const ConvolutionArguments& args, const Convolution& conv, const std::vector<Tensor>& grad_output,
           bool want_input, bool want_weight, Gradients& grads)
      : args_(args),
        conv_(conv),
        kernels_(convolution_kernels<T>()),
        builder_(args, conv),
        grad_output_(grad_output, args.locations.has_value()),
        offset_to_(grads.offset, args.locations.has_value()),
        mask_to_(grads.mask, args.locations.has_value()),
        want_input_(want_input),
        want_weight_(want_weight),
        grad_scratch_(want_input && (!std::is_same_v<T, Real> || !all_channels_contiguous(grads.input))),
        grads_(grads) {}

  void run() {
    const bool transpose = transposition_pays(args_, conv_);
    const auto passes = plan_passes(conv_, sizeof(Real), transpose || grad_scratch_, true);
    const Rows rows(args_, conv_, passes.size() > 1);
    PassMemory<T> memory;
    for (const PassRange& range : passes) run_pass(range, transpose, rows, memory);
  }

 private:
  static constexpr int64_t kSuperTileBytes = 8 << 20;  // of the shared buffers, for two threads

  void run_pass(const PassRange& range, bool transpose, const Rows& rows, PassMemory<T>& memory) {
    Pass<T> pass = builder_.build(range, transpose, true, memory);
    if (want_input_) place_grad_maps(pass, range, memory);
    if (want_weight_) {
      memory.weight_sums.reserve(pass.weight_sums);
      fill_zero(memory.weight_sums.get(), pass.weight_sums);
    }
    Real* const weight_sums = memory.weight_sums.get();

    const OperandLayout<T>& layout = kernels_.layout;
    const int64_t begin = rows.begin(range), end = rows.end(range);
    const int64_t groups = pass.group_end - pass.group_begin, samples = groups * conv_.shape.taps();
    const int64_t all_taps = conv_.shape.offset_groups * conv_.shape.taps();
    const int64_t room = super_tile_rows(pass, end - begin);
    Scratch<std::byte> columns(room * pass.columns * layout.column_bytes);
    Scratch<std::byte> grad_output(layout.grad_output(room, conv_.shape));
    Scratch<Real> grad_columns(room * pass.columns);
    Scratch<Sample<Real>> sample(room * samples);
    Scratch<LineSpan> spans(room * groups);
    Scratch<Real> grad_offset(room * 2 * all_taps), grad_mask(room * all_taps);
    Scratch<Real> offset_inputs(room * pass.offset_inputs);
    std::vector<Row> row(room);

    const bool positions = !pass.regular();
    for (int64_t first = begin; first < end; first += room) {
      const int64_t n = std::min(room, end - first);
      const BackwardTile<T> tile{.row = row.data(),
                                 .rows = n,
                                 .columns = columns.get(),
                                 .grad_columns = grad_columns.get(),
                                 .grad_output = grad_output.get(),
                                 .room = room,
                                 .samples = sample.get(),
                                 .spans = spans.get(),
                                 .grad_offset = positions ? grad_offset.get() : nullptr,
                                 .grad_mask = positions ? grad_mask.get() : nullptr};
      parallel(ceil_div(n, layout.micro_rows), 1, [&](int64_t b, int64_t e) {
        const int64_t r0 = b * layout.micro_rows, r1 = std::min(n, e * layout.micro_rows);
        rows.get(first + r0, r1 - r0, row.data() + r0);
        for (int64_t r = r0; r < r1 && pass.offset_inputs; ++r) {
          pass.offset.read(row[r], 0, pass.offset_inputs, offset_inputs.get() + r * pass.offset_inputs);
        }
        kernels_.backward_rows(pass, tile, grad_output_, r0, r1);
        for (int64_t r = r0; r < r1 && positions; ++r) add_position_gradients(pass, tile, r);
      });
      if (want_weight_) add_weight_gradient(pass, tile, weight_sums);
      if (want_input_) add_input_gradient(pass, tile);
      if (pass.offset_inputs) add_offset_weight_gradient(pass, tile, offset_inputs.get());
    }
    if (want_weight_) collect_weight_gradient(pass, weight_sums);
    if (want_input_ && grad_scratch_) collect_input_gradient(pass, range);
  }

  // At most as many as two threads' caches hold, for every two threads; all super-tiles of nearly the same size.
  int64_t super_tile_rows(const Pass<T>& pass, int64_t count) const {
    const OperandLayout<T>& layout = kernels_.layout;
    const ConvolutionShape& shape = conv_.shape;
    const int64_t groups = pass.group_end - pass.group_begin, all_taps = shape.offset_groups * shape.taps();
    const int64_t bytes = pass.columns * (layout.column_bytes + sizeof(Real)) + layout.grad_output(1, shape) +
                          (3 * all_taps + pass.offset_inputs) * sizeof(Real) +
                          groups * (shape.taps() * sizeof(Sample<Real>) + sizeof(LineSpan));
    const int64_t pairs_of_threads = std::max<int64_t>(1, num_threads() / 2);
    const int64_t most =
        std::max<int64_t>(1, std::min(layout.super_tile_rows, kSuperTileBytes / bytes)) * pairs_of_threads;
    const int64_t tiles = std::max<int64_t>(1, ceil_div(count, most));
    return std::max<int64_t>(1, ceil_div(ceil_div(count, tiles), layout.micro_rows)) * layout.micro_rows;
  }

  static void fill_zero(Real* numbers, int64_t count) {
    parallel(count, 1 << 13, [&](int64_t b, int64_t e) { std::fill(numbers + b, numbers + e, Real(0)); });
  }

  void place_grad_maps(Pass<T>& pass, const PassRange& range, PassMemory<T>& memory) {
    const int64_t channels = range.channel_end - range.channel_begin;
    if (grad_scratch_) {
      const int64_t numbers = pixels_of(conv_, range) * channels;
      memory.grad_input.reserve(numbers);
      fill_zero(memory.grad_input.get(), numbers);
    }
    Real* next = memory.grad_input.get();
    for (int64_t m = range.map_begin; m < range.map_end; ++m) {
      ImageMap<T>& map = pass.maps[m];
      if (grad_scratch_) {
        map.grad = next;
        map.grad_stride_x = channels, map.grad_stride_y = map.width * channels;
        next += map_pixels(conv_, m) * channels;
      } else {
        Tensor& level = grads_.input[m / conv_.images];
        map.grad = static_cast<Real*>(level.data_ptr()) + m % conv_.images * level.stride(0) + range.channel_begin;
        map.grad_stride_y = level.stride(2), map.grad_stride_x = level.stride(3);
      }
    }
  }

  void add_position_gradients(const Pass<T>& pass, const BackwardTile<T>& tile, int64_t r) const {
    const int64_t taps = conv_.shape.taps(), all = conv_.shape.offset_groups * taps;
    const int64_t begin = pass.group_begin * taps, end = pass.group_end * taps;
    const Row& row = tile.row[r];
    const Real* grad = tile.grad_offset + r * 2 * all;
    Real* to = reinterpret_cast<Real*>(offset_to_.data(row));
    const int64_t stride = offset_to_.column_stride(row);
    if (pass.offset_inputs) {
      for (int64_t j = 2 * begin; j < 2 * end; ++j) {
        for (int64_t q = 0; q < pass.offset_inputs; ++q) {
          to[q * stride] += grad[j] * pass.offset_weight[j * pass.offset_inputs + q];
        }
      }
    } else {
      for (int64_t j = 2 * begin; j < 2 * end; ++j) to[j * stride] += grad[j];
    }
    if (mask_to_.empty()) return;
    Real* mask = reinterpret_cast<Real*>(mask_to_.data(row));
    const int64_t mask_stride = mask_to_.column_stride(row);
    for (int64_t j = begin; j < end; ++j) mask[j * mask_stride] += tile.grad_mask[r * all + j];
  }

  void add_weight_gradient(const Pass<T>& pass, const BackwardTile<T>& tile, Real* sums) const {
    const int64_t out = conv_.shape.out_channels_per_group();
    const auto units_of = [&](const ChannelBlock& block) { return kernels_.layout.weight_units(block.depth, out); };
    int64_t units = 0;
    for (const ChannelBlock& block : pass.blocks) units += units_of(block);
    parallel(units, 4, [&](int64_t b, int64_t e) {
      int64_t before = 0;
      for (const ChannelBlock& block : pass.blocks) {
        const int64_t first = std::max(b, before), last = std::min(e, before + units_of(block));
        if (first < last) {
          kernels_.backward_weight(pass, tile, block, first - before, last - before, sums + block.weight_sums);
        }
        before += units_of(block);
      }
    });
  }

  // Channels are cut first, since a part reads all samples of its channels; then lines, where threads are more.
  void add_input_gradient(const Pass<T>& pass, const BackwardTile<T>& tile) const {
    const int64_t channels = pass.channel_end - pass.channel_begin, threads = num_threads();
    const int64_t few = std::min(threads, ceil_div(channels, kWideChannels));
    LineSpan span{0, pass.lines - 1};
    int64_t bands = 1, parts = few;
    if (few < threads) {
      span = touched(pass, tile);
      if (span.last < 0) return;
      bands = std::min(span.last + 1 - span.first, ceil_div(2 * threads, few));
      if (bands * few < threads) parts = ceil_div(channels, kChannelMultiple);
    }
    const int64_t width = ceil_div(ceil_div(channels, parts), kChannelMultiple) * kChannelMultiple;
    parts = ceil_div(channels, width);
    const auto line = [&](int64_t band) {
      return bands == 1 ? (band ? span.last + 1 : span.first)
                        : span.first + (span.last + 1 - span.first) * band / bands;
    };
    parallel(parts * bands, 1, [&](int64_t b, int64_t e) {
      for (int64_t part = b; part < e; ++part) {
        const int64_t channel = pass.channel_begin + part / bands * width, band = part % bands;
        kernels_.backward_input(pass, tile,
                                {channel, std::min(channel + width, pass.channel_end), line(band), line(band + 1)});
      }
    });
  }

  static LineSpan touched(const Pass<T>& pass, const BackwardTile<T>& tile) {
    LineSpan all;
    for (int64_t i = 0; i < tile.rows * (pass.group_end - pass.group_begin); ++i) {
      all.first = std::min(all.first, tile.spans[i].first), all.last = std::max(all.last, tile.spans[i].last);
    }
    return all;
  }

  void add_offset_weight_gradient(const Pass<T>& pass, const BackwardTile<T>& tile, const Real* inputs) const {
    const int64_t per_group = 2 * conv_.shape.taps(), all = conv_.shape.offset_groups * per_group;
    const int64_t begin = pass.group_begin * per_group, end = pass.group_end * per_group;
    Real* to = static_cast<Real*>(grads_.offset_weight.data_ptr());
    parallel(end - begin, 8, [&](int64_t b, int64_t e) {
      for (int64_t j = begin + b; j < begin + e; ++j) {
        for (int64_t q = 0; q < pass.offset_inputs; ++q) {
          Real total = to[j * pass.offset_inputs + q];
          for (int64_t r = 0; r < tile.rows; ++r) {
            total += tile.grad_offset[r * all + j] * inputs[r * pass.offset_inputs + q];
          }
          to[j * pass.offset_inputs + q] = total;
        }
      }
    });
  }

  void collect_weight_gradient(const Pass<T>& pass, const Real* sums) const {
    Real* const grad = static_cast<Real*>(grads_.weight.data_ptr());
    for (const ChannelBlock& block : pass.blocks) {
      parallel(conv_.shape.out_channels_per_group(), 1, [&](int64_t b, int64_t e) {
        kernels_.collect_weight(conv_.shape, block, sums + block.weight_sums, b, e, grad);
      });
    }
  }

  void collect_input_gradient(const Pass<T>& pass, const PassRange& range) const {
    for (int64_t m = range.map_begin; m < range.map_end; ++m) {
      const Planes<T> planes(grads_.input[m / conv_.images], m % conv_.images, range.channel_begin, range.channel_end);
      scatter_channels(pass.maps[m].grad, map_pixels(conv_, m), planes);
    }
  }

  static constexpr int64_t kWideChannels = 64;

  const ConvolutionArguments& args_;
  const Convolution& conv_;
  const ConvolutionKernels<T>& kernels_;
  const PassBuilder<T> builder_;
  const RowMatrix grad_output_, offset_to_, mask_to_;
  const bool want_input_, want_weight_, grad_scratch_;
  Gradients& grads_;
};

}  // namespace ga_scope::cpu
