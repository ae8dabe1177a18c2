// Vectors of one instruction set. Included once per set, inside its namespace and target region
// (kernels_*.cpp): GA_VECTOR_BYTES is the register's width.
//
// GCC's and Clang's vector extensions are used for arithmetic, so one source serves every width; only
// the conversion from float16 needs an instruction by name.

#define GA_INLINE __attribute__((always_inline)) inline

template <class Real>
struct Vec {
  typedef Real type __attribute__((vector_size(GA_VECTOR_BYTES)));
  typedef Real unaligned __attribute__((vector_size(GA_VECTOR_BYTES), aligned(alignof(Real)), may_alias));
  static constexpr int width = GA_VECTOR_BYTES / sizeof(Real);
};

// Of float and double; the storage types have functions of their own below.
template <class Real, class = std::enable_if_t<std::is_floating_point_v<Real>>>
GA_INLINE typename Vec<Real>::type load(const Real* from) {
  return *reinterpret_cast<const typename Vec<Real>::unaligned*>(from);
}

template <class Real, class = std::enable_if_t<std::is_floating_point_v<Real>>>
GA_INLINE void store(Real* to, typename Vec<Real>::type value) {
  *reinterpret_cast<typename Vec<Real>::unaligned*>(to) = value;
}

template <class Real>
GA_INLINE typename Vec<Real>::type broadcast(Real value) {
  // x - 0 is x for every x, so this is one broadcasting load; 0 + x is not (0 + -0 is 0) and would stay an addition.
  return value - typename Vec<Real>::type{};
}

// As smaller and larger of overlap.h: the second where one is NaN.
template <class Real>
GA_INLINE typename Vec<Real>::type lower(typename Vec<Real>::type a, typename Vec<Real>::type b) {
  return a < b ? a : b;
}

template <class Real>
GA_INLINE typename Vec<Real>::type higher(typename Vec<Real>::type a, typename Vec<Real>::type b) {
  return a > b ? a : b;
}

// The value as it is: the compiler may not fold what it comes from into a multiply-add.
template <class Real>
GA_INLINE typename Vec<Real>::type rounded(typename Vec<Real>::type value) {
#if defined(__x86_64__)
  asm("" : "+x"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#else
  asm("" : "+m"(value));
#endif
  return value;
}

template <class Real>
GA_INLINE Real sum(typename Vec<Real>::type value) {
  Real lanes[Vec<Real>::width], total = 0;
  store(lanes, rounded<Real>(value));  // or the vector would be kept in `lanes` while it is summed up
  for (Real lane : lanes) total += lane;
  return total;
}

// Whether a lane of a comparison's result is set.
template <class Real, class Mask>
GA_INLINE bool any(Mask mask) {
#if GA_VECTOR_BYTES == 64
  return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(mask), reinterpret_cast<__m512i>(mask)) != 0;
#elif GA_VECTOR_BYTES == 32
  return !_mm256_testz_si256(reinterpret_cast<__m256i>(mask), reinterpret_cast<__m256i>(mask));
#else
  typedef uint64_t Words __attribute__((vector_size(GA_VECTOR_BYTES)));
  const Words words = reinterpret_cast<Words>(mask);
  return (words[0] | words[1]) != 0;
#endif
}

// Reduced-precision storage is widened to float on load.
GA_INLINE Vec<float>::type load(const BFloat16* from) {
  typedef uint16_t Bits __attribute__((vector_size(GA_VECTOR_BYTES / 2), aligned(2), may_alias));
  typedef uint32_t Wide __attribute__((vector_size(GA_VECTOR_BYTES)));
  const Wide wide = __builtin_convertvector(*reinterpret_cast<const Bits*>(from), Wide) << 16;
  return reinterpret_cast<Vec<float>::type>(wide);
}

GA_INLINE Vec<float>::type load(const Half* from) {
#if GA_VECTOR_BYTES == 64
  return reinterpret_cast<Vec<float>::type>(
      _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif GA_VECTOR_BYTES == 32
  return reinterpret_cast<Vec<float>::type>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
  Vec<float>::type value{};
  for (int i = 0; i < Vec<float>::width; ++i) value[i] = static_cast<float>(from[i]);
  return value;
#endif
}

// Rounded to the nearest, ties to even; a NaN stays one.
GA_INLINE void store(BFloat16* to, Vec<float>::type value) {
  typedef uint16_t Half __attribute__((vector_size(GA_VECTOR_BYTES / 2), aligned(2), may_alias));
#if GA_BFLOAT16_PRODUCT > 0 && GA_VECTOR_BYTES == 64
  *reinterpret_cast<Half*>(to) = reinterpret_cast<Half>(_mm512_cvtneps_pbh(value));
#else
  typedef uint32_t Bits __attribute__((vector_size(GA_VECTOR_BYTES)));
  const Bits bits = reinterpret_cast<Bits>(value);
  const Bits rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const Bits nan = reinterpret_cast<Bits>(value != value);
  typedef uint16_t Narrow __attribute__((vector_size(GA_VECTOR_BYTES / 2)));
  *reinterpret_cast<Half*>(to) = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), Narrow);
#endif
}

// Lane i of the result is lane kLane[i] of a and b, one after the other.
template <int... kLane, class V>
GA_INLINE V shuffle(V a, V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, kLane...);
#else
  return __builtin_shuffle(a, b, decltype(a == b){kLane...});
#endif
}

// Lanes that differ in bit kBit of their number trade places between a and b: one stage of a transposition.
template <class V, int kBit, int... kLane>
GA_INLINE void exchange_lanes(V& a, V& b, std::integer_sequence<int, kLane...>) {
  constexpr int kWidth = sizeof...(kLane);
  const V low = shuffle<(kLane & kBit ? kWidth + (kLane ^ kBit) : kLane)...>(a, b);
  const V high = shuffle<(kLane & kBit ? kWidth + kLane : kLane ^ kBit)...>(a, b);
  a = low, b = high;
}

template <class V, int kWidth, int kBit>
GA_INLINE void exchange_rows(V* row) {
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    if ((i & kBit) == 0) exchange_lanes<V, kBit>(row[i], row[i + kBit], std::make_integer_sequence<int, kWidth>{});
  }
  if constexpr (kBit > 1) exchange_rows<V, kWidth, kBit / 2>(row);
}

// to[j * to_stride + i] = from[i * from_stride + j] for a square as wide as a vector.
template <class Real>
GA_INLINE void transpose_square(const Real* from, int64_t from_stride, Real* to, int64_t to_stride) {
  using V = typename Vec<Real>::type;
  constexpr int kWidth = Vec<Real>::width;
  V row[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) row[i] = load(from + i * from_stride);
  exchange_rows<V, kWidth, kWidth / 2>(row);
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) store(to + i * to_stride, row[i]);
}
