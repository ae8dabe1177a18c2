// Forward: tiles of rows, each of them gathered and multiplied by one thread.
#pragma once

#include "pass_builder.h"

namespace ga_scope::cpu {

template <class T>
class Forward {
 public:
  using Real = ComputeType<T>;

  Forward(const ConvolutionArguments& args, const Convolution& conv)
      : args_(args), conv_(conv), kernels_(convolution_kernels<T>()), builder_(args, conv) {}

  void run(std::vector<Tensor>& output) {
    const bool transpose = transposition_pays(args_, conv_);
    // Sums of reduced precision would be rounded between passes: those take a map's channels whole.
    const auto passes = plan_passes(conv_, sizeof(T), transpose, sizeof(T) >= sizeof(Real));
    const Rows rows(args_, conv_, passes.size() > 1);
    const RowMatrix out(output, args_.locations.has_value());
    PassMemory<T> memory;
    for (const PassRange& range : passes) run_pass(range, transpose, rows, out, memory);
  }

 private:
  void run_pass(const PassRange& range, bool transpose, const Rows& rows, const RowMatrix& out, PassMemory<T>& memory) {
    const Pass<T> pass = builder_.build(range, transpose, false, memory);
    const int64_t begin = rows.begin(range), count = rows.end(range) - begin;
    // Tiles of nearly the same size, as many for each thread.
    const OperandLayout<T>& layout = kernels_.layout;
    const int64_t share = ceil_div(count, num_threads()),
                  tiles = std::max<int64_t>(1, ceil_div(share, layout.tile_rows));
    const int64_t tile = std::max<int64_t>(1, ceil_div(ceil_div(share, tiles), layout.micro_rows)) * layout.micro_rows;
    const int64_t width = layout.vector_width;
    const int64_t stride = ceil_div(conv_.shape.out_channels_per_group(), width) * width * conv_.shape.groups;
    const bool first_pass = range.channel_begin == 0;
    const Scratch<Real> initial = initial_sums(stride, first_pass);
    parallel(ceil_div(count, tile), 1, [&](int64_t first, int64_t last) {
      Scratch<std::byte> columns(tile * pass.columns * layout.column_bytes);
      Scratch<Real> sums(tile * stride);
      std::vector<Row> row(tile);
      for (int64_t t = first; t < last; ++t) {
        const int64_t n = std::min(tile, count - t * tile);
        rows.get(begin + t * tile, n, row.data());
        for (int64_t r = 0; r < n; ++r) std::copy_n(initial.get(), stride, sums.get() + r * stride);
        kernels_.forward(pass, row.data(), n, columns.get(), sums.get(), stride);
        store(row.data(), n, sums.get(), stride, first_pass, out);
      }
    });
  }

  // What a row of sums starts from: the bias, in the layout of sums.
  Scratch<Real> initial_sums(int64_t stride, bool with_bias) const {
    Scratch<Real> initial(stride);
    std::fill_n(initial.get(), stride, Real(0));
    if (!args_.bias || !with_bias) return initial;
    const int64_t per_group = conv_.shape.out_channels_per_group(), group_stride = stride / conv_.shape.groups;
    const T* bias = static_cast<const T*>(args_.bias->data_ptr());
    for (int64_t j = 0; j < conv_.shape.out_channels; ++j) {
      initial.get()[j / per_group * group_stride + j % per_group] = static_cast<Real>(bias[j * args_.bias->stride(0)]);
    }
    return initial;
  }

  // Writes a tile, or adds it to what earlier passes wrote. Runs of neighbours share the outer loop, so
  // that channels-first output is written along x.
  void store(const Row* rows, int64_t count, const Real* sums, int64_t stride, bool first_pass,
             const RowMatrix& out) const {
    const int64_t per_group = conv_.shape.out_channels_per_group();
    const auto put = [first_pass](T& to, Real sum) {
      to = static_cast<T>(first_pass ? sum : static_cast<Real>(to) + sum);
    };
    for (int64_t r = 0; r < count;) {
      const int64_t column = out.column_stride(rows[r]);
      const int64_t run = out.compact() || column == 1 ? 1 : run_length(rows + r, count - r);
      T* to = reinterpret_cast<T*>(out.data(rows[r]));
      const int64_t step = run > 1 ? out.x_stride(rows[r]) : 0;
      for (int64_t group = 0; group < conv_.shape.groups; ++group) {
        const Real* sum = sums + r * stride + group * (stride / conv_.shape.groups);
        T* at = to + group * per_group * column;
        if (run == 1 && column == 1) {
          for (int64_t j = 0; j < per_group; ++j) put(at[j], sum[j]);
          continue;
        }
        for (int64_t j = 0; j < per_group; ++j) {
          for (int64_t i = 0; i < run; ++i) put(at[j * column + i * step], sum[i * stride + j]);
        }
      }
      r += run;
    }
  }

  static int64_t run_length(const Row* rows, int64_t count) {
    int64_t n = 1;
    while (n < count && rows[n].at.level == rows[0].at.level && rows[n].at.image == rows[0].at.image &&
           rows[n].at.y == rows[0].at.y && rows[n].at.x == rows[0].at.x + n) {
      ++n;
    }
    return n;
  }

  const ConvolutionArguments& args_;
  const Convolution& conv_;
  const ConvolutionKernels<T>& kernels_;
  PassBuilder<T> builder_;
};

}  // namespace ga_scope::cpu
