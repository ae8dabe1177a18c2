// masked_conv2d and deform_conv2d on the CPU, forward and backward.
//
// The work is a list of locations ("rows"). A tile of rows gathers its input into columns that stay in
// the L2 cache and multiplies them with the packed weight; the columns of a whole map never exist.
//
// Gathers want the channels of a pixel side by side. Where the input has them so (channels_last) there is
// one pass over everything; so there is where a sparse mask reads little of the input, number by number.
// Otherwise the input is transposed piecewise into a scratch buffer of bounded size: a pass covers as many
// maps as fit, or, of a map too large for that, as many channels as fit, and the passes over a map's
// channels add up in the output.
//
// The backward pass works on super-tiles: first, in parallel over rows, gather the columns, multiply the
// output's gradient with the weight and correlate for the offsets; then, in parallel over the weight's
// depth and over channels, add to the weight's and the input's gradient. Each number is summed by one
// thread in the order of the rows: results are the same for any number of threads, without atomics.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <tuple>

#include "../convolution_operators.h"
#include "convolution_pass.h"
#include "parallel.h"

namespace ga_scope::cpu {
namespace {

constexpr int64_t kTileRows = 60;  // a multiple of the micro-kernel's rows
constexpr int64_t kMicroRows = 6;
constexpr int64_t kMapScratchBytes = 18 << 20;  // of transposed input (and its gradient) per pass
constexpr int64_t kSuperTileBytes = 8 << 20;    // of backward's shared buffers
constexpr int64_t kSuperTileRows = 240;
constexpr int64_t kChannelMultiple = 16;  // channels of a split pass: whole cache lines

bool channels_contiguous(const Tensor& map) { return map.size(1) == 1 || map.stride(1) == 1; }

bool all_channels_contiguous(const std::vector<Tensor>& maps) {
  return std::all_of(maps.begin(), maps.end(), channels_contiguous);
}

bool reduced_precision(ScalarType dtype) { return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half; }

template <class T>
constexpr ScalarType compute_dtype() {
  return std::is_same_v<ComputeType<T>, double> ? ScalarType::Double : ScalarType::Float;
}

// The maps [begin, end) (numbered level * images + image) and channels of one pass.
struct PassRange {
  int64_t map_begin, map_end;
  int64_t channel_begin, channel_end;
};

std::vector<PassRange> plan_passes(const Convolution& conv, int64_t bytes_per_number, bool need_scratch,
                                   bool may_split_channels) {
  const int64_t maps = static_cast<int64_t>(conv.input_levels.size()) * conv.images;
  const int64_t channels = conv.shape.in_channels;
  if (!need_scratch) return {{0, maps, 0, channels}};
  std::vector<PassRange> passes;
  int64_t pending_bytes = 0, pending_begin = 0;
  const auto flush = [&](int64_t end) {
    if (end > pending_begin) passes.push_back({pending_begin, end, 0, channels});
    pending_begin = end, pending_bytes = 0;
  };
  for (int64_t m = 0; m < maps; ++m) {
    const LevelShape& level = conv.input_levels[m / conv.images];
    const int64_t bytes = level.height * level.width * channels * bytes_per_number;
    if (bytes > kMapScratchBytes && may_split_channels) {
      flush(m);
      const int64_t parts = ceil_div(bytes, kMapScratchBytes);
      const int64_t width = ceil_div(ceil_div(channels, parts), kChannelMultiple) * kChannelMultiple;
      for (int64_t c = 0; c < channels; c += width) passes.push_back({m, m + 1, c, std::min(c + width, channels)});
      pending_begin = m + 1;
      continue;
    }
    if (pending_bytes + bytes > kMapScratchBytes) flush(m);
    pending_bytes += bytes;
  }
  flush(maps);
  return passes;
}

// The rows of a call, grouped by map where a pass covers only some of the maps.
class Rows {
 public:
  Rows(const ConvolutionArguments& args, const Convolution& conv, bool by_map) : conv_(conv) {
    const int64_t levels = static_cast<int64_t>(conv.output_levels.size());
    first_of_map_.assign(levels * conv.images + 1, 0);
    if (args.locations) {
      read_locations(args, by_map);
    } else {
      for (int64_t m = 0; m < levels * conv.images; ++m) {
        const LevelShape& level = conv.output_levels[m / conv.images];
        first_of_map_[m + 1] = first_of_map_[m] + level.height * level.width;
      }
    }
  }

  // The pass's rows are numbered [begin(range), end(range)).
  int64_t begin(const PassRange& range) const { return by_map() ? first_of_map_[range.map_begin] : 0; }
  int64_t end(const PassRange& range) const { return by_map() ? first_of_map_[range.map_end] : conv_.rows; }

  void get(int64_t begin, int64_t count, Row* rows) const {
    for (int64_t r = 0; r < count; ++r) {
      const int64_t number = begin + r;
      rows[r] = locations_ ? compact_row(number) : dense_row(number);
    }
  }

 private:
  bool by_map() const { return locations_ == nullptr || !order_.empty(); }

  Row compact_row(int64_t number) const {
    const int64_t index = order_.empty() ? number : order_[number];
    return {index, decode(locations_[index * stride_])};
  }

  Row dense_row(int64_t number) const {
    const auto next = std::upper_bound(first_of_map_.begin(), first_of_map_.end(), number);
    const int64_t map = next - first_of_map_.begin() - 1, pixel = number - first_of_map_[map];
    Row row{number, {}};
    row.at.level = static_cast<int>(map / conv_.images);
    row.at.image = map % conv_.images;
    row.at.y = pixel / conv_.output_levels[row.at.level].width;
    row.at.x = pixel % conv_.output_levels[row.at.level].width;
    return row;
  }

  Location decode(int64_t location) const {
    return decode_location(location, conv_.output_levels.data(), static_cast<int>(conv_.output_levels.size()),
                           conv_.locations_per_image);
  }

  void read_locations(const ConvolutionArguments& args, bool by_map) {
    locations_ = static_cast<const int64_t*>(args.locations->data_ptr());
    stride_ = args.locations->stride(0);
    const int64_t limit = conv_.images * conv_.locations_per_image;
    std::vector<int64_t> map(by_map ? conv_.rows : 0);
    for (int64_t r = 0; r < conv_.rows; ++r) {
      const int64_t location = locations_[r * stride_];
      if (location < 0 || location >= limit) {
        check(false, args.op, "locations", text("values in [0, ", limit, ")"), text(location, " at ", r));
      }
      if (!by_map) continue;
      const Location at = decode(location);
      map[r] = at.level * conv_.images + at.image;
      ++first_of_map_[map[r] + 1];
    }
    if (!by_map || conv_.rows == 0) return;
    for (size_t m = 1; m < first_of_map_.size(); ++m) first_of_map_[m] += first_of_map_[m - 1];
    order_.resize(conv_.rows);
    std::vector<int64_t> next(first_of_map_.begin(), first_of_map_.end() - 1);
    for (int64_t r = 0; r < conv_.rows; ++r) order_[next[map[r]]++] = r;
  }

  const Convolution& conv_;
  const int64_t* locations_ = nullptr;
  int64_t stride_ = 1;
  std::vector<int64_t> first_of_map_;  // rows of the maps before each
  std::vector<int64_t> order_;         // rows sorted by map, stable; empty: as given
};

// One image's channels [begin, end), where they are not side by side in memory.
template <class T>
struct Planes {
  Planes(const Tensor& level, int64_t image, int64_t begin, int64_t end)
      : data(static_cast<T*>(level.data_ptr()) + image * level.stride(0) + begin * level.stride(1)),
        stride_c(level.stride(1)),
        stride_y(level.stride(2)),
        stride_x(level.stride(3)),
        width(level.size(3)),
        channels(end - begin) {}

  // Visits pieces [first, last) of the pixels [begin, end), numbered y * width + x, that lie side by side in
  // every channel: piece(first, last, the first pixel of channel 0).
  template <class Piece>
  void for_each_piece(int64_t begin, int64_t end, const Piece& piece) const {
    constexpr int64_t kPixels = 512;  // of all channels: what a second-level cache holds
    while (begin < end) {
      const int64_t y = begin / width, x = begin - y * width;
      const bool rows_joined = stride_y == width * stride_x;
      const int64_t last = std::min({end, begin + kPixels, rows_joined ? end : (y + 1) * width});
      piece(begin, last, data + y * stride_y + x * stride_x);
      begin = last;
    }
  }

  T* data;
  int64_t stride_c, stride_y, stride_x, width, channels;
};

template <class T>
class Engine {
 public:
  using Real = ComputeType<T>;

  Engine(const ConvolutionArguments& args, const Convolution& conv)
      : args_(args), conv_(conv), kernels_(convolution_kernels<T>()), zeros_(conv.shape.in_channels) {
    std::fill_n(zeros_.get(), conv.shape.in_channels, T(0));
    if (args.offset_weight)
      offset_weight_ = torch::stable::contiguous(torch::stable::to(*args.offset_weight, compute_dtype<T>()));
  }

  void forward(std::vector<Tensor>& output) {
    const bool transpose = transposition_pays();
    // Sums of reduced precision would be rounded between passes: those take a map's channels whole.
    const auto passes = plan_passes(conv_, sizeof(T), transpose, !reduced_precision(args_.input[0].scalar_type()));
    const Rows rows(args_, conv_, passes.size() > 1);
    const RowMatrix out(output, args_.locations.has_value());
    PassMemory memory;
    for (const PassRange& range : passes) forward_pass(range, transpose, rows, out, memory);
  }

  struct Gradients {
    std::vector<Tensor> input, offset, mask;  // offset, mask: in the arithmetic's dtype
    Tensor weight, offset_weight;
  };

  void backward(const std::vector<Tensor>& grad_output, bool want_input, bool want_weight, Gradients& grads) {
    const bool transpose = transposition_pays();
    const bool grad_scratch = want_input && (!std::is_same_v<T, Real> || !all_channels_contiguous(grads.input));
    const auto passes = plan_passes(conv_, sizeof(Real), transpose || grad_scratch, true);
    const Rows rows(args_, conv_, passes.size() > 1);
    const RowMatrix grad_out(grad_output, args_.locations.has_value());
    PassMemory memory;
    for (const PassRange& range : passes) {
      backward_pass(range, transpose, grad_scratch, want_input, want_weight, rows, grad_out, grads, memory);
    }
  }

 private:
  // Unless channels are side by side already, or the rows read fewer pixels than the maps have. Deformable
  // sampling reads four pixels per tap: there it pays for almost any number of rows.
  bool transposition_pays() const {
    if (all_channels_contiguous(args_.input)) return false;
    int64_t pixels = 0;
    for (const LevelShape& level : conv_.input_levels) pixels += conv_.images * level.height * level.width;
    return conv_.shape.offset_groups > 0 || conv_.rows * conv_.shape.taps() > pixels;
  }

  // What a pass refers to. One pass after the other uses it: freed and allocated anew, it would be there twice,
  // wherever the allocator cannot give the same place again.
  struct PassMemory {
    Scratch<T> input;
    Scratch<Real> packed, grad_input, grad_weight;
  };

  int64_t map_pixels(int64_t map) const {
    const LevelShape& level = conv_.input_levels[map / conv_.images];
    return level.height * level.width;
  }

  Pass<T> prepare(const PassRange& range, bool transpose, bool backward, PassMemory& memory) {
    Pass<T> pass;
    const ConvolutionShape& shape = conv_.shape;
    pass.shape = &shape;
    pass.images = conv_.images;
    pass.channel_begin = range.channel_begin, pass.channel_end = range.channel_end;
    pass.channels_per_group = shape.offset_groups ? shape.channels_per_offset_group() : shape.in_channels;
    pass.group_begin = range.channel_begin / pass.channels_per_group;
    pass.group_end = ceil_div(range.channel_end, pass.channels_per_group);
    pass.zeros = zeros_.get();
    pass.channels_contiguous = transpose || all_channels_contiguous(args_.input);
    if (shape.offset_groups) {
      pass.offset = RowMatrix(args_.offset, args_.locations.has_value());
      pass.mask = RowMatrix(args_.mask, args_.locations.has_value());
      if (args_.offset_weight) {
        pass.offset_weight = static_cast<const Real*>(offset_weight_.data_ptr());
        pass.offset_inputs = offset_weight_.size(1);
      }
    }
    lay_out_blocks(pass);
    pack(pass, backward, memory);
    place_maps(pass, range, transpose, memory);
    return pass;
  }

  void lay_out_blocks(Pass<T>& pass) {
    const int64_t per_group = conv_.shape.in_channels_per_group(), taps = conv_.shape.taps();
    int64_t column = 0;
    for (int64_t c = pass.channel_begin; c < pass.channel_end;) {
      const int64_t group = c / per_group, end = std::min((group + 1) * per_group, pass.channel_end);
      pass.blocks.push_back({group, c, end, column, taps * (end - c), nullptr, nullptr, nullptr});
      column += taps * (end - c);
      c = end;
    }
    pass.columns = ceil_div(column, kernels_.vector_width) * kernels_.vector_width + kernels_.vector_width;
  }

  // Backward needs the adjoint alone: it multiplies gradients, not columns, with the weight.
  void pack(Pass<T>& pass, bool backward, PassMemory& memory) {
    const ConvolutionShape& shape = conv_.shape;
    const int64_t out = shape.out_channels_per_group();
    int64_t size = 0;
    for (const auto& block : pass.blocks) {
      size += backward ? kernels_.packed_size(out, block.depth) : kernels_.packed_size(block.depth, out);
    }
    const T* weight = static_cast<const T*>(args_.weight.data_ptr());
    const int64_t* strides = args_.weight.strides().data();
    memory.packed.reserve(size);
    Real* next = memory.packed.get();
    for (auto& block : pass.blocks) {
      if (backward) {
        block.packed_adjoint = next;
        parallel(out, 8,
                 [&](int64_t b, int64_t e) { kernels_.pack_adjoint(weight, strides, shape, block, b, e, next); });
        next += kernels_.packed_size(out, block.depth);
      } else {
        block.packed = next;
        parallel(ceil_div(out, kernels_.vector_width), 1,
                 [&](int64_t b, int64_t e) { kernels_.pack(weight, strides, shape, block, b, e, next); });
        next += kernels_.packed_size(block.depth, out);
      }
    }
  }

  void place_maps(Pass<T>& pass, const PassRange& range, bool transpose, PassMemory& memory) {
    const int64_t channels = range.channel_end - range.channel_begin;
    pass.maps.resize(conv_.input_levels.size() * conv_.images);
    if (transpose) {
      int64_t pixels = 0;
      for (int64_t m = range.map_begin; m < range.map_end; ++m) pixels += map_pixels(m);
      memory.input.reserve(pixels * channels);
    }
    T* next = memory.input.get();
    for (int64_t m = range.map_begin; m < range.map_end; ++m) {
      const Tensor& level = args_.input[m / conv_.images];
      const int64_t image = m % conv_.images;
      ImageMap<T>& map = pass.maps[m];
      map.height = level.size(2), map.width = level.size(3);
      if (transpose) {
        gather_channels(Planes<T>(level, image, range.channel_begin, range.channel_end), map_pixels(m), next);
        map.data = next;
        map.stride_x = channels, map.stride_y = map.width * channels;
        next += map_pixels(m) * channels;
      } else {
        map.stride_c = level.stride(1), map.stride_y = level.stride(2), map.stride_x = level.stride(3);
        map.data =
            static_cast<const T*>(level.data_ptr()) + image * level.stride(0) + range.channel_begin * map.stride_c;
      }
    }
  }

  // to[pixel * channels + c] for all pixels of the map.
  void gather_channels(const Planes<T>& planes, int64_t pixels, T* to) const {
    const int64_t channels = planes.channels;
    parallel(pixels, 512, [&](int64_t begin, int64_t end) {
      planes.for_each_piece(begin, end, [&](int64_t first, int64_t last, const T* from) {
        T* at = to + first * channels;
        if (planes.stride_x == 1) {
          return kernels_.transpose(from, planes.stride_c, channels, last - first, at, channels);
        }
        for (int64_t i = 0; i < last - first; ++i) {
          for (int64_t c = 0; c < channels; ++c) {
            at[i * channels + c] = from[c * planes.stride_c + i * planes.stride_x];
          }
        }
      });
    });
  }

  // The inverse for the input's gradient.
  void scatter_channels(const Real* from, int64_t pixels, const Planes<T>& planes) const {
    const int64_t channels = planes.channels;
    parallel(pixels, 512, [&](int64_t begin, int64_t end) {
      planes.for_each_piece(begin, end, [&](int64_t first, int64_t last, T* to) {
        const Real* at = from + first * channels;
        if (planes.stride_x == 1) {
          return kernels_.transpose_gradient(at, channels, last - first, channels, to, planes.stride_c);
        }
        for (int64_t i = 0; i < last - first; ++i) {
          for (int64_t c = 0; c < channels; ++c) {
            to[c * planes.stride_c + i * planes.stride_x] = static_cast<T>(at[i * channels + c]);
          }
        }
      });
    });
  }

  // ---- forward ----------------------------------------------------------------------------------

  void forward_pass(const PassRange& range, bool transpose, const Rows& rows, const RowMatrix& out,
                    PassMemory& memory) {
    const Pass<T> pass = prepare(range, transpose, false, memory);
    const int64_t begin = rows.begin(range), count = rows.end(range) - begin;
    // Tiles of nearly the same size, as many for each thread.
    const int64_t share = ceil_div(count, num_threads()), tiles = std::max<int64_t>(1, ceil_div(share, kTileRows));
    const int64_t tile = std::max<int64_t>(1, ceil_div(ceil_div(share, tiles), kMicroRows)) * kMicroRows;
    const int64_t width = kernels_.vector_width;
    const int64_t stride = ceil_div(conv_.shape.out_channels_per_group(), width) * width * conv_.shape.groups;
    const bool first_pass = range.channel_begin == 0;
    const Scratch<Real> initial = initial_sums(stride, first_pass);
    parallel(ceil_div(count, tile), 1, [&](int64_t first, int64_t last) {
      Scratch<Real> columns(tile * pass.columns), sums(tile * stride);
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

  // ---- backward ---------------------------------------------------------------------------------

  void backward_pass(const PassRange& range, bool transpose, bool grad_scratch, bool want_input, bool want_weight,
                     const Rows& rows, const RowMatrix& grad_out, Gradients& grads, PassMemory& memory) {
    Pass<T> pass = prepare(range, transpose, true, memory);
    if (want_input) place_grad_maps(pass, range, grad_scratch, grads.input, memory);
    const int64_t width = kernels_.vector_width;
    const int64_t grad_weight_stride = ceil_div(conv_.shape.out_channels_per_group(), width) * width;
    if (want_weight) {
      int64_t depth = 0;
      for (const auto& block : pass.blocks) depth += block.depth;
      memory.grad_weight.reserve(depth * grad_weight_stride);
      std::fill_n(memory.grad_weight.get(), depth * grad_weight_stride, Real(0));
      Real* next = memory.grad_weight.get();
      for (auto& block : pass.blocks) {
        block.grad_weight = next;
        next += block.depth * grad_weight_stride;
      }
    }

    const int64_t begin = rows.begin(range), end = rows.end(range);
    const int64_t samples = (pass.group_end - pass.group_begin) * conv_.shape.taps();
    const int64_t all_taps = conv_.shape.offset_groups * conv_.shape.taps();
    const int64_t grad_output_stride = conv_.shape.out_channels;
    const int64_t bytes_per_row =
        (2 * pass.columns + 3 * all_taps + pass.offset_inputs + grad_output_stride) * sizeof(Real) +
        samples * sizeof(Sample<Real>);
    const int64_t tile_rows =
        std::max(kMicroRows, std::min(kSuperTileRows, kSuperTileBytes / bytes_per_row / kMicroRows * kMicroRows));
    Scratch<Real> columns(tile_rows * pass.columns), grad_columns(tile_rows * pass.columns);
    // Slack: products read whole vectors past the last row's last channel.
    Scratch<Real> grad_output(tile_rows * grad_output_stride + 64);
    std::fill_n(grad_output.get() + tile_rows * grad_output_stride, 64, Real(0));
    Scratch<Sample<Real>> sample(tile_rows * samples);
    Scratch<Real> grad_offset(tile_rows * 2 * all_taps), grad_mask(tile_rows * all_taps);
    Scratch<Real> offset_inputs(tile_rows * pass.offset_inputs);
    std::vector<Row> row(tile_rows);

    const bool positions = !pass.regular();
    const RowMatrix offset_to(grads.offset, args_.locations.has_value());
    const RowMatrix mask_to(grads.mask, args_.locations.has_value());
    for (int64_t first = begin; first < end; first += tile_rows) {
      const int64_t n = std::min(tile_rows, end - first);
      const BackwardTile<T> tile{row.data(),
                                 n,
                                 columns.get(),
                                 grad_columns.get(),
                                 grad_output.get(),
                                 grad_output_stride,
                                 sample.get(),
                                 positions ? grad_offset.get() : nullptr,
                                 positions ? grad_mask.get() : nullptr};
      parallel(ceil_div(n, kMicroRows), 1, [&](int64_t b, int64_t e) {
        const int64_t r0 = b * kMicroRows, r1 = std::min(n, e * kMicroRows);
        rows.get(first + r0, r1 - r0, row.data() + r0);
        for (int64_t r = r0; r < r1; ++r) {
          grad_out.read(row[r], 0, grad_output_stride, grad_output.get() + r * grad_output_stride);
          if (pass.offset_inputs) {
            pass.offset.read(row[r], 0, pass.offset_inputs, offset_inputs.get() + r * pass.offset_inputs);
          }
        }
        kernels_.backward_rows(pass, tile, r0, r1);
        for (int64_t r = r0; r < r1 && positions; ++r) add_position_gradients(pass, tile, r, offset_to, mask_to);
      });
      if (want_weight) add_weight_gradient(pass, tile, grad_weight_stride);
      if (want_input) add_input_gradient(pass, tile);
      if (pass.offset_inputs) add_offset_weight_gradient(pass, tile, offset_inputs.get(), grads.offset_weight);
    }
    if (want_weight) collect_weight_gradient(pass, grad_weight_stride, grads.weight);
    if (want_input && grad_scratch) collect_input_gradient(pass, range, grads.input);
  }

  void place_grad_maps(Pass<T>& pass, const PassRange& range, bool scratch, std::vector<Tensor>& grad_input,
                       PassMemory& memory) {
    const int64_t channels = range.channel_end - range.channel_begin;
    if (scratch) {
      int64_t pixels = 0;
      for (int64_t m = range.map_begin; m < range.map_end; ++m) pixels += map_pixels(m);
      memory.grad_input.reserve(pixels * channels);
      Real* data = memory.grad_input.get();
      parallel(pixels, 1024,
               [&](int64_t b, int64_t e) { std::fill(data + b * channels, data + e * channels, Real(0)); });
    }
    Real* next = memory.grad_input.get();
    for (int64_t m = range.map_begin; m < range.map_end; ++m) {
      ImageMap<T>& map = pass.maps[m];
      if (scratch) {
        map.grad = next;
        map.grad_stride_x = channels, map.grad_stride_y = map.width * channels;
        next += map_pixels(m) * channels;
      } else {
        Tensor& level = grad_input[m / conv_.images];
        map.grad = static_cast<Real*>(level.data_ptr()) + m % conv_.images * level.stride(0) + range.channel_begin;
        map.grad_stride_y = level.stride(2), map.grad_stride_x = level.stride(3);
      }
    }
  }

  void add_position_gradients(const Pass<T>& pass, const BackwardTile<T>& tile, int64_t r, const RowMatrix& offset_to,
                              const RowMatrix& mask_to) const {
    const int64_t taps = conv_.shape.taps(), all = conv_.shape.offset_groups * taps;
    const int64_t begin = pass.group_begin * taps, end = pass.group_end * taps;
    const Row& row = tile.row[r];
    const Real* grad = tile.grad_offset + r * 2 * all;
    Real* to = reinterpret_cast<Real*>(offset_to.data(row));
    const int64_t stride = offset_to.column_stride(row);
    if (pass.offset_inputs) {
      for (int64_t j = 2 * begin; j < 2 * end; ++j) {
        for (int64_t q = 0; q < pass.offset_inputs; ++q) {
          to[q * stride] += grad[j] * pass.offset_weight[j * pass.offset_inputs + q];
        }
      }
    } else {
      for (int64_t j = 2 * begin; j < 2 * end; ++j) to[j * stride] += grad[j];
    }
    if (mask_to.empty()) return;
    Real* mask = reinterpret_cast<Real*>(mask_to.data(row));
    const int64_t mask_stride = mask_to.column_stride(row);
    for (int64_t j = begin; j < end; ++j) mask[j * mask_stride] += tile.grad_mask[r * all + j];
  }

  void add_weight_gradient(const Pass<T>& pass, const BackwardTile<T>& tile, int64_t stride) const {
    for (const auto& block : pass.blocks) {
      parallel(ceil_div(block.depth, kMicroRows), 4, [&](int64_t b, int64_t e) {
        kernels_.backward_weight(pass, tile, block, b * kMicroRows, std::min(block.depth, e * kMicroRows), stride);
      });
    }
  }

  void add_input_gradient(const Pass<T>& pass, const BackwardTile<T>& tile) const {
    const int64_t channels = pass.channel_end - pass.channel_begin;
    const int64_t share = ceil_div(ceil_div(channels, num_threads()), kChannelMultiple) * kChannelMultiple;
    parallel(ceil_div(channels, share), 1, [&](int64_t b, int64_t e) {
      kernels_.backward_input(pass, tile, pass.channel_begin + b * share,
                              std::min(pass.channel_end, pass.channel_begin + e * share));
    });
  }

  void add_offset_weight_gradient(const Pass<T>& pass, const BackwardTile<T>& tile, const Real* inputs,
                                  const Tensor& grad) const {
    const int64_t per_group = 2 * conv_.shape.taps(), all = conv_.shape.offset_groups * per_group;
    Real* to = static_cast<Real*>(grad.data_ptr());
    for (int64_t j = pass.group_begin * per_group; j < pass.group_end * per_group; ++j) {
      for (int64_t q = 0; q < pass.offset_inputs; ++q) {
        Real total = 0;
        for (int64_t r = 0; r < tile.rows; ++r)
          total += tile.grad_offset[r * all + j] * inputs[r * pass.offset_inputs + q];
        to[j * pass.offset_inputs + q] += total;
      }
    }
  }

  void collect_weight_gradient(const Pass<T>& pass, int64_t stride, const Tensor& grad) const {
    const ConvolutionShape& shape = conv_.shape;
    const int64_t out = shape.out_channels_per_group(), in = shape.in_channels_per_group(), taps = shape.taps();
    Real* to = static_cast<Real*>(grad.data_ptr());
    for (const auto& block : pass.blocks) {
      const int64_t channels = block.end - block.begin;
      parallel(out, 16, [&](int64_t b, int64_t e) {
        for (int64_t o = b; o < e; ++o) {
          Real* row = to + (block.group * out + o) * in * taps;
          for (int64_t c = 0; c < channels; ++c) {
            const int64_t channel = block.begin + c - block.group * in;
            for (int64_t tap = 0; tap < taps; ++tap) {
              row[channel * taps + tap] += block.grad_weight[(tap * channels + c) * stride + o];
            }
          }
        }
      });
    }
  }

  void collect_input_gradient(const Pass<T>& pass, const PassRange& range, std::vector<Tensor>& grad_input) const {
    for (int64_t m = range.map_begin; m < range.map_end; ++m) {
      const Planes<T> planes(grad_input[m / conv_.images], m % conv_.images, range.channel_begin, range.channel_end);
      scatter_channels(pass.maps[m].grad, map_pixels(m), planes);
    }
  }

  const ConvolutionArguments& args_;
  const Convolution& conv_;
  const ConvolutionKernels<T>& kernels_;
  Scratch<T> zeros_;
  Tensor offset_weight_;
};

template <class Visit>
void dispatch(ScalarType dtype, const Visit& visit) {
  switch (dtype) {
    case ScalarType::Double: return visit(double{});
    case ScalarType::BFloat16: return visit(BFloat16{});
    case ScalarType::Half: return visit(Half{});
    default: return visit(float{});
  }
}

std::vector<Tensor> forward(const ConvolutionArguments& args) {
  const Convolution conv = check_convolution(args);
  std::vector<Tensor> output = empty_output(args, conv);
  dispatch(args.input[0].scalar_type(), [&]<class T>(T) { Engine<T>(args, conv).forward(output); });
  return output;
}

ConvolutionGradients backward(const ConvolutionArguments& args, const std::vector<Tensor>& grad_output, bool want_input,
                              bool want_weight) {
  const Convolution conv = check_convolution(args);
  check_grad_output(args, conv, grad_output);
  const Tensor& like = args.input[0];
  ConvolutionGradients result;
  dispatch(like.scalar_type(), [&]<class T>(T) {
    typename Engine<T>::Gradients grads;
    const auto zeros = [&](const Tensor& shape_of, ScalarType dtype) {
      return torch::stable::new_zeros(shape_of, shape_of.sizes(), dtype);
    };
    for (const Tensor& map : args.input) {
      // A zero-size or overlapping input still gets a gradient of its own shape, in its own layout.
      Tensor grad = empty_map(map, std::vector<int64_t>(map.sizes().begin(), map.sizes().end()));
      grads.input.push_back(torch::stable::zero_(grad));
    }
    for (const Tensor& offset : args.offset) grads.offset.push_back(zeros(offset, compute_dtype<T>()));
    for (const Tensor& mask : args.mask) grads.mask.push_back(zeros(mask, compute_dtype<T>()));
    grads.weight = zeros(args.weight, compute_dtype<T>());
    grads.offset_weight =
        args.offset_weight ? zeros(*args.offset_weight, compute_dtype<T>()) : torch::stable::new_empty(like, {0});
    Engine<T>(args, conv).backward(grad_output, want_input, want_weight, grads);

    const auto as = [](const Tensor& grad, const Tensor& like) {
      return grad.scalar_type() == like.scalar_type() ? grad : torch::stable::to(grad, like.scalar_type());
    };
    for (size_t i = 0; i < args.offset.size(); ++i) grads.offset[i] = as(grads.offset[i], args.offset[i]);
    for (size_t i = 0; i < args.mask.size(); ++i) grads.mask[i] = as(grads.mask[i], args.mask[i]);
    if (args.offset_weight) grads.offset_weight = as(grads.offset_weight, *args.offset_weight);
    result = {grads.input, grads.offset, as(grads.weight, args.weight), grads.mask, grads.offset_weight};
  });
  return result;
}

}  // namespace
}  // namespace ga_scope::cpu

STABLE_TORCH_LIBRARY_IMPL(ga_scope, CPU, m) {
  using namespace ga_scope;
  ConvolutionOperators<cpu::forward, cpu::backward>::implement(m);
}
