// The adjoints: gradients of columns, positions, weight and input.
// Included once per instruction set, after gather.inl.

// Gathers a run of channels of one tap into `columns` and returns, per corner, the sum over its channels
// of grad_columns * pixel: all that the gradients of position and modulation need.
template <class T, class Column>
GA_INLINE void gather_and_correlate(const T* const from[4], const ComputeType<T> weight[4], int64_t count,
                                    const ComputeType<T>* grad_columns, Column* columns,
                                    ComputeType<T> correlation[4]) {
  using Real = ComputeType<T>;
  using V = typename Vec<Real>::type;
  constexpr int kWidth = Vec<Real>::width;
  // Named one by one: an array of sums is partly kept in memory.
  const V w0 = broadcast(weight[0]), w1 = broadcast(weight[1]), w2 = broadcast(weight[2]), w3 = broadcast(weight[3]);
  V sum0{}, sum1{}, sum2{}, sum3{};
  int64_t c = 0;
  for (; c + kWidth <= count; c += kWidth) {
    const V grad = load(grad_columns + c);
    const V pixel0 = load(from[0] + c), pixel1 = load(from[1] + c);
    const V pixel2 = load(from[2] + c), pixel3 = load(from[3] + c);
    sum0 += grad * pixel0, sum1 += grad * pixel1, sum2 += grad * pixel2, sum3 += grad * pixel3;
    store(columns + c, w0 * pixel0 + w1 * pixel1 + w2 * pixel2 + w3 * pixel3);
  }
  correlation[0] += sum<Real>(sum0), correlation[1] += sum<Real>(sum1);
  correlation[2] += sum<Real>(sum2), correlation[3] += sum<Real>(sum3);
  for (; c < count; ++c) {
    Real value = 0;
    for (int corner = 0; corner < 4; ++corner) {
      const Real pixel = static_cast<Real>(from[corner][c]);
      correlation[corner] += grad_columns[c] * pixel;
      value += weight[corner] * pixel;
    }
    columns[c] = static_cast<Column>(value);
  }
}

template <class T, class Column>
void backward_grid_row(const Pass<T>& pass, const BackwardTile<T>& tile, int64_t r, Column* columns) {
  const ImageMap<T>& map = pass.map(tile.row[r]);
  gather_grid(pass, tile.row[r], columns);
  LineSpan span;
  for_each_grid_tap(pass, tile.row[r], [&](int64_t tap, int64_t y, int64_t x, bool on_map) {
    Sample<ComputeType<T>>& sample = tile.samples[r * pass.shape->taps() + tap];
    sample = {{on_map ? y * map.grad_stride_y + x * map.grad_stride_x : -1, -1, -1, -1}, {1, 0, 0, 0}};
    if (on_map) span.include(map.first_line + y);
  });
  tile.spans[r] = span;
}

// `columns`: of this row.
template <class T, class Column>
void backward_sampled_row(const Pass<T>& pass, const BackwardTile<T>& tile, int64_t r, ComputeType<T>* scratch,
                          Column* columns) {
  using Real = ComputeType<T>;
  const Row& row = tile.row[r];
  const ImageMap<T>& map = pass.map(row);
  const int64_t taps = pass.shape->taps(), groups = pass.group_end - pass.group_begin;
  Real* offsets = scratch;
  Real* modulation = offsets + 2 * groups * taps;
  Real* inputs = modulation + groups * taps;
  read_offsets(pass, row, inputs, offsets);
  if (!pass.mask.empty()) pass.mask.read(row, pass.group_begin * taps, groups * taps, modulation);
  std::fill_n(tile.spans + r * groups, groups, LineSpan());
  int64_t slot = 0;
  for_each_tap(pass, row, offsets, [&](int64_t group, int64_t tap_index, Real y, Real x) {
    const Real factor = pass.mask.empty() ? Real(1) : modulation[slot];
    const RowSample<T> sample = sample_tap(pass, map, y, x, factor);
    BilinearTap<Real> tap{};
    const bool inside = bilinear_tap(y, x, map.height, map.width, tap);

    Sample<Real>& kept = tile.samples[r * groups * taps + slot];
    for (int corner = 0; corner < 4; ++corner) {
      kept.pixel[corner] = sample.on_map[corner] ? (tap.top + corner / 2) * map.grad_stride_y +
                                                       (tap.left + corner % 2) * map.grad_stride_x
                                                 : -1;
      kept.weight[corner] = sample.weight[corner];
      if (sample.on_map[corner]) {
        tile.spans[r * groups + group - pass.group_begin].include(map.first_line + tap.top + corner / 2);
      }
    }

    Real correlation[4] = {};
    for (const auto& block : pass.blocks) {
      const int64_t begin = std::max(block.begin, group * pass.channels_per_group);
      const int64_t end = std::min(block.end, (group + 1) * pass.channels_per_group);
      if (begin >= end) continue;
      const T* from[4];
      for (int corner = 0; corner < 4; ++corner) {
        from[corner] = sample.pixel[corner] + (sample.on_map[corner] ? begin - pass.channel_begin : 0);
      }
      const int64_t at = block.column + tap_index * (block.end - block.begin) + (begin - block.begin);
      gather_and_correlate(from, sample.weight, end - begin, tile.grad_columns + r * pass.columns + at, columns + at,
                           correlation);
    }

    const int64_t column = group * taps + tap_index, all = pass.shape->offset_groups * taps;
    Real dy = 0, dx = 0, value = 0;
    for (int corner = 0; corner < 4 && inside; ++corner) {
      if (!sample.on_map[corner]) continue;
      dy += tap.weight_dy(corner) * correlation[corner];
      dx += tap.weight_dx(corner) * correlation[corner];
      value += tap.weight(corner) * correlation[corner];
    }
    if (tile.grad_offset) {
      tile.grad_offset[(r * all + column) * 2] = factor * dy;
      tile.grad_offset[(r * all + column) * 2 + 1] = factor * dx;
    }
    if (tile.grad_mask) tile.grad_mask[r * all + column] = value;
    ++slot;
  });
}

// The output's gradient at a super-tile: (rows x C_out), and so much more, since products read whole vectors past the
// last row's last channel.
constexpr int64_t kSlack = 64;

template <class T>
int64_t grad_output_bytes(int64_t rows, const ConvolutionShape& shape) {
  return (rows * shape.out_channels + kSlack) * static_cast<int64_t>(sizeof(ComputeType<T>));
}

template <class T>
void convolution_backward_rows(const Pass<T>& pass, const BackwardTile<T>& tile, const RowMatrix& grad_output,
                               int64_t begin, int64_t end) {
  using Real = ComputeType<T>;
  const int64_t out = pass.shape->out_channels_per_group(), all = pass.shape->out_channels;
  Real* const grad = static_cast<Real*>(tile.grad_output);
  for (int64_t r = begin; r < end; ++r) grad_output.read(tile.row[r], 0, all, grad + r * all);
  if (end == tile.rows) std::fill_n(grad + end * all, kSlack, Real(0));
  // Blocks in order: a product's padding may spill into the next block's columns, which it then overwrites.
  for (const auto& block : pass.blocks) {
    multiply_packed(end - begin, block.depth, out, StridedRows<Real>{grad + begin * all + block.group * out, all},
                    static_cast<const Real*>(block.packed), out, 0,
                    tile.grad_columns + begin * pass.columns + block.column, pass.columns, false);
  }
  const auto scratch = std::make_unique<Real[]>(pass.regular() ? 0 : position_scratch(pass));
  for (int64_t r = begin; r < end; ++r) {
    Real* const columns = static_cast<Real*>(tile.columns) + r * pass.columns;
    if (pass.regular()) {
      backward_grid_row(pass, tile, r, columns);
    } else {
      backward_sampled_row(pass, tile, r, scratch.get(), columns);
    }
  }
}

// A block's part of the weight's gradient is summed as (depth x C_out / groups). A unit is kRows of the depth in one
// panel of outputs.
template <class T>
int64_t weight_sums_of(int64_t depth, int64_t out) {
  return depth * padded<ComputeType<T>>(out);
}

template <class Real>
int64_t panels(int64_t columns) {
  return (columns + kPanel<Real> - 1) / kPanel<Real>;
}

template <class T>
int64_t weight_units_of(int64_t depth, int64_t out) {
  return (depth + kRows - 1) / kRows * panels<ComputeType<T>>(out);
}

template <class T>
void convolution_backward_weight(const Pass<T>& pass, const BackwardTile<T>& tile, const ChannelBlock& block,
                                 int64_t begin, int64_t end, ComputeType<T>* weight_sums) {
  using Real = ComputeType<T>;
  const int64_t out = pass.shape->out_channels_per_group(), all = pass.shape->out_channels;
  const int64_t stride = padded<Real>(out), across = panels<Real>(out);
  const Real* columns = static_cast<const Real*>(tile.columns) + block.column;
  const Real* grad_output = static_cast<const Real*>(tile.grad_output) + block.group * out;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t p = unit / across * kRows, first = unit % across * kPanel<Real>;
    multiply_panel(std::min<int64_t>(kRows, block.depth - p), panel_vectors<Real>(out, first), tile.rows,
                   TransposedRows<Real>{columns + p, pass.columns}, grad_output + first, all,
                   weight_sums + p * stride + first, stride, true);
  }
}

template <class T>
void collect_weight_gradient(const ConvolutionShape& shape, const ChannelBlock& block,
                             const ComputeType<T>* weight_sums, int64_t begin, int64_t end,
                             ComputeType<T>* grad_weight) {
  const int64_t in = shape.in_channels_per_group(), taps = shape.taps(), channels = block.end - block.begin;
  const int64_t stride = padded<ComputeType<T>>(shape.out_channels_per_group());
  for (int64_t o = begin; o < end; ++o) {
    ComputeType<T>* row = grad_weight + (block.group * shape.out_channels_per_group() + o) * in * taps;
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t channel = block.begin + c - block.group * in;
      for (int64_t tap = 0; tap < taps; ++tap) {
        row[channel * taps + tap] += weight_sums[(tap * channels + c) * stride + o];
      }
    }
  }
}

template <class Real>
GA_INLINE void add_scaled(Real weight, const Real* from, int64_t count, Real* to) {
  constexpr int kWidth = Vec<Real>::width;
  const auto w = broadcast(weight);
  int64_t c = 0;
  for (; c + kWidth <= count; c += kWidth) store(to + c, load(to + c) + w * load(from + c));
  for (; c < count; ++c) to[c] += weight * from[c];
}

// Rows in order, and every pixel's channel in one part: the sums depend neither on the parts nor on the threads.
template <class T>
void convolution_backward_input(const Pass<T>& pass, const BackwardTile<T>& tile, const InputPart& part) {
  using Real = ComputeType<T>;
  const int64_t taps = pass.shape->taps(), groups = pass.group_end - pass.group_begin;
  for (int64_t r = 0; r < tile.rows; ++r) {
    const ImageMap<T>& map = pass.map(tile.row[r]);
    const int64_t low = std::max<int64_t>(0, (part.line_begin - map.first_line) * map.grad_stride_y);
    const int64_t high = (part.line_end - map.first_line) * map.grad_stride_y;
    for (const auto& block : pass.blocks) {
      const int64_t first = std::max(part.channel_begin, block.begin), last = std::min(part.channel_end, block.end);
      for_each_run(pass, first, last, [&](int64_t group, int64_t run_begin, int64_t run_end) {
        const int64_t sampling = r * groups + group - pass.group_begin;
        if (!tile.spans[sampling].meets(part.line_begin, part.line_end)) return;
        for (int64_t tap = 0; tap < taps; ++tap) {
          const Sample<Real>& sample = tile.samples[sampling * taps + tap];
          const Real* from = tile.grad_columns + r * pass.columns + block.column + tap * (block.end - block.begin) +
                             (run_begin - block.begin);
          for (int corner = 0; corner < 4; ++corner) {
            if (sample.pixel[corner] < low || sample.pixel[corner] >= high) continue;
            add_scaled(sample.weight[corner], from, run_end - run_begin,
                       map.grad + sample.pixel[corner] + (run_begin - pass.channel_begin));
          }
        }
      });
    }
  }
}
