#include "rows.h"

#include <algorithm>

namespace ga_scope::cpu {

Rows::Rows(const ConvolutionArguments& args, const Convolution& conv, bool by_map) : conv_(conv) {
  const int64_t levels = static_cast<int64_t>(conv.output_levels.size());
  first_of_map_.assign(levels * conv.images + 1, 0);
  if (args.locations) {
    read_locations(args, by_map);
  } else {
    for (int64_t m = 0; m < levels * conv.images; ++m) {
      const LevelShape& level = conv.output_levels[m / conv.images];
      first_of_map_[m + 1] = first_of_map_[m] + level.height * level.width;
    }
  }
}

void Rows::get(int64_t begin, int64_t count, Row* rows) const {
  for (int64_t r = 0; r < count; ++r) {
    const int64_t number = begin + r;
    rows[r] = locations_ ? compact_row(number) : dense_row(number);
  }
}

Row Rows::compact_row(int64_t number) const {
  const int64_t index = order_.empty() ? number : order_[number];
  return {index, decode(locations_[index * stride_])};
}

Row Rows::dense_row(int64_t number) const {
  const auto next = std::upper_bound(first_of_map_.begin(), first_of_map_.end(), number);
  const int64_t map = next - first_of_map_.begin() - 1, pixel = number - first_of_map_[map];
  Row row{number, {}};
  row.at.level = static_cast<int>(map / conv_.images);
  row.at.image = map % conv_.images;
  row.at.y = pixel / conv_.output_levels[row.at.level].width;
  row.at.x = pixel % conv_.output_levels[row.at.level].width;
  return row;
}

Location Rows::decode(int64_t location) const {
  return decode_location(location, conv_.output_levels.data(), static_cast<int>(conv_.output_levels.size()),
                         conv_.locations_per_image);
}

void Rows::read_locations(const ConvolutionArguments& args, bool by_map) {
  locations_ = static_cast<const int64_t*>(args.locations->data_ptr());
  stride_ = args.locations->stride(0);
  const int64_t limit = conv_.images * conv_.locations_per_image;
  std::vector<int64_t> map(by_map ? conv_.rows : 0);
  for (int64_t r = 0; r < conv_.rows; ++r) {
    const int64_t location = locations_[r * stride_];
    if (location < 0 || location >= limit) {
      check(false, args.op, "locations", text("values in [0, ", limit, ")"), text(location, " at ", r));
    }
    if (!by_map) continue;
    const Location at = decode(location);
    map[r] = at.level * conv_.images + at.image;
    ++first_of_map_[map[r] + 1];
  }
  if (!by_map || conv_.rows == 0) return;
  for (size_t m = 1; m < first_of_map_.size(); ++m) first_of_map_[m] += first_of_map_[m - 1];
  order_.resize(conv_.rows);
  std::vector<int64_t> next(first_of_map_.begin(), first_of_map_.end() - 1);
  for (int64_t r = 0; r < conv_.rows; ++r) order_[next[map[r]]++] = r;
}

}  // namespace ga_scope::cpu
