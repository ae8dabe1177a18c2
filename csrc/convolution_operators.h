// The operators' signatures (ops.cpp), made of one forward and one backward function per back end.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include "convolution.h"

namespace ga_scope {

// What a back end supplies, for arguments that are checked and at least one number of output:
// Forward: (const ConvolutionArguments&, const Convolution&, std::vector<Tensor>& output), which it fills.
// Backward: (const ConvolutionArguments&, const Convolution&, grad_output, want_input, want_weight)
//           -> ConvolutionGradients.
template <auto Forward, auto Backward>
struct ConvolutionOperators {
  using Tensors = std::vector<Tensor>;
  using OptionalTensors = std::optional<Tensors>;
  using Sizes = std::vector<int64_t>;

  static Tensors forward(const ConvolutionArguments& args) {
    const Convolution conv = check_convolution(args);
    Tensors output = empty_output(args, conv);
    if (!conv.empty()) Forward(args, conv, output);
    return output;
  }

  static ConvolutionGradients backward(const ConvolutionArguments& args, const Tensors& grad_output, bool want_input,
                                       bool want_weight) {
    const Convolution conv = check_convolution(args);
    check_grad_output(args, conv, grad_output);
    if (conv.empty()) return zero_gradients(args);
    return Backward(args, conv, grad_output, want_input, want_weight);
  }

  static Tensors deform_conv2d(Tensors input, Tensors offset, Tensor weight, std::optional<Tensor> bias,
                               OptionalTensors mask, std::optional<Tensor> offset_weight,
                               std::optional<Tensor> locations, Sizes stride, Sizes padding, Sizes dilation,
                               int64_t groups, int64_t offset_groups, bool allow_tf32) {
    check(offset_groups >= 1, "deform_conv2d", "offset_groups", "at least 1", offset_groups);
    return forward(ConvolutionArguments{.op = "deform_conv2d",
                                        .input = input,
                                        .offset = offset,
                                        .mask = mask.value_or(Tensors{}),
                                        .weight = weight,
                                        .bias = bias,
                                        .offset_weight = offset_weight,
                                        .locations = locations,
                                        .stride = stride,
                                        .padding = padding,
                                        .dilation = dilation,
                                        .groups = groups,
                                        .offset_groups = offset_groups,
                                        .allow_tf32 = allow_tf32});
  }

  static ConvolutionGradients deform_conv2d_backward(Tensors grad_output, Tensors input, Tensors offset, Tensor weight,
                                                     OptionalTensors mask, std::optional<Tensor> offset_weight,
                                                     std::optional<Tensor> locations, Sizes stride, Sizes padding,
                                                     Sizes dilation, int64_t groups, int64_t offset_groups,
                                                     bool want_input, bool want_weight, bool deterministic) {
    check(offset_groups >= 1, "deform_conv2d_backward", "offset_groups", "at least 1", offset_groups);
    return backward(ConvolutionArguments{.op = "deform_conv2d_backward",
                                         .input = input,
                                         .offset = offset,
                                         .mask = mask.value_or(Tensors{}),
                                         .weight = weight,
                                         .offset_weight = offset_weight,
                                         .locations = locations,
                                         .stride = stride,
                                         .padding = padding,
                                         .dilation = dilation,
                                         .groups = groups,
                                         .offset_groups = offset_groups,
                                         .deterministic = deterministic},
                    grad_output, want_input, want_weight);
  }

  static Tensor masked_conv2d(Tensors input, Tensor weight, std::optional<Tensor> bias, Tensor locations, Sizes stride,
                              Sizes padding, Sizes dilation, int64_t groups, bool allow_tf32) {
    return forward(ConvolutionArguments{.op = "masked_conv2d",
                                        .input = input,
                                        .weight = weight,
                                        .bias = bias,
                                        .locations = locations,
                                        .stride = stride,
                                        .padding = padding,
                                        .dilation = dilation,
                                        .groups = groups,
                                        .allow_tf32 = allow_tf32})[0];
  }

  static std::tuple<Tensors, Tensor> masked_conv2d_backward(Tensor grad_output, Tensors input, Tensor weight,
                                                            Tensor locations, Sizes stride, Sizes padding,
                                                            Sizes dilation, int64_t groups, bool want_input,
                                                            bool want_weight, bool deterministic) {
    const ConvolutionGradients all = backward(ConvolutionArguments{.op = "masked_conv2d_backward",
                                                                   .input = input,
                                                                   .weight = weight,
                                                                   .locations = locations,
                                                                   .stride = stride,
                                                                   .padding = padding,
                                                                   .dilation = dilation,
                                                                   .groups = groups,
                                                                   .deterministic = deterministic},
                                              Tensors{grad_output}, want_input, want_weight);
    return {std::get<0>(all), std::get<2>(all)};
  }

  template <class Library>
  static void implement(Library& library) {
    library.impl("deform_conv2d", TORCH_BOX(&deform_conv2d));
    library.impl("deform_conv2d_backward", TORCH_BOX(&deform_conv2d_backward));
    library.impl("masked_conv2d", TORCH_BOX(&masked_conv2d));
    library.impl("masked_conv2d_backward", TORCH_BOX(&masked_conv2d_backward));
  }
};

}  // namespace ga_scope
