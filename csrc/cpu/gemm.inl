// Small matrix products on tiles that stay in cache: C (rows x columns) = or += A (rows x depth) * B.
//
// B comes in panels: kPanel columns wide, `depth` rows, each row contiguous. The last panel of a matrix
// may be narrower, but always a whole number of vectors, padded with zeros. One micro-kernel call
// computes kRows x (1..kPanelVectors vectors) of C in registers over the whole depth, so every element
// is one chain of multiply-adds in order: the result does not depend on how the work was cut.

#if GA_VECTOR_BYTES == 64
constexpr int kRows = 6, kPanelVectors = 4;  // 24 of 32 registers hold C
#else
constexpr int kRows = 6, kPanelVectors = 2;  // 12 of 16
#endif

template <class Real>
constexpr int64_t kPanel = kPanelVectors * Vec<Real>::width;

// kTransposed: A is stored depth-major, element (i, p) at a[p * lda + i]; else at a[i * lda + p].
template <class Real, int kCount, int kVectors, bool kTransposed>
void micro_kernel(int64_t depth, const Real* a, int64_t lda, const Real* b, int64_t ldb, Real* c, int64_t ldc,
                  bool accumulate) {
  using V = typename Vec<Real>::type;
  constexpr int kWidth = Vec<Real>::width;
  V sums[kCount][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sums[i][j] = accumulate ? load(c + i * ldc + j * kWidth) : V{};
  }
  for (int64_t p = 0; p < depth; ++p) {
    V row[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) row[j] = load(b + p * ldb + j * kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) {
      const V factor = broadcast(kTransposed ? a[p * lda + i] : a[i * lda + p]);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) sums[i][j] += factor * row[j];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) store(c + i * ldc + j * kWidth, sums[i][j]);
  }
}

template <class Real, int kCount, bool kTransposed>
GA_INLINE void micro_panel(int vectors, int64_t depth, const Real* a, int64_t lda, const Real* b, int64_t ldb, Real* c,
                           int64_t ldc, bool accumulate) {
  static_assert(kPanelVectors <= 4);
  if constexpr (kPanelVectors >= 4) {
    if (vectors == 4) return micro_kernel<Real, kCount, 4, kTransposed>(depth, a, lda, b, ldb, c, ldc, accumulate);
    if (vectors == 3) return micro_kernel<Real, kCount, 3, kTransposed>(depth, a, lda, b, ldb, c, ldc, accumulate);
  }
  if (vectors == 2) return micro_kernel<Real, kCount, 2, kTransposed>(depth, a, lda, b, ldb, c, ldc, accumulate);
  return micro_kernel<Real, kCount, 1, kTransposed>(depth, a, lda, b, ldb, c, ldc, accumulate);
}

template <class Real, bool kTransposed>
void multiply_panel(int64_t rows, int vectors, int64_t depth, const Real* a, int64_t lda, const Real* b, int64_t ldb,
                    Real* c, int64_t ldc, bool accumulate) {
  const int64_t step = kTransposed ? 1 : lda;
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    micro_panel<Real, kRows, kTransposed>(vectors, depth, a + i * step, lda, b, ldb, c + i * ldc, ldc, accumulate);
  }
  const Real* tail = a + i * step;
  Real* out = c + i * ldc;
  switch (rows - i) {
    case 5: return micro_panel<Real, 5, kTransposed>(vectors, depth, tail, lda, b, ldb, out, ldc, accumulate);
    case 4: return micro_panel<Real, 4, kTransposed>(vectors, depth, tail, lda, b, ldb, out, ldc, accumulate);
    case 3: return micro_panel<Real, 3, kTransposed>(vectors, depth, tail, lda, b, ldb, out, ldc, accumulate);
    case 2: return micro_panel<Real, 2, kTransposed>(vectors, depth, tail, lda, b, ldb, out, ldc, accumulate);
    case 1: return micro_panel<Real, 1, kTransposed>(vectors, depth, tail, lda, b, ldb, out, ldc, accumulate);
  }
}

// Columns rounded up to whole vectors: what a product writes per row of C, so what ldc must leave room for.
template <class Real>
constexpr int64_t padded(int64_t columns) {
  return (columns + Vec<Real>::width - 1) / Vec<Real>::width * Vec<Real>::width;
}

template <class Real>
GA_INLINE int panel_vectors(int64_t columns, int64_t first) {
  const int64_t left = padded<Real>(columns) - first;
  return static_cast<int>(std::min<int64_t>(left, kPanel<Real>) / Vec<Real>::width);
}

// C = or += A * B with B packed in panels (pack_panels).
template <class Real>
void multiply_packed(int64_t rows, int64_t columns, int64_t depth, const Real* a, int64_t lda, const Real* packed,
                     Real* c, int64_t ldc, bool accumulate) {
  for (int64_t first = 0; first < columns; first += kPanel<Real>) {
    const int vectors = panel_vectors<Real>(columns, first);
    multiply_panel<Real, false>(rows, vectors, depth, a, lda, packed + first * depth,
                                int64_t(vectors) * Vec<Real>::width, c + first, ldc, accumulate);
  }
}

// Where a vector of columns of B lies in the panels: the one that starts at `column` (a multiple of the width).
template <class Real>
struct PanelPlace {
  int64_t start, stride;
  GA_INLINE PanelPlace(int64_t column, int64_t columns, int64_t depth) {
    const int64_t first = column / kPanel<Real> * kPanel<Real>;
    start = first * depth + column - first;
    stride = int64_t(panel_vectors<Real>(columns, first)) * Vec<Real>::width;
  }
  GA_INLINE int64_t row(int64_t p) const { return start + p * stride; }
};
