// C (rows x columns) += A * B of bfloat16, summed in float: the product that the instruction sets differ in.
//
// A lies row by row. B lies by pairs of rows, as the instructions want it: element (p, j) at
// b[p / 2 * ldb + 2 * j + p % 2]. Columns are a multiple of kLanes, the depth is one of kDepth. The AMX kernel takes
// rows by kTile: it reads and writes up to there. Every element is summed in the order of the depth, so that the result
// does not depend on how the work was cut into multiples of kDepth.
//
// GA_BFLOAT16_PRODUCT: 0 what the instructions do, in C++, for any processor; 1 vdpbf16ps (AVX512-BF16); 2 tdpbf16ps
// (AMX).

constexpr int64_t kLanes = 16, kDepth = 32, kTile = 16;

struct Operands {
  const BFloat16* a;
  int64_t lda;
  const BFloat16* b;
  int64_t ldb;
  float* c;
  int64_t ldc;

  GA_INLINE Operands at(int64_t row, int64_t column) const {
    return {a + row * lda, lda, b + 2 * column, ldb, c + row * ldc + column, ldc};
  }
};

#if GA_BFLOAT16_PRODUCT == 2

constexpr int64_t kPanelColumns = 2 * kTile;

// Tiles of 16 rows of 64 bytes: 0 to 3 are C, 4 and 5 A, 6 and 7 B. A thread has them while a Tiles lives.
struct Tiles {
  GA_INLINE Tiles() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("" : : "r"(&config) : "memory");  // compilers do not know how much is read
    _tile_loadconfig(&config);
  }
  GA_INLINE ~Tiles() { _tile_release(); }
};

template <int kRowTiles, int kColumnTiles>
GA_INLINE void multiply_tiles(int64_t depth, const Operands& m) {
  const int64_t lda = m.lda * 2, ldb = m.ldb * 2, ldc = m.ldc * 4;
  asm volatile("" : : : "memory");  // compilers do not know that tiles are loaded from memory
  _tile_loadd(0, m.c, ldc);
  if constexpr (kColumnTiles > 1) _tile_loadd(1, m.c + kTile, ldc);
  if constexpr (kRowTiles > 1) _tile_loadd(2, m.c + kTile * m.ldc, ldc);
  if constexpr (kRowTiles > 1 && kColumnTiles > 1) _tile_loadd(3, m.c + kTile * m.ldc + kTile, ldc);
  const BFloat16* b = m.b;
  for (int64_t p = 0; p < depth; p += kDepth, b += kDepth / 2 * m.ldb) {
    _tile_loadd(6, b, ldb);
    _tile_loadd(4, m.a + p, lda);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColumnTiles > 1) {
      _tile_loadd(7, b + 2 * kTile, ldb);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRowTiles > 1) {
      _tile_loadd(5, m.a + kTile * m.lda + p, lda);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kColumnTiles > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, m.c, ldc);
  if constexpr (kColumnTiles > 1) _tile_stored(1, m.c + kTile, ldc);
  if constexpr (kRowTiles > 1) _tile_stored(2, m.c + kTile * m.ldc, ldc);
  if constexpr (kRowTiles > 1 && kColumnTiles > 1) _tile_stored(3, m.c + kTile * m.ldc + kTile, ldc);
}

// One panel: at most kPanelColumns columns.
inline void multiply_panel(int64_t rows, int64_t columns, int64_t depth, const Operands& m) {
  for (int64_t i = 0; i < rows; i += 2 * kTile) {
    const Operands part = m.at(i, 0);
    const bool tall = i + kTile<rows, wide = columns> kTile;
    if (tall && wide) {
      multiply_tiles<2, 2>(depth, part);
    } else if (tall) {
      multiply_tiles<2, 1>(depth, part);
    } else if (wide) {
      multiply_tiles<1, 2>(depth, part);
    } else {
      multiply_tiles<1, 1>(depth, part);
    }
  }
}

#else

constexpr int64_t kPanelColumns = 32;

struct Tiles {};

#if GA_BFLOAT16_PRODUCT == 1

using Sums = __m512;
constexpr int kSumLanes = 16;

// sums + the products of a pair of A with a vector of pairs of B.
GA_INLINE __m512 add_products(__m512 sums, const BFloat16* pair, const BFloat16* b) {
  int32_t both;
  std::memcpy(&both, pair, sizeof(both));
  return _mm512_dpbf16_ps(sums, reinterpret_cast<__m512bh>(_mm512_set1_epi32(both)),
                          reinterpret_cast<__m512bh>(_mm512_loadu_si512(b)));
}

#else

using Sums = Vec<float>::type;
constexpr int kSumLanes = Vec<float>::width;

GA_INLINE Sums add_products(Sums sums, const BFloat16* pair, const BFloat16* b) {
  typedef uint32_t Bits __attribute__((vector_size(GA_VECTOR_BYTES)));
  typedef uint32_t Unaligned __attribute__((vector_size(GA_VECTOR_BYTES), aligned(2), may_alias));
  const Bits pairs = *reinterpret_cast<const Unaligned*>(b);
  sums += broadcast(static_cast<float>(pair[0])) * reinterpret_cast<Sums>(pairs << 16);
  return sums + broadcast(static_cast<float>(pair[1])) * reinterpret_cast<Sums>(pairs & 0xffff0000u);
}

#endif

template <int kCount, int kVectors>
void multiply_rows(int64_t depth, const Operands& m) {
  Sums sums[kCount][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) std::memcpy(&sums[i][j], m.c + i * m.ldc + j * kSumLanes, sizeof(Sums));
  }
  const BFloat16* b = m.b;
  for (int64_t p = 0; p < depth; p += 2, b += m.ldb) {
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) {
        sums[i][j] = add_products(sums[i][j], m.a + i * m.lda + p, b + 2 * j * kSumLanes);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) std::memcpy(m.c + i * m.ldc + j * kSumLanes, &sums[i][j], sizeof(Sums));
  }
}

// One panel: at most kPanelColumns columns.
inline void multiply_panel(int64_t rows, int64_t columns, int64_t depth, const Operands& m) {
  constexpr int kMost = GA_BFLOAT16_PRODUCT == 1 ? 12 : 4, kVectors = kLanes / kSumLanes;
  int64_t i = 0;
  for (; columns > kLanes && i + kMost <= rows; i += kMost) multiply_rows<kMost, 2 * kVectors>(depth, m.at(i, 0));
  for (; i < rows; ++i) {
    multiply_rows<1, kVectors>(depth, m.at(i, 0));
    if (columns > kLanes) multiply_rows<1, kVectors>(depth, m.at(i, kLanes));
  }
}

#endif

// By panels of columns and pieces of the depth: a piece of a panel stays in the first-level cache while all rows of A
// pass by. packed: B has its panels one after the other; ldb is then theirs.
inline void multiply(int64_t rows, int64_t columns, int64_t depth, const Operands& m, bool packed) {
  constexpr int64_t kPiece = GA_BFLOAT16_PRODUCT == 2 ? 512 : 256;
  for (int64_t first = 0; first < columns; first += kPanelColumns) {
    const int64_t width = std::min(kPanelColumns, columns - first);
    Operands panel = m.at(0, first);
    if (packed) panel.b = m.b + first * depth, panel.ldb = 2 * width;
    for (int64_t p = 0; p < depth; p += kPiece) {
      multiply_panel(rows, width, std::min(kPiece, depth - p), panel);
      panel.a += kPiece, panel.b += kPiece / 2 * panel.ldb;
    }
  }
}
