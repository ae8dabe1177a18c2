// Stands for libtorch_cuda.so: the one function of it that device_launch.h looks for.
#include <cstdint>
#include <cstdlib>

extern "C" int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
  *stream = reinterpret_cast<void*>(uintptr_t(0x1000 + device));
  return std::getenv("STREAM_FAILS") ? 1 : 0;
}
