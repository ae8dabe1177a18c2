// The weight in the layout of products, and maps in the order that gathers want.
// Included once per instruction set, after simd.inl and gemm.inl.

// Depth index p of a block is (tap, channel); the weight tensor is (C_out, C_in / groups, kernel_h, kernel_w).
template <class T>
struct WeightView {
  const T* data;
  const int64_t* strides;
  const ConvolutionShape& shape;
  const ChannelBlock& block;

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
void pack_weight(const T* weight, const int64_t* strides, const ConvolutionShape& shape, const ChannelBlock& block,
                 int64_t begin, int64_t end, void* to_packed) {
  using Real = ComputeType<T>;
  Real* const packed = static_cast<Real*>(to_packed);
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
                         const ChannelBlock& block, int64_t begin, int64_t end, void* to_packed) {
  using Real = ComputeType<T>;
  Real* const packed = static_cast<Real*>(to_packed);
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
