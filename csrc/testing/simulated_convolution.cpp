// The operators of cuda/convolution.cu on the simulated grid, registered for CPU tensors in place of cpu/.
#define GA_SCOPE_SIMULATED
#include "../cuda/convolution.cu"
