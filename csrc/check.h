// Argument validation: every message gives the operator, the argument, what was expected and what came.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace ga_scope {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Without streams: where a compiler links libstdc++ into this library and torch brings another, their locales clash.
template <class Part>
void append(std::string& to, const Part& part) {
  if constexpr (std::is_floating_point_v<Part>) {
    char digits[32];
    std::snprintf(digits, sizeof digits, "%g", static_cast<double>(part));
    to += digits;
  } else if constexpr (std::is_integral_v<Part>) {
    to += std::to_string(part);
  } else {
    to += part;
  }
}

template <class... Parts>
std::string text(const Parts&... parts) {
  std::string result;
  (append(result, parts), ...);
  return result;
}

template <class Values>
std::string list_text(const Values& values) {
  std::string result = "[";
  for (size_t i = 0; i < static_cast<size_t>(values.size()); ++i) {
    if (i > 0) result += ", ";
    append(result, values[i]);
  }
  return result + "]";
}

// Raises RuntimeError in Python: "op: argument: expected ..., got ...".
template <class Expected, class Got>
void check(bool ok, const char* op, const char* argument, const Expected& expected, const Got& got) {
  if (!ok) {
    throw std::runtime_error(text(op, ": ", argument, ": expected ", expected, ", got ", got));
  }
}

inline std::string shape_text(const Tensor& tensor) { return list_text(tensor.sizes()); }

// Whether the product of sizes stays below 2^40, which no argument of real memory exceeds: an expanded tensor or a
// huge padding could otherwise overflow the products that index arithmetic forms.
inline bool countable(std::initializer_list<int64_t> sizes) {
  constexpr int64_t kLimit = int64_t(1) << 40;
  int64_t product = 1;
  for (int64_t size : sizes) {
    if (size <= 0) continue;
    if (size >= kLimit / product + 1) return false;
    product *= size;
  }
  return product < kLimit;
}

inline void check_shape(const char* op, const char* argument, const Tensor& tensor,
                        std::initializer_list<int64_t> shape) {
  const auto sizes = tensor.sizes();
  bool same = sizes.size() == shape.size();
  for (size_t i = 0; same && i < shape.size(); ++i) same = sizes[i] == shape.begin()[i];
  if (!same) {
    const std::string expected = text("shape ", list_text(std::vector<int64_t>(shape)));
    check(false, op, argument, expected, shape_text(tensor));
  }
}

inline void check_dim(const char* op, const char* argument, const Tensor& tensor, int64_t dim) {
  if (tensor.dim() != dim) {
    check(false, op, argument, text("a ", dim, "-D tensor"), text("shape ", shape_text(tensor)));
  }
}

inline void check_dtype(const char* op, const char* argument, const Tensor& tensor, ScalarType dtype) {
  if (tensor.scalar_type() != dtype) {
    check(false, op, argument, text("dtype ", torch::headeronly::toString(dtype)),
          torch::headeronly::toString(tensor.scalar_type()));
  }
}

inline void check_same_device(const char* op, const char* argument, const Tensor& tensor, const Tensor& like) {
  const bool same = tensor.is_cpu() == like.is_cpu() && tensor.get_device_index() == like.get_device_index();
  if (!same) check(false, op, argument, "the device of the other tensors", "another device");
}

}  // namespace ga_scope
