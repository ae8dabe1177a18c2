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

template <class Real>
GA_INLINE typename Vec<Real>::type load(const Real* from) {
  return *reinterpret_cast<const typename Vec<Real>::unaligned*>(from);
}

template <class Real>
GA_INLINE void store(Real* to, typename Vec<Real>::type value) {
  *reinterpret_cast<typename Vec<Real>::unaligned*>(to) = value;
}

template <class Real>
GA_INLINE typename Vec<Real>::type broadcast(Real value) {
  return typename Vec<Real>::type{} + value;
}

template <class Real>
GA_INLINE Real sum(typename Vec<Real>::type value) {
  Real total = 0;
  for (int i = 0; i < Vec<Real>::width; ++i) total += value[i];
  return total;
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
