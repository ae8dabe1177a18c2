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
//   plan.h      into which passes a call is cut            rows.h          the rows of a pass
//   planes.h    transposition                              pass_builder.h  weight, columns and maps of a pass
//   convolution_forward.h, convolution_backward.h          *.inl           the kernels, per instruction set

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../convolution_operators.h"
#include "convolution_backward.h"
#include "convolution_forward.h"

namespace ga_scope::cpu {
namespace {

void forward(const ConvolutionArguments& args, const Convolution& conv, std::vector<Tensor>& output) {
  visit_dtype(args.input[0].scalar_type(), [&]<class T>(T) { Forward<T>(args, conv).run(output); });
}

// Sums of positions and weight are in the arithmetic's dtype until all are added.
template <class T>
typename Backward<T>::Gradients zero_sums(const ConvolutionArguments& args) {
  typename Backward<T>::Gradients sums;
  const auto zeros = [](const Tensor& like) {
    return torch::stable::new_zeros(like, like.sizes(), compute_dtype<T>());
  };
  for (const Tensor& map : args.input) {
    // A zero-size or overlapping input still gets a gradient of its own shape, in its own layout.
    Tensor grad = empty_map(map, std::vector<int64_t>(map.sizes().begin(), map.sizes().end()));
    sums.input.push_back(torch::stable::zero_(grad));
  }
  for (const Tensor& offset : args.offset) sums.offset.push_back(zeros(offset));
  for (const Tensor& mask : args.mask) sums.mask.push_back(zeros(mask));
  sums.weight = zeros(args.weight);
  sums.offset_weight = args.offset_weight ? zeros(*args.offset_weight) : torch::stable::new_empty(args.input[0], {0});
  return sums;
}

ConvolutionGradients backward(const ConvolutionArguments& args, const Convolution& conv,
                              const std::vector<Tensor>& grad_output, bool want_input, bool want_weight) {
  ConvolutionGradients result;
  visit_dtype(args.input[0].scalar_type(), [&]<class T>(T) {
    auto grads = zero_sums<T>(args);
    Backward<T>(args, conv, grad_output, want_input, want_weight, grads).run();
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
