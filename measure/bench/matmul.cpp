#include "bench/matmul.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <vector>

#include "bench/attention.h"
#include "bench/ggml_handles.h"
#include "machine.h"
#include "error.h"

namespace vidkv::cli {

namespace {

constexpr int LAYERS = 28;
constexpr int64_t TOKENS = 512;
constexpr int RUNS = 3;
constexpr uint64_t SEED = 5;

struct Product {
    int64_t in, out;
};
// Qwen2.5-7B: hidden 3584, 4 KV heads of 128, feed-forward 18944.
constexpr std::array<Product, 7> PRODUCTS = {
    {{3584, 3584}, {3584, 512}, {3584, 512}, {3584, 3584}, {3584, 18944}, {3584, 18944}, {18944, 3584}}};

Context new_context() { return Context(ggml_init({ggml_tensor_overhead() * 8 + ggml_graph_overhead(), nullptr, true})); }

template <typename Function> Function cpu_function(ggml_backend_dev_t device, const char * name) {
    return reinterpret_cast<Function>(ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(device), name));
}

// Where llama.cpp would put q4_0 weights: a buffer that reorders them, if this CPU has one.
ggml_backend_buffer_type_t weight_buffers(ggml_backend_dev_t device) {
    if (const auto extra = cpu_function<ggml_backend_dev_get_extra_bufts_t>(device, "ggml_backend_dev_get_extra_bufts"))
        if (ggml_backend_buffer_type_t * types = extra(device); types && *types)
            for (; *types; ++types)
                if (std::string(ggml_backend_buft_name(*types)) == "CPU_REPACK") return *types;
    return ggml_backend_dev_buffer_type(device);
}

double product_seconds(ggml_backend_dev_t device, ggml_backend_t backend, const Product & product) {
    const Context weight_context = new_context(), context = new_context();
    ggml_tensor * weights = ggml_new_tensor_2d(weight_context.get(), GGML_TYPE_Q4_0, product.in, product.out);
    const Buffer weight_buffer(ggml_backend_alloc_ctx_tensors_from_buft(weight_context.get(), weight_buffers(device)));
    ggml_tensor * x = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, product.in, TOKENS);
    ggml_tensor * y = ggml_mul_mat(context.get(), weights, x);
    ggml_cgraph * graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, y);
    const Buffer buffer(ggml_backend_alloc_ctx_tensors(context.get(), backend));
    if (!weight_buffer || !buffer) throw std::bad_alloc();
    const std::vector<float> row = gaussian(static_cast<size_t>(product.in), SEED);
    std::vector<char> packed(ggml_row_size(GGML_TYPE_Q4_0, product.in)), all;
    ggml_quantize_chunk(GGML_TYPE_Q4_0, row.data(), packed.data(), 0, 1, product.in, nullptr);
    for (int64_t i = 0; i < product.out; ++i) all.insert(all.end(), packed.begin(), packed.end());
    ggml_backend_tensor_set(weights, all.data(), 0, all.size());
    for (int64_t i = 0; i < TOKENS; ++i)
        ggml_backend_tensor_set(x, row.data(), static_cast<size_t>(i) * x->nb[1], row.size() * sizeof(float));
    std::vector<double> seconds;
    for (int i = 0; i < RUNS + 1; ++i) { // the first one warms up
        const auto start = std::chrono::steady_clock::now();
        if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) throw Error("ggml's matrix product failed");
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return *std::min_element(seconds.begin() + 1, seconds.end());
}

} // namespace

PrefillEstimate estimate_prefill(int threads) {
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (!device) throw Error("ggml has no CPU back-end here");
    const Backend backend(ggml_backend_dev_init(device, nullptr));
    if (const auto set_threads = cpu_function<ggml_backend_set_n_threads_t>(device, "ggml_backend_set_n_threads"))
        set_threads(backend.get(), threads);
    double layer = 0;
    for (const Product & product : PRODUCTS) layer += product_seconds(device, backend.get(), product);
    return {layer * LAYERS / static_cast<double>(TOKENS),
            std::string("ggml's matrix products of a Qwen2.5-7B layer, q4_0 in ") +
                ggml_backend_buft_name(weight_buffers(device)) + ", 512 tokens, times 28, without attention"};
}

} // namespace vidkv::cli
