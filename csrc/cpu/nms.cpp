// nms_mask on the CPU: batch entries side by side on torch's threads, boxes one after the other.

#include "../nms.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "parallel.h"

namespace ga_scope::cpu {
namespace {

template <class Real>
void suppress(const Box<Real>* boxes, const int64_t* groups, int64_t count, double iou_threshold, bool* kept) {
  for (int64_t i = 0; i < count; ++i) {
    if (!kept[i]) continue;
    for (int64_t j = i + 1; j < count; ++j) {
      if (kept[j] && (!groups || groups[i] == groups[j]) && suppresses(boxes[i], boxes[j], iou_threshold)) {
        kept[j] = false;
      }
    }
  }
}

Tensor nms_mask(Tensor boxes, std::optional<Tensor> groups, std::optional<Tensor> valid, double iou_threshold) {
  check_nms(boxes, groups, valid, iou_threshold);
  const int64_t batch = boxes.size(0), count = boxes.size(1);
  Tensor mask = torch::stable::new_empty(boxes, {batch, count}, ScalarType::Bool);
  bool* kept = static_cast<bool*>(mask.data_ptr());
  const Tensor dense = torch::stable::contiguous(boxes);
  Tensor dense_groups, dense_valid;
  if (groups) dense_groups = torch::stable::contiguous(*groups);
  if (valid) dense_valid = torch::stable::contiguous(*valid);
  const int64_t* of_group = groups ? static_cast<const int64_t*>(dense_groups.data_ptr()) : nullptr;
  const bool* of_valid = valid ? static_cast<const bool*>(dense_valid.data_ptr()) : nullptr;
  const auto run = [&]<class Real>(Real) {
    const auto* all = static_cast<const Box<Real>*>(dense.data_ptr());
    parallel(batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        bool* of_batch = kept + b * count;
        valid ? std::copy_n(of_valid + b * count, count, of_batch) : std::fill_n(of_batch, count, true);
        suppress(all + b * count, of_group ? of_group + b * count : nullptr, count, iou_threshold, of_batch);
      }
    });
  };
  boxes.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return mask;
}

}  // namespace
}  // namespace ga_scope::cpu

STABLE_TORCH_LIBRARY_IMPL(ga_scope, CPU, m) { m.impl("nms_mask", TORCH_BOX(&ga_scope::cpu::nms_mask)); }
