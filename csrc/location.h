// The index space that all operators share.
//
// A pyramid is N images of levels l = 0, 1, ... with H_l x W_l locations. A location index is flat and
// image-major: n * P + first_l + y * W_l + x with P = sum of H_l * W_l and first_l the locations of the
// levels before l. With a single map this is (n * H + y) * W + x.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ga_scope {

struct LevelShape {
  int64_t height, width;
  int64_t first;  // locations of the same image on the levels before this one
};

struct Location {
  int64_t image, y, x;
  int level;
};

// Levels are few (five in an FPN), so a linear scan beats a search.
GA_HOST_DEVICE Location decode_location(int64_t index, const LevelShape* levels, int num_levels,
                                        int64_t locations_per_image) {
  Location at;
  at.image = index / locations_per_image;
  int64_t rest = index - at.image * locations_per_image;
  int level = 0;
  while (level + 1 < num_levels && rest >= levels[level + 1].first) ++level;
  rest -= levels[level].first;
  at.level = level;
  at.y = rest / levels[level].width;
  at.x = rest - at.y * levels[level].width;
  return at;
}

}  // namespace ga_scope
