// The gradient of ROIAlign (He et al. 2017, Mask R-CNN, 3) on the CPU, as torchvision.ops.roi_align with aligned=True
// samples. torchvision's own is one thread that interpolates anew for every channel: 30 % of a training step of a
// Faster R-CNN on two cores.
//
// A sample's weight is one of y times one of x, so that a box's pooled map is A_y F A_x^T with two small matrices, the
// same for all channels, and the gradient is A_y^T G A_x.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "../check.h"
#include "parallel.h"

namespace ga_scope::cpu {
namespace {

// Along one axis; of a box that is not finite none.
template <class Real>
int64_t samples_of_bin(Real bin, int64_t sampling_ratio) {
  if (!std::isfinite(bin)) return 0;
  return sampling_ratio > 0 ? sampling_ratio : static_cast<int64_t>(std::ceil(std::max(bin, Real(0))));
}

// Of one axis of a box: bin b is the sum of weights[starts[b] + i] * map[first[b] + i].
template <class Real>
struct BinWeights {
  std::vector<int64_t> first, starts;
  std::vector<Real> weights;
  int64_t begin = 0, end = 0;  // of the cells that any bin reads

  // As torchvision computes them, with its roundings: `size` cells, the box from `from` to `to` in cells.
  BinWeights(Real from, Real to, int64_t bins, int64_t sampling_ratio, int64_t size) : first(bins), starts(bins + 1) {
    const Real bin = (to - from) / static_cast<Real>(bins);
    const int64_t samples = samples_of_bin(bin, sampling_ratio);
    begin = size;
    for (int64_t b = 0; b < bins; ++b) {
      starts[b] = static_cast<int64_t>(weights.size());
      add(from + static_cast<Real>(b) * bin, bin, samples, size, b);
      begin = std::min(begin, first[b]);
      end = std::max(end, first[b] + static_cast<int64_t>(weights.size()) - starts[b]);
    }
    starts[bins] = static_cast<int64_t>(weights.size());
    begin = std::min(begin, end);
  }

 private:
  void add(Real from, Real bin, int64_t samples, int64_t size, int64_t b) {
    const Real share = 1 / static_cast<Real>(samples);
    std::vector<std::pair<int64_t, Real>> taps;
    for (int64_t i = 0; i < samples; ++i) {
      const Real at = from + (static_cast<Real>(i) + Real(0.5)) * bin / static_cast<Real>(samples);
      if (!(at >= -1 && at <= static_cast<Real>(size))) continue;
      const int64_t low = std::min(static_cast<int64_t>(std::max(at, Real(0))), size - 1);
      const Real upper = low + 1 < size ? std::max(at, Real(0)) - static_cast<Real>(low) : Real(0);
      taps.emplace_back(low, (1 - upper) * share);
      if (upper > 0) taps.emplace_back(low + 1, upper * share);
    }
    first[b] = 0;
    if (taps.empty()) return;
    const auto [least, most] = std::minmax_element(taps.begin(), taps.end());
    first[b] = least->first;
    weights.resize(starts[b] + most->first - least->first + 1);
    for (const auto& [cell, weight] : taps) weights[starts[b] + cell - first[b]] += weight;
  }
};

template <class Real>
struct BoxWeights {
  BinWeights<Real> y, x;
};

// Adds to the plane (height, width) what the gradient (bins_y, bins_x) of one box gives. `row`: room for one.
template <class Real>
void add_gradient(const BoxWeights<Real>& box, const Real* gradient, Real* plane, int64_t width, Real* row) {
  const int64_t begin = box.x.begin, cells = box.x.end - begin;
  const int64_t bins_y = static_cast<int64_t>(box.y.first.size()), bins_x = static_cast<int64_t>(box.x.first.size());
  for (int64_t by = 0; by < bins_y; ++by, gradient += bins_x) {
    std::fill_n(row, cells, Real(0));
    for (int64_t bx = 0; bx < bins_x; ++bx) {
      const int64_t start = box.x.starts[bx], count = box.x.starts[bx + 1] - start;
      Real* at = row + (count > 0 ? box.x.first[bx] - begin : 0);
      for (int64_t i = 0; i < count; ++i) at[i] += gradient[bx] * box.x.weights[start + i];
    }
    for (int64_t i = box.y.starts[by]; i < box.y.starts[by + 1]; ++i) {
      Real* to = plane + (box.y.first[by] + i - box.y.starts[by]) * width + begin;
      const Real weight = box.y.weights[i];
      for (int64_t j = 0; j < cells; ++j) to[j] += weight * row[j];
    }
  }
}

Tensor roi_align_backward(Tensor grad_output, Tensor boxes, Tensor images, double scale, int64_t sampling_ratio,
                          int64_t num_images, int64_t height, int64_t width) {
  const char* op = "roi_align_backward";
  check_dim(op, "grad_output", grad_output, 4);
  const ScalarType dtype = grad_output.scalar_type();
  const bool real = dtype == ScalarType::Float || dtype == ScalarType::Double;
  check(real, op, "grad_output", "float32 or float64", torch::headeronly::toString(dtype));
  const int64_t count = grad_output.size(0), channels = grad_output.size(1);
  check_shape(op, "boxes", boxes, {count, 4});
  check_dtype(op, "boxes", boxes, dtype);
  check_shape(op, "images", images, {count});
  check_dtype(op, "images", images, ScalarType::Long);
  check_same_device(op, "boxes", boxes, grad_output);
  check_same_device(op, "images", images, grad_output);
  check(num_images >= 0, op, "num_images", "at least 0", num_images);
  check(height > 0, op, "height", "above 0", height);
  check(width > 0, op, "width", "above 0", width);
  check(countable({num_images, channels, height, width}), op, "height, width", "a map of fewer than 2^40 numbers",
        text(num_images, " x ", channels, " x ", height, " x ", width));
  const int64_t bins_y = grad_output.size(2), bins_x = grad_output.size(3);
  check(countable({count, bins_y, bins_x}), op, "grad_output", "fewer than 2^40 bins", shape_text(grad_output));

  constexpr int64_t kSamples = 1 << 16;  // of a bin along an axis; so many are no box of a picture
  check(sampling_ratio <= kSamples, op, "sampling_ratio", text("at most ", kSamples), sampling_ratio);

  grad_output = torch::stable::contiguous(grad_output);
  boxes = torch::stable::contiguous(boxes);
  images = torch::stable::contiguous(images);
  const int64_t* image = static_cast<const int64_t*>(images.data_ptr());
  for (int64_t r = 0; r < count; ++r) {
    check(image[r] >= 0 && image[r] < num_images, op, "images", text("numbers from 0 to ", num_images - 1), image[r]);
  }
  std::vector<int64_t> order(count);  // by image
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return image[a] < image[b]; });
  std::vector<int64_t> starts;  // in `order`, of the images that have boxes, and its end
  for (int64_t i = 0; i < count; ++i) {
    if (i == 0 || image[order[i]] != image[order[i - 1]]) starts.push_back(i);
  }
  const int64_t groups = static_cast<int64_t>(starts.size());
  starts.push_back(count);
  Tensor grad_input = torch::stable::new_zeros(grad_output, {num_images, channels, height, width});
  const auto run = [&]<class Real>(Real) {
    const Real* corners = static_cast<const Real*>(boxes.data_ptr());
    const Real* gradients = static_cast<const Real*>(grad_output.data_ptr());
    Real* result = static_cast<Real*>(grad_input.data_ptr());
    const auto cell = [&](int64_t r, int corner) {
      return corners[4 * r + corner] * static_cast<Real>(scale) - Real(0.5);
    };
    for (int64_t r = 0; r < count && sampling_ratio <= 0; ++r) {
      const auto few = [&](Real cells, int64_t bins) {
        return !std::isfinite(cells) || cells <= static_cast<Real>(bins) * Real(kSamples);
      };
      check(few(cell(r, 2) - cell(r, 0), bins_x) && few(cell(r, 3) - cell(r, 1), bins_y), op, "boxes",
            text("at most ", kSamples, " cells for a bin"), text("larger at ", r));
    }
    std::vector<std::unique_ptr<BoxWeights<Real>>> weights(count);
    parallel(count, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const auto axis = [&](int from, int64_t bins, int64_t size) {
          return BinWeights<Real>(cell(r, from), cell(r, from + 2), bins, sampling_ratio, size);
        };
        weights[r].reset(new BoxWeights<Real>{axis(1, bins_y, height), axis(0, bins_x, width)});
      }
    });
    // A plane of an image is one thread's, so that the sums do not depend on how many there are.
    constexpr int64_t kChannels = 8;
    const int64_t blocks = ceil_div(channels, kChannels);
    parallel(groups * blocks, 1, [&](int64_t begin, int64_t end) {
      std::vector<Real> row(width);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t group = unit / blocks, from = unit % blocks * kChannels;
        for (int64_t i = starts[group]; i < starts[group + 1]; ++i) {
          const int64_t r = order[i];
          for (int64_t c = from; c < std::min(from + kChannels, channels); ++c) {
            add_gradient(*weights[r], gradients + (r * channels + c) * bins_y * bins_x,
                         result + (image[r] * channels + c) * height * width, width, row.data());
          }
        }
      }
    });
  };
  dtype == ScalarType::Double ? run(double{}) : run(float{});
  return grad_input;
}

}  // namespace
}  // namespace ga_scope::cpu

STABLE_TORCH_LIBRARY_IMPL(ga_scope, CPU, m) {
  m.impl("roi_align_backward", TORCH_BOX(&ga_scope::cpu::roi_align_backward));
}
