// viou_match, iou_match and location_targets on CUDA. Nothing waits for the device.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "../boxes.h"
#include "for_each.h"
#include "matching_kernels.h"

namespace ga_scope::cuda {
namespace {

using MatchResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

template <class Visit>
void dispatch(ScalarType dtype, const Visit& visit) {
  dtype == ScalarType::Double ? visit(double{}) : visit(float{});
}

// The images in groups that a launch's arguments hold; `blocks_of` an image: how many its anchors or boxes need.
template <class BlocksOf, class Launch>
void for_image_groups(const std::vector<int64_t>& anchor_starts, const std::vector<int64_t>& box_starts,
                      const BlocksOf& blocks_of, const Launch& launch) {
  const int64_t images = static_cast<int64_t>(box_starts.size()) - 1;
  for (int64_t first = 0; first < images; first += kImagesPerLaunch) {
    ImageRanges ranges{};
    ranges.images = static_cast<int>(std::min<int64_t>(kImagesPerLaunch, images - first));
    for (int i = 0; i <= ranges.images; ++i) {
      ranges.anchor[i] = anchor_starts[first + i], ranges.box[i] = box_starts[first + i];
      if (i > 0) ranges.block[i] = ranges.block[i - 1] + blocks_of(first + i - 1);
    }
    launch(ranges, first);
  }
}

template <class Real, class Anchors>
MatchResult match(const char* op, const Device& device, const Tensor& gt_boxes, const Anchors& anchors,
                  const std::vector<int64_t>& anchor_starts, const std::vector<int64_t>& box_starts) {
  using Kernel = Match<Real, Anchors>;
  const int64_t count = anchor_starts.back(), boxes = gt_boxes.size(0);
  check(count < BestKey<Real>::kMostAnchors, op, "anchors", text("fewer than ", BestKey<Real>::kMostAnchors), count);
  const auto integers = [&](int64_t size) { return torch::stable::new_empty(gt_boxes, {size}, ScalarType::Long); };
  MatchResult result{torch::stable::new_empty(gt_boxes, {count}), integers(count),
                     torch::stable::new_empty(gt_boxes, {boxes}), integers(boxes)};
  const Tensor best = torch::stable::new_zeros(gt_boxes, {boxes}, ScalarType::Long);
  const Tensor dense = torch::stable::contiguous(gt_boxes);
  Kernel kernel{.anchors = anchors,
                .boxes = static_cast<const Real*>(dense.data_ptr()),
                .best = static_cast<uint64_t*>(best.data_ptr()),
                .best_index = static_cast<int64_t*>(std::get<3>(result).data_ptr()),
                .iou = static_cast<Real*>(std::get<0>(result).data_ptr()),
                .index = static_cast<int64_t*>(std::get<1>(result).data_ptr())};
  const auto blocks_of = [&](int64_t image) {
    return (anchor_starts[image + 1] - anchor_starts[image] + Kernel::kThreads - 1) / Kernel::kThreads;
  };
  for (kernel.pass = 0; kernel.pass < BestKey<Real>::kPasses; ++kernel.pass) {
    if (kernel.pass == 1) for_each(device, "fill", boxes, Fill<int64_t>{kernel.best_index, INT64_MAX});
    for_image_groups(anchor_starts, box_starts, blocks_of, [&](const ImageRanges& ranges, int64_t) {
      kernel.ranges = ranges;
      device.launch("match", kernel, ranges.block[ranges.images]);
    });
  }
  for_each(device, "store_best", boxes,
           StoreBest<Real>{kernel.best, kernel.best_index, anchors.min_iou,
                           static_cast<Real*>(std::get<2>(result).data_ptr()), kernel.best_index});
  return result;
}

MatchResult viou_match(Tensor gt_boxes, std::vector<int64_t> gt_counts, std::vector<int64_t> heights,
                       std::vector<int64_t> widths, std::vector<double> strides, std::optional<Tensor> shapes,
                       std::optional<Tensor> size_range, double cell_offset, double min_iou) {
  const char* op = "viou_match";
  check_boxes(op, "gt_boxes", gt_boxes, "gt_counts", gt_counts);
  const std::vector<LevelShape> levels =
      check_variable_anchors(op, gt_boxes, {heights, widths, strides, shapes, size_range, cell_offset, min_iou});
  check(levels.size() <= kMaxLevels, op, "level_sizes", text("at most ", kMaxLevels, " levels on CUDA"), levels.size());
  const Device device(gt_boxes);
  std::vector<int64_t> anchor_starts(gt_counts.size() + 1);
  for (size_t n = 0; n < anchor_starts.size(); ++n) anchor_starts[n] = static_cast<int64_t>(n) * locations_of(levels);
  Tensor kept_shapes, kept_range;
  if (shapes) kept_shapes = torch::stable::contiguous(*shapes);
  if (size_range) kept_range = torch::stable::contiguous(*size_range);
  MatchResult result;
  dispatch(gt_boxes.scalar_type(), [&]<class Real>(Real) {
    VariableAnchors<Real> anchors{};
    for (size_t l = 0; l < levels.size(); ++l) {
      anchors.levels[l] = levels[l];
      anchors.strides[l] = static_cast<Real>(strides[l]);
    }
    anchors.num_levels = static_cast<int>(levels.size());
    anchors.locations_per_image = locations_of(levels);
    anchors.cell_offset = static_cast<Real>(cell_offset);
    anchors.min_iou = static_cast<Real>(min_iou);
    if (shapes) {
      anchors.shapes = static_cast<const Real*>(kept_shapes.data_ptr());
      anchors.num_shapes = shapes->size(1);
    }
    if (size_range) anchors.size_range = static_cast<const Real*>(kept_range.data_ptr());
    result = match<Real>(op, device, gt_boxes, anchors, anchor_starts, starts_of(gt_counts));
  });
  return result;
}

MatchResult iou_match(Tensor boxes, std::vector<int64_t> counts, Tensor gt_boxes, std::vector<int64_t> gt_counts) {
  const char* op = "iou_match";
  check_boxes(op, "boxes", boxes, "counts", counts);
  check_boxes(op, "gt_boxes", gt_boxes, "gt_counts", gt_counts);
  check_dtype(op, "gt_boxes", gt_boxes, boxes.scalar_type());
  check_same_device(op, "gt_boxes", gt_boxes, boxes);
  check(counts.size() == gt_counts.size(), op, "gt_counts", text(counts.size(), " images"), gt_counts.size());
  const Device device(gt_boxes);
  const Tensor dense = torch::stable::contiguous(boxes);
  MatchResult result;
  dispatch(boxes.scalar_type(), [&]<class Real>(Real) {
    const FixedAnchors<Real> anchors{static_cast<const Real*>(dense.data_ptr()), Real(0)};
    result = match<Real>(op, device, gt_boxes, anchors, starts_of(counts), starts_of(gt_counts));
  });
  return result;
}

Tensor location_targets(Tensor gt_boxes, std::vector<int64_t> gt_counts, std::vector<int64_t> heights,
                        std::vector<int64_t> widths, std::vector<double> strides, double sigma, double center_ratio,
                        double ignore_ratio) {
  const char* op = "location_targets";
  check_boxes(op, "gt_boxes", gt_boxes, "gt_counts", gt_counts);
  const std::vector<LevelShape> levels = check_levels(op, heights, widths, strides);
  check_regions(op, sigma, center_ratio, ignore_ratio);
  check(levels.size() <= kMaxLevels, op, "level_sizes", text("at most ", kMaxLevels, " levels on CUDA"), levels.size());
  const Device device(gt_boxes);
  const int64_t images = static_cast<int64_t>(gt_counts.size()), locations = locations_of(levels);
  const Tensor labels = torch::stable::new_zeros(gt_boxes, {images * locations}, ScalarType::Char);
  const Tensor dense = torch::stable::contiguous(gt_boxes);
  dispatch(gt_boxes.scalar_type(), [&]<class Real>(Real) {
    PaintRegions<Real> kernel{.num_levels = static_cast<int>(levels.size()),
                              .locations_per_image = locations,
                              .boxes = static_cast<const Real*>(dense.data_ptr()),
                              .sigma = sigma,
                              .center_ratio = center_ratio,
                              .ignore_ratio = ignore_ratio};
    for (size_t l = 0; l < levels.size(); ++l) kernel.levels[l] = levels[l], kernel.strides[l] = strides[l];
    const std::vector<int64_t> starts = starts_of(gt_counts);
    const auto blocks_of = [&](int64_t image) { return gt_counts[image]; };
    for (const bool centres : {false, true}) {
      kernel.centres = centres;
      for_image_groups(starts, starts, blocks_of, [&](const ImageRanges& ranges, int64_t first) {
        kernel.ranges = ranges;
        kernel.labels = static_cast<int8_t*>(labels.data_ptr()) + first * locations;
        device.launch("paint_regions", kernel, ranges.block[ranges.images]);
      });
    }
  });
  return labels;
}

}  // namespace
}  // namespace ga_scope::cuda

STABLE_TORCH_LIBRARY_IMPL(ga_scope, GA_SCOPE_DISPATCH_KEY, m) {
  m.impl("viou_match", TORCH_BOX(&ga_scope::cuda::viou_match));
  m.impl("iou_match", TORCH_BOX(&ga_scope::cuda::iou_match));
  m.impl("location_targets", TORCH_BOX(&ga_scope::cuda::location_targets));
}
