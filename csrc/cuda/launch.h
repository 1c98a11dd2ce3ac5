// What the CUDA operators share: types, arguments on the device, and how a kernel is started.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "cuda/machine.h"
#include "tensors.h"

namespace cmi_fast::cuda {

// Calls run(T()) for the type T of the tensor's elements.
template <class Run>
auto dispatch(const Tensor& tensor, const char* name, const Run& run) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return run(float());
    case ScalarType::BFloat16:
      return run(BFloat16());
    case ScalarType::Half:
      return run(Half());
    default:
      STD_TORCH_CHECK(false, name, " must be float32, bfloat16 or float16");
  }
}

// Where a learned temperature is, null without one; its value is not waited for.
inline const float* device_temperature(const std::optional<Tensor>& temperature, const Tensor& like) {
  if (!temperature) return nullptr;
  STD_TORCH_CHECK(temperature->scalar_type() == ScalarType::Float && temperature->numel() == 1 &&
                      temperature->is_cuda() && temperature->get_device_index() == like.get_device_index(),
                  "temperature must be one float32 number on the GPU of the rows");
  return data<float>(*temperature);
}

// Blocks of an SM for which the compiler leaves registers; zero: as it sees fit, which may cost a few spilled ones.
template <class Kernel>
constexpr int BLOCKS_OF_AN_SM = [] {
  if constexpr (requires { Kernel::BLOCKS_OF_AN_SM; })
    return Kernel::BLOCKS_OF_AN_SM;
  else
    return 0;
}();

template <class Kernel>
__global__ void __launch_bounds__(THREADS, BLOCKS_OF_AN_SM<Kernel>) run(const Kernel kernel) {
  __shared__ alignas(16) char shared[Kernel::SHARED];
  kernel(here(), shared);
}

// Starts kernels one after another on the current stream of a tensor's device. An empty grid has nothing to do.
class Launch {
 public:
  explicit Launch(const Tensor& tensor) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <class Kernel>
  void operator()(Grid grid, const Kernel& kernel) const {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    run<<<dim3(grid.x, grid.y, grid.z), THREADS, 0, stream_>>>(kernel);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  cudaStream_t stream_;
};

}  // namespace cmi_fast::cuda
