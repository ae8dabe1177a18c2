// Runs csrc/cuda/device_launch.h on a stub of the CUDA runtime and of torch's device guard: a scenario by name.
#include <cuda_runtime.h>

#include "cuda/device_launch.h"

// What the guard and the tensor ask of torch.
extern "C" {
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle, int32_t* index) { return *index = 3, 0; }
AOTITorchError aoti_torch_create_device_guard(int32_t index, DeviceGuardHandle* guard) {
  *guard = reinterpret_cast<DeviceGuardHandle>(&failing);
  return called("guard", index);
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return called("guard ends"); }
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle) { return 0; }
}

namespace ga_scope::cuda {

template <class Kernel>
__global__ void run(const __grid_constant__ Kernel) {}

struct Plain {
  static constexpr int kThreads = 96;
  struct Shared {};
  int number;
};
struct Fixed : Plain {
  struct Shared {
    char bytes[200];
  };
};
struct Chosen : Plain {
  int64_t shared_bytes() const { return number; }
};

template <class Kernel>
void launch(const Device& device, int number, int64_t blocks) {
  const Kernel kernel{number};
  device.launch("a kernel", kernel, blocks);
  if (launched_arguments) std::cout << "argument " << static_cast<const Kernel*>(launched_arguments)->number << '\n';
}
template <>
void launch<Fixed>(const Device& device, int number, int64_t blocks) {
  const Fixed kernel{{number}};
  device.launch("a kernel", kernel, blocks);
}
template <>
void launch<Chosen>(const Device& device, int number, int64_t blocks) {
  const Chosen kernel{{number}};
  device.launch("a kernel", kernel, blocks);
}

void scenario(const std::string& name) {
  const torch::stable::Tensor tensor(reinterpret_cast<AtenTensorHandle>(&failing));
  const Device device(tensor);
  std::cout << "processors " << device.processors() << " shared " << device.shared_bytes() << " tensor cores "
            << device.has_tensor_cores() << '\n';
  if (name == "plain") launch<Plain>(device, 42, 7);
  if (name == "fixed") launch<Fixed>(device, 0, 1);
  if (name == "chosen") launch<Chosen>(device, 100000, 2), launch<Chosen>(device, 48 << 10, 2);
  if (name == "none") launch<Plain>(device, 0, 0);
  if (name == "most") launch<Plain>(device, 0, INT32_MAX);
  if (name == "too many") launch<Plain>(device, 0, int64_t(1) << 31);
}

}  // namespace ga_scope::cuda

int main(int count, char** arguments) {
  if (count > 2) failing = arguments[2];
  if (count > 3) major_version = std::stoi(arguments[3]);
  if (failing != "library") dlopen("libtorch_cuda.so", RTLD_NOW);
  if (failing == "stream") setenv("STREAM_FAILS", "1", 1);
  try {
    ga_scope::cuda::scenario(arguments[1]);
  } catch (const std::exception& error) {
    std::cout << "error: " << error.what() << '\n';
  }
}
