// The tile kernels of bfloat16 where products are of bfloat16, too: columns, packed weight and the output's gradient
// are stored as such, samples are interpolated in float and rounded. Included once per instruction set that has such
// products, after the kernels of every set, with GA_BFLOAT16_PRODUCT defined.

namespace bfloat16 {

#include "bfloat16_product.inl"

constexpr int64_t round_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// Columns of a row: an odd number of cache lines, so that rows below each other do not meet in the same cache sets.
inline int64_t columns_of(int64_t used) {
  constexpr int64_t kLine = 64 / sizeof(BFloat16);
  return ((used + kLine - 1) / kLine | 1) * kLine;
}

// ---- weight -------------------------------------------------------------------------------------

// B of a product is packed in panels of kPanelColumns columns (the last may have kLanes), pairs of rows interleaved.
struct PackedPlace {
  int64_t start, stride;
  PackedPlace(int64_t column, int64_t columns, int64_t depth) {
    const int64_t first = column / kPanelColumns * kPanelColumns;
    stride = 2 * std::min(kPanelColumns, columns - first);
    start = first * depth + 2 * (column - first);
  }
  int64_t row(int64_t p) const { return start + p / 2 * stride + p % 2; }
};

inline int64_t packed_bytes(int64_t depth, int64_t out) {
  return round_up(depth, kDepth) * round_up(out, kLanes) * static_cast<int64_t>(sizeof(BFloat16));
}

inline int64_t packed_adjoint_bytes(int64_t depth, int64_t out) { return packed_bytes(out, depth); }

// (depth x C_out / groups)
inline void pack(const BFloat16* weight, const int64_t* strides, const ConvolutionShape& shape,
                 const ChannelBlock& block, int64_t begin, int64_t end, void* to_packed) {
  BFloat16* const packed = static_cast<BFloat16*>(to_packed);
  const WeightView<BFloat16> view{weight, strides, shape, block};
  const int64_t out = shape.out_channels_per_group(), depth = round_up(block.depth, kDepth);
  for (int64_t o = begin * kLanes; o < end * kLanes; ++o) {
    const PackedPlace place(o, round_up(out, kLanes), depth);
    if (o < out) {
      const BFloat16* row = view.row(o);
      view.for_each_place([&](int64_t p, int64_t at) { packed[place.row(p)] = row[at]; });
    }
    for (int64_t p = o < out ? block.depth : 0; p < depth; ++p) packed[place.row(p)] = BFloat16(0.f);
  }
}

// (C_out / groups x depth)
inline void pack_adjoint(const BFloat16* weight, const int64_t* strides, const ConvolutionShape& shape,
                         const ChannelBlock& block, int64_t begin, int64_t end, void* to_packed) {
  BFloat16* const packed = static_cast<BFloat16*>(to_packed);
  const WeightView<BFloat16> view{weight, strides, shape, block};
  const int64_t out = shape.out_channels_per_group(), depth = round_up(out, kDepth);
  const int64_t columns = round_up(block.depth, kLanes);
  for (int64_t o = begin; o < end; ++o) {
    const BFloat16* row = view.row(o);
    view.for_each_place([&](int64_t p, int64_t at) { packed[PackedPlace(p, columns, depth).row(o)] = row[at]; });
    for (int64_t p = block.depth; p < columns; ++p) packed[PackedPlace(p, columns, depth).row(o)] = BFloat16(0.f);
  }
  if (end < out) return;
  for (int64_t p = 0; p < columns; ++p) {
    const PackedPlace place(p, columns, depth);
    for (int64_t o = out; o < depth; ++o) packed[place.row(o)] = BFloat16(0.f);
  }
}

// ---- forward ------------------------------------------------------------------------------------

inline void forward(const Pass<BFloat16>& pass, const Row* rows, int64_t count, void* scratch, float* sums,
                    int64_t stride) {
  [[maybe_unused]] const Tiles tiles{};
  BFloat16* const columns = static_cast<BFloat16*>(scratch);
  gather_rows(pass, rows, count, columns);
  const int64_t out = round_up(pass.shape->out_channels_per_group(), kLanes);
  for (const ChannelBlock& block : pass.blocks) {
    const int64_t depth = round_up(block.depth, kDepth);
    BFloat16* const first = columns + block.column;
    for (int64_t r = 0; r < count; ++r) {
      std::fill(first + r * pass.columns + block.depth, first + r * pass.columns + depth, BFloat16(0.f));
    }
    multiply(count, out, depth,
             {first, pass.columns, static_cast<const BFloat16*>(block.packed), 0, sums + block.group * out, stride},
             true);
  }
}

// ---- backward -----------------------------------------------------------------------------------

// The output's gradient at a super-tile, twice: rows by row, the groups padded to kDepth; and channel by channel, with
// `room` rows each.
struct GradOutput {
  BFloat16 *rows, *channels;
  int64_t group_stride, row_stride, room;

  GradOutput(const ConvolutionShape& shape, void* memory, int64_t room_for)
      : rows(static_cast<BFloat16*>(memory)),
        group_stride(round_up(shape.out_channels_per_group(), kDepth)),
        row_stride(group_stride * shape.groups),
        room(room_for) {
    channels = rows + room * row_stride;
  }
  static int64_t bytes(int64_t rows, const ConvolutionShape& shape) {
    const int64_t per_group = shape.out_channels_per_group();
    // The products take rows of `channels` by whole tiles.
    const int64_t per_row = (round_up(per_group, kDepth) + round_up(per_group, kTile)) * shape.groups;
    return rows * per_row * static_cast<int64_t>(sizeof(BFloat16));
  }
  BFloat16* channel(int64_t group, int64_t o, int64_t per_group) const {
    return channels + (group * round_up(per_group, kTile) + o) * room;
  }
};

inline void read_grad_output(const Pass<BFloat16>& pass, const BackwardTile<BFloat16>& tile, const RowMatrix& from,
                             int64_t begin, int64_t end, const GradOutput& to) {
  const int64_t per_group = pass.shape->out_channels_per_group(), last = round_up(end, kDepth);
  std::fill(to.rows + begin * to.row_stride, to.rows + last * to.row_stride, BFloat16(0.f));
  for (int64_t group = 0; group < pass.shape->groups; ++group) {
    for (int64_t r = begin; r < end; ++r) {
      BFloat16* row = to.rows + r * to.row_stride + group * to.group_stride;
      from.read(tile.row[r], group * per_group, per_group, row);
    }
    for (int64_t o = 0; o < per_group; ++o) {
      BFloat16* channel = to.channel(group, o, per_group);
      const BFloat16* column = to.rows + group * to.group_stride + o;
      for (int64_t r = begin; r < last; ++r) channel[r] = column[r * to.row_stride];
    }
  }
}

// Two rows side by side, number by number: B of the product for the weight's gradient.
inline void interleave(const BFloat16* first, const BFloat16* second, int64_t count, BFloat16* to) {
  typedef uint16_t Bits __attribute__((vector_size(16), aligned(2), may_alias));
  constexpr int64_t kWidth = 8;
  static_assert(kDepth % kWidth == 0);
  for (int64_t p = 0; p < count; p += kWidth) {
    const Bits a = *reinterpret_cast<const Bits*>(first + p), b = *reinterpret_cast<const Bits*>(second + p);
    *reinterpret_cast<Bits*>(to + 2 * p) = shuffle<0, 8, 1, 9, 2, 10, 3, 11>(a, b);
    *reinterpret_cast<Bits*>(to + 2 * p + kWidth) = shuffle<4, 12, 5, 13, 6, 14, 7, 15>(a, b);
  }
}

inline void backward_rows(const Pass<BFloat16>& pass, const BackwardTile<BFloat16>& tile, const RowMatrix& grad_output,
                          int64_t begin, int64_t end) {
  [[maybe_unused]] const Tiles tiles{};
  const GradOutput grad(*pass.shape, tile.grad_output, tile.room);
  read_grad_output(pass, tile, grad_output, begin, end, grad);
  for (const ChannelBlock& block : pass.blocks) {
    const int64_t columns = round_up(block.depth, kLanes);
    float* const to = tile.grad_columns + begin * pass.columns + block.column;
    for (int64_t r = 0; r < end - begin; ++r) std::fill_n(to + r * pass.columns, columns, 0.f);
    multiply(end - begin, columns, grad.group_stride,
             {grad.rows + begin * grad.row_stride + block.group * grad.group_stride, grad.row_stride,
              static_cast<const BFloat16*>(block.packed), 0, to, pass.columns},
             true);
  }
  const auto scratch = std::make_unique<float[]>(pass.regular() ? 0 : position_scratch(pass));
  const auto pair = std::make_unique<BFloat16[]>(2 * pass.columns);
  BFloat16* const columns = static_cast<BFloat16*>(tile.columns);
  for (int64_t r = begin; r < round_up(end, kDepth); r += 2) {
    for (int64_t s = r; s < r + 2; ++s) {
      BFloat16* const row = pair.get() + (s - r) * pass.columns;
      if (s >= end) {
        std::fill_n(row, pass.columns, BFloat16(0.f));
      } else if (pass.regular()) {
        backward_grid_row(pass, tile, s, row);
      } else {
        backward_sampled_row(pass, tile, s, scratch.get(), row);
      }
    }
    interleave(pair.get(), pair.get() + pass.columns, pass.columns, columns + r * pass.columns);
  }
}

// A block's part of the weight's gradient is summed as (C_out / groups x depth). A unit is kUnitRows outputs of a panel
// of the depth.
constexpr int64_t kUnitRows = 64;

inline int64_t weight_sums(int64_t depth, int64_t out) { return round_up(out, kTile) * round_up(depth, kLanes); }

inline int64_t weight_units(int64_t depth, int64_t out) {
  return round_up(depth, kPanelColumns) / kPanelColumns * (round_up(out, kUnitRows) / kUnitRows);
}

inline void backward_weight(const Pass<BFloat16>& pass, const BackwardTile<BFloat16>& tile, const ChannelBlock& block,
                            int64_t begin, int64_t end, float* sums) {
  [[maybe_unused]] const Tiles tiles{};
  const GradOutput grad(*pass.shape, tile.grad_output, tile.room);
  const int64_t out = pass.shape->out_channels_per_group(), across = round_up(out, kUnitRows) / kUnitRows;
  const int64_t stride = round_up(block.depth, kLanes);
  const BFloat16* columns = static_cast<const BFloat16*>(tile.columns) + 2 * block.column;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t p = unit / across * kPanelColumns, o = unit % across * kUnitRows;
    multiply(std::min(kUnitRows, out - o), std::min(kPanelColumns, stride - p), round_up(tile.rows, kDepth),
             {grad.channel(block.group, o, out), grad.room, columns + 2 * p, 2 * pass.columns, sums + o * stride + p,
              stride},
             false);
  }
}

inline void collect_weight(const ConvolutionShape& shape, const ChannelBlock& block, const float* sums, int64_t begin,
                           int64_t end, float* grad_weight) {
  const int64_t in = shape.in_channels_per_group(), taps = shape.taps(), channels = block.end - block.begin;
  const int64_t stride = round_up(block.depth, kLanes);
  for (int64_t o = begin; o < end; ++o) {
    float* row = grad_weight + (block.group * shape.out_channels_per_group() + o) * in * taps;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t channel = block.begin + c - block.group * in;
      for (int64_t tap = 0; tap < taps; ++tap) row[channel * taps + tap] += sums[o * stride + tap * channels + c];
    }
  }
}

constexpr ConvolutionKernels<BFloat16> convolution_table() {
  return {.layout = {.vector_width = kLanes,
                     .micro_rows = kDepth,
                     .tile_rows = 128,
                     .super_tile_rows = 512,
                     .column_bytes = sizeof(BFloat16),
                     .depth_multiple = kDepth,
                     .columns = columns_of,
                     .packed = packed_bytes,
                     .packed_adjoint = packed_adjoint_bytes,
                     .grad_output = GradOutput::bytes,
                     .weight_sums = weight_sums,
                     .weight_units = weight_units},
          .pack = pack,
          .pack_adjoint = pack_adjoint,
          .transpose = transpose<BFloat16, BFloat16>,
          .transpose_gradient = transpose<float, BFloat16>,
          .forward = forward,
          .backward_rows = backward_rows,
          .backward_weight = backward_weight,
          .collect_weight = collect_weight,
          .backward_input = convolution_backward_input<BFloat16>};
}

}  // namespace bfloat16
