// What kernels.inl needs from outside, included before a target region opens.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../bilinear.h"
#include "convolution_pass.h"
#include "instruction_sets.h"
