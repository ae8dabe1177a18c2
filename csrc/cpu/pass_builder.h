// Builds a pass: lays out its columns, packs the weight and places the maps.
#pragma once

#include "../convolution.h"
#include "planes.h"
#include "rows.h"

namespace ga_scope::cpu {

// What passes refer to. One after the other uses it: freed and allocated anew, it would be there twice, wherever the
// allocator cannot give the same place again.
template <class T>
struct PassMemory {
  Scratch<T> input;
  Scratch<std::byte> packed;
  Scratch<ComputeType<T>> grad_input, weight_sums;
};

inline int64_t map_pixels(const Convolution& conv, int64_t map) {
  const LevelShape& level = conv.input_levels[map / conv.images];
  return level.height * level.width;
}

inline int64_t pixels_of(const Convolution& conv, const PassRange& range) {
  int64_t pixels = 0;
  for (int64_t m = range.map_begin; m < range.map_end; ++m) pixels += map_pixels(conv, m);
  return pixels;
}

template <class T>
class PassBuilder {
 public:
  using Real = ComputeType<T>;

  PassBuilder(const ConvolutionArguments& args, const Convolution& conv)
      : args_(args), conv_(conv), kernels_(convolution_kernels<T>()), zeros_(conv.shape.in_channels) {
    std::fill_n(zeros_.get(), conv.shape.in_channels, T(0));
    if (args.offset_weight) {
      offset_weight_ = torch::stable::contiguous(torch::stable::to(*args.offset_weight, compute_dtype<T>()));
    }
  }

  // transpose: the input is copied to scratch memory with the channels of a pixel side by side.
  Pass<T> build(const PassRange& range, bool transpose, bool backward, PassMemory<T>& memory) const {
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
    backward ? pack_adjoint(pass, memory) : pack(pass, memory);
    place_maps(pass, range, transpose, memory);
    return pass;
  }

 private:
  void lay_out_blocks(Pass<T>& pass) const {
    const int64_t per_group = conv_.shape.in_channels_per_group(), taps = conv_.shape.taps();
    const OperandLayout<T>& layout = kernels_.layout;
    int64_t column = 0, sums = 0;
    for (int64_t c = pass.channel_begin; c < pass.channel_end;) {
      const int64_t group = c / per_group, end = std::min((group + 1) * per_group, pass.channel_end);
      const int64_t depth = taps * (end - c);
      pass.blocks.push_back({group, c, end, column, depth, nullptr, sums});
      column += ceil_div(depth, layout.depth_multiple) * layout.depth_multiple;
      sums += layout.weight_sums(depth, conv_.shape.out_channels_per_group());
      c = end;
    }
    pass.columns = layout.columns(column);
    pass.weight_sums = sums;
  }

  void pack(Pass<T>& pass, PassMemory<T>& memory) const {
    const int64_t out = conv_.shape.out_channels_per_group();
    const T* weight = static_cast<const T*>(args_.weight.data_ptr());
    const int64_t* strides = args_.weight.strides().data();
    std::byte* next = reserve_packed(pass, kernels_.layout.packed, memory);
    for (ChannelBlock& block : pass.blocks) {
      block.packed = next;
      parallel(ceil_div(out, kernels_.layout.vector_width), 1,
               [&](int64_t b, int64_t e) { kernels_.pack(weight, strides, conv_.shape, block, b, e, next); });
      next += kernels_.layout.packed(block.depth, out);
    }
  }

  void pack_adjoint(Pass<T>& pass, PassMemory<T>& memory) const {
    const int64_t out = conv_.shape.out_channels_per_group();
    const T* weight = static_cast<const T*>(args_.weight.data_ptr());
    const int64_t* strides = args_.weight.strides().data();
    std::byte* next = reserve_packed(pass, kernels_.layout.packed_adjoint, memory);
    for (ChannelBlock& block : pass.blocks) {
      block.packed = next;
      parallel(ceil_div(out, kOutMultiple), 1, [&](int64_t b, int64_t e) {
        kernels_.pack_adjoint(weight, strides, conv_.shape, block, b * kOutMultiple, std::min(out, e * kOutMultiple),
                              next);
      });
      next += kernels_.layout.packed_adjoint(block.depth, out);
    }
  }

  std::byte* reserve_packed(const Pass<T>& pass, int64_t (*bytes)(int64_t, int64_t), PassMemory<T>& memory) const {
    int64_t size = 0;
    for (const ChannelBlock& block : pass.blocks) size += bytes(block.depth, conv_.shape.out_channels_per_group());
    memory.packed.reserve(size);
    return memory.packed.get();
  }

  void place_maps(Pass<T>& pass, const PassRange& range, bool transpose, PassMemory<T>& memory) const {
    const int64_t channels = range.channel_end - range.channel_begin;
    pass.maps.resize(conv_.input_levels.size() * conv_.images);
    if (transpose) memory.input.reserve(pixels_of(conv_, range) * channels);
    T* next = memory.input.get();
    int64_t line = 0;
    for (int64_t m = range.map_begin; m < range.map_end; ++m) {
      const Tensor& level = args_.input[m / conv_.images];
      const int64_t image = m % conv_.images;
      ImageMap<T>& map = pass.maps[m];
      map.height = level.size(2), map.width = level.size(3);
      map.first_line = line;
      line += map.height;
      if (transpose) {
        gather_channels(Planes<T>(level, image, range.channel_begin, range.channel_end), map_pixels(conv_, m), next);
        map.data = next;
        map.stride_x = channels, map.stride_y = map.width * channels;
        next += map_pixels(conv_, m) * channels;
      } else {
        map.stride_c = level.stride(1), map.stride_y = level.stride(2), map.stride_x = level.stride(3);
        map.data =
            static_cast<const T*>(level.data_ptr()) + image * level.stride(0) + range.channel_begin * map.stride_c;
      }
    }
    pass.lines = line;
  }

  static constexpr int64_t kOutMultiple = 2;  // kernels may keep pairs of output channels side by side

  const ConvolutionArguments& args_;
  const Convolution& conv_;
  const ConvolutionKernels<T>& kernels_;
  Scratch<T> zeros_;
  Tensor offset_weight_;
};

}  // namespace ga_scope::cpu
