// Overlap loops, written so that the compiler turns each into straight vector code.
// Included once per instruction set.

template <class Real>
void viou_exact_row(const RowOfAnchors<Real>& row, const Box<Real>& box, Real* iou) {
  const SizeCandidates<Real> h = size_candidates(row.y - box.y1, box.y2 - row.y, row.low, row.high);
  const Real area = box.area(), x1 = box.x1, x2 = box.x2, low = row.low, high = row.high;
  const Real* x = row.x;
  for (int64_t i = 0; i < row.count; ++i) {
    iou[i] = best_of_candidates(size_candidates(x[i] - x1, x2 - x[i], low, high), h, area);
  }
}

template <class Real>
void viou_sampled_row(const RowOfAnchors<Real>& row, const Box<Real>& box, Real* iou) {
  for (int64_t i = 0; i < row.count; ++i) iou[i] = 0;
  const Real* x = row.x;
  const Real x1 = box.x1, x2 = box.x2;
  for (int64_t s = 0; s < row.num_shapes; ++s) {
    const Real width = row.shapes[2 * s], height = row.shapes[2 * s + 1];
    const Real overlap_h = centred_overlap(height, row.y - box.y1, box.y2 - row.y);
    if (!(overlap_h > 0)) continue;
    const Real areas = width * height + box.area();
    for (int64_t i = 0; i < row.count; ++i) {
      const Real overlap_w = centred_overlap(width, x[i] - x1, x2 - x[i]);
      iou[i] = larger(iou[i], ratio_of_overlap(overlap_w * overlap_h, areas));
    }
  }
}

template <class Real>
void viou_row(const RowOfAnchors<Real>& row, const Box<Real>& box, Real* iou) {
  if (row.num_shapes > 0) {
    viou_sampled_row(row, box, iou);
  } else {
    viou_exact_row(row, box, iou);
  }
}

template <class Real>
void iou_columns(const BoxColumns<Real>& boxes, const Box<Real>& box, Real* iou) {
  const Real area = box.area();
  for (int64_t i = 0; i < boxes.count; ++i) {
    const Real w = larger(smaller(boxes.x2[i], box.x2) - larger(boxes.x1[i], box.x1), Real(0));
    const Real h = larger(smaller(boxes.y2[i], box.y2) - larger(boxes.y1[i], box.y1), Real(0));
    iou[i] = ratio_of_overlap(w * h, boxes.area[i] + area);
  }
}

template <class Real>
Real update_best(const Real* iou, int64_t count, int32_t box, Real* best, int32_t* index) {
  Real top = 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool better = iou[i] > best[i];
    top = larger(iou[i], top);
    best[i] = better ? iou[i] : best[i];
    index[i] = better ? box : index[i];
  }
  return top;
}

template <class Real>
constexpr MatchingKernels<Real> matching_table() {
  return {viou_row<Real>, iou_columns<Real>, update_best<Real>};
}
