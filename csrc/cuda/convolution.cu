// masked_conv2d and deform_conv2d on CUDA, forward and backward.
//
// Forward has two implementations of the same sums:
//   fused   fused_convolution.h: one kernel on the tensor cores, no columns buffer
//   simple  tile_kernels.h: chunks of rows are gathered into columns of bounded size, torch multiplies them
// fused_tile_rows() below is the rule that chooses. Backward gathers chunks as the simple path does, with
// torch's products for the gradients of columns and weight.
//
// Gathers read the channels of a pixel together, so an input in another layout is first copied to
// channels_last: pass channels_last maps to save that. Nothing waits for the device, so a call can be captured
// in a CUDA graph.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>

#include "../convolution_operators.h"
#include "fused_convolution.h"
#include "tile_kernels.h"

namespace ga_scope::cuda {
namespace {

// Of the columns of a chunk. Tests want several chunks of few rows.
constexpr int64_t kColumnsBytes = kSimulated ? 64 << 10 : 64 << 20;
constexpr int64_t kLeastChunkRows = 64;

Tensor cast(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

int64_t element_bytes(const Tensor& tensor) { return static_cast<int64_t>(tensor.element_size()); }

// Channels side by side and, for vector loads, every pixel on a 16-byte boundary if its channels fill whole
// vectors.
bool gatherable(const Tensor& map) {
  if (map.size(1) > 1 && map.stride(1) != 1) return false;
  const int64_t bytes = element_bytes(map);
  if (map.size(1) * bytes % kVectorBytes != 0) return true;
  const auto aligned = [&](int64_t dim) { return map.size(dim) == 1 || map.stride(dim) * bytes % kVectorBytes == 0; };
  return aligned(0) && aligned(2) && aligned(3) && reinterpret_cast<uintptr_t>(map.data_ptr()) % kVectorBytes == 0;
}

Tensor channels_last_like(const Tensor& map, ScalarType dtype) {
  const std::vector<int64_t> size(map.sizes().begin(), map.sizes().end());
  return torch::stable::empty(size, dtype, std::nullopt, map.device(), std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

std::vector<Tensor> gatherable_maps(const std::vector<Tensor>& maps) {
  std::vector<Tensor> result;
  for (const Tensor& map : maps) {
    if (gatherable(map)) {
      result.push_back(map);
      continue;
    }
    Tensor copy = channels_last_like(map, map.scalar_type());
    torch::stable::copy_(copy, map);
    result.push_back(copy);
  }
  return result;
}

template <class T>
Maps<T> maps_of(const std::vector<Tensor>& tensors) {
  Maps<T> maps{};
  for (size_t l = 0; l < tensors.size(); ++l) {
    maps.data[l] = static_cast<T*>(tensors[l].data_ptr());
    maps.image[l] = tensors[l].stride(0), maps.y[l] = tensors[l].stride(2), maps.x[l] = tensors[l].stride(3);
  }
  return maps;
}

template <class T>
RowNumbers<T> row_numbers(const std::vector<Tensor>& tensors, bool compact) {
  RowNumbers<T> numbers{};
  numbers.compact = compact;
  for (size_t l = 0; l < tensors.size(); ++l) {
    numbers.data[l] = static_cast<T*>(tensors[l].data_ptr());
    numbers.outer[l] = tensors[l].stride(0), numbers.column[l] = tensors[l].stride(1);
    if (!compact) numbers.y[l] = tensors[l].stride(2), numbers.x[l] = tensors[l].stride(3);
  }
  return numbers;
}

// Which way round numbers per row lie in memory, for coalesced access.
bool rows_side_by_side(const std::vector<Tensor>& tensors, bool compact) {
  return !compact && tensors[0].size(1) > 1 && tensors[0].stride(1) != 1;
}

// One thread per location; a bad one stops the device with a message, as torch's own indexing does.
struct CheckLocations {
  const int64_t* locations;
  int64_t stride, limit;

  GA_KERNEL void operator()(int64_t i) const {
    const int64_t location = locations[i * stride];
#ifdef GA_SCOPE_SIMULATED
    if (location < 0 || location >= limit) {
      check(false, "convolution", "locations", text("values in [0, ", limit, ")"), text(location, " at ", i));
    }
#else
    if (location < 0 || location >= limit) {
      printf("ga_scope: locations: expected values in [0, %lld), got %lld at %lld\n", static_cast<long long>(limit),
             static_cast<long long>(location), static_cast<long long>(i));
      __assert_fail("locations", __FILE__, __LINE__, "convolution");
    }
#endif
  }
};

template <class Copy>
void for_each_number(const Device& device, const char* name, int64_t rows, int64_t columns, bool rows_along_lanes,
                     const Copy& copy) {
  const ForEachNumber<Copy> kernel{copy, rows, columns, rows_along_lanes};
  device.launch(name, kernel, kernel.blocks());
}

// A call's arguments as the kernels see them, and the tensors that keep those alive.
template <class T>
class Call {
 public:
  using Real = ComputeType<T>;

  Call(const ConvolutionArguments& args, const Convolution& conv)
      : args(args), conv(conv), device(args.input[0]), input(gatherable_maps(args.input)) {
    for (const Tensor& tensor : args.offset) offset.push_back(cast(tensor, compute_dtype<T>()));
    for (const Tensor& tensor : args.mask) mask.push_back(cast(tensor, compute_dtype<T>()));
    view.shape = conv.shape;
    view.rows = conv.rows;
    view.locations_per_image = conv.locations_per_image;
    view.num_levels = static_cast<int>(conv.input_levels.size());
    int64_t pixels = 0;
    for (int l = 0; l < view.num_levels; ++l) {
      view.input_levels[l] = conv.input_levels[l];
      view.input_levels[l].first = pixels;
      view.output_levels[l] = conv.output_levels[l];
      pixels += conv.input_levels[l].height * conv.input_levels[l].width;
    }
    view.input = maps_of<const T>(input);
    view.offset = row_numbers<const Real>(offset, compact());
    view.mask = row_numbers<const Real>(mask, compact());
    view.modulated = !mask.empty();
    if (args.offset_weight) {
      offset_weight = torch::stable::contiguous(cast(*args.offset_weight, compute_dtype<T>()));
      view.offset_weight = static_cast<const Real*>(offset_weight.data_ptr());
      view.offset_inputs = offset_weight.size(1);
    }
    if (args.locations) {
      view.locations = static_cast<const int64_t*>(args.locations->data_ptr());
      view.location_stride = args.locations->stride(0);
      for_each(device, "check_locations", conv.rows,
               CheckLocations{view.locations, view.location_stride, conv.images * conv.locations_per_image});
    }
  }

  bool compact() const { return args.locations.has_value(); }

  int64_t depth() const { return conv.shape.taps() * conv.shape.in_channels_per_group(); }

  // (groups, C_out / groups, taps * C_in / groups)
  Tensor packed_weight(bool to_tf32) const {
    const ConvolutionShape& shape = conv.shape;
    const Tensor& weight = args.weight;
    Tensor packed = torch::stable::new_empty(weight, {shape.groups, shape.out_channels_per_group(), depth()});
    const PackWeight<T> pack{.weight = static_cast<const T*>(weight.data_ptr()),
                             .stride_out = weight.stride(0),
                             .stride_in = weight.stride(1),
                             .stride_y = weight.stride(2),
                             .stride_x = weight.stride(3),
                             .channels = shape.in_channels_per_group(),
                             .taps = shape.taps(),
                             .kernel_w = shape.kernel_w,
                             .to_tf32 = to_tf32,
                             .packed = static_cast<T*>(packed.data_ptr())};
    for_each(device, "pack_weight", packed.numel(), pack);
    return packed;
  }

  int64_t chunk_rows() const {
    int64_t bytes = conv.shape.groups * depth() * static_cast<int64_t>(sizeof(T));
    // Of one of the arrays that are sorted: four keys of 8 bytes for every sample.
    if (args.deterministic) bytes = std::max(bytes, 32 * conv.shape.sampling_groups() * conv.shape.taps());
    return std::min(conv.rows, std::max(kLeastChunkRows, kColumnsBytes / bytes));
  }

  Tensor columns_of(int64_t first, int64_t rows) const {
    Tensor columns = torch::stable::new_empty(args.weight, {conv.shape.groups, rows, depth()});
    const GatherColumns<T> gather{view, first, rows, static_cast<T*>(columns.data_ptr())};
    device.launch("gather_columns", gather, gather.blocks());
    return columns;
  }

  const ConvolutionArguments& args;
  const Convolution& conv;
  const Device device;
  const std::vector<Tensor> input;
  std::vector<Tensor> offset, mask;
  Tensor offset_weight;
  ConvolutionView<T> view{};
};

// ---- forward ------------------------------------------------------------------------------------

template <class T>
void forward_simple(const Call<T>& call, std::vector<Tensor>& output) {
  const ConvolutionShape& shape = call.conv.shape;
  const Tensor weight = torch::stable::transpose(call.packed_weight(false), 1, 2);
  for (int64_t first = 0; first < call.conv.rows; first += call.chunk_rows()) {
    const int64_t rows = std::min(call.chunk_rows(), call.conv.rows - first);
    const Tensor sums = torch::stable::contiguous(torch::stable::matmul(call.columns_of(first, rows), weight));
    const StoreRows<T> store{.view = call.view,
                             .first = first,
                             .rows = rows,
                             .per_group = shape.out_channels_per_group(),
                             .sums = static_cast<const T*>(sums.data_ptr()),
                             .bias = call.args.bias ? static_cast<const T*>(call.args.bias->data_ptr()) : nullptr,
                             .bias_stride = call.args.bias ? call.args.bias->stride(0) : 0,
                             .output = row_numbers<T>(output, call.compact())};
    for_each_number(call.device, "store_rows", rows, shape.out_channels, rows_side_by_side(output, call.compact()),
                    store);
  }
}

// The rule: how many rows a tile of the fused kernel has, or 0 for the simple path.
//
// Fused: float16, bfloat16, and float32 where torch allows tf32, on compute capability 8.0 and up, where the
// channels that are gathered together (of a convolution group, and of an offset group) fill whole chunks of
// 128 bytes: a multiple of 64, of 32 for float32. Simple: float64, full float32, and all other shapes.
// Tall tiles (128 rows) where there is one for every multiprocessor and shared memory allows; else 64.
template <class T>
int64_t fused_tile_rows(const Call<T>& call) {
  if constexpr (sizeof(T) == 8) {
    return 0;
  } else {
    constexpr int64_t kChunk = FusedConvolution<T, 64>::kChunk;
    const ConvolutionShape& shape = call.conv.shape;
    const Device& device = call.device;
    if (sizeof(T) == 4 && !call.args.allow_tf32) return 0;
    if (!device.has_tensor_cores()) return 0;
    if (shape.in_channels_per_group() % kChunk != 0 || shape.channels_per_sampling_group() % kChunk != 0) return 0;
    for (const Tensor& map : call.input) {  // places in an image are 32-bit numbers
      if ((map.size(2) - 1) * map.stride(2) + (map.size(3) - 1) * map.stride(3) > INT32_MAX) return 0;
    }
    if (call.conv.rows / 128 >= device.processors() &&
        device.shared_bytes() >= static_cast<int64_t>(sizeof(typename FusedConvolution<T, 128>::Shared))) {
      return 128;
    }
    return device.shared_bytes() >= static_cast<int64_t>(sizeof(typename FusedConvolution<T, 64>::Shared)) ? 64 : 0;
  }
}

template <class T, int kTileRows>
void forward_fused(const Call<T>& call, std::vector<Tensor>& output) {
  const Tensor weight = call.packed_weight(true);
  const FusedConvolution<T, kTileRows> kernel{
      .view = call.view,
      .weight = static_cast<const T*>(weight.data_ptr()),
      .bias = call.args.bias ? static_cast<const T*>(call.args.bias->data_ptr()) : nullptr,
      .bias_stride = call.args.bias ? call.args.bias->stride(0) : 0,
      .output = row_numbers<T>(output, call.compact())};
  call.device.launch(kTileRows == 128 ? "fused_convolution_128" : "fused_convolution_64", kernel, kernel.blocks());
}

void check_levels_fit(const ConvolutionArguments& args) {
  check(args.input.size() <= kMaxLevels, args.op, "input", text("at most ", kMaxLevels, " levels on CUDA"),
        args.input.size());
}

void forward(const ConvolutionArguments& args, const Convolution& conv, std::vector<Tensor>& output) {
  check_levels_fit(args);
  visit_dtype(args.input[0].scalar_type(), [&]<class T>(T) {
    const Call<T> call(args, conv);
    const int64_t tile_rows = fused_tile_rows(call);
    if constexpr (sizeof(T) < 8) {
      if (tile_rows == 128) return forward_fused<T, 128>(call, output);
      if (tile_rows == 64) return forward_fused<T, 64>(call, output);
    }
    forward_simple(call, output);
  });
}

// ---- backward -----------------------------------------------------------------------------------

// aten::sort, stable, ascending: values and where they were.
std::array<Tensor, 2> sort(const Tensor& keys) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(int64_t(0)), from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  using torch::stable::detail::to;
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

template <class T>
class Backward {
 public:
  using Real = ComputeType<T>;

  Backward(const Call<T>& call, const std::vector<Tensor>& grad_output, bool want_input, bool want_weight)
      : call_(call), grad_output_(grad_output), want_input_(want_input), want_weight_(want_weight) {
    const auto zeros = [&](const Tensor& like, bool wanted) {
      return wanted ? torch::stable::new_zeros(like, like.sizes(), compute_dtype<T>()) : Tensor();
    };
    if (want_input) {
      for (const Tensor& map : call.input) {
        Tensor sums = channels_last_like(map, compute_dtype<T>());
        input_.push_back(torch::stable::zero_(sums));
      }
    }
    packed_ = call.packed_weight(false);
    weight_ = zeros(packed_, want_weight);
    for (const Tensor& offset : call.offset) offset_.push_back(zeros(offset, true));
    for (const Tensor& mask : call.mask) mask_.push_back(zeros(mask, true));
    offset_weight_ = zeros(call.args.offset_weight ? call.offset_weight : packed_, call.args.offset_weight.has_value());
  }

  void run() {
    for (int64_t first = 0; first < call_.conv.rows; first += call_.chunk_rows()) {
      chunk(first, std::min(call_.chunk_rows(), call_.conv.rows - first));
    }
  }

  ConvolutionGradients result() const {
    const ConvolutionArguments& args = call_.args;
    ConvolutionGradients result;
    for (size_t l = 0; l < args.input.size(); ++l) {
      const Tensor& map = args.input[l];
      Tensor grad = empty_map(map, std::vector<int64_t>(map.sizes().begin(), map.sizes().end()));
      std::get<0>(result).push_back(want_input_ ? torch::stable::copy_(grad, input_[l]) : torch::stable::zero_(grad));
    }
    for (size_t i = 0; i < offset_.size(); ++i) {
      std::get<1>(result).push_back(cast(offset_[i], args.offset[i].scalar_type()));
    }
    std::get<2>(result) = weight_gradient();
    for (size_t i = 0; i < mask_.size(); ++i) {
      std::get<3>(result).push_back(cast(mask_[i], args.mask[i].scalar_type()));
    }
    std::get<4>(result) = args.offset_weight ? cast(offset_weight_, args.offset_weight->scalar_type())
                                             : torch::stable::new_empty(args.input[0], {0});
    return result;
  }

 private:
  void chunk(int64_t first, int64_t rows) {
    const ConvolutionShape& shape = call_.conv.shape;
    const bool positions = shape.offset_groups > 0;
    const Tensor grad_output = collect(grad_output_, shape.groups, shape.out_channels_per_group(), first, rows,
                                       row_numbers<const T>(grad_output_, call_.compact()));
    if (want_weight_) {
      const Tensor part =
          torch::stable::matmul(torch::stable::transpose(grad_output, 1, 2), call_.columns_of(first, rows));
      add<T>(part, weight_);
    }
    if (!want_input_ && !positions) return;
    const Tensor grad_columns = torch::stable::contiguous(torch::stable::matmul(grad_output, packed_));
    const bool affine = call_.args.offset_weight.has_value();
    Tensor grad_offset;  // of the chunk, where they are not themselves the result
    if (affine)
      grad_offset = torch::stable::new_empty(packed_, {rows, shape.offsets_per_location()}, compute_dtype<T>());
    if (positions || !call_.args.deterministic) {
      const BackwardSamples<T> samples{
          .view = call_.view,
          .first = first,
          .rows = rows,
          .grad_columns = static_cast<const T*>(grad_columns.data_ptr()),
          .grad_input = want_input_ && !call_.args.deterministic ? maps_of<Real>(input_) : Maps<Real>{},
          .positions = positions,
          .grad_offset = affine ? row_numbers<Real>({grad_offset}, true) : row_numbers<Real>(offset_, call_.compact()),
          .grad_mask = row_numbers<Real>(mask_, call_.compact()),
          .grad_offset_first = affine ? first : 0};
      call_.device.launch("backward_samples", samples, samples.blocks());
    }
    if (want_input_ && call_.args.deterministic) add_sorted(first, rows, grad_columns);
    if (affine) reduce_offsets(first, rows, grad_offset);
  }

  template <class Number>
  Tensor collect(const std::vector<Tensor>& tensors, int64_t groups, int64_t per_group, int64_t first, int64_t rows,
                 const RowNumbers<const Number>& from) const {
    Tensor matrix = torch::stable::new_empty(tensors[0], {groups, rows, per_group});
    const CollectRows<T, Number> copy{call_.view, first, rows,
                                      per_group,  from,  static_cast<Number*>(matrix.data_ptr())};
    for_each_number(call_.device, "collect_rows", rows, groups * per_group, rows_side_by_side(tensors, call_.compact()),
                    copy);
    return matrix;
  }

  template <class From>
  void add(const Tensor& part, const Tensor& sums) const {
    const Tensor dense = torch::stable::contiguous(part);
    for_each(call_.device, "add_to", dense.numel(),
             AddTo<From, Real>{static_cast<const From*>(dense.data_ptr()), static_cast<Real*>(sums.data_ptr())});
  }

  void add_sorted(int64_t first, int64_t rows, const Tensor& grad_columns) {
    const int64_t units = rows * call_.conv.shape.sampling_groups() * call_.conv.shape.taps();
    Tensor keys = torch::stable::new_empty(packed_, {4 * units}, ScalarType::Long);
    for_each(call_.device, "sort_keys", units,
             SortKeys<T>{call_.view, first, call_.conv.images, static_cast<int64_t*>(keys.data_ptr())});
    const auto [sorted, order] = sort(keys);
    const SumSorted<T> sum{.view = call_.view,
                           .first = first,
                           .rows = rows,
                           .entries = 4 * units,
                           .keys = static_cast<const int64_t*>(sorted.data_ptr()),
                           .order = static_cast<const int64_t*>(order.data_ptr()),
                           .grad_columns = static_cast<const T*>(grad_columns.data_ptr()),
                           .grad_input = maps_of<Real>(input_)};
    call_.device.launch("sum_sorted", sum, sum.blocks());
  }

  void reduce_offsets(int64_t first, int64_t rows, const Tensor& grad_offset) {
    for_each(call_.device, "reduce_offsets", rows * call_.view.offset_inputs,
             ReduceOffsets<T>{call_.view, first, static_cast<const Real*>(grad_offset.data_ptr()),
                              row_numbers<Real>(offset_, call_.compact())});
    const Tensor inputs = collect(call_.offset, 1, call_.view.offset_inputs, first, rows, call_.view.offset);
    add<Real>(torch::stable::matmul(torch::stable::transpose(grad_offset, 0, 1), inputs), offset_weight_);
  }

  Tensor weight_gradient() const {
    Tensor grad = torch::stable::new_zeros(call_.args.weight, call_.args.weight.sizes());
    if (want_weight_) {
      for_each(call_.device, "unpack_weight", grad.numel(),
               UnpackWeight<T>{static_cast<const Real*>(weight_.data_ptr()), call_.conv.shape.in_channels_per_group(),
                               call_.conv.shape.taps(), static_cast<T*>(grad.data_ptr())});
    }
    return grad;
  }

  const Call<T>& call_;
  const std::vector<Tensor>& grad_output_;
  const bool want_input_, want_weight_;
  Tensor packed_;
  std::vector<Tensor> input_, offset_, mask_;  // sums
  Tensor weight_, offset_weight_;
};

ConvolutionGradients backward(const ConvolutionArguments& args, const Convolution& conv,
                              const std::vector<Tensor>& grad_output, bool want_input, bool want_weight) {
  check_levels_fit(args);
  ConvolutionGradients result;
  visit_dtype(args.input[0].scalar_type(), [&]<class T>(T) {
    const Call<T> call(args, conv);
    Backward<T> gradients(call, grad_output, want_input, want_weight);
    gradients.run();
    result = gradients.result();
  });
  return result;
}

}  // namespace
}  // namespace ga_scope::cuda

STABLE_TORCH_LIBRARY_IMPL(ga_scope, GA_SCOPE_DISPATCH_KEY, m) {
  ga_scope::ConvolutionOperators<ga_scope::cuda::forward, ga_scope::cuda::backward>::implement(m);
}
