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

using MatchResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class Visit>
void dispatch(ScalarType dtype, const Visit& visit) {
  dtype == ScalarType::Double ? visit(double{}) : visit(float{});
}

// Where the anchors, boxes and ignore boxes of each image begin, and all of them end.
struct Starts {
  std::vector<int64_t> anchor, box, ignore;
};

// The images in groups that a launch's arguments hold; `blocks_of` an image: how many its anchors or boxes need.
template <class BlocksOf, class Launch>
void for_image_groups(const Starts& starts, const BlocksOf& blocks_of, const Launch& launch) {
  const int64_t images = static_cast<int64_t>(starts.box.size()) - 1;
  for (int64_t first = 0; first < images; first += kImagesPerLaunch) {
    ImageRanges ranges{};
    ranges.images = static_cast<int>(std::min<int64_t>(kImagesPerLaunch, images - first));
    for (int i = 0; i <= ranges.images; ++i) {
      ranges.anchor[i] = starts.anchor[first + i], ranges.box[i] = starts.box[first + i];
      ranges.ignore[i] = starts.ignore[first + i];
      if (i > 0) ranges.block[i] = ranges.block[i - 1] + blocks_of(first + i - 1);
    }
    launch(ranges, first);
  }
}

template <class Real, class Anchors>
MatchResult match(const char* op, const Device& device, const Tensor& gt_boxes, const Tensor& ignore_boxes,
                  const Anchors& anchors, const Starts& starts, std::optional<double> low_quality_from) {
  using Kernel = Match<Real, Anchors>;
  const int64_t count = starts.anchor.back(), boxes = gt_boxes.size(0);
  check(count < BestKey<Real>::kMostAnchors, op, "anchors", text("fewer than ", BestKey<Real>::kMostAnchors), count);
  const auto integers = [&](int64_t size) { return torch::stable::new_empty(gt_boxes, {size}, ScalarType::Long); };
  MatchResult result{torch::stable::new_empty(gt_boxes, {count}),
                     integers(count),
                     torch::stable::new_empty(gt_boxes, {boxes}),
                     integers(boxes),
                     integers(count),
                     torch::stable::new_empty(gt_boxes, {count}, ScalarType::Bool)};
  const Tensor keys = torch::stable::new_zeros(gt_boxes, {2, boxes}, ScalarType::Long), last = integers(boxes);
  const Tensor dense = torch::stable::contiguous(gt_boxes), dense_ignore = torch::stable::contiguous(ignore_boxes);
  const BestAnchors best{pointer_to<uint64_t>(keys), pointer_to<uint64_t>(keys) + boxes,
                         pointer_to<int64_t>(std::get<3>(result)), pointer_to<int64_t>(last)};
  Kernel kernel{.anchors = anchors,
                .boxes = pointer_to<const Real>(dense),
                .ignore_boxes = pointer_to<const Real>(dense_ignore),
                .best = best,
                .iou = pointer_to<Real>(std::get<0>(result)),
                .index = pointer_to<int64_t>(std::get<1>(result)),
                .best_for = pointer_to<int64_t>(std::get<4>(result)),
                .ignored = pointer_to<bool>(std::get<5>(result))};
  const auto blocks_of = [&](int64_t image) {
    return (starts.anchor[image + 1] - starts.anchor[image] + Kernel::kThreads - 1) / Kernel::kThreads;
  };
  for (kernel.pass = 0; kernel.pass < BestKey<Real>::kPasses; ++kernel.pass) {
    if (kernel.pass == 1) {
      for_each(device, "fill", boxes, Fill<int64_t>{best.first, INT64_MAX});
      for_each(device, "fill", boxes, Fill<int64_t>{best.last, kNobody});
    }
    for_image_groups(starts, blocks_of, [&](const ImageRanges& ranges, int64_t) {
      kernel.ranges = ranges;
      device.launch("match", kernel, ranges.block[ranges.images]);
    });
  }
  const Pointer<Real> gt_iou = pointer_to<Real>(std::get<2>(result));
  for_each(device, "store_best", boxes, StoreBest<Real>{best, anchors.min_iou, gt_iou});
  if (low_quality_from) {
    const Real least = static_cast<Real>(*low_quality_from);
    device.launch("mark_best",
                  MarkBest<Real, Anchors>{anchors, kernel.boxes, gt_iou, best.first, best.last, least, kernel.best_for},
                  boxes);
  }
  return result;
}

MatchResult viou_match(Tensor gt_boxes, std::vector<int64_t> gt_counts, Tensor ignore_boxes,
                       std::vector<int64_t> ignore_counts, std::vector<int64_t> heights, std::vector<int64_t> widths,
                       std::vector<double> strides, std::optional<Tensor> shapes, std::optional<Tensor> size_range,
                       double cell_offset, double min_iou, std::optional<double> low_quality_from) {
  const char* op = "viou_match";
  check_boxes(op, "gt_boxes", gt_boxes, "gt_counts", gt_counts);
  check_ignore_boxes(op, ignore_boxes, ignore_counts, gt_boxes, gt_counts);
  const std::vector<LevelShape> levels =
      check_variable_anchors(op, gt_boxes, static_cast<int64_t>(gt_counts.size()),
                             {heights, widths, strides, shapes, size_range, cell_offset, min_iou, low_quality_from});
  check(levels.size() <= kMaxLevels, op, "level_sizes", text("at most ", kMaxLevels, " levels on CUDA"), levels.size());
  const Device device(gt_boxes);
  const std::vector<int64_t> anchor_counts(gt_counts.size(), locations_of(levels));
  const Starts starts{starts_of(anchor_counts), starts_of(gt_counts), starts_of(ignore_counts)};
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
      anchors.shapes = pointer_to<const Real>(kept_shapes);
      anchors.num_shapes = shapes->size(1);
    }
    if (size_range) anchors.size_range = pointer_to<const Real>(kept_range);
    result = match<Real>(op, device, gt_boxes, ignore_boxes, anchors, starts, low_quality_from);
  });
  return result;
}

MatchResult iou_match(Tensor boxes, std::vector<int64_t> counts, Tensor gt_boxes, std::vector<int64_t> gt_counts,
                      Tensor ignore_boxes, std::vector<int64_t> ignore_counts, double ignore_from,
                      std::optional<double> low_quality_from) {
  const char* op = "iou_match";
  check_boxes(op, "boxes", boxes, "counts", counts);
  check_boxes(op, "gt_boxes", gt_boxes, "gt_counts", gt_counts);
  check_dtype(op, "gt_boxes", gt_boxes, boxes.scalar_type());
  check_same_device(op, "gt_boxes", gt_boxes, boxes);
  check(counts.size() == gt_counts.size(), op, "gt_counts", text(counts.size(), " images"), gt_counts.size());
  check_ignore_boxes(op, ignore_boxes, ignore_counts, gt_boxes, gt_counts);
  check_ignore_from(op, ignore_from);
  check_low_quality_from(op, low_quality_from);
  const Device device(gt_boxes);
  const Tensor dense = torch::stable::contiguous(boxes);
  MatchResult result;
  dispatch(boxes.scalar_type(), [&]<class Real>(Real) {
    const FixedAnchors<Real> anchors{pointer_to<const Real>(dense), Real(0), Real(ignore_from)};
    const Starts starts{starts_of(counts), starts_of(gt_counts), starts_of(ignore_counts)};
    result = match<Real>(op, device, gt_boxes, ignore_boxes, anchors, starts, low_quality_from);
  });
  return result;
}

Tensor location_targets(Tensor gt_boxes, std::vector<int64_t> gt_counts, Tensor ignore_boxes,
                        std::vector<int64_t> ignore_counts, std::vector<int64_t> heights, std::vector<int64_t> widths,
                        std::vector<double> strides, double sigma, double center_ratio, double ignore_ratio,
                        double cell_offset, bool rounded) {
  const char* op = "location_targets";
  check_boxes(op, "gt_boxes", gt_boxes, "gt_counts", gt_counts);
  check_ignore_boxes(op, ignore_boxes, ignore_counts, gt_boxes, gt_counts);
  const std::vector<LevelShape> levels =
      check_levels_of_images(op, static_cast<int64_t>(gt_counts.size()), heights, widths, strides);
  check_regions(op, sigma, center_ratio, ignore_ratio, cell_offset, strides[0]);
  check(levels.size() <= kMaxLevels, op, "level_sizes", text("at most ", kMaxLevels, " levels on CUDA"), levels.size());
  const Device device(gt_boxes);
  const int64_t images = static_cast<int64_t>(gt_counts.size()), locations = locations_of(levels);
  const Tensor labels = torch::stable::new_zeros(gt_boxes, {images * locations}, ScalarType::Char);
  const Tensor ranks = torch::stable::new_zeros(gt_boxes, {rounded ? images * locations : 0}, ScalarType::Long);
  const Tensor dense = torch::stable::contiguous(gt_boxes), dense_ignore = torch::stable::contiguous(ignore_boxes);
  dispatch(gt_boxes.scalar_type(), [&]<class Real>(Real) {
    PaintRegions<Real> kernel{.num_levels = static_cast<int>(levels.size()),
                              .locations_per_image = locations,
                              .rule = {sigma, center_ratio, ignore_ratio, cell_offset, rounded}};
    for (size_t l = 0; l < levels.size(); ++l) kernel.levels[l] = levels[l], kernel.strides[l] = strides[l];
    const auto paint = [&](Painting painting, const Tensor& boxes, const std::vector<int64_t>& counts) {
      kernel.painting = painting;
      kernel.boxes = pointer_to<const Real>(boxes);
      const std::vector<int64_t> starts = starts_of(counts);
      const auto blocks_of = [&](int64_t image) { return counts[image]; };
      for_image_groups({starts, starts, starts}, blocks_of, [&](const ImageRanges& ranges, int64_t first) {
        kernel.ranges = ranges;
        kernel.labels = pointer_to<int8_t>(labels) + first * locations;
        if (rounded) kernel.ranks = pointer_to<uint64_t>(ranks) + first * locations;
        device.launch("paint_regions", kernel, ranges.block[ranges.images]);
      });
    };
    paint(Painting::kIgnoreBoxes, dense_ignore, ignore_counts);
    paint(Painting::kAround, dense, gt_counts);
    paint(Painting::kOwn, dense, gt_counts);
  });
  if (rounded) {
    for_each(device, "store_ranks", images * locations,
             StoreRanks{pointer_to<const uint64_t>(ranks), pointer_to<int8_t>(labels)});
  }
  return labels;
}

}  // namespace
}  // namespace ga_scope::cuda

STABLE_TORCH_LIBRARY_IMPL(ga_scope, GA_SCOPE_DISPATCH_KEY, m) {
  m.impl("viou_match", TORCH_BOX(&ga_scope::cuda::viou_match));
  m.impl("iou_match", TORCH_BOX(&ga_scope::cuda::iou_match));
  m.impl("location_targets", TORCH_BOX(&ga_scope::cuda::location_targets));
}
