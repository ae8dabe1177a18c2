// Greedy suppression within a group. Included once per instruction set, after simd.inl.

// Whether one of the boxes [i, i + width) of the columns has an IoU of `least` or above with the box. The numbers are
// those of box_iou (overlap.h): each operation is rounded, so the product may not become part of a multiply-add.
template <class Real>
GA_INLINE auto overlaps(Real* const columns[], int64_t i, const typename Vec<Real>::type box[],
                        typename Vec<Real>::type least) {
  using V = typename Vec<Real>::type;
  const V zero{};
  const V w = lower<Real>(load(columns[2] + i), box[2]) - higher<Real>(load(columns[0] + i), box[0]);
  const V h = lower<Real>(load(columns[3] + i), box[3]) - higher<Real>(load(columns[1] + i), box[1]);
  const V both = rounded<Real>(higher<Real>(w, zero) * higher<Real>(h, zero));
  return (both > zero) & (both / (load(columns[4] + i) + box[4] - both) >= least);
}

// Each box against the survivors before it, the best first: those suppress most.
template <class Real>
void survivors_of_group(const GroupOfBoxes<Real>& group, Real least, bool* survives) {
  constexpr int kWidth = Vec<Real>::width, kColumns = GroupOfBoxes<Real>::kColumns;
  const auto limit = broadcast(least);
  int64_t kept = 0;
  for (int64_t i = 0; i < group.count; ++i) {
    typename Vec<Real>::type box[kColumns];
    for (int c = 0; c < kColumns; ++c) box[c] = broadcast(group.box[c][i]);
    bool suppressed = false;
    int64_t j = 0;
    for (; j + 2 * kWidth <= kept && !suppressed; j += 2 * kWidth) {
      suppressed = any<Real>(overlaps(group.kept, j, box, limit) | overlaps(group.kept, j + kWidth, box, limit));
    }
    for (; j < kept && !suppressed; j += kWidth) suppressed = any<Real>(overlaps(group.kept, j, box, limit));
    survives[i] = !suppressed;
    if (suppressed) continue;
    // The rest of the last vector is a box without area, which overlaps nothing.
    for (int c = 0; c < kColumns; ++c) {
      if (kept % kWidth == 0) store(group.kept[c] + kept, typename Vec<Real>::type{});
      group.kept[c][kept] = group.box[c][i];
    }
    ++kept;
  }
}

template <class Real>
constexpr SuppressionKernels<Real> suppression_table() {
  return {survivors_of_group<Real>};
}
