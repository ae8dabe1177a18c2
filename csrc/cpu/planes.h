// Maps whose channels are not side by side: transposed to scratch memory, where they are, and back.
#pragma once

#include <algorithm>

#include "convolution_pass.h"
#include "parallel.h"

namespace ga_scope::cpu {

// One image's channels [begin, end), where they are not side by side in memory.
template <class T>
struct Planes {
  Planes(const Tensor& level, int64_t image, int64_t begin, int64_t end)
      : data(static_cast<T*>(level.data_ptr()) + image * level.stride(0) + begin * level.stride(1)),
        stride_c(level.stride(1)),
        stride_y(level.stride(2)),
        stride_x(level.stride(3)),
        width(level.size(3)),
        channels(end - begin) {}

  // Visits pieces [first, last) of the pixels [begin, end), numbered y * width + x, that lie side by side in
  // every channel: piece(first, last, the first pixel of channel 0).
  template <class Piece>
  void for_each_piece(int64_t begin, int64_t end, const Piece& piece) const {
    constexpr int64_t kPixels = 512;  // of all channels: what a second-level cache holds
    while (begin < end) {
      const int64_t y = begin / width, x = begin - y * width;
      const bool rows_joined = stride_y == width * stride_x;
      const int64_t last = std::min({end, begin + kPixels, rows_joined ? end : (y + 1) * width});
      piece(begin, last, data + y * stride_y + x * stride_x);
      begin = last;
    }
  }

  T* data;
  int64_t stride_c, stride_y, stride_x, width, channels;
};

// to[pixel * channels + c] for all pixels of the map.
template <class T>
void gather_channels(const Planes<T>& planes, int64_t pixels, T* to) {
  const auto transpose = convolution_kernels<T>().transpose;
  const int64_t channels = planes.channels;
  parallel(pixels, 128, [&](int64_t begin, int64_t end) {
    planes.for_each_piece(begin, end, [&](int64_t first, int64_t last, const T* from) {
      T* at = to + first * channels;
      if (planes.stride_x == 1) {
        return transpose(from, planes.stride_c, channels, last - first, at, channels);
      }
      for (int64_t i = 0; i < last - first; ++i) {
        for (int64_t c = 0; c < channels; ++c) {
          at[i * channels + c] = from[c * planes.stride_c + i * planes.stride_x];
        }
      }
    });
  });
}

// The inverse for the input's gradient.
template <class T>
void scatter_channels(const ComputeType<T>* from, int64_t pixels, const Planes<T>& planes) {
  const auto transpose = convolution_kernels<T>().transpose_gradient;
  const int64_t channels = planes.channels;
  parallel(pixels, 128, [&](int64_t begin, int64_t end) {
    planes.for_each_piece(begin, end, [&](int64_t first, int64_t last, T* to) {
      const ComputeType<T>* at = from + first * channels;
      if (planes.stride_x == 1) {
        return transpose(at, channels, last - first, channels, to, planes.stride_c);
      }
      for (int64_t i = 0; i < last - first; ++i) {
        for (int64_t c = 0; c < channels; ++c) {
          to[c * planes.stride_c + i * planes.stride_x] = static_cast<T>(at[i * channels + c]);
        }
      }
    });
  });
}

}  // namespace ga_scope::cpu
