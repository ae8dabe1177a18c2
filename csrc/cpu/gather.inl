// Where a row samples, and the gathering of its input into columns.
// Included once per instruction set, after simd.inl.

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

// Columns are of the type that products take: Column.

template <class T, class Column>
GA_INLINE void copy_channels(const T* from, int64_t count, Column* to) {
  if constexpr (std::is_same_v<T, Column>) {
    std::copy_n(from, count, to);
  } else {
    constexpr int kWidth = Vec<ComputeType<T>>::width;
    int64_t c = 0;
    for (; c + kWidth <= count; c += kWidth) store(to + c, load(from + c));
    for (; c < count; ++c) to[c] = static_cast<Column>(from[c]);
  }
}

template <class T, class Column>
GA_INLINE void interpolate_channels(const T* const from[4], const ComputeType<T> weight[4], int64_t count, Column* to) {
  using Real = ComputeType<T>;
  constexpr int kWidth = Vec<Real>::width;
  const auto w0 = broadcast(weight[0]), w1 = broadcast(weight[1]), w2 = broadcast(weight[2]), w3 = broadcast(weight[3]);
  int64_t c = 0;
  for (; c + kWidth <= count; c += kWidth) {
    store(to + c, w0 * load(from[0] + c) + w1 * load(from[1] + c) + w2 * load(from[2] + c) + w3 * load(from[3] + c));
  }
  for (; c < count; ++c) {
    to[c] = static_cast<Column>(weight[0] * static_cast<Real>(from[0][c]) + weight[1] * static_cast<Real>(from[1][c]) +
                                weight[2] * static_cast<Real>(from[2][c]) + weight[3] * static_cast<Real>(from[3][c]));
  }
}

template <class T, class Column>
void gather_grid(const Pass<T>& pass, const Row& row, Column* columns) {
  const ImageMap<T>& map = pass.map(row);
  for_each_grid_tap(pass, row, [&](int64_t tap, int64_t y, int64_t x, bool on_map) {
    const T* pixel = on_map ? map.data + y * map.stride_y + x * map.stride_x : pass.zeros;
    for (const auto& block : pass.blocks) {
      const int64_t count = block.end - block.begin;
      const T* from = pixel + (on_map ? (block.begin - pass.channel_begin) * map.stride_c : 0);
      Column* to = columns + block.column + tap * count;
      if (!on_map || map.stride_c == 1) {
        copy_channels(from, count, to);
      } else {
        for (int64_t c = 0; c < count; ++c) to[c] = static_cast<Column>(from[c * map.stride_c]);
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

template <class T, class Column>
void gather_samples(const Pass<T>& pass, const Row& row, RowSample<T>* samples, ComputeType<T>* scratch,
                    Column* columns) {
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

// Rows of gathered input: row r at columns + r * pass.columns.
template <class T, class Column>
void gather_rows(const Pass<T>& pass, const Row* rows, int64_t count, Column* columns) {
  if (pass.regular()) {
    for (int64_t r = 0; r < count; ++r) gather_grid(pass, rows[r], columns + r * pass.columns);
    return;
  }
  const int64_t samples = (pass.group_end - pass.group_begin) * pass.shape->taps();
  const auto sample = std::make_unique<RowSample<T>[]>(samples);
  const auto scratch = std::make_unique<ComputeType<T>[]>(position_scratch(pass));
  for (int64_t r = 0; r < count; ++r) {
    gather_samples(pass, rows[r], sample.get(), scratch.get(), columns + r * pass.columns);
  }
}
