// nms_mask on the CPU. Boxes are sorted by group first, so that each is compared with boxes of its own group alone;
// groups, of all batch entries, go side by side on torch's threads.

#include "../nms.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>
#include <vector>

#include "nms_columns.h"
#include "parallel.h"

namespace ga_scope::cpu {
namespace {

// The valid boxes of a batch entry, by group and within it in their order.
struct SortedByGroup {
  std::vector<int64_t> order;   // numbers of boxes
  std::vector<int64_t> starts;  // of the groups in `order`, and its end
};

SortedByGroup sort_by_group(const int64_t* groups, const bool* valid, int64_t count) {
  SortedByGroup sorted;
  std::vector<int64_t> group_of(count, -1);  // groups are numbered as they appear
  std::unordered_map<int64_t, int64_t> numbers;
  sorted.starts.assign(1, 0);
  for (int64_t i = 0; i < count; ++i) {
    if (valid && !valid[i]) continue;
    const int64_t next = static_cast<int64_t>(sorted.starts.size()) - 1;
    group_of[i] = groups ? numbers.try_emplace(groups[i], next).first->second : 0;
    if (group_of[i] == next) sorted.starts.push_back(0);
    ++sorted.starts[group_of[i] + 1];
  }
  for (size_t g = 1; g < sorted.starts.size(); ++g) sorted.starts[g] += sorted.starts[g - 1];
  sorted.order.resize(sorted.starts.back());
  std::vector<int64_t> at(sorted.starts.begin(), sorted.starts.end());
  for (int64_t i = 0; i < count; ++i) {
    if (group_of[i] >= 0) sorted.order[at[group_of[i]]++] = i;
  }
  return sorted;
}

// The least number above the threshold, which is compared in double (nms.h): x > threshold just where x >= this.
template <class Real>
Real least_above(double threshold) {
  const Real near = static_cast<Real>(threshold);
  return near > threshold ? near : std::nextafter(near, std::numeric_limits<Real>::infinity());
}

template <class Real>
void suppress(const Box<Real>* boxes, const int64_t* groups, const bool* valid, int64_t batch, int64_t count,
              double iou_threshold, bool* kept) {
  constexpr int kColumns = GroupOfBoxes<Real>::kColumns;
  constexpr int64_t kSlack = 16;  // whole vectors
  // What is worth waking a thread for.
  constexpr int64_t kBoxesToSort = 1 << 14, kPairs = 1 << 20;
  std::vector<SortedByGroup> sorted(batch);
  parallel(batch, ceil_div(kBoxesToSort, count + 1), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      std::fill_n(kept + b * count, count, false);
      sorted[b] = sort_by_group(groups ? groups + b * count : nullptr, valid ? valid + b * count : nullptr, count);
    }
  });
  std::vector<std::pair<int64_t, size_t>> units;  // (batch entry, group)
  int64_t pairs = 1;
  for (int64_t b = 0; b < batch; ++b) {
    for (size_t g = 0; g + 1 < sorted[b].starts.size(); ++g) {
      const int64_t members = sorted[b].starts[g + 1] - sorted[b].starts[g];
      units.emplace_back(b, g);
      pairs += members * members / 2;
    }
  }
  const SuppressionKernels<Real>& kernels = suppression_kernels<Real>();
  const Real least = least_above<Real>(iou_threshold);
  const int64_t count_of_units = static_cast<int64_t>(units.size());
  parallel(count_of_units, ceil_div(count_of_units * std::min(kPairs, pairs), pairs), [&](int64_t begin, int64_t end) {
    Scratch<Real> scratch;
    std::vector<unsigned char> survives;
    for (int64_t u = begin; u < end; ++u) {
      const auto [b, g] = units[u];
      const int64_t first = sorted[b].starts[g], members = sorted[b].starts[g + 1] - first;
      const int64_t* member = sorted[b].order.data() + first;
      const int64_t room = members + kSlack;
      scratch.reserve(2 * kColumns * room);
      survives.resize(std::max<size_t>(survives.size(), members));
      GroupOfBoxes<Real> group;
      group.count = members;
      for (int c = 0; c < kColumns; ++c) {
        group.box[c] = scratch.get() + c * room;
        group.kept[c] = scratch.get() + (kColumns + c) * room;
      }
      for (int64_t i = 0; i < members; ++i) {
        const Box<Real>& box = boxes[b * count + member[i]];
        const Real column[kColumns] = {box.x1, box.y1, box.x2, box.y2, box.area()};
        for (int c = 0; c < kColumns; ++c) scratch.get()[c * room + i] = column[c];
      }
      bool* flags = reinterpret_cast<bool*>(survives.data());
      kernels.survivors(group, least, flags);
      for (int64_t i = 0; i < members; ++i) kept[b * count + member[i]] = flags[i];
    }
  });
}

Tensor nms_mask(Tensor boxes, std::optional<Tensor> groups, std::optional<Tensor> valid, double iou_threshold) {
  check_nms(boxes, groups, valid, iou_threshold);
  const int64_t batch = boxes.size(0), count = boxes.size(1);
  Tensor mask = torch::stable::new_empty(boxes, {batch, count}, ScalarType::Bool);
  const Tensor dense = torch::stable::contiguous(boxes);
  Tensor dense_groups, dense_valid;
  if (groups) dense_groups = torch::stable::contiguous(*groups);
  if (valid) dense_valid = torch::stable::contiguous(*valid);
  const auto run = [&]<class Real>(Real) {
    suppress(static_cast<const Box<Real>*>(dense.data_ptr()),
             groups ? static_cast<const int64_t*>(dense_groups.data_ptr()) : nullptr,
             valid ? static_cast<const bool*>(dense_valid.data_ptr()) : nullptr, batch, count, iou_threshold,
             static_cast<bool*>(mask.data_ptr()));
  };
  boxes.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return mask;
}

}  // namespace
}  // namespace ga_scope::cpu

STABLE_TORCH_LIBRARY_IMPL(ga_scope, CPU, m) { m.impl("nms_mask", TORCH_BOX(&ga_scope::cpu::nms_mask)); }
