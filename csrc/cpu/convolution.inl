// The tile kernels of masked and deformable convolution: gather, multiply, and their adjoints.
// Included once per instruction set, after simd.inl and gemm.inl.

template <class T>
int64_t packed_size_of(int64_t depth, int64_t columns) {
  return depth * padded<ComputeType<T>>(columns);
}

// Depth index p of a block is (tap, channel); the weight tensor is (C_out, C_in / groups, kernel_h, kernel_w).
template <class T>
struct WeightView {
  const T* data;
  const int64_t* strides;
  const ConvolutionShape& shape;
  const ChannelBlock<ComputeType<T>>& block;

  // The weight of output `out` of the group at the block's first channel and first tap.
  GA_INLINE const T* row(int64_t out) const {
    const int64_t channel = block.begin - block.group * shape.in_channels_per_group();
    return data + (block.group * shape.out_channels_per_group() + out) * strides[0] + channel * strides[1];
  }
  // Visits every p: visit(p, its place in a row). In the tensor's order if its channels come before its taps.
  template <class Visit>
  GA_INLINE void for_each_place(Visit visit) const {
    const int64_t channels = block.end - block.begin;
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t ky = 0, tap = 0; ky < shape.kernel_h; ++ky) {
        for (int64_t kx = 0; kx < shape.kernel_w; ++kx, ++tap) {
          visit(tap * channels + c, c * strides[1] + ky * strides[2] + kx * strides[3]);
        }
      }
    }
  }
};

// Vectors [begin, end) of output channels. A vector's channels are read side by side, each in its own order, so
// that every cache line is read and written once.
template <class T>
void pack_weight(const T* weight, const int64_t* strides, const ConvolutionShape& shape,
                 const ChannelBlock<ComputeType<T>>& block, int64_t begin, int64_t end, ComputeType<T>* packed) {
  using Real = ComputeType<T>;
  constexpr int kWidth = Vec<Real>::width;
  const WeightView<T> view{weight, strides, shape, block};
  const int64_t out = shape.out_channels_per_group();
  for (int64_t first = begin * kWidth; first < std::min(out, end * kWidth); first += kWidth) {
    const int64_t count = std::min<int64_t>(kWidth, out - first);
    const PanelPlace<Real> place(first, out, block.depth);
    const T* rows = view.row(first);
    view.for_each_place([&](int64_t p, int64_t at) {
      Real* to = packed + place.row(p);
      for (int64_t j = 0; j < count; ++j) to[j] = static_cast<Real>(rows[j * strides[0] + at]);
      for (int64_t j = count; j < kWidth; ++j) to[j] = Real(0);
    });
  }
}

// Rows [begin, end): output channels.
template <class T>
void pack_weight_adjoint(const T* weight, const int64_t* strides, const ConvolutionShape& shape,
                         const ChannelBlock<ComputeType<T>>& block, int64_t begin, int64_t end,
                         ComputeType<T>* packed) {
  using Real = ComputeType<T>;
  constexpr int kWidth = Vec<Real>::width;
  const WeightView<T> view{weight, strides, shape, block};
  const int64_t rows = shape.out_channels_per_group();
  for (int64_t out = begin; out < end; ++out) {
    const T* row = view.row(out);
    view.for_each_place([&](int64_t p, int64_t at) {
      const PanelPlace<Real> place(p / kWidth * kWidth, block.depth, rows);
      packed[place.row(out) + p % kWidth] = static_cast<Real>(row[at]);
    });
    for (int64_t p = block.depth; p < padded<Real>(block.depth); ++p) {
      packed[PanelPlace<Real>(p / kWidth * kWidth, block.depth, rows).row(out) + p % kWidth] = Real(0);
    }
  }
}

// ---- memory order -------------------------------------------------------------------------------

// to[j * to_stride + i] = from[i * from_stride + j], i < rows, j < columns. Rows in strips as wide as a vector:
// few enough streams for the processor to prefetch, and every line of `to` is written whole.
template <class From, class To>
void transpose(const From* from, int64_t from_stride, int64_t rows, int64_t columns, To* to, int64_t to_stride) {
  constexpr int64_t kWidth = Vec<ComputeType<From>>::width;
  for (int64_t i = 0; i < rows; i += kWidth) {
    int64_t j = 0;
    if constexpr (std::is_same_v<From, To> && std::is_same_v<From, ComputeType<From>>) {
      for (; i + kWidth <= rows && j + kWidth <= columns; j += kWidth) {
        transpose_square(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
      }
    }
    const int64_t stop = std::min(i + kWidth, rows);
    for (; j < columns; ++j) {
      for (int64_t k = i; k < stop; ++k) to[j * to_stride + k] = static_cast<To>(from[k * from_stride + j]);
    }
  }
}

// ---- where a row samples ------------------------------------------------------------------------

// The row's offsets (y, x per tap) of the pass's groups. With offset_weight they are its product with the row.
template <class T>
void read_offsets(const Pass<T>& pass, const Row& row, ComputeType<T>* inputs, ComputeType<T>* offsets) {
  const int64_t per_group = 2 * pass.shape->taps();
  const int64_t begin = pass.group_begin * per_group, count = (pass.group_end - pass.group_begin) * per_group;
  if (pass.offset_weight == nullptr) return pass.offset.read(row, begin, count, offsets);
  pass.offset.read(row, 0, pass.offset_inputs, inputs);
  const ComputeType<T>* weight = pass.offset_weight + begin * pass.offset_inputs;
  for (int64_t j = 0; j < count; ++j) {
    ComputeType<T> total = 0;
    for (int64_t r = 0; r < pass.offset_inputs; ++r) total += weight[j * pass.offset_inputs + r] * inputs[r];
    offsets[j] = total;
  }
}

// Visits the taps of a row: visit(group, tap, y, x), positions in pixels of the input map.
template <class T, class Visit>
GA_INLINE void for_each_tap(const Pass<T>& pass, const Row& row, const ComputeType<T>* offsets, Visit visit) {
  using Real = ComputeType<T>;
  const ConvolutionShape& s = *pass.shape;
  const int64_t top = row.at.y * s.stride_h - s.padding_h, left = row.at.x * s.stride_w - s.padding_w;
  for (int64_t group = pass.group_begin; group < pass.group_end; ++group) {
    for (int64_t ky = 0, tap = 0; ky < s.kernel_h; ++ky) {
      for (int64_t kx = 0; kx < s.kernel_w; ++kx, ++tap, offsets += 2) {
        visit(group, tap, Real(top + ky * s.dilation_h) + offsets[0], Real(left + kx * s.dilation_w) + offsets[1]);
      }
    }
  }
}

// The same on the regular grid: visit(tap, y, x, on the map).
template <class T, class Visit>
GA_INLINE void for_each_grid_tap(const Pass<T>& pass, const Row& row, Visit visit) {
  const ConvolutionShape& s = *pass.shape;
  const ImageMap<T>& map = pass.map(row);
  const int64_t top = row.at.y * s.stride_h - s.padding_h, left = row.at.x * s.stride_w - s.padding_w;
  for (int64_t ky = 0, tap = 0; ky < s.kernel_h; ++ky) {
    for (int64_t kx = 0; kx < s.kernel_w; ++kx, ++tap) {
      const int64_t y = top + ky * s.dilation_h, x = left + kx * s.dilation_w;
      visit(tap, y, x, y >= 0 && y < map.height && x >= 0 && x < map.width);
    }
  }
}

// Visits the runs of channels of a block that belong to one sampling group: visit(group, begin, end).
template <class T, class Visit>
GA_INLINE void for_each_run(const Pass<T>& pass, int64_t begin, int64_t end, Visit visit) {
  while (begin < end) {
    const int64_t group = begin / pass.channels_per_group;
    const int64_t stop = std::min(end, (group + 1) * pass.channels_per_group);
    visit(group, begin, stop);
    begin = stop;
  }
}

// ---- forward ------------------------------------------------------------------------------------

template <class T>
GA_INLINE void copy_channels(const T* from, int64_t count, ComputeType<T>* to) {
  constexpr int kWidth = Vec<ComputeType<T>>::width;
  int64_t c = 0;
  for (; c + kWidth <= count; c += kWidth) store(to + c, load(from + c));
  for (; c < count; ++c) to[c] = static_cast<ComputeType<T>>(from[c]);
}

template <class T>
GA_INLINE void interpolate_channels(const T* const from[4], const ComputeType<T> weight[4], int64_t count,
                                    ComputeType<T>* to) {
  using Real = ComputeType<T>;
  constexpr int kWidth = Vec<Real>::width;
  const auto w0 = broadcast(weight[0]), w1 = broadcast(weight[1]), w2 = broadcast(weight[2]), w3 = broadcast(weight[3]);
  int64_t c = 0;
  for (; c + kWidth <= count; c += kWidth) {
    store(to + c, w0 * load(from[0] + c) + w1 * load(from[1] + c) + w2 * load(from[2] + c) + w3 * load(from[3] + c));
  }
  for (; c < count; ++c) {
    to[c] = weight[0] * static_cast<Real>(from[0][c]) + weight[1] * static_cast<Real>(from[1][c]) +
            weight[2] * static_cast<Real>(from[2][c]) + weight[3] * static_cast<Real>(from[3][c]);
  }
}

template <class T>
void gather_grid(const Pass<T>& pass, const Row& row, ComputeType<T>* columns) {
  const ImageMap<T>& map = pass.map(row);
  for_each_grid_tap(pass, row, [&](int64_t tap, int64_t y, int64_t x, bool on_map) {
    const T* pixel = on_map ? map.data + y * map.stride_y + x * map.stride_x : pass.zeros;
    for (const auto& block : pass.blocks) {
      const int64_t count = block.end - block.begin;
      const T* from = pixel + (on_map ? (block.begin - pass.channel_begin) * map.stride_c : 0);
      ComputeType<T>* to = columns + block.column + tap * count;
      if (!on_map || map.stride_c == 1) {
        copy_channels(from, count, to);
      } else {
        for (int64_t c = 0; c < count; ++c) to[c] = static_cast<ComputeType<T>>(from[c * map.stride_c]);
      }
    }
  });
}

// Pixel pointers and weights of every (group, tap) of a row; a tap off the map reads zeros.
template <class T>
struct RowSample {
  const T* pixel[4];
  ComputeType<T> weight[4];
  bool on_map[4];
};

template <class T>
GA_INLINE RowSample<T> sample_tap(const Pass<T>& pass, const ImageMap<T>& map, ComputeType<T> y, ComputeType<T> x,
                                  ComputeType<T> modulation) {
  RowSample<T> sample;
  BilinearTap<ComputeType<T>> tap;
  const bool inside = bilinear_tap(y, x, map.height, map.width, tap);
  const int64_t origin = inside ? tap.top * map.stride_y + tap.left * map.stride_x : 0;
  const int64_t step[4] = {0, map.stride_x, map.stride_y, map.stride_y + map.stride_x};
  for (int corner = 0; corner < 4; ++corner) {
    sample.on_map[corner] = inside && tap.inside[corner];
    sample.pixel[corner] = sample.on_map[corner] ? map.data + origin + step[corner] : pass.zeros;
    sample.weight[corner] = sample.on_map[corner] ? modulation * tap.weight(corner) : ComputeType<T>(0);
  }
  return sample;
}

template <class T>
void gather_samples(const Pass<T>& pass, const Row& row, RowSample<T>* samples, ComputeType<T>* scratch,
                    ComputeType<T>* columns) {
  const ImageMap<T>& map = pass.map(row);
  const int64_t taps = pass.shape->taps(), groups = pass.group_end - pass.group_begin;
  ComputeType<T>* offsets = scratch;
  ComputeType<T>* modulation = offsets + 2 * groups * taps;
  ComputeType<T>* inputs = modulation + groups * taps;
  read_offsets(pass, row, inputs, offsets);
  if (!pass.mask.empty()) pass.mask.read(row, pass.group_begin * taps, groups * taps, modulation);
  RowSample<T>* next = samples;
  for_each_tap(pass, row, offsets, [&](int64_t, int64_t, ComputeType<T> y, ComputeType<T> x) {
    const ComputeType<T> factor = pass.mask.empty() ? ComputeType<T>(1) : modulation[next - samples];
    *next++ = sample_tap(pass, map, y, x, factor);
  });
  for (const auto& block : pass.blocks) {
    const int64_t count = block.end - block.begin;
    for_each_run(pass, block.begin, block.end, [&](int64_t group, int64_t begin, int64_t end) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const RowSample<T>& sample = samples[(group - pass.group_begin) * taps + tap];
        const T* from[4];
        for (int corner = 0; corner < 4; ++corner) {
          from[corner] = sample.pixel[corner] + (sample.on_map[corner] ? begin - pass.channel_begin : 0);
        }
        interpolate_channels(from, sample.weight, end - begin,
                             columns + block.column + tap * count + (begin - block.begin));
      }
    });
  }
}

// Numbers that read_offsets and the modulation of one row need.
template <class T>
int64_t position_scratch(const Pass<T>& pass) {
  return 3 * (pass.group_end - pass.group_begin) * pass.shape->taps() + pass.offset_inputs;
}

// On the regular grid a tap's channels are multiplied where they lie in the map.
template <class T>
void forward_in_place(const Pass<T>& pass, const Row* rows, int64_t count, T* sums, int64_t stride) {
  const int64_t taps = pass.shape->taps(), out = pass.shape->out_channels_per_group();
  const auto pixel = std::make_unique<const T*[]>(taps * count);  // (taps, count)
  const auto listed = std::make_unique<const T*[]>(count);
  for (int64_t r = 0; r < count; ++r) {
    const ImageMap<T>& map = pass.map(rows[r]);
    for_each_grid_tap(pass, rows[r], [&](int64_t tap, int64_t y, int64_t x, bool on_map) {
      pixel[tap * count + r] = on_map ? map.data + y * map.stride_y + x * map.stride_x : nullptr;
    });
  }
  for (const auto& block : pass.blocks) {
    const int64_t channels = block.end - block.begin;
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t r = 0; r < count; ++r) {
        const T* at = pixel[tap * count + r];
        listed[r] = at ? at + (block.begin - pass.channel_begin) : pass.zeros;
      }
      multiply_packed(count, out, channels, ListedRows<T>{listed.get()}, block.packed, block.depth, tap * channels,
                      sums + block.group * padded<T>(out), stride, true);
    }
  }
}

template <class T>
void convolution_forward(const Pass<T>& pass, const Row* rows, int64_t count, ComputeType<T>* columns,
                         ComputeType<T>* sums, int64_t stride) {
  using Real = ComputeType<T>;
  if constexpr (std::is_same_v<T, Real>) {
    if (pass.regular() && pass.channels_contiguous) return forward_in_place(pass, rows, count, sums, stride);
  }
  if (pass.regular()) {
    for (int64_t r = 0; r < count; ++r) gather_grid(pass, rows[r], columns + r * pass.columns);
  } else {
    const int64_t samples = (pass.group_end - pass.group_begin) * pass.shape->taps();
    const auto sample = std::make_unique<RowSample<T>[]>(samples);
    const auto scratch = std::make_unique<Real[]>(position_scratch(pass));
    for (int64_t r = 0; r < count; ++r) {
      gather_samples(pass, rows[r], sample.get(), scratch.get(), columns + r * pass.columns);
    }
  }
  const int64_t out = pass.shape->out_channels_per_group();
  for (const auto& block : pass.blocks) {
    multiply_packed(count, out, block.depth, StridedRows<Real>{columns + block.column, pass.columns}, block.packed,
                    block.depth, 0, sums + block.group * padded<Real>(out), stride, true);
  }
}

// ---- backward -----------------------------------------------------------------------------------

// Gathers a run of channels of one tap into `columns` and returns, per corner, the sum over its channels
// of grad_columns * pixel: all that the gradients of position and modulation need.
template <class T>
GA_INLINE void gather_and_correlate(const T* const from[4], const ComputeType<T> weight[4], int64_t count,
                                    const ComputeType<T>* grad_columns, ComputeType<T>* columns,
                                    ComputeType<T> correlation[4]) {
  using Real = ComputeType<T>;
  using V = typename Vec<Real>::type;
  constexpr int kWidth = Vec<Real>::width;
  V sums[4] = {};
  int64_t c = 0;
  for (; c + kWidth <= count; c += kWidth) {
    const V grad = load(grad_columns + c);
    V value{};
#pragma GCC unroll 4
    for (int corner = 0; corner < 4; ++corner) {
      const V pixel = load(from[corner] + c);
      sums[corner] += grad * pixel;
      value += broadcast(weight[corner]) * pixel;
    }
    store(columns + c, value);
  }
  for (int corner = 0; corner < 4; ++corner) correlation[corner] += sum<Real>(sums[corner]);
  for (; c < count; ++c) {
    Real value = 0;
    for (int corner = 0; corner < 4; ++corner) {
      const Real pixel = static_cast<Real>(from[corner][c]);
      correlation[corner] += grad_columns[c] * pixel;
      value += weight[corner] * pixel;
    }
    columns[c] = value;
  }
}

template <class T>
void backward_grid_row(const Pass<T>& pass, const BackwardTile<T>& tile, int64_t r) {
  const ImageMap<T>& map = pass.map(tile.row[r]);
  gather_grid(pass, tile.row[r], tile.columns + r * pass.columns);
  for_each_grid_tap(pass, tile.row[r], [&](int64_t tap, int64_t y, int64_t x, bool on_map) {
    Sample<ComputeType<T>>& sample = tile.samples[r * pass.shape->taps() + tap];
    sample = {{on_map ? y * map.grad_stride_y + x * map.grad_stride_x : -1, -1, -1, -1}, {1, 0, 0, 0}};
  });
}

template <class T>
void backward_sampled_row(const Pass<T>& pass, const BackwardTile<T>& tile, int64_t r, ComputeType<T>* scratch) {
  using Real = ComputeType<T>;
  const Row& row = tile.row[r];
  const ImageMap<T>& map = pass.map(row);
  const int64_t taps = pass.shape->taps(), groups = pass.group_end - pass.group_begin;
  Real* offsets = scratch;
  Real* modulation = offsets + 2 * groups * taps;
  Real* inputs = modulation + groups * taps;
  read_offsets(pass, row, inputs, offsets);
  if (!pass.mask.empty()) pass.mask.read(row, pass.group_begin * taps, groups * taps, modulation);
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
      const int64_t at =
          r * pass.columns + block.column + tap_index * (block.end - block.begin) + (begin - block.begin);
      gather_and_correlate(from, sample.weight, end - begin, tile.grad_columns + at, tile.columns + at, correlation);
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

template <class T>
void convolution_backward_rows(const Pass<T>& pass, const BackwardTile<T>& tile, int64_t begin, int64_t end) {
  using Real = ComputeType<T>;
  const int64_t out = pass.shape->out_channels_per_group();
  // Blocks in order: a product's padding may spill into the next block's columns, which it then overwrites.
  for (const auto& block : pass.blocks) {
    const StridedRows<Real> grad_output{tile.grad_output + begin * tile.grad_output_stride + block.group * out,
                                        tile.grad_output_stride};
    multiply_packed(end - begin, block.depth, out, grad_output, block.packed_adjoint, out, 0,
                    tile.grad_columns + begin * pass.columns + block.column, pass.columns, false);
  }
  const auto scratch = std::make_unique<Real[]>(pass.regular() ? 0 : position_scratch(pass));
  for (int64_t r = begin; r < end; ++r) {
    if (pass.regular()) {
      backward_grid_row(pass, tile, r);
    } else {
      backward_sampled_row(pass, tile, r, scratch.get());
    }
  }
}

template <class T>
void convolution_backward_weight(const Pass<T>& pass, const BackwardTile<T>& tile,
                                 const ChannelBlock<ComputeType<T>>& block, int64_t begin, int64_t end,
                                 int64_t grad_weight_stride) {
  using Real = ComputeType<T>;
  const int64_t out = pass.shape->out_channels_per_group();
  for (int64_t first = 0; first < out; first += kPanel<Real>) {
    multiply_panel(end - begin, panel_vectors<Real>(out, first), tile.rows,
                   TransposedRows<Real>{tile.columns + block.column + begin, pass.columns},
                   tile.grad_output + block.group * out + first, tile.grad_output_stride,
                   block.grad_weight + begin * grad_weight_stride + first, grad_weight_stride, true);
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

// Rows in order and every channel by one caller: the sums do not depend on the number of threads.
template <class T>
void convolution_backward_input(const Pass<T>& pass, const BackwardTile<T>& tile, int64_t begin, int64_t end) {
  using Real = ComputeType<T>;
  const int64_t taps = pass.shape->taps(), groups = pass.group_end - pass.group_begin;
  for (int64_t r = 0; r < tile.rows; ++r) {
    Real* grad = pass.map(tile.row[r]).grad;
    for (const auto& block : pass.blocks) {
      const int64_t first = std::max(begin, block.begin), last = std::min(end, block.end);
      for_each_run(pass, first, last, [&](int64_t group, int64_t run_begin, int64_t run_end) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          const Sample<Real>& sample = tile.samples[(r * groups + group - pass.group_begin) * taps + tap];
          const Real* from = tile.grad_columns + r * pass.columns + block.column + tap * (block.end - block.begin) +
                             (run_begin - block.begin);
          for (int corner = 0; corner < 4; ++corner) {
            if (sample.pixel[corner] < 0) continue;
            add_scaled(sample.weight[corner], from, run_end - run_begin,
                       grad + sample.pixel[corner] + (run_begin - pass.channel_begin));
          }
        }
      });
    }
  }
}

template <class T>
constexpr ConvolutionKernels<T> convolution_table() {
  return {Vec<ComputeType<T>>::width,
          packed_size_of<T>,
          pack_weight<T>,
          pack_weight_adjoint<T>,
          transpose<T, T>,
          transpose<ComputeType<T>, T>,
          convolution_forward<T>,
          convolution_backward_rows<T>,
          convolution_backward_weight<T>,
          convolution_backward_input<T>};
}
