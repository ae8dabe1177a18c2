// Overlap loops, written so that the compiler turns each into straight vector code.
// Included once per instruction set.

GA_EXACT_BEGIN

template <class Real>
void viou_exact_row(const RowOfAnchors<Real>& row, const Box<Real>& box, Real* iou) {
  const SizeCandidates<Real> h = size_candidates(row.y - box.y1, box.y2 - row.y, box.height(), row.low, row.high);
  const Real area = box.area(), extent = box.width(), x1 = box.x1, x2 = box.x2, low = row.low, high = row.high;
  const Real* x = row.x;
  for (int64_t i = 0; i < row.count; ++i) {
    iou[i] = best_of_candidates(size_candidates(x[i] - x1, x2 - x[i], extent, low, high), h, area);
  }
}

template <class Real>
void viou_sampled_row(const RowOfAnchors<Real>& row, const Box<Real>& box, Real* iou) {
  for (int64_t i = 0; i < row.count; ++i) iou[i] = 0;
  const Real* x = row.x;
  const Real extent = box.width(), x1 = box.x1, x2 = box.x2;
  for (int64_t s = 0; s < row.num_shapes; ++s) {
    const Real width = row.shapes[2 * s], height = row.shapes[2 * s + 1];
    const Real overlap_h = centred_overlap(height, row.y - box.y1, box.y2 - row.y, box.height());
    if (!(overlap_h > 0)) continue;
    const Real areas = product(width, height) + box.area();
    for (int64_t i = 0; i < row.count; ++i) {
      const Real overlap_w = centred_overlap(width, x[i] - x1, x2 - x[i], extent);
      iou[i] = larger(iou[i], ratio_of_overlap(product(overlap_w, overlap_h), areas));
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
  // Copies: as far as the compiler knows, writing iou could change what the references hold.
  const BoxColumns<Real> from = boxes;
  const Box<Real> to = box;
  const Real area = to.area();
  for (int64_t i = 0; i < from.count; ++i) {
    const Real w = larger(smaller(from.x2[i], to.x2) - larger(from.x1[i], to.x1), Real(0));
    const Real h = larger(smaller(from.y2[i], to.y2) - larger(from.y1[i], to.y1), Real(0));
    iou[i] = ratio_of_overlap(product(w, h), from.area[i] + area);
  }
}

template <class Real>
Real largest(const Real* values, int64_t count) {
  typename Vec<Real>::type lanes{};
  int64_t i = 0;
  for (; i + Vec<Real>::width <= count; i += Vec<Real>::width) {
    const typename Vec<Real>::type next = load(values + i);
    lanes = next > lanes ? next : lanes;
  }
  Real top = 0;
  for (; i < count; ++i) top = larger(values[i], top);
  for (int lane = 0; lane < Vec<Real>::width; ++lane) top = larger(lanes[lane], top);
  return top;
}

template <class Real>
Real update_best(const Real* iou, int64_t count, int32_t box, Real* best, int32_t* index) {
  for (int64_t i = 0; i < count; ++i) {
    const bool better = iou[i] > best[i];
    best[i] = better ? iou[i] : best[i];
    index[i] = better ? box : index[i];
  }
  return largest(iou, count);
}

template <class Real>
constexpr MatchingKernels<Real> matching_table() {
  return {viou_row<Real>, iou_columns<Real>, update_best<Real>};
}

GA_EXACT_END
