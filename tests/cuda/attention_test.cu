// vidkv_cuda_attention on a GPU against the double reference (docs/numerics.md).
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "core/cuda_problem.h"

namespace vidkv {
namespace {

using test::CudaCase;
using test::CudaProblem;
using test::Random;

// Frees what it handed out.
class DeviceMemory {
  public:
    ~DeviceMemory() {
        for (void * block : blocks_) cudaFree(block);
    }
    void * make(size_t size, int fill) {
        void * block = nullptr;
        EXPECT_EQ(cudaMalloc(&block, std::max<size_t>(size, 16)), cudaSuccess);
        EXPECT_EQ(cudaMemset(block, fill, size), cudaSuccess);
        blocks_.push_back(block);
        return block;
    }
    void * operator()(const void * bytes, size_t size) {
        void * block = make(size, 0);
        EXPECT_EQ(cudaMemcpy(block, bytes, size, cudaMemcpyHostToDevice), cudaSuccess);
        return block;
    }

  private:
    std::vector<void *> blocks_;
};

std::string no_device() {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    return error != cudaSuccess ? std::string("no GPU: ") + cudaGetErrorString(error) : count == 0 ? "no GPU" : "";
}

vidkv_status attend(vidkv_cuda_attention_args & args, DeviceMemory & memory) {
    args.workspace_bytes = vidkv_cuda_workspace(&args);
    args.workspace = memory.make(args.workspace_bytes, 0);
    return vidkv_cuda_attention(&args, nullptr);
}

std::vector<float> to_floats(const std::vector<uint16_t> & halves) {
    std::vector<float> out;
    for (const uint16_t half : halves) out.push_back(half_to_float(half));
    return out;
}

class CudaAttention : public testing::TestWithParam<const char *> {
  protected:
    void SetUp() override {
        if (const std::string reason = no_device(); !reason.empty()) GTEST_SKIP() << reason;
    }
};

TEST_P(CudaAttention, MatchesDoubleReference) {
    uint64_t seed = 100;
    double closest = 0;
    for (const CudaCase & c : test::cuda_cases(GetParam())) {
        Random rng(seed++);
        SCOPED_TRACE(c.trace() + " " + rng.trace());
        CudaProblem problem(c, rng);
        DeviceMemory memory;
        vidkv_cuda_attention_args args = problem.on_device(std::ref(memory));
        std::vector<float> got(problem.elements()), again(problem.elements());
        args.out = memory.make(got.size() * 4, 0xff); // NaN
        ASSERT_EQ(attend(args, memory), VIDKV_OK) << vidkv_cuda_last_error();
        ASSERT_EQ(cudaMemcpy(got.data(), args.out, got.size() * 4, cudaMemcpyDeviceToHost), cudaSuccess);
        const double share = problem.worst_share(got);
        EXPECT_LE(share, 0.1); // the bound adds up worst cases: a wrong scale shows here, and rounding does not come near
        closest = std::max(closest, share);
        for (int i = 0; i < 3; ++i) { // the same workspace, the same bits
            ASSERT_EQ(vidkv_cuda_attention(&args, nullptr), VIDKV_OK);
            ASSERT_EQ(cudaMemcpy(again.data(), args.out, got.size() * 4, cudaMemcpyDeviceToHost), cudaSuccess);
            EXPECT_EQ(std::memcmp(got.data(), again.data(), got.size() * 4), 0);
        }
    }
    RecordProperty("worst_share_of_bound", std::to_string(closest));
    std::printf("%s: %.4f of the bound at most\n", GetParam(), closest);
}

TEST_P(CudaAttention, ReadsAndWritesHalves) {
    CudaCase c;
    c.preset = GetParam();
    c.ratio = 7;
    Random rng(7);
    CudaProblem problem(c, rng);
    DeviceMemory memory;
    vidkv_cuda_attention_args args = problem.on_device(std::ref(memory));
    std::vector<float> q(problem.elements());
    ASSERT_EQ(cudaMemcpy(q.data(), args.q, q.size() * 4, cudaMemcpyDeviceToHost), cudaSuccess);
    std::vector<uint16_t> halves, got(q.size());
    for (const float x : q) halves.push_back(float_to_half(x));
    args.q = memory(halves.data(), halves.size() * 2);
    args.q_number = args.out_number = VIDKV_CUDA_F16;
    args.out = memory.make(got.size() * 2, 0xff);
    ASSERT_EQ(attend(args, memory), VIDKV_OK) << vidkv_cuda_last_error();
    ASSERT_EQ(cudaMemcpy(got.data(), args.out, got.size() * 2, cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_LE(problem.worst_share(to_floats(got)), 1.0);
}
INSTANTIATE_TEST_SUITE_P(Presets, CudaAttention, testing::ValuesIn(test::cuda_presets));

} // namespace
} // namespace vidkv
