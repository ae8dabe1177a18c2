// masked_conv2d and deform_conv2d on CUDA, forward and backward.
//
// Forward has two implementations of the same sums:
//   fused   fused_convolution.h: one kernel on the tensor cores, no columns buffer
//   simple  columns.h: chunks of rows are gathered into columns of bounded size, torch multiplies them
// fused_plan_of() below is the rule that chooses. Backward gathers chunks as the simple path does, with torch's
// products for the gradients of columns and weight (backward.h).
//
// Gathers read the channels of a pixel together, so an input in another layout is first copied to channels_last: pass
// channels_last maps to save that. So is a weight, unless it is in channels_last too and need not be rounded to tf32.
// Nothing waits for the device, so a call can be captured in a CUDA graph.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>

#include "../convolution_operators.h"
#include "backward.h"
#include "columns.h"
#include "fused_convolution.h"

namespace ga_scope::cuda {
namespace {

// Of the columns of a chunk. Tests want several chunks of few rows.
constexpr int64_t kColumnsBytes = kSimulated ? 64 << 10 : 64 << 20;
constexpr int64_t kLeastChunkRows = 64;

Tensor cast(const Tensor& tensor, ScalarType dtype) {
  return tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
}

int64_t element_bytes(const Tensor& tensor) { return static_cast<int64_t>(tensor.element_size()); }

bool aligned(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % kVectorBytes == 0; }

// Channels side by side and, for vector loads, every pixel on a 16-byte boundary if its channels fill whole
// vectors.
bool gatherable(const Tensor& map) {
  if (map.size(1) > 1 && map.stride(1) != 1) return false;
  const int64_t bytes = element_bytes(map);
  if (map.size(1) * bytes % kVectorBytes != 0) return true;
  const auto whole = [&](int64_t dim) { return map.size(dim) == 1 || map.stride(dim) * bytes % kVectorBytes == 0; };
  return whole(0) && whole(2) && whole(3) && aligned(map);
}

// Views: dimensions 0, 2, 3, 1 of (N, C, H, W), and its inverse. torch::stable::permute came with torch 2.14's headers.
Tensor channels_to_back(const Tensor& map) {
  return torch::stable::transpose(torch::stable::transpose(map, 1, 2), 2, 3);
}
Tensor channels_to_second(const Tensor& map) {
  return torch::stable::transpose(torch::stable::transpose(map, 2, 3), 1, 2);
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
    maps.data[l] = pointer_to<T>(tensors[l]);
    maps.image[l] = tensors[l].stride(0), maps.y[l] = tensors[l].stride(2), maps.x[l] = tensors[l].stride(3);
  }
  return maps;
}

template <class T>
RowNumbers<T> row_numbers(const std::vector<Tensor>& tensors, bool compact) {
  RowNumbers<T> numbers{};
  numbers.compact = compact;
  for (size_t l = 0; l < tensors.size(); ++l) {
    numbers.data[l] = pointer_to<T>(tensors[l]);
    numbers.outer[l] = tensors[l].stride(0), numbers.column[l] = tensors[l].stride(1);
    if (!compact) numbers.y[l] = tensors[l].stride(2), numbers.x[l] = tensors[l].stride(3);
  }
  return numbers;
}

// Which way round numbers per row lie in memory, for coalesced access.
bool rows_side_by_side(const std::vector<Tensor>& tensors, bool compact) {
  return !compact && tensors[0].size(1) > 1 && tensors[0].stride(1) != 1;
}

// Whether a weight lies in memory as (C_out, kernel_h, kernel_w, C_in / groups), that is in channels_last.
bool packed(const Tensor& weight) {
  int64_t stride = 1;
  for (int64_t dim : {1, 3, 2, 0}) {
    if (weight.size(dim) > 1 && weight.stride(dim) != stride) return false;
    stride *= weight.size(dim);
  }
  return aligned(weight);
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
    const auto narrow = [](int64_t number) { return static_cast<int32_t>(number); };
    const ConvolutionShape& shape = conv.shape;
    view.kernel_w = narrow(shape.kernel_w);
    view.stride_h = narrow(shape.stride_h), view.stride_w = narrow(shape.stride_w);
    view.padding_h = narrow(shape.padding_h), view.padding_w = narrow(shape.padding_w);
    view.dilation_h = narrow(shape.dilation_h), view.dilation_w = narrow(shape.dilation_w);
    view.taps = narrow(shape.taps());
    view.groups = narrow(shape.groups), view.channels_per_group = narrow(shape.in_channels_per_group());
    view.sampling_groups = narrow(shape.sampling_groups());
    view.channels_per_sampling_group = narrow(shape.channels_per_sampling_group());
    view.deformed = shape.offset_groups > 0, view.modulated = !mask.empty();
    view.rows = conv.rows;
    view.num_levels = narrow(static_cast<int64_t>(conv.input_levels.size()));
    for (int l = 0; l < view.num_levels; ++l) {
      view.height[l] = narrow(conv.input_levels[l].height), view.width[l] = narrow(conv.input_levels[l].width);
      view.first[l] = conv.output_levels[l].first;
      view.output_width[l] = Divisor(conv.output_levels[l].width);
    }
    view.locations_per_image = Divisor(conv.locations_per_image);
    view.all_locations = conv.images * conv.locations_per_image;
    if (args.locations) {
      view.locations = pointer_to<const int64_t>(*args.locations);
      view.location_stride = args.locations->stride(0);
    }
    view.input = maps_of<const T>(input);
    view.offset = row_numbers<const Real>(offset, compact());
    view.mask = row_numbers<const Real>(mask, compact());
    if (args.offset_weight) {
      offset_weight = torch::stable::contiguous(cast(*args.offset_weight, compute_dtype<T>()));
      view.offset_weight = pointer_to<const Real>(offset_weight);
      view.offset_inputs = narrow(offset_weight.size(1));
    }
  }

  bool compact() const { return args.locations.has_value(); }

  int64_t depth() const { return conv.shape.taps() * conv.shape.in_channels_per_group(); }

  // Channels that one thread moves at once: as many as fill 16 bytes if all groups are made of whole vectors.
  int vector() const {
    constexpr int kVector = kVectorBytes / sizeof(T);
    const bool whole = view.channels_per_group % kVector == 0 && view.channels_per_sampling_group % kVector == 0;
    return whole ? kVector : 1;
  }
  template <class Visit>
  void for_vector(const Visit& visit) const {
    constexpr int kVector = kVectorBytes / sizeof(T);
    vector() == kVector ? visit(std::integral_constant<int, kVector>{}) : visit(std::integral_constant<int, 1>{});
  }

  // (groups, C_out / groups, taps * C_in / groups): the weight itself if it lies so.
  Tensor packed_weight(bool to_tf32) const {
    const Tensor& weight = args.weight;
    const std::vector<int64_t> size{conv.shape.groups, conv.shape.out_channels_per_group(), depth()};
    if (!to_tf32 && packed(weight)) {
      return torch::stable::reshape(channels_to_back(weight), size);
    }
    Tensor result = torch::stable::new_empty(weight, size);
    for_each(device, "pack_weight", weight.numel(),
             PackWeight<T>{.weight = pointer_to<const T>(weight),
                           .stride_out = weight.stride(0),
                           .stride_in = weight.stride(1),
                           .stride_y = weight.stride(2),
                           .stride_x = weight.stride(3),
                           .channels = Divisor(weight.size(1)),
                           .taps = Divisor(conv.shape.taps()),
                           .kernel_w = Divisor(weight.size(3)),
                           .to_tf32 = to_tf32,
                           .packed = pointer_to<T>(result)});
    return result;
  }

  int64_t chunk_rows() const {
    int64_t bytes = conv.shape.groups * depth() * static_cast<int64_t>(sizeof(T));
    // Of one of the arrays that are sorted: four keys of 8 bytes for every sample.
    if (args.deterministic) bytes = std::max(bytes, 32 * conv.shape.sampling_groups() * conv.shape.taps());
    return std::min(conv.rows, std::max(kLeastChunkRows, kColumnsBytes / bytes));
  }

  Tensor columns_of(int64_t first, int64_t rows) const {
    Tensor columns = torch::stable::new_empty(args.weight, {conv.shape.groups, rows, depth()});
    for_vector([&](auto vector) {
      const GatherColumns<T, vector> gather(view, first, rows, pointer_to<T>(columns));
      device.launch("gather_columns", gather, gather.blocks());
    });
    return columns;
  }

  // Rows of a chunk, sums of `parts` matrices each, to where they belong.
  template <class Sum>
  void store(const Tensor& sums, int parts, int64_t first, int64_t rows, const std::vector<Tensor>& output,
             int64_t groups) const {
    const RowTiles tiles(first, rows, groups, conv.shape.out_channels / groups, rows_side_by_side(output, compact()));
    const StoreRows<T, Sum> store{.view = view,
                                  .tiles = tiles,
                                  .sums = pointer_to<const Sum>(sums),
                                  .parts = parts,
                                  .bias = args.bias ? pointer_to<const T>(*args.bias) : nullptr,
                                  .bias_stride = args.bias ? args.bias->stride(0) : 0,
                                  .output = row_numbers<T>(output, compact())};
    device.launch("store_rows", store, tiles.blocks());
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
void forward_simple(const Call<T>& call, const std::vector<Tensor>& output) {
  const Tensor weight = torch::stable::transpose(call.packed_weight(false), 1, 2);
  for (int64_t first = 0; first < call.conv.rows; first += call.chunk_rows()) {
    const int64_t rows = std::min(call.chunk_rows(), call.conv.rows - first);
    const Tensor sums = torch::stable::contiguous(torch::stable::matmul(call.columns_of(first, rows), weight));
    call.template store<T>(sums, 1, first, rows, output, call.conv.shape.groups);
  }
}

// The rule. Fused: float16, bfloat16, and float32 where torch's convolutions may use tf32, on compute capability 8.0
// and up, where the channels that are gathered together (of a convolution group, and of an offset group) fill whole
// chunks of 128 bytes: a multiple of 64, of 32 for float32. Simple: float64, full float32, and all other shapes; the
// plan then has no tile.
template <class T>
FusedPlan fused_plan_of(const Call<T>& call) {
  if constexpr (sizeof(T) == 8) {
    return {};
  } else {
    constexpr int64_t kChunk = FusedConvolution<T, 64>::kChunk;
    const ConvolutionShape& shape = call.conv.shape;
    const Device& device = call.device;
    if (sizeof(T) == 4 && !call.args.allow_tf32) return {};
    if (!device.has_tensor_cores()) return {};
    if (shape.in_channels_per_group() % kChunk != 0 || shape.channels_per_sampling_group() % kChunk != 0) return {};
    // Places in an image and among a row's offsets are 32-bit numbers of bytes.
    for (const Tensor& map : call.input) {
      const int64_t numbers = map.size(2) * map.stride(2) + map.size(3) * map.stride(3);
      if (numbers > INT32_MAX / static_cast<int64_t>(sizeof(T))) return {};
    }
    // A function, no loop over {call.offset, call.mask}: what nvcc 13.0 makes of that does not compile.
    const auto too_wide = [](const std::vector<Tensor>& tensors) {
      return std::any_of(tensors.begin(), tensors.end(),
                         [](const Tensor& numbers) { return numbers.size(1) * numbers.stride(1) > INT32_MAX / 4; });
    };
    if (too_wide(call.offset) || too_wide(call.mask)) return {};
    const auto bytes = [](auto tall, auto low, int64_t (&to)[2]) { to[0] = tall, to[1] = low; };
    FusedCall plan{.rows = call.conv.rows,
                   .column_tiles = shape.groups * FusedConvolution<T, 64>::column_tiles(shape.out_channels_per_group()),
                   .taps = shape.taps(),
                   .chunks = shape.in_channels_per_group() / kChunk,
                   .chunks_per_sampling_group = shape.channels_per_sampling_group() / kChunk,
                   .output_columns = shape.out_channels,
                   .deformed = call.view.deformed,
                   .processors = device.processors(),
                   .shared_bytes = device.shared_bytes()};
    bytes(sizeof(typename FusedConvolution<T, 128>::Shared), sizeof(typename FusedConvolution<T, 64>::Shared),
          plan.header_bytes);
    bytes(sizeof(TileStage<128>), sizeof(TileStage<64>), plan.stage_bytes);
    bytes(128 * sizeof(TileSample), 64 * sizeof(TileSample), plan.slot_bytes);
    return fused_plan(plan);
  }
}

template <class T, int kTileRows>
void forward_fused(const Call<T>& call, const FusedPlan& plan, const std::vector<Tensor>& output) {
  using Kernel = FusedConvolution<T, kTileRows>;
  const ConvolutionShape& shape = call.conv.shape;
  const Tensor weight = call.packed_weight(sizeof(T) == 4);
  const int64_t columns = shape.out_channels_per_group(), column_tiles = Kernel::column_tiles(columns);
  Tensor sums;
  if (plan.splits > 1) {
    sums = torch::stable::new_empty(call.args.weight, {plan.splits, call.conv.rows, shape.out_channels},
                                    ScalarType::Float);
  }
  const Kernel kernel{
      .view = call.view,
      .plan = plan,
      .by_tile = Divisor(shape.groups * column_tiles * plan.splits),
      .by_group = Divisor(column_tiles),
      .by_part = Divisor(plan.splits),
      .weight = pointer_to<const T>(weight),
      .bias = call.args.bias ? pointer_to<const T>(*call.args.bias) : nullptr,
      .bias_stride = call.args.bias ? call.args.bias->stride(0) : 0,
      .output = row_numbers<T>(output, call.compact()),
      .sums = plan.splits > 1 ? pointer_to<float>(sums) : nullptr,
      .columns = static_cast<int32_t>(columns),
      .chunks = static_cast<int32_t>(shape.in_channels_per_group() / Kernel::kChunk),
      .chunks_per_sampling_group = static_cast<int32_t>(shape.channels_per_sampling_group() / Kernel::kChunk)};
  call.device.launch(kTileRows == 128 ? "fused_convolution_128" : "fused_convolution_64", kernel, kernel.blocks());
  if (plan.splits > 1) call.template store<float>(sums, plan.splits, 0, call.conv.rows, output, 1);
}

// What the kernels' 32-bit numbers and arrays hold.
void check_fits(const ConvolutionArguments& args, const Convolution& conv) {
  constexpr int64_t kMost = int64_t(1) << 30;
  check(args.input.size() <= kMaxLevels, args.op, "input", text("at most ", kMaxLevels, " levels on CUDA"),
        args.input.size());
  for (const Tensor& map : args.input) {
    if (map.size(1) < kMost && map.size(2) < kMost && map.size(3) < kMost) continue;
    check(false, args.op, "input", "fewer than 2^30 channels, rows and columns on CUDA", shape_text(map));
  }
  const ConvolutionShape& shape = conv.shape;
  const int64_t offsets = shape.offsets_per_location(), inputs = args.offset_weight ? args.offset_weight->size(1) : 0;
  const bool fits = shape.taps() * shape.in_channels_per_group() < kMost && shape.out_channels < kMost;
  check(fits, args.op, "weight", "fewer than 2^30 products and outputs per location on CUDA", shape_text(args.weight));
  check(offsets < kMost && inputs < kMost, args.op, "offset", "fewer than 2^30 offsets per location on CUDA", offsets);
}

void forward(const ConvolutionArguments& args, const Convolution& conv, std::vector<Tensor>& output) {
  check_fits(args, conv);
  visit_dtype(args.input[0].scalar_type(), [&]<class T>(T) {
    const Call<T> call(args, conv);
    const FusedPlan plan = fused_plan_of(call);
    if constexpr (sizeof(T) < 8) {
      if (plan.tile_rows == 128) return forward_fused<T, 128>(call, plan, output);
      if (plan.tile_rows == 64) return forward_fused<T, 64>(call, plan, output);
    }
    forward_simple(call, output);
  });
}

// ---- backward -----------------------------------------------------------------------------------

// aten::sort, stable, ascending: values and where they were.
std::array<Tensor, 2> sort(const Tensor& keys) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack{from(keys), from(std::optional<bool>(true)), from(int64_t(0)), from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
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
    Tensor grad_offset;  // of the chunk, (2 G K, rows), where they are not themselves the result
    if (affine)
      grad_offset = torch::stable::new_empty(packed_, {shape.offsets_per_location(), rows}, compute_dtype<T>());
    if (positions || !call_.args.deterministic) {
      call_.for_vector([&](auto vector) {
        const BackwardSamples<T, vector> samples(
            call_.view, first, rows, pointer_to<const T>(grad_columns),
            want_input_ && !call_.args.deterministic ? maps_of<Real>(input_) : Maps<Real>{},
            affine ? row_numbers<Real>({torch::stable::transpose(grad_offset, 0, 1)}, true)
                   : row_numbers<Real>(offset_, call_.compact()),
            affine ? first : 0, row_numbers<Real>(mask_, call_.compact()));
        call_.device.launch("backward_samples", samples, samples.blocks());
      });
    }
    if (want_input_ && call_.args.deterministic) add_sorted(first, rows, grad_columns);
    if (affine) reduce_offsets(first, rows, grad_offset);
  }

  template <class Number>
  Tensor collect(const std::vector<Tensor>& tensors, int64_t groups, int64_t per_group, int64_t first, int64_t rows,
                 const RowNumbers<const Number>& from) const {
    Tensor matrix = torch::stable::new_empty(tensors[0], {groups, rows, per_group});
    const RowTiles tiles(first, rows, groups, per_group, rows_side_by_side(tensors, call_.compact()));
    const CollectRows<T, Number> copy{call_.view, tiles, from, pointer_to<Number>(matrix)};
    call_.device.launch("collect_rows", copy, tiles.blocks());
    return matrix;
  }

  template <class From>
  void add(const Tensor& part, const Tensor& sums) const {
    const Tensor dense = torch::stable::contiguous(part);
    for_each(call_.device, "add_to", dense.numel(),
             AddTo<From, Real>{pointer_to<const From>(dense), pointer_to<Real>(sums)});
  }

  void add_sorted(int64_t first, int64_t rows, const Tensor& grad_columns) {
    const ConvolutionView<T>& view = call_.view;
    const int64_t samples = rows * view.sampling_groups * view.taps;
    Tensor keys = torch::stable::new_empty(packed_, {4 * samples}, ScalarType::Long);
    Tensor weights = torch::stable::new_empty(packed_, {4 * samples}, compute_dtype<T>());
    call_.for_vector([&](auto vector) {
      const SampleTasks tasks(view, rows, vector);
      const MapPixels pixels(view, call_.conv.images);
      for_each(
          call_.device, "sort_keys", samples,
          SortKeys<T>{view, first, pixels, tasks, Divisor(rows), pointer_to<int64_t>(keys), pointer_to<Real>(weights)});
      const auto [sorted, order] = sort(keys);
      const SumSorted<T, vector> sum{.view = view,
                                     .pixels = pixels,
                                     .tasks = tasks,
                                     .index = ColumnIndex(view, rows),
                                     .by_rows = Divisor(rows),
                                     .entries = 4 * samples,
                                     .keys = pointer_to<const int64_t>(sorted),
                                     .order = pointer_to<const int64_t>(order),
                                     .weights = pointer_to<const Real>(weights),
                                     .grad_columns = pointer_to<const T>(grad_columns),
                                     .grad_input = maps_of<Real>(input_)};
      call_.device.launch("sum_sorted", sum, sum.blocks());
    });
  }

  void reduce_offsets(int64_t first, int64_t rows, const Tensor& grad_offset) {
    const ConvolutionView<T>& view = call_.view;
    for_each(call_.device, "reduce_offsets", rows * view.offset_inputs,
             ReduceOffsets<T>{view, first, rows, Divisor(rows), pointer_to<const Real>(grad_offset),
                              row_numbers<Real>(offset_, call_.compact())});
    const Tensor inputs = collect(call_.offset, 1, view.offset_inputs, first, rows, view.offset);
    add<Real>(torch::stable::matmul(grad_offset, inputs), offset_weight_);
  }

  Tensor weight_gradient() const {
    const Tensor& weight = call_.args.weight;
    Tensor grad = torch::stable::new_zeros(weight, weight.sizes());
    if (!want_weight_) return grad;
    const Tensor sums =
        torch::stable::reshape(weight_, {weight.size(0), weight.size(2), weight.size(3), weight.size(1)});
    return torch::stable::copy_(grad, channels_to_second(sums));
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
  check_fits(args, conv);
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
