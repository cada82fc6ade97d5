// Attention over f16 keys and values, the host's and this project's, against one in double: where an f16 cache in the
// plug-in gives other logits than llama.cpp alone, this says which of the two is nearer to what is meant.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"
#include "vidkv/vidkv.h"

namespace vidkv_test {

namespace {

constexpr int64_t heads = 9, kv_heads = 3, head_dim = 64, cells = 512, tokens = 4; // SmolLM2-135M's shape
constexpr float scale = 0.125f;

struct Problem {
    std::vector<float> q;          // [tokens][heads][head_dim]
    std::vector<ggml_fp16_t> k, v; // [cells][kv_heads][head_dim]
    std::vector<ggml_fp16_t> mask; // [tokens][cells]
};

Problem make_problem(unsigned seed) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    Problem p;
    p.mask.resize(tokens * cells, 0); // everyone sees everything
    for (int64_t i = 0; i < tokens * heads * head_dim; ++i) p.q.push_back(3 * normal(rng));
    for (int64_t i = 0; i < cells * kv_heads * head_dim; ++i) {
        p.k.push_back(ggml_fp32_to_fp16(2 * normal(rng)));
        p.v.push_back(ggml_fp32_to_fp16(normal(rng)));
    }
    return p;
}

std::vector<double> in_double(const Problem & p) {
    std::vector<double> out;
    for (int64_t row = 0; row < tokens * heads; ++row) {
        const int64_t kv_head = row % heads / (heads / kv_heads);
        std::vector<double> weights;
        for (int64_t cell = 0; cell < cells; ++cell) {
            double score = 0;
            for (int64_t c = 0; c < head_dim; ++c) {
                score +=
                    double{p.q[row * head_dim + c]} * ggml_fp16_to_fp32(p.k[(cell * kv_heads + kv_head) * head_dim + c]);
            }
            weights.push_back(std::exp(score * scale));
        }
        const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
        for (int64_t c = 0; c < head_dim; ++c) {
            double x = 0;
            for (int64_t cell = 0; cell < cells; ++cell) {
                x += weights[cell] / sum * ggml_fp16_to_fp32(p.v[(cell * kv_heads + kv_head) * head_dim + c]);
            }
            out.push_back(x);
        }
    }
    return out;
}

std::vector<float> by_host(const Problem & p) {
    ggml_backend_load_all();
    ggml_backend_t backend = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr);
    ggml_context * context = ggml_init({16 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true});
    ggml_tensor * q = ggml_new_tensor_3d(context, GGML_TYPE_F32, head_dim, heads, tokens);
    ggml_tensor * k = ggml_new_tensor_3d(context, GGML_TYPE_F16, head_dim, kv_heads, cells);
    ggml_tensor * v = ggml_new_tensor_3d(context, GGML_TYPE_F16, head_dim, kv_heads, cells);
    ggml_tensor * mask = ggml_new_tensor_2d(context, GGML_TYPE_F16, cells, tokens);
    const auto by_head = [&](ggml_tensor * x) { return ggml_permute(context, x, 0, 2, 1, 3); };
    ggml_tensor * out = ggml_flash_attn_ext(context, by_head(q), by_head(k), by_head(v), mask, scale, 0, 0);
    ggml_prec_set_acc(out, GGML_PREC_F32); // as llama.cpp asks for
    ggml_cgraph * graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, out);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(context, backend);
    ggml_backend_tensor_set(q, p.q.data(), 0, ggml_nbytes(q));
    ggml_backend_tensor_set(k, p.k.data(), 0, ggml_nbytes(k));
    ggml_backend_tensor_set(v, p.v.data(), 0, ggml_nbytes(v));
    ggml_backend_tensor_set(mask, p.mask.data(), 0, ggml_nbytes(mask));
    EXPECT_EQ(ggml_backend_graph_compute(backend, graph), GGML_STATUS_SUCCESS);
    std::vector<float> result(tokens * heads * head_dim);
    ggml_backend_tensor_get(out, result.data(), 0, ggml_nbytes(out));
    ggml_backend_buffer_free(buffer);
    ggml_free(context);
    ggml_backend_free(backend);
    return result;
}

using StorePointer = std::unique_ptr<vidkv_store, decltype(&vidkv_store_free)>;

StorePointer store_of(vidkv_side side, const std::vector<ggml_fp16_t> & rows) {
    vidkv_params params;
    EXPECT_EQ(vidkv_params_from_preset("f16", &params), VIDKV_OK);
    const vidkv_store_shape shape{side, static_cast<int32_t>(kv_heads * head_dim), static_cast<int32_t>(head_dim), cells,
                                  1};
    vidkv_store * store = nullptr;
    EXPECT_EQ(vidkv_store_create(&shape, &params, &store), VIDKV_OK);
    std::vector<int64_t> ids(cells);
    std::iota(ids.begin(), ids.end(), 0);
    EXPECT_EQ(vidkv_store_write_f16(store, 0, ids.data(), cells, rows.data(), kv_heads * head_dim), VIDKV_OK);
    return {store, vidkv_store_free};
}

std::vector<float> by_store(const Problem & p) {
    const StorePointer keys = store_of(VIDKV_KEYS, p.k), values = store_of(VIDKV_VALUES, p.v);
    std::vector<float> out(p.q.size());
    vidkv_attention_args args{};
    args.q = p.q.data();
    args.out = out.data();
    args.q_token_stride = args.out_token_stride = heads * head_dim;
    args.q_head_stride = args.out_head_stride = head_dim;
    args.tokens = tokens;
    args.heads = heads;
    args.cells = cells;
    args.scale = scale;
    args.threads = 1;
    EXPECT_EQ(vidkv_attention(keys.get(), values.get(), &args), VIDKV_OK) << vidkv_last_error();
    return out;
}

double relative_error_of(const std::vector<float> & got, const std::vector<double> & want) {
    double difference = 0, length = 0;
    for (size_t i = 0; i < got.size(); ++i) {
        difference += (got[i] - want[i]) * (got[i] - want[i]);
        length += want[i] * want[i];
    }
    return std::sqrt(difference / length);
}

TEST(Reference, F16AttentionIsNearerToDoubleThanTheHosts) {
    for (unsigned seed = 1; seed <= 3; ++seed) {
        const Problem problem = make_problem(seed);
        const std::vector<double> want = in_double(problem);
        const double host = relative_error_of(by_host(problem), want), ours = relative_error_of(by_store(problem), want);
        std::printf("  seed %u: relative error of the host's attention %.2e, of the store's %.2e\n", seed, host, ours);
        EXPECT_LT(ours, 1e-5);
        EXPECT_LE(ours, host);
    }
}

} // namespace

} // namespace vidkv_test
