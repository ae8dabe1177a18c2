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
};

// The channels [begin, end) of one convolution group within a pass. Its columns in a row of gathered
// input are ordered (tap, channel): the channels of a tap are contiguous, as they are in memory.
template <class Real>
struct ChannelBlock {
  int64_t group, begin, end;
  int64_t column;              // of the row, where the block starts
  int64_t depth;               // taps * (end - begin)
  const Real* packed;          // weight as (depth x C_out / groups), in panels
  const Real* packed_adjoint;  // weight as (C_out / groups x depth), in panels; backward
  Real* grad_weight;           // (depth x grad_weight_stride) sums; backward
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
  std::vector<ChannelBlock<Real>> blocks;
  int64_t columns;           // per row, padding included
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

// The buffers of a super-tile of the backward pass: `rows` rows that share them.
template <class T>
struct BackwardTile {
  using Real = ComputeType<T>;
  const Row* row;
  int64_t rows;
  Real* columns;            // (rows x pass.columns) gathered input, for the weight's gradient
  Real* grad_columns;       // (rows x pass.columns)
  const Real* grad_output;  // (rows x grad_output_stride)
  int64_t grad_output_stride;
  Sample<Real>* samples;  // (rows x sampling groups of the pass x taps); pixels are those of the map's grad
  Real* grad_offset;      // (rows x 2 * offset_groups * taps), this pass's part; or null
  Real* grad_mask;        // (rows x offset_groups * taps), this pass's part; or null
};

// The kernels that are compiled once per instruction set.
template <class T>
struct ConvolutionKernels {
  using Real = ComputeType<T>;
  int64_t vector_width;
  // Elements that a packed (depth x columns) matrix takes.
  int64_t (*packed_size)(int64_t depth, int64_t columns);
  // A block's weight into panels, from the tensor's strides: vectors [begin, end) of output channels (pack), output
  // channels [begin, end) (pack_adjoint).
  void (*pack)(const T* weight, const int64_t* strides, const ConvolutionShape& shape, const ChannelBlock<Real>& block,
               int64_t begin, int64_t end, Real* packed);
  void (*pack_adjoint)(const T* weight, const int64_t* strides, const ConvolutionShape& shape,
                       const ChannelBlock<Real>& block, int64_t begin, int64_t end, Real* packed);
  // to[j * to_stride + i] = from[i * from_stride + j] for i < rows, j < columns; and back, rounded to T.
  void (*transpose)(const T* from, int64_t from_stride, int64_t rows, int64_t columns, T* to, int64_t to_stride);
  void (*transpose_gradient)(const Real* from, int64_t from_stride, int64_t rows, int64_t columns, T* to,
                             int64_t to_stride);
  // Sums (count x stride) += the pass's part of the convolution at the rows. columns: scratch (count x pass.columns).
  void (*forward)(const Pass<T>& pass, const Row* rows, int64_t count, Real* columns, Real* sums, int64_t stride);
  // Fills columns, grad_columns, samples and the position gradients of the tile's rows [begin, end).
  void (*backward_rows)(const Pass<T>& pass, const BackwardTile<T>& tile, int64_t begin, int64_t end);
  // Adds the tile to the depth rows [begin, end) of a block's grad_weight.
  void (*backward_weight)(const Pass<T>& pass, const BackwardTile<T>& tile, const ChannelBlock<Real>& block,
                          int64_t begin, int64_t end, int64_t grad_weight_stride);
  // Adds the tile to the maps' gradient at channels [begin, end).
  void (*backward_input)(const Pass<T>& pass, const BackwardTile<T>& tile, int64_t begin, int64_t end);
};

// The fastest set that this processor runs.
template <class T>
const ConvolutionKernels<T>& convolution_kernels();

}  // namespace ga_scope::cpu
