// The operator of cuda/nms.cu on the simulated grid, registered for CPU tensors in place of cpu/.
#define GA_SCOPE_SIMULATED
#include "../cuda/nms.cu"
