// What the tile kernels of one pass see. A pass covers a range of input channels of a set of image maps
// (convolution.cpp says why there can be several).
#pragma once

#include <cstdint>
#include <vector>

#include "../compute_type.h"
#include "../convolution.h"

namespace ga_scope::cpu {

// A location to compute, and its row in compact arrays.
struct Row {
  int64_t index;
  Location at;
};

// Numbers per location: compact (rows, columns), or dense maps (N, columns, H, W) per level, in any strides.
class RowMatrix {
 public:
  RowMatrix() = default;
  RowMatrix(const std::vector<Tensor>& tensors, bool compact) : compact_(compact) {
    for (const Tensor& tensor : tensors) {
      const auto stride = tensor.strides();
      if (compact) {
        levels_.push_back({static_cast<char*>(tensor.data_ptr()), stride[0], stride[1], 0, 0});
      } else {
        levels_.push_back({static_cast<char*>(tensor.data_ptr()), stride[0], stride[1], stride[2], stride[3]});
      }
      dtype_ = tensor.scalar_type();
      element_size_ = static_cast<int64_t>(tensor.element_size());
    }
  }

  bool empty() const { return levels_.empty(); }
  bool compact() const { return compact_; }

  // The row's number in column 0, and the distance in elements from one column to the next.
  char* data(const Row& row) const {
    if (compact_) return levels_[0].data + row.index * levels_[0].outer * element_size_;
    const Strided& level = levels_[row.at.level];
    return level.data + (row.at.image * level.outer + row.at.y * level.y + row.at.x * level.x) * element_size_;
  }
  int64_t column_stride(const Row& row) const { return levels_[compact_ ? 0 : row.at.level].column; }
  // Dense maps only: elements from a location to its right neighbour.
  int64_t x_stride(const Row& row) const { return levels_[row.at.level].x; }

  template <class Real>
  void read(const Row& row, int64_t begin, int64_t count, Real* to) const {
    const int64_t stride = column_stride(row);
    switch (dtype_) {
      case ScalarType::Double: return copy<Real>(reinterpret_cast<const double*>(data(row)), stride, begin, count, to);
      case ScalarType::BFloat16:
        return copy<Real>(reinterpret_cast<const BFloat16*>(data(row)), stride, begin, count, to);
      case ScalarType::Half: return copy<Real>(reinterpret_cast<const Half*>(data(row)), stride, begin, count, to);
      default: return copy<Real>(reinterpret_cast<const float*>(data(row)), stride, begin, count, to);
    }
  }

 private:
  struct Strided {
    char* data;
    int64_t outer, column, y, x;  // outer: the row's stride, or the image's
  };

  template <class Real, class Stored>
  static void copy(const Stored* from, int64_t stride, int64_t begin, int64_t count, Real* to) {
    from += begin * stride;
    for (int64_t j = 0; j < count; ++j) to[j] = static_cast<Real>(from[j * stride]);
  }

  std::vector<Strided> levels_;
  ScalarType dtype_ = ScalarType::Float;
  int64_t element_size_ = 4;
  bool compact_ = true;
};

// One image of one level; `data` is its pixel (0, 0) at the pass's first channel.
template <class T>
struct ImageMap {
  const T* data = nullptr;
  int64_t stride_c = 1, stride_y = 0, stride_x = 0;  // stride_c: 1 where the pass has channels_contiguous
  ComputeType<T>* grad = nullptr;                    // backward: where the input's gradient is summed
  int64_t grad_stride_y = 0, grad_stride_x = 0;
  int64_t height = 0, width = 0;
  int64_t first_line = 0;  // lines of the pass's maps before this one
};

// The channels [begin, end) of one convolution group within a pass. Its columns in a row of gathered
// input are ordered (tap, channel): the channels of a tap are contiguous, as they are in memory.
struct ChannelBlock {
  int64_t group, begin, end;
  int64_t column;       // of the row, where the block starts
  int64_t depth;        // taps * (end - begin)
  const void* packed;   // forward: weight as (depth x C_out / groups); backward: its transpose. In panels
  int64_t weight_sums;  // backward: where the block's part of the weight's gradient starts
};

template <class T>
struct Pass {
  using Real = ComputeType<T>;
  const ConvolutionShape* shape;
  int64_t images;
  std::vector<ImageMap<T>> maps;  // at level * images + image
  int64_t channel_begin, channel_end;
  // Channels that sample the same places form a group: an offset group, or, on the regular grid, all channels.
  int64_t group_begin, group_end, channels_per_group;
  std::vector<ChannelBlock> blocks;
  int64_t columns;           // per row, padding included
  int64_t weight_sums;       // backward: of all blocks
  int64_t lines;             // of all maps
  const T* zeros;            // channel_end - channel_begin of them, read where a tap is off the map
  bool channels_contiguous;  // in all maps

  RowMatrix offset, mask;
  const Real* offset_weight = nullptr;  // (2 * offset_groups * taps, offset_inputs), or null
  int64_t offset_inputs = 0;

  const ImageMap<T>& map(const Row& row) const { return maps[row.at.level * images + row.at.image]; }
  bool regular() const { return shape->offset_groups == 0; }
};

// Where a tap's value comes from: elements from the map's `data`, or -1 off the map; weights include modulation.
template <class Real>
struct Sample {
  int64_t pixel[4];
  Real weight[4];
};

// The lines of the pass's maps (rows of pixels, those of all maps numbered one after the other) that samples touch.
struct LineSpan {
  int64_t first = INT64_MAX, last = -1;

  void include(int64_t line) {
    first = line < first ? line : first;
    last = line > last ? line : last;
  }
  bool meets(int64_t begin, int64_t end) const { return first < end && last >= begin; }
};

// The buffers of a super-tile of the backward pass: `rows` rows that share them. How the operands of its products lie
// in memory, columns and the output's gradient, is the kernels' own business.
template <class T>
struct BackwardTile {
  using Real = ComputeType<T>;
  const Row* row;
  int64_t rows;
  void* columns;       // gathered input, for the weight's gradient
  Real* grad_columns;  // (rows x pass.columns)
  void* grad_output;
  int64_t room;           // rows that grad_output has room for
  Sample<Real>* samples;  // (rows x sampling groups of the pass x taps); pixels are those of the map's grad
  LineSpan* spans;        // (rows x sampling groups of the pass)
  Real* grad_offset;      // (rows x 2 * offset_groups * taps), this pass's part; or null
  Real* grad_mask;        // (rows x offset_groups * taps), this pass's part; or null
};

// A part of the input's gradient.
struct InputPart {
  int64_t channel_begin, channel_end;
  int64_t line_begin, line_end;
};

// How operands of a product are stored, and how many of them. `out`: output channels of a group.
template <class T>
struct OperandLayout {
  int64_t vector_width;     // `out` is padded to it in the sums
  int64_t micro_rows;       // rows that a product takes together: tiles are multiples
  int64_t tile_rows;        // of a forward tile
  int64_t super_tile_rows;  // of a backward super-tile, for two threads
  int64_t column_bytes;     // of a number in columns
  int64_t depth_multiple;   // a block takes a multiple of so many columns
  // Of a row: columns, with room for what products read and write past the last block.
  int64_t (*columns)(int64_t used);
  // Bytes of a packed block, forward; and of its transpose, backward.
  int64_t (*packed)(int64_t depth, int64_t out);
  int64_t (*packed_adjoint)(int64_t depth, int64_t out);
  // Bytes of the output's gradient at the rows of a super-tile.
  int64_t (*grad_output)(int64_t rows, const ConvolutionShape& shape);
  // The sums of a block's part of the weight's gradient, and into how many units they can be cut.
  int64_t (*weight_sums)(int64_t depth, int64_t out);
  int64_t (*weight_units)(int64_t depth, int64_t out);
};

// The kernels that are compiled once per instruction set.
template <class T>
struct ConvolutionKernels {
  using Real = ComputeType<T>;
  OperandLayout<T> layout;
  // A block's weight into its packed form, from the tensor's strides: vectors [begin, end) of output channels (pack),
  // output channels [begin, end) (pack_adjoint).
  void (*pack)(const T* weight, const int64_t* strides, const ConvolutionShape& shape, const ChannelBlock& block,
               int64_t begin, int64_t end, void* packed);
  void (*pack_adjoint)(const T* weight, const int64_t* strides, const ConvolutionShape& shape,
                       const ChannelBlock& block, int64_t begin, int64_t end, void* packed);
  // to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < columns; and back, rounded to T.
  void (*transpose)(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_stride);
  void (*transpose_gradient)(const Real* from, int64_t from_stride, int64_t rows, int64_t columns, T* to,
                             int64_t to_stride);
  // Sums (count x stride) += the pass's part of the convolution at the rows. columns: scratch, count rows of them.
  void (*forward)(const Pass<T>& pass, const Row* rows, int64_t count, void* columns, Real* sums, int64_t stride);
  // Fills the tile's rows [begin, end): columns, grad_columns, grad_output, samples and the position gradients.
  void (*backward_rows)(const Pass<T>& pass, const BackwardTile<T>& tile, const RowMatrix& grad_output, int64_t begin,
                        int64_t end);
  // Adds the tile to the units [begin, end) of a block's weight_sums; and then adds those sums of output channels
  // [begin, end) of the group to the gradient (C_out, C_in / groups, taps).
  void (*backward_weight)(const Pass<T>& pass, const BackwardTile<T>& tile, const ChannelBlock& block, int64_t begin,
                          int64_t end, Real* weight_sums);
  void (*collect_weight)(const ConvolutionShape& shape, const ChannelBlock& block, const Real* weight_sums,
                         int64_t begin, int64_t end, Real* grad_weight);
  // Adds the tile to a part of the maps' gradient.
  void (*backward_input)(const Pass<T>& pass, const BackwardTile<T>& tile, const InputPart& part);
};

// The fastest set that this processor runs.
template <class T>
const ConvolutionKernels<T>& convolution_kernels();

}  // namespace ga_scope::cpu
