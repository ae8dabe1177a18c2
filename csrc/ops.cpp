// Operator schemas. Kernels register themselves per device (cpu/, cuda/); fake kernels, autograd and
// autocast are registered in Python (ga_scope/ops).
//
// A list of maps is a pyramid: one call, and one parallel region, for all of its levels. Location indices
// are defined in location.h.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(ga_scope, m) {
  // The instruction set that the CPU kernels run with.
  m.def("cpu_capability() -> str");
  // locations given: offset and mask hold one (L, columns) tensor, and so does the result.
  // Otherwise: one dense map per level. offset_weight: offsets are offset @ offset_weight^T.
  // mask: optional, as a program of AOTInductor turns an empty list into None.
  // allow_tf32 and deterministic are torch's flags, which kernels of the stable ABI cannot ask for; the CPU
  // needs neither.
  m.def(
      "deform_conv2d(Tensor[] input, Tensor[] offset, Tensor weight, Tensor? bias, Tensor[]? mask, "
      "Tensor? offset_weight, Tensor? locations, int[] stride, int[] padding, int[] dilation, int groups, "
      "int offset_groups, bool allow_tf32) -> Tensor[]");
  m.def(
      "deform_conv2d_backward(Tensor[] grad_output, Tensor[] input, Tensor[] offset, Tensor weight, Tensor[]? mask, "
      "Tensor? offset_weight, Tensor? locations, int[] stride, int[] padding, int[] dilation, int groups, "
      "int offset_groups, bool want_input, bool want_weight, bool deterministic) "
      "-> (Tensor[], Tensor[], Tensor, Tensor[], Tensor)");
  m.def(
      "masked_conv2d(Tensor[] input, Tensor weight, Tensor? bias, Tensor locations, int[] stride, int[] padding, "
      "int[] dilation, int groups, bool allow_tf32) -> Tensor");
  m.def(
      "masked_conv2d_backward(Tensor grad_output, Tensor[] input, Tensor weight, Tensor locations, int[] stride, "
      "int[] padding, int[] dilation, int groups, bool want_input, bool want_weight, bool deterministic) "
      "-> (Tensor[], Tensor)");
  // Boxes of all images in one (G, 4) tensor, gt_counts of them per image, and so the ignore boxes; level l is
  // heights[l] x widths[l]. Per anchor: best IoU and its box; per box: best IoU and its first anchor; per anchor: the
  // last box that it is best for, alone or tied, with at least low_quality_from (None: not looked for); per anchor:
  // whether it lies in an ignore box.
  m.def(
      "viou_match(Tensor gt_boxes, SymInt[] gt_counts, Tensor ignore_boxes, SymInt[] ignore_counts, SymInt[] heights, "
      "SymInt[] widths, float[] strides, Tensor? shapes, Tensor? size_range, float cell_offset, float min_iou, "
      "float? low_quality_from) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "iou_match(Tensor boxes, SymInt[] counts, Tensor gt_boxes, SymInt[] gt_counts, Tensor ignore_boxes, "
      "SymInt[] ignore_counts, float ignore_from, float? low_quality_from) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // rounded: the release's rule for the regions' borders and overlaps, or else the paper's.
  m.def(
      "location_targets(Tensor gt_boxes, SymInt[] gt_counts, Tensor ignore_boxes, SymInt[] ignore_counts, "
      "SymInt[] heights, SymInt[] widths, float[] strides, float sigma, float center_ratio, float ignore_ratio, "
      "float cell_offset, bool rounded) -> Tensor");
  // Boxes (B, K, 4), the best of each batch entry first: which survive. Of a fixed size, unlike a list of survivors.
  m.def("nms_mask(Tensor boxes, Tensor? groups, Tensor? valid, float iou_threshold) -> Tensor");
  // Boxes (R, 4) of images (R,), pooled from maps (num_images, C, height, width) that are `scale` of the boxes' size.
  m.def(
      "roi_align_backward(Tensor grad_output, Tensor boxes, Tensor images, float scale, int sampling_ratio, "
      "SymInt num_images, SymInt height, SymInt width) -> Tensor");
}
