// The rows of a call, the locations to compute, in the order in which passes visit them.
#pragma once

#include <vector>

#include "convolution_pass.h"
#include "plan.h"

namespace ga_scope::cpu {

// Grouped by map where a pass covers only some of the maps.
class Rows {
 public:
  Rows(const ConvolutionArguments& args, const Convolution& conv, bool by_map);

  // The pass's rows are numbered [begin(range), end(range)).
  int64_t begin(const PassRange& range) const { return by_map() ? first_of_map_[range.map_begin] : 0; }
  int64_t end(const PassRange& range) const { return by_map() ? first_of_map_[range.map_end] : conv_.rows; }

  void get(int64_t begin, int64_t count, Row* rows) const;

 private:
  bool by_map() const { return locations_ == nullptr || !order_.empty(); }
  Row compact_row(int64_t number) const;
  Row dense_row(int64_t number) const;
  Location decode(int64_t location) const;
  void read_locations(const ConvolutionArguments& args, bool by_map);

  const Convolution& conv_;
  const int64_t* locations_ = nullptr;
  int64_t stride_ = 1;
  std::vector<int64_t> first_of_map_;  // rows of the maps before each
  std::vector<int64_t> order_;         // rows sorted by map, stable; empty: as given
};

}  // namespace ga_scope::cpu
