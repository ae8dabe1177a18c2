// The arguments of nms_mask, checked. Shared by the CPU and CUDA launchers.
#pragma once

#include <optional>

#include "check.h"
#include "overlap.h"

namespace ga_scope {

// Boxes (B, K, 4) with what decides whether one of them can suppress another.
inline void check_nms(const Tensor& boxes, const std::optional<Tensor>& groups, const std::optional<Tensor>& valid,
                      double iou_threshold) {
  const char* op = "nms_mask";
  check_dim(op, "boxes", boxes, 3);
  if (boxes.size(2) != 4) check(false, op, "boxes", "shape [B, K, 4]", shape_text(boxes));
  const ScalarType dtype = boxes.scalar_type();
  const bool ok = dtype == ScalarType::Float || dtype == ScalarType::Double;
  if (!ok) check(false, op, "boxes", "dtype Float or Double", torch::headeronly::toString(dtype));
  check(countable({boxes.size(0), boxes.size(1), boxes.size(1)}), op, "boxes", "fewer than 2^40 pairs",
        shape_text(boxes));
  const auto check_flags = [&](const char* name, const std::optional<Tensor>& flags, ScalarType type) {
    if (!flags) return;
    check_shape(op, name, *flags, {boxes.size(0), boxes.size(1)});
    check_dtype(op, name, *flags, type);
    check_same_device(op, name, *flags, boxes);
  };
  check_flags("groups", groups, ScalarType::Long);
  check_flags("valid", valid, ScalarType::Bool);
  check(iou_threshold >= 0 && iou_threshold <= 1, op, "iou_threshold", "a number in [0, 1]", iou_threshold);
}

// Compared in double, as torchvision's: a threshold of 0.7 is not the float nearest to it.
template <class Real>
GA_HOST_DEVICE bool suppresses(const Box<Real>& a, const Box<Real>& b, double iou_threshold) {
  return static_cast<double>(box_iou(a, b)) > iou_threshold;
}

}  // namespace ga_scope
