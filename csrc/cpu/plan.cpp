#include "plan.h"

#include <algorithm>

#include "parallel.h"

namespace ga_scope::cpu {
namespace {

constexpr int64_t kMapScratchBytes = 18 << 20;  // of transposed input (and its gradient) per pass

bool channels_contiguous(const Tensor& map) { return map.size(1) == 1 || map.stride(1) == 1; }

}  // namespace

bool all_channels_contiguous(const std::vector<Tensor>& maps) {
  return std::all_of(maps.begin(), maps.end(), channels_contiguous);
}

std::vector<PassRange> plan_passes(const Convolution& conv, int64_t bytes_per_number, bool need_scratch,
                                   bool may_split_channels) {
  const int64_t maps = static_cast<int64_t>(conv.input_levels.size()) * conv.images;
  const int64_t channels = conv.shape.in_channels;
  if (!need_scratch) return {{0, maps, 0, channels}};
  std::vector<PassRange> passes;
  int64_t pending_bytes = 0, pending_begin = 0;
  const auto flush = [&](int64_t end) {
    if (end > pending_begin) passes.push_back({pending_begin, end, 0, channels});
    pending_begin = end, pending_bytes = 0;
  };
  for (int64_t m = 0; m < maps; ++m) {
    const LevelShape& level = conv.input_levels[m / conv.images];
    const int64_t bytes = level.height * level.width * channels * bytes_per_number;
    if (bytes > kMapScratchBytes && may_split_channels) {
      flush(m);
      const int64_t parts = ceil_div(bytes, kMapScratchBytes);
      const int64_t width = ceil_div(ceil_div(channels, parts), kChannelMultiple) * kChannelMultiple;
      for (int64_t c = 0; c < channels; c += width) passes.push_back({m, m + 1, c, std::min(c + width, channels)});
      pending_begin = m + 1;
      continue;
    }
    if (pending_bytes + bytes > kMapScratchBytes) flush(m);
    pending_bytes += bytes;
  }
  flush(maps);
  return passes;
}

// Unless channels are side by side already, or the rows read fewer pixels than the maps have. Deformable sampling
// reads four pixels per tap: there it pays for almost any number of rows.
bool transposition_pays(const ConvolutionArguments& args, const Convolution& conv) {
  if (all_channels_contiguous(args.input)) return false;
  int64_t pixels = 0;
  for (const LevelShape& level : conv.input_levels) pixels += conv.images * level.height * level.width;
  return conv.shape.offset_groups > 0 || conv.rows * conv.shape.taps() > pixels;
}

}  // namespace ga_scope::cpu
