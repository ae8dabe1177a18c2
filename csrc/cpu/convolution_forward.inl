// A tile of rows: gathered, and multiplied with the packed weight.
// Included once per instruction set, after gather.inl.

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
      multiply_packed(count, out, channels, ListedRows<T>{listed.get(), 0}, static_cast<const T*>(block.packed),
                      block.depth, tap * channels, sums + block.group * padded<T>(out), stride, true);
    }
  }
}

template <class T>
void convolution_forward(const Pass<T>& pass, const Row* rows, int64_t count, void* scratch, ComputeType<T>* sums,
                         int64_t stride) {
  using Real = ComputeType<T>;
  if constexpr (std::is_same_v<T, Real>) {
    if (pass.regular() && pass.channels_contiguous) return forward_in_place(pass, rows, count, sums, stride);
  }
  Real* const columns = static_cast<Real*>(scratch);
  gather_rows(pass, rows, count, columns);
  const int64_t out = pass.shape->out_channels_per_group();
  for (const auto& block : pass.blocks) {
    multiply_packed(count, out, block.depth, StridedRows<Real>{columns + block.column, pass.columns},
                    static_cast<const Real*>(block.packed), block.depth, 0, sums + block.group * padded<Real>(out),
                    stride, true);
  }
}
