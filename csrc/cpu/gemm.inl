// Small matrix products on tiles that stay in cache: C (rows x columns) = or += A (rows x depth) * B.
//
// B comes in panels: kPanel columns wide, `depth` rows, each row contiguous. The last panel of a matrix
// may be narrower, but always a whole number of vectors, padded with zeros. One micro-kernel call
// computes kRows x (1..kPanelVectors vectors) of C in registers over the whole depth, so every element
// is one chain of multiply-adds in order: the result does not depend on how the work was cut.

#if GA_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kRows = 6, kPanelVectors = 4;  // 24 of 32 registers hold C
#else
constexpr int kRows = 6, kPanelVectors = 2;  // 12 of 16
#endif

template <class Real>
constexpr int64_t kPanel = kPanelVectors * Vec<Real>::width;

// How A is stored: element (i, p) is at(i)[p * step()].
template <class Real>
struct StridedRows {
  const Real* data;
  int64_t stride;
  GA_INLINE const Real* at(int64_t i) const { return data + i * stride; }
  GA_INLINE static constexpr int64_t step() { return 1; }
  GA_INLINE StridedRows from(int64_t i) const { return {at(i), stride}; }
  GA_INLINE StridedRows deeper(int64_t p) const { return {data + p, stride}; }
};

// Rows anywhere in memory: what saves copying them side by side.
template <class Real>
struct ListedRows {
  const Real* const* rows;
  int64_t depth;
  GA_INLINE const Real* at(int64_t i) const { return rows[i] + depth; }
  GA_INLINE static constexpr int64_t step() { return 1; }
  GA_INLINE ListedRows from(int64_t i) const { return {rows + i, depth}; }
  GA_INLINE ListedRows deeper(int64_t p) const { return {rows, depth + p}; }
};

template <class Real>
struct TransposedRows {
  const Real* data;
  int64_t stride;
  GA_INLINE const Real* at(int64_t i) const { return data + i; }
  GA_INLINE int64_t step() const { return stride; }
  GA_INLINE TransposedRows from(int64_t i) const { return {at(i), stride}; }
};

template <class Real, int kCount, int kVectors, class Rows>
void micro_kernel(int64_t depth, Rows rows, const Real* b, int64_t ldb, Real* c, int64_t ldc, bool accumulate) {
  using V = typename Vec<Real>::type;
  constexpr int kWidth = Vec<Real>::width;
  const Real* a[kCount];
  V sums[kCount][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    a[i] = rows.at(i);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) sums[i][j] = accumulate ? load(c + i * ldc + j * kWidth) : V{};
  }
  for (int64_t p = 0; p < depth; ++p) {
    V row[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) row[j] = load(b + p * ldb + j * kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) {
      const V factor = broadcast(a[i][p * rows.step()]);
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

template <class Real, int kCount, class Rows>
GA_INLINE void micro_panel(int vectors, int64_t depth, Rows a, const Real* b, int64_t ldb, Real* c, int64_t ldc,
                           bool accumulate) {
  static_assert(kPanelVectors <= 4);
  if constexpr (kPanelVectors >= 4) {
    if (vectors == 4) return micro_kernel<Real, kCount, 4>(depth, a, b, ldb, c, ldc, accumulate);
    if (vectors == 3) return micro_kernel<Real, kCount, 3>(depth, a, b, ldb, c, ldc, accumulate);
  }
  if (vectors == 2) return micro_kernel<Real, kCount, 2>(depth, a, b, ldb, c, ldc, accumulate);
  return micro_kernel<Real, kCount, 1>(depth, a, b, ldb, c, ldc, accumulate);
}

template <class Real, class Rows>
void multiply_panel(int64_t rows, int vectors, int64_t depth, Rows a, const Real* b, int64_t ldb, Real* c, int64_t ldc,
                    bool accumulate) {
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows) {
    micro_panel<Real, kRows>(vectors, depth, a.from(i), b, ldb, c + i * ldc, ldc, accumulate);
  }
  const Rows tail = a.from(i);
  Real* out = c + i * ldc;
  switch (rows - i) {
    case 5: return micro_panel<Real, 5>(vectors, depth, tail, b, ldb, out, ldc, accumulate);
    case 4: return micro_panel<Real, 4>(vectors, depth, tail, b, ldb, out, ldc, accumulate);
    case 3: return micro_panel<Real, 3>(vectors, depth, tail, b, ldb, out, ldc, accumulate);
    case 2: return micro_panel<Real, 2>(vectors, depth, tail, b, ldb, out, ldc, accumulate);
    case 1: return micro_panel<Real, 1>(vectors, depth, tail, b, ldb, out, ldc, accumulate);
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

// C = or += A * (rows [first_row, first_row + depth) of B), B packed in panels of packed_depth rows. A panel is taken
// piecewise: a piece stays in the first-level cache while all rows of A pass by.
template <class Real, class Rows>
void multiply_packed(int64_t rows, int64_t columns, int64_t depth, Rows a, const Real* packed, int64_t packed_depth,
                     int64_t first_row, Real* c, int64_t ldc, bool accumulate) {
  constexpr int64_t kPieceBytes = GA_VECTOR_BYTES == 64 ? 24 << 10 : 16 << 10;
  constexpr int64_t kPiece = kPieceBytes / (kPanel<Real> * static_cast<int64_t>(sizeof(Real)));
  for (int64_t first = 0; first < columns; first += kPanel<Real>) {
    const int vectors = panel_vectors<Real>(columns, first);
    const int64_t width = int64_t(vectors) * Vec<Real>::width;
    const Real* b = packed + first * packed_depth + first_row * width;
    for (int64_t p = 0; p < depth; p += kPiece) {
      multiply_panel(rows, vectors, std::min(kPiece, depth - p), a.deeper(p), b + p * width, width, c + first, ldc,
                     accumulate || p > 0);
    }
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
