#include "convolution.h"

#include <torch/csrc/stable/ops.h>

namespace ga_scope {
namespace {

void check_pair(const char* op, const char* name, const std::vector<int64_t>& pair, int64_t least) {
  constexpr int64_t kMost = int64_t(1) << 30;  // keeps every sum and product below from overflowing
  const bool ok = pair.size() == 2 && pair[0] >= least && pair[1] >= least && pair[0] <= kMost && pair[1] <= kMost;
  if (!ok) check(false, op, name, text("two integers from ", least, " to 2^30"), list_text(pair));
}

bool is_floating(ScalarType dtype) {
  return dtype == ScalarType::Float || dtype == ScalarType::Double || dtype == ScalarType::BFloat16 ||
         dtype == ScalarType::Half;
}

// Offsets and modulation may stay float32 beside a bfloat16 or float16 input: positions need the bits.
void check_position_dtype(const char* op, const char* name, const Tensor& tensor, const Tensor& input) {
  const ScalarType dtype = tensor.scalar_type();
  const bool reduced = input.scalar_type() == ScalarType::BFloat16 || input.scalar_type() == ScalarType::Half;
  if (dtype == input.scalar_type() || (reduced && dtype == ScalarType::Float)) return;
  check(false, op, name, text("dtype ", torch::headeronly::toString(input.scalar_type()), reduced ? " or Float" : ""),
        torch::headeronly::toString(dtype));
}

// `columns` numbers per location, either dense per level or compact.
void check_per_location(const ConvolutionArguments& args, const Convolution& conv, const char* name,
                        const std::vector<Tensor>& tensors, int64_t columns) {
  const size_t count = args.locations ? 1 : args.input.size();
  if (tensors.size() != count) {
    check(false, args.op, name,
          text(count, args.locations ? " tensor (locations are given)" : " tensors, one per level"),
          text(tensors.size(), " tensors"));
  }
  for (size_t l = 0; l < count; ++l) {
    if (args.locations) {
      check_shape(args.op, name, tensors[l], {conv.rows, columns});
    } else {
      check_shape(args.op, name, tensors[l],
                  {conv.images, columns, conv.output_levels[l].height, conv.output_levels[l].width});
    }
    check_same_device(args.op, name, tensors[l], args.input[0]);
  }
}

}  // namespace

Convolution check_convolution(const ConvolutionArguments& args) {
  const char* op = args.op;
  Convolution conv{};
  ConvolutionShape& shape = conv.shape;
  check(!args.input.empty(), op, "input", "at least one map", "none");
  check_pair(op, "stride", args.stride, 1);
  check_pair(op, "padding", args.padding, 0);
  check_pair(op, "dilation", args.dilation, 1);
  check(args.groups >= 1, op, "groups", "at least 1", args.groups);
  check_dim(op, "weight", args.weight, 4);

  const Tensor& first = args.input[0];
  check_dim(op, "input", first, 4);
  if (!is_floating(first.scalar_type())) {
    check(false, op, "input", "a floating-point dtype", torch::headeronly::toString(first.scalar_type()));
  }
  shape.in_channels = first.size(1);
  shape.out_channels = args.weight.size(0);
  shape.kernel_h = args.weight.size(2);
  shape.kernel_w = args.weight.size(3);
  shape.stride_h = args.stride[0], shape.stride_w = args.stride[1];
  shape.padding_h = args.padding[0], shape.padding_w = args.padding[1];
  shape.dilation_h = args.dilation[0], shape.dilation_w = args.dilation[1];
  shape.groups = args.groups;
  shape.offset_groups = args.offset_groups;
  conv.images = first.size(0);

  check(shape.kernel_h >= 1 && shape.kernel_w >= 1, op, "weight", "a kernel of at least 1 x 1",
        shape_text(args.weight));
  check(shape.in_channels >= 1, op, "input", "at least one channel", shape_text(first));
  check(shape.in_channels % args.groups == 0 && args.weight.size(1) == shape.in_channels / args.groups, op, "weight",
        text("shape [C_out, ", shape.in_channels, " / groups, kernel_h, kernel_w] with groups = ", args.groups),
        shape_text(args.weight));
  check(countable({shape.out_channels, shape.in_channels, shape.kernel_h, shape.kernel_w}), op, "weight",
        "fewer than 2^40 products per location", shape_text(args.weight));
  check(countable({shape.kernel_h, shape.dilation_h}) && countable({shape.kernel_w, shape.dilation_w}), op, "dilation",
        "a kernel that reaches less than 2^40 pixels", list_text(args.dilation));
  check(shape.out_channels % args.groups == 0, op, "weight", text("a C_out that groups = ", args.groups, " divides"),
        shape.out_channels);
  check_dtype(op, "weight", args.weight, first.scalar_type());
  check_same_device(op, "weight", args.weight, first);
  if (args.bias) {
    check_shape(op, "bias", *args.bias, {shape.out_channels});
    check_dtype(op, "bias", *args.bias, first.scalar_type());
    check_same_device(op, "bias", *args.bias, first);
  }

  for (const Tensor& map : args.input) {
    check_dim(op, "input", map, 4);
    check_dtype(op, "input", map, first.scalar_type());
    check_same_device(op, "input", map, first);
    if (map.size(0) != conv.images || map.size(1) != shape.in_channels) {
      check(false, op, "input", text("every level of shape [", conv.images, ", ", shape.in_channels, ", H, W]"),
            shape_text(map));
    }
    const int64_t height = map.size(2), width = map.size(3);
    check(countable({conv.images, shape.in_channels, height, width}), op, "input", "fewer than 2^40 numbers",
          shape_text(map));
    const int64_t reach_h = shape.dilation_h * (shape.kernel_h - 1) + 1;
    const int64_t reach_w = shape.dilation_w * (shape.kernel_w - 1) + 1;
    const int64_t room_h = height + 2 * shape.padding_h - reach_h, room_w = width + 2 * shape.padding_w - reach_w;
    if (height < 1 || width < 1 || room_h < 0 || room_w < 0) {
      check(false, op, "input", text("maps that a ", reach_h, " x ", reach_w, " kernel fits after padding"),
            shape_text(map));
    }
    conv.input_levels.push_back({height, width, 0});
    conv.output_levels.push_back({room_h / shape.stride_h + 1, room_w / shape.stride_w + 1, conv.locations_per_image});
    const LevelShape& output = conv.output_levels.back();
    check(countable({conv.images, shape.out_channels, output.height, output.width}), op, "padding",
          "outputs of fewer than 2^40 numbers", text(output.height, " x ", output.width));
    conv.locations_per_image += output.height * output.width;
  }

  conv.rows = conv.images * conv.locations_per_image;
  if (args.locations) {
    check_dim(op, "locations", *args.locations, 1);
    check_dtype(op, "locations", *args.locations, ScalarType::Long);
    check_same_device(op, "locations", *args.locations, first);
    conv.rows = args.locations->size(0);
    check(countable({conv.rows, shape.out_channels}), op, "locations", "outputs of fewer than 2^40 numbers",
          shape_text(*args.locations));
  }

  if (shape.offset_groups == 0) return conv;
  check(shape.offset_groups > 0 && shape.in_channels % shape.offset_groups == 0, op, "offset",
        text("a number of offset groups that divides C_in = ", shape.in_channels), shape.offset_groups);
  int64_t columns = shape.offsets_per_location();
  if (args.offset_weight) {
    check_dim(op, "offset_weight", *args.offset_weight, 2);
    columns = args.offset_weight->size(1);
    check_shape(op, "offset_weight", *args.offset_weight, {shape.offsets_per_location(), columns});
    check_position_dtype(op, "offset_weight", *args.offset_weight, first);
    check_same_device(op, "offset_weight", *args.offset_weight, first);
  }
  check_per_location(args, conv, "offset", args.offset, columns);
  for (const Tensor& offset : args.offset) {
    check_position_dtype(op, "offset", offset, first);
    check_dtype(op, "offset", offset, args.offset[0].scalar_type());
  }
  if (!args.mask.empty()) check_per_location(args, conv, "mask", args.mask, shape.offset_groups * shape.taps());
  for (const Tensor& mask : args.mask) {
    check_position_dtype(op, "mask", mask, first);
    check_dtype(op, "mask", mask, args.mask[0].scalar_type());
  }
  return conv;
}

void check_grad_output(const ConvolutionArguments& args, const Convolution& conv,
                       const std::vector<Tensor>& grad_output) {
  check_per_location(args, conv, "grad_output", grad_output, conv.shape.out_channels);
  for (const Tensor& grad : grad_output) check_dtype(args.op, "grad_output", grad, args.input[0].scalar_type());
}

Tensor empty_map(const Tensor& like, const std::vector<int64_t>& size) {
  const bool channels_last = like.size(1) > 1 && like.stride(1) == 1;
  return torch::stable::empty(
      size, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
      channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous);
}

ConvolutionGradients zero_gradients(const ConvolutionArguments& args) {
  const auto zeros = [](const Tensor& like) { return torch::stable::new_zeros(like, like.sizes()); };
  ConvolutionGradients result;
  for (const Tensor& map : args.input) {
    Tensor grad = empty_map(map, std::vector<int64_t>(map.sizes().begin(), map.sizes().end()));
    std::get<0>(result).push_back(torch::stable::zero_(grad));
  }
  for (const Tensor& offset : args.offset) std::get<1>(result).push_back(zeros(offset));
  std::get<2>(result) = zeros(args.weight);
  for (const Tensor& mask : args.mask) std::get<3>(result).push_back(zeros(mask));
  std::get<4>(result) = args.offset_weight ? zeros(*args.offset_weight) : torch::stable::new_empty(args.input[0], {0});
  return result;
}

std::vector<Tensor> empty_output(const ConvolutionArguments& args, const Convolution& conv) {
  if (args.locations) return {torch::stable::new_empty(args.weight, {conv.rows, conv.shape.out_channels})};
  std::vector<Tensor> output;
  for (size_t l = 0; l < args.input.size(); ++l) {
    const LevelShape& level = conv.output_levels[l];
    output.push_back(empty_map(args.input[l], {conv.images, conv.shape.out_channels, level.height, level.width}));
  }
  return output;
}

}  // namespace ga_scope
