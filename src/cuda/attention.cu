// Launches attention on the GPU, and the C API over it.
#include <cuda_runtime.h>

#include <array>
#include <mutex>
#include <string>

#include "base/error.h"
#include "cuda/block.h"
#include "cuda/launch.h"

namespace vidkv::cuda {

namespace {

constexpr int most_devices = 64, warps_per_block = 16;

template <int D, int NT>
__global__ void __launch_bounds__(lanes_per_warp * warps_per_block / NT, 1) attention(const __grid_constant__ AttentionParams p) {
    extern __shared__ __align__(16) uint8_t shared[];
    // f16 rows first: their blocks are the longest where there is little else.
    const int block = static_cast<int>(blockIdx.x), items = static_cast<int>(gridDim.x) / (p.splits + 1);
    const int item = block < items ? block : (block - items) / p.splits;
    const int part = block < items ? 0 : (block - items) % p.splits + 1;
    AttentionBlock<D, NT>(p, item, part, static_cast<int>(threadIdx.x), shared).run();
}

using Kernel = void (*)(AttentionParams);
Kernel kernel_for(int head_dim, int row_tiles) {
    if (head_dim == 128) return row_tiles == 1 ? attention<128, 1> : attention<128, 2>;
    return row_tiles == 1 ? attention<64, 1> : attention<64, 2>;
}

vidkv_status failed(cudaError_t error, const char * what) {
    cudaGetLastError();
    return fail(VIDKV_E_CUDA, std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

// What a device is, and its copy of the tables; made once.
struct DeviceState {
    std::once_flag once;
    cudaError_t error = cudaSuccess;
    Device device{};
    int major = 0;
    LevelTables * tables = nullptr;

    void prepare(int index) {
        const auto try_all = [&]() -> cudaError_t {
            for (const auto & [attribute, to] : {std::pair{cudaDevAttrMultiProcessorCount, &device.multiprocessors},
                                                 std::pair{cudaDevAttrMaxSharedMemoryPerBlockOptin, &device.shared_bytes},
                                                 std::pair{cudaDevAttrComputeCapabilityMajor, &major}}) {
                if (const cudaError_t status = cudaDeviceGetAttribute(to, attribute, index)) return status;
            }
            if (major < 8) return cudaSuccess;
            device.most_warps = warps_per_block;
            if (const cudaError_t status = cudaMalloc(&tables, sizeof(LevelTables))) return status;
            if (const cudaError_t status = cudaMemcpy(tables, make_level_tables().get(), sizeof(LevelTables), cudaMemcpyHostToDevice))
                return status;
            for (const int head_dim : {64, 128}) {
                for (const int row_tiles : {1, 2}) {
                    const auto kernel = reinterpret_cast<const void *>(kernel_for(head_dim, row_tiles));
                    if (const cudaError_t status =
                            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_bytes))
                        return status;
                }
            }
            return cudaSuccess;
        };
        error = try_all();
    }
};

vidkv_status current_device(const DeviceState *& out) {
    static std::array<DeviceState, most_devices> states;
    int index = 0;
    if (const cudaError_t error = cudaGetDevice(&index)) return failed(error, "no device");
    if (index >= most_devices) return fail(VIDKV_E_UNSUPPORTED, "CUDA: more devices than 64");
    DeviceState & state = states[static_cast<size_t>(index)];
    std::call_once(state.once, [&] { state.prepare(index); });
    if (state.error) return failed(state.error, "preparing the device");
    if (state.major < 8)
        return fail(VIDKV_E_UNSUPPORTED, "CUDA: the kernels need compute capability 8.0 (A100) or newer, and this device has " +
                                             std::to_string(state.major) + ".x");
    out = &state;
    return VIDKV_OK;
}

vidkv_status launch(const Launch & plan, int head_dim, cudaStream_t stream) {
    const Kernel kernel = kernel_for(head_dim, plan.row_tiles);
    kernel<<<plan.blocks, plan.threads, static_cast<size_t>(plan.shared_bytes), stream>>>(plan.params);
    const cudaError_t error = cudaGetLastError();
    return error ? failed(error, "launching attention") : VIDKV_OK;
}

vidkv_status run(const vidkv_cuda_attention_args & args, cudaStream_t stream) {
    const DeviceState * state = nullptr;
    if (vidkv_status status = current_device(state)) return status;
    for (int first = 0; first < args.sequences; first += sequences_per_launch) {
        Launch plan;
        if (vidkv_status status = plan_launch(args, first, state->device, plan)) return status;
        if (!args.workspace || args.workspace_bytes < plan.workspace_bytes)
            return fail(VIDKV_E_ARGUMENT, "the workspace is smaller than vidkv_cuda_workspace says");
        place_workspace(plan, args.workspace);
        plan.params.tables = state->tables;
        if (vidkv_status status = launch(plan, args.head_dim, stream)) return status;
    }
    return VIDKV_OK;
}

} // namespace

} // namespace vidkv::cuda

extern "C" {

vidkv_status vidkv_cuda_supports(const vidkv_params * params, int32_t head_dim) {
    const vidkv::cuda::DeviceState * state = nullptr;
    if (vidkv_status status = vidkv::cuda::check_format(*params, head_dim)) return status;
    return vidkv::cuda::current_device(state);
}

uint64_t vidkv_cuda_workspace(const vidkv_cuda_attention_args * args) {
    const vidkv::cuda::DeviceState * state = nullptr;
    vidkv::cuda::Launch plan;
    if (vidkv::cuda::current_device(state) || vidkv::cuda::plan_launch(*args, 0, state->device, plan)) return 0;
    return plan.workspace_bytes;
}

vidkv_status vidkv_cuda_attention(const vidkv_cuda_attention_args * args, void * stream) {
    return vidkv::cuda::run(*args, static_cast<cudaStream_t>(stream));
}

const char * vidkv_cuda_last_error(void) { return vidkv_last_error(); }
}
