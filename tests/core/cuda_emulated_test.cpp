// The CUDA kernels on the emulated device: unpacking bit for bit, attention against the double reference (docs/numerics.md).
#include <gtest/gtest.h>

#include "codec/layout.h"
#include "core/cuda_problem.h"
#include "cuda/block.h"
#include "cuda/launch.h"

namespace vidkv {
namespace {

using test::CudaCase;
using test::CudaProblem;
using test::Random;

const cuda::LevelTables & tables() {
    static const auto made = cuda::make_level_tables();
    return *made;
}

std::vector<uint32_t> random_quad(QuadCode code, int rows, Random & rng) {
    std::vector<uint32_t> words(quad_bytes(code, rows) / 4);
    for (uint32_t & word : words)
        word = static_cast<uint32_t>(rng.integer(0, 0xffff)) << 16 | static_cast<uint32_t>(rng.integer(0, 0xffff));
    return words;
}

uint32_t word_of(const std::vector<uint8_t> & levels, int row) {
    uint32_t word;
    std::memcpy(&word, &levels[static_cast<size_t>(4 * row)], 4);
    return word;
}

TEST(CudaLevels, KeysAreThoseOfTheSpecification) {
    Random rng(1);
    for (const QuadCode code : {QuadCode::none, QuadCode::trellis1, QuadCode::trellis2, QuadCode::trellis3,
                                QuadCode::uniform4, QuadCode::uniform5, QuadCode::uniform6}) {
        const std::vector<uint32_t> quad = random_quad(code, 128, rng);
        std::vector<uint8_t> levels(4 * 128);
        unpack_quad(code, reinterpret_cast<const uint8_t *>(quad.data()), 128, levels.data());
        for (int g = 0; g < 8; ++g) {
            cuda::Words<128> words;
            cuda::unpack_keys(tables(), code, quad.data(), g, words);
            for (int m = 0; m < 8; ++m) {
                for (int h = 0; h < 2; ++h)
                    ASSERT_EQ(words[m][h], word_of(levels, cuda::row_of<cuda::RowOrder::pairs>(m, h, g)))
                        << static_cast<int>(code);
            }
        }
    }
}

template <int D, QuadCode code> void check_values(Random & rng) {
    const std::vector<uint32_t> quad = random_quad(code, D, rng);
    std::vector<uint8_t> levels(4 * D);
    unpack_quad(code, reinterpret_cast<const uint8_t *>(quad.data()), D, levels.data());
    std::vector<int> seen(D);
    for (int g = 0; g < 8; ++g) {
        cuda::Words<D> words;
        cuda::unpack_values<D, code>(tables(), quad.data(), g, words);
        for (int m = 0; m < D / 16; ++m) {
            for (int h = 0; h < 2; ++h) {
                const int channel = cuda::value_channel<D>(code, m, h, g);
                ASSERT_EQ(words[m][h], word_of(levels, channel)) << static_cast<int>(code);
                ++seen[static_cast<size_t>(channel)];
            }
        }
    }
    EXPECT_EQ(seen, std::vector<int>(D, 1));
}
template <int D> void check_all_values() {
    Random rng(2);
    check_values<D, QuadCode::trellis1>(rng);
    check_values<D, QuadCode::trellis1_5>(rng);
    check_values<D, QuadCode::trellis2>(rng);
    check_values<D, QuadCode::trellis3>(rng);
    check_values<D, QuadCode::uniform4>(rng);
}
TEST(CudaLevels, ValuesAreThoseOfTheSpecification) {
    check_all_values<64>();
    check_all_values<128>();
}

// Host memory as a device's.
class HostMemory {
  public:
    void * operator()(const void * bytes, size_t size) {
        blocks_.emplace_back(size / 16 + 1);
        std::memcpy(blocks_.back().data(), bytes, size);
        return blocks_.back().data();
    }

  private:
    struct alignas(16) Piece {
        char bytes[16];
    };
    std::vector<std::vector<Piece>> blocks_;
};

template <int D, int NT> void run_block(const cuda::Launch & launch, int item, int part) {
    struct alignas(16) Piece {
        char bytes[16];
    };
    std::vector<Piece> shared(static_cast<size_t>(launch.shared_bytes) / 16 + 1);
    std::memset(static_cast<void *>(shared.data()), 0xff,
                shared.size() * 16); // NaN, where something is read that nobody wrote
    cuda::emulated::Block block;
    block.run(launch.threads, [&](int thread) {
        cuda::AttentionBlock<D, NT>(launch.params, item, part, thread, reinterpret_cast<uint8_t *>(shared.data())).run();
    });
}

void run_launch(const cuda::Launch & launch, int head_dim) {
    for (int part = 0; part <= launch.params.splits; ++part) {
        for (int item = 0; item < launch.items; ++item) {
            if (head_dim == 128)
                launch.row_tiles == 1 ? run_block<128, 1>(launch, item, part) : run_block<128, 2>(launch, item, part);
            else
                launch.row_tiles == 1 ? run_block<64, 1>(launch, item, part) : run_block<64, 2>(launch, item, part);
        }
    }
}

std::vector<float> run(CudaProblem & problem, const cuda::Device & device) {
    HostMemory memory;
    vidkv_cuda_attention_args args = problem.on_device(std::ref(memory));
    std::vector<float> out(problem.elements(), -1.0f);
    args.out = out.data();
    cuda::Launch launch;
    EXPECT_EQ(cuda::plan_launch(args, 0, device, launch), VIDKV_OK) << vidkv_last_error();
    std::vector<uint32_t> workspace(launch.workspace_bytes / 4, 0xffffffffu);
    std::fill_n(workspace.begin(), launch.counter_bytes / 4, 0u);
    cuda::place_workspace(launch, workspace.data());
    launch.params.tables = &tables();
    run_launch(launch, args.head_dim);
    EXPECT_TRUE(std::all_of(workspace.begin(), workspace.begin() + static_cast<long>(launch.counter_bytes / 4),
                            [](uint32_t n) { return n == 0; }));
    return out;
}

class CudaEmulated : public testing::TestWithParam<const char *> {};

TEST_P(CudaEmulated, AttentionMatchesDoubleReference) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "sanitizers do not follow fibers";
#endif
    constexpr cuda::Device small{6, 160 << 10, 4};
    uint64_t seed = 100;
    double closest = 0;
    int with_mean = 0, with_direction = 0;
    for (const CudaCase & c : test::cuda_cases(GetParam())) {
        Random rng(seed++);
        SCOPED_TRACE(c.trace() + " " + rng.trace());
        CudaProblem problem(c, rng);
        const double share = problem.worst_share(run(problem, small));
        EXPECT_LE(share, 0.1); // the bound adds up worst cases: a wrong scale shows here, and rounding does not come near
        closest = std::max(closest, share);
        with_mean += problem.has_mean_alone();
        with_direction += problem.has_direction();
    }
    EXPECT_GT(with_mean, 0);
    EXPECT_GT(with_direction, 0);
    RecordProperty("worst_share_of_bound", std::to_string(closest));
}
INSTANTIATE_TEST_SUITE_P(Presets, CudaEmulated, testing::ValuesIn(test::cuda_presets));

TEST(CudaLaunch, RefusesWhatKernelsCannotRead) {
    vidkv_params params;
    const std::pair<const char *, int> refused[] = {
        {"k2v2", 128}, {"f16", 128}, {"t1.65-stp0.2", 128}, {"kt1.5v16", 128}, {"t1.65", 96}};
    for (const auto & [preset, head_dim] : refused) {
        ASSERT_EQ(vidkv_params_from_preset(preset, &params), VIDKV_OK);
        EXPECT_EQ(cuda::check_format(params, head_dim), VIDKV_E_UNSUPPORTED) << preset;
        EXPECT_NE(std::string(vidkv_last_error()).find("CUDA kernels"), std::string::npos);
    }
}

} // namespace
} // namespace vidkv
