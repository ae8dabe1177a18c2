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
    const PairBits<Real> kernel{.boxes = static_cast<const Box<Real>*>(dense.data_ptr()),
                                .groups = groups ? static_cast<const int64_t*>(dense_groups.data_ptr()) : nullptr,
                                .count = count,
                                .words = words,
                                .iou_threshold = iou_threshold,
                                .bits = static_cast<uint64_t*>(bits.data_ptr())};
    device.launch("nms_pairs", kernel, kernel.blocks(batch));
  };
  boxes.scalar_type() == ScalarType::Double ? pairs(double{}) : pairs(float{});
  const Sweep sweep{.bits = static_cast<const uint64_t*>(bits.data_ptr()),
                    .valid = valid ? static_cast<const bool*>(dense_valid.data_ptr()) : nullptr,
                    .count = count,
                    .words = words,
                    .kept = static_cast<bool*>(mask.data_ptr())};
  device.launch("nms_sweep", sweep, batch);
  return mask;
}

}  // namespace
}  // namespace ga_scope::cuda

STABLE_TORCH_LIBRARY_IMPL(ga_scope, GA_SCOPE_DISPATCH_KEY, m) {
  m.impl("nms_mask", TORCH_BOX(&ga_scope::cuda::nms_mask));
}
