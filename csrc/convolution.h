// What a sparse or deformable convolution is, checked: shapes, levels, and where each argument's numbers lie.
// Shared by the CPU and CUDA launchers.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "check.h"
#include "host_device.h"
#include "location.h"

namespace ga_scope {

struct ConvolutionShape {
  int64_t in_channels, out_channels;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t padding_h, padding_w;
  int64_t dilation_h, dilation_w;
  int64_t groups;
  int64_t offset_groups;  // 0: the regular grid, no offsets

  GA_HOST_DEVICE int64_t taps() const { return kernel_h * kernel_w; }
  GA_HOST_DEVICE int64_t in_channels_per_group() const { return in_channels / groups; }
  GA_HOST_DEVICE int64_t out_channels_per_group() const { return out_channels / groups; }
  GA_HOST_DEVICE int64_t channels_per_offset_group() const { return in_channels / offset_groups; }
  GA_HOST_DEVICE int64_t offsets_per_location() const { return 2 * offset_groups * taps(); }
  // Channels that sample the same places: an offset group, or, on the regular grid, all of them.
  GA_HOST_DEVICE int64_t sampling_groups() const { return offset_groups ? offset_groups : 1; }
  GA_HOST_DEVICE int64_t channels_per_sampling_group() const { return in_channels / sampling_groups(); }
};

// The arguments of masked_conv2d (offset empty, locations given) and deform_conv2d.
struct ConvolutionArguments {
  const char* op;
  std::vector<Tensor> input;            // per level (N, C_in, H_l, W_l)
  std::vector<Tensor> offset;           // dense: per level (N, R, H_out, W_out); with locations: one (L, R)
  std::vector<Tensor> mask;             // like offset with offset_groups * taps columns; or empty
  Tensor weight;                        // (C_out, C_in / groups, kernel_h, kernel_w)
  std::optional<Tensor> bias;           // (C_out,)
  std::optional<Tensor> offset_weight;  // (2 * offset_groups * taps, R); absent: R is that many itself
  std::optional<Tensor> locations;      // (L,) int64
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups, offset_groups = 0;
  bool allow_tf32 = false;     // CUDA: float32 products may round to tf32
  bool deterministic = false;  // CUDA: backward; the CPU's is always
};

// An output or gradient map, channels_last if `like` has its channels side by side.
Tensor empty_map(const Tensor& like, const std::vector<int64_t>& size);

// The tensors that forward fills: one (L, C_out) at locations, otherwise one map per level.
std::vector<Tensor> empty_output(const ConvolutionArguments& args, const struct Convolution& conv);

struct Convolution {
  ConvolutionShape shape;
  std::vector<LevelShape> input_levels;   // the input maps' sizes
  std::vector<LevelShape> output_levels;  // the index space of locations
  int64_t images;
  int64_t locations_per_image;
  int64_t rows;  // locations computed: L, or all

  bool empty() const { return rows == 0 || shape.out_channels == 0; }
};

// Gradients of input, offset, weight, mask and offset_weight. Those of input and weight are zero if not wanted.
using ConvolutionGradients = std::tuple<std::vector<Tensor>, std::vector<Tensor>, Tensor, std::vector<Tensor>, Tensor>;

// Of a convolution without output.
ConvolutionGradients zero_gradients(const ConvolutionArguments& args);

// Checks every argument and derives the shapes. Raises before anything is read.
Convolution check_convolution(const ConvolutionArguments& args);

// The shapes that a gradient of the output must have.
void check_grad_output(const ConvolutionArguments& args, const Convolution& conv,
                       const std::vector<Tensor>& grad_output);

}  // namespace ga_scope
