// Into which passes a convolution is cut.
#pragma once

#include <vector>

#include "../convolution.h"

namespace ga_scope::cpu {

constexpr int64_t kChannelMultiple = 16;  // channels of a split pass: whole cache lines

// The maps [begin, end) (numbered level * images + image) and channels of one pass.
struct PassRange {
  int64_t map_begin, map_end;
  int64_t channel_begin, channel_end;
};

// One pass over everything where no scratch is needed; otherwise as many maps as fit, or, of a map too large for that,
// as many channels as fit (may_split_channels). bytes_per_number: of the scratch for a number of the input.
std::vector<PassRange> plan_passes(const Convolution& conv, int64_t bytes_per_number, bool need_scratch,
                                   bool may_split_channels);

// Whether to transpose the input to scratch memory.
bool transposition_pays(const ConvolutionArguments& args, const Convolution& conv);

bool all_channels_contiguous(const std::vector<Tensor>& maps);

}  // namespace ga_scope::cpu
