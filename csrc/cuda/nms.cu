// nms_mask on CUDA. Nothing waits for the device, and no size depends on the data.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "nms_kernels.h"

namespace ga_scope::cuda {
namespace {

Tensor nms_mask(Tensor boxes, std::optional<Tensor> groups, std::optional<Tensor> valid, double iou_threshold) {
  check_nms(boxes, groups, valid, iou_threshold);
  const int64_t batch = boxes.size(0), count = boxes.size(1), words = (count + kTile - 1) / kTile;
  check(words <= kMostWords, "nms_mask", "boxes", text("at most ", kMostWords * kTile, " boxes per entry on CUDA"),
        count);
  const Device device(boxes);
  const Tensor mask = torch::stable::new_empty(boxes, {batch, count}, ScalarType::Bool);
  if (mask.numel() == 0) return mask;
  const Tensor dense = torch::stable::contiguous(boxes);
  Tensor dense_groups, dense_valid;
  if (groups) dense_groups = torch::stable::contiguous(*groups);
  if (valid) dense_valid = torch::stable::contiguous(*valid);
  const Tensor bits = torch::stable::new_empty(boxes, {batch, count, words}, ScalarType::Long);
  const auto pairs = [&]<class Real>(Real) {
    const PairBits<Real> kernel{.boxes = pointer_to<const Box<Real>>(dense),
                                .groups = groups ? pointer_to<const int64_t>(dense_groups) : nullptr,
                                .count = count,
                                .words = words,
                                .by_words = Divisor(words),
                                .iou_threshold = iou_threshold,
                                .bits = pointer_to<uint64_t>(bits)};
    device.launch("nms_pairs", kernel, kernel.blocks(batch));
  };
  boxes.scalar_type() == ScalarType::Double ? pairs(double{}) : pairs(float{});
  const Sweep sweep{.bits = pointer_to<const uint64_t>(bits),
                    .valid = valid ? pointer_to<const bool>(dense_valid) : nullptr,
                    .count = count,
                    .words = words,
                    .kept = pointer_to<bool>(mask)};
  device.launch("nms_sweep", sweep, batch);
  return mask;
}

}  // namespace
}  // namespace ga_scope::cuda

STABLE_TORCH_LIBRARY_IMPL(ga_scope, GA_SCOPE_DISPATCH_KEY, m) {
  m.impl("nms_mask", TORCH_BOX(&ga_scope::cuda::nms_mask));
}
