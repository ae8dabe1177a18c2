// The products of csrc/cpu, of one instruction set, against loops of double: compiled and run by test_compilers.py,
// also for processors that this machine is not.
//
// GA_VECTOR_BYTES and GA_BFLOAT16_PRODUCT choose the set, whose instructions are the compiler's flags here.

#include "cpu/kernel_headers.h"

#ifdef GA_EMULATE_AMX
#include "amx_emulator.h"
#endif

#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

namespace ga_scope::cpu {
namespace {

#include "cpu/kernels.inl"

#include "cpu/bfloat16.inl"

std::mt19937 random_numbers(0);

int64_t random_int(int64_t least, int64_t most) {
  return std::uniform_int_distribution<int64_t>(least, most)(random_numbers);
}

template <class T>
std::vector<T> numbers(int64_t count) {
  std::vector<T> all(count);
  for (T& number : all) number = static_cast<T>(std::uniform_real_distribution<float>(-1, 1)(random_numbers));
  return all;
}

void check_near(const char* what, double got, double expected, double tolerance) {
  if (std::abs(got - expected) <= tolerance) return;
  std::printf("%s: expected %.9g, got %.9g\n", what, expected, got);
  std::exit(1);
}

template <class Real>
void product(double tolerance) {
  const int64_t rows = random_int(1, 15), columns = random_int(1, 70), depth = random_int(1, 700);
  const int64_t wide = padded<Real>(columns);
  const auto a = numbers<Real>(rows * depth), b = numbers<Real>(depth * columns);
  std::vector<Real> packed(depth * wide), c = numbers<Real>(rows * wide);
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t p = 0; p < depth; ++p) {
      const int64_t first = j / Vec<Real>::width * Vec<Real>::width;
      packed[PanelPlace<Real>(first, columns, depth).row(p) + j - first] = b[p * columns + j];
    }
  }
  const auto before = c;
  multiply_packed(rows, columns, depth, StridedRows<Real>{a.data(), depth}, packed.data(), depth, 0, c.data(), wide,
                  true);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      double sum = before[i * wide + j];
      for (int64_t p = 0; p < depth; ++p) sum += double(a[i * depth + p]) * double(b[p * columns + j]);
      check_near("product", c[i * wide + j], sum, tolerance * std::sqrt(double(depth)));
    }
  }
}

void product_of_bfloat16() {
  using namespace bfloat16;
  const int64_t rows = random_int(1, 70), columns = kLanes * random_int(1, 5), depth = kDepth * random_int(1, 24);
  const int64_t room = round_up(rows, kDepth);
  const bool by_panels = random_int(0, 1);
  const auto a = numbers<BFloat16>(room * depth), b = numbers<BFloat16>(depth * columns);
  std::vector<BFloat16> stored(depth * columns);
  for (int64_t p = 0; p < depth; ++p) {
    for (int64_t j = 0; j < columns; ++j) {
      stored[by_panels ? PackedPlace(j, columns, depth).row(p) : p / 2 * 2 * columns + 2 * j + p % 2] =
          b[p * columns + j];
    }
  }
  auto c = numbers<float>(room * columns);
  const auto before = c;
  {
    [[maybe_unused]] const Tiles tiles{};
    multiply(rows, columns, depth, {a.data(), depth, stored.data(), 2 * columns, c.data(), columns}, by_panels);
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      double sum = before[i * columns + j];
      for (int64_t p = 0; p < depth; ++p) sum += double(float(a[i * depth + p])) * double(float(b[p * columns + j]));
      check_near("product of bfloat16", c[i * columns + j], sum, 3e-6 * std::sqrt(double(depth)));
    }
  }
}

template <class Real>
void transposition() {
  const int64_t rows = random_int(1, 40), columns = random_int(1, 40);
  const auto from = numbers<Real>(rows * columns);
  std::vector<Real> to(rows * columns);
  transpose<Real, Real>(from.data(), columns, rows, columns, to.data(), rows);
  for (int64_t i = 0; i < rows * columns; ++i) {
    check_near("transpose", to[i % columns * rows + i / columns], from[i], 0);
  }
}

void storage() {
  constexpr int kWidth = Vec<float>::width;
  const float special[] = {1.00390625f, 1.01171875f, -1.00390625f, 3.4e38f, -3.4e38f, 0.f, -0.f, INFINITY};
  std::vector<float> from = numbers<float>(kWidth * 8);
  for (size_t i = 0; i < std::size(special); ++i) from[i] = special[i];
  std::vector<BFloat16> to(from.size());
  for (size_t i = 0; i < from.size(); i += kWidth) store(&to[i], load(&from[i]));
  for (size_t i = 0; i < from.size(); ++i) {
    if (to[i].x != BFloat16(from[i]).x) check_near("store", float(to[i]), float(BFloat16(from[i])), -1);
  }
  std::vector<float> nan(kWidth, NAN);
  store(to.data(), load(nan.data()));
  if (!std::isnan(float(to[0]))) check_near("store of NaN", float(to[0]), NAN, -1);
  const auto half = numbers<Half>(kWidth);
  std::vector<float> wide(kWidth);
  store(wide.data(), load(half.data()));
  for (int i = 0; i < kWidth; ++i) check_near("load of float16", wide[i], float(half[i]), 0);
}

}  // namespace
}  // namespace ga_scope::cpu

int main() {
  using namespace ga_scope::cpu;
#ifdef GA_EMULATE_AMX
  amx::emulate();
#endif
  for (int i = 0; i < 40; ++i) {
    product<float>(3e-6);
    product<double>(1e-14);
    product_of_bfloat16();
    transposition<float>();
    transposition<double>();
  }
  storage();
#ifdef GA_EMULATE_AMX
  if (amx::executed == 0) return std::puts("no product was emulated"), 1;
#endif
  std::puts("right");
}
