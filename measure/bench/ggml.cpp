// ggml's flash attention through its public graph interface.
#include <cmath>
#include <cstring>

#include "bench/attention.h"
#include "bench/ggml_handles.h"
#include "engine/backends.h"
#include "error.h"

namespace vidkv::cli {

namespace {

ggml_backend_dev_t cpu_device() {
    load_cpu_backend();
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

ggml_backend_reg_t cpu_registry() { return ggml_backend_dev_backend_reg(cpu_device()); }

Context new_context() {
    constexpr size_t TENSORS = 64;
    ggml_init_params params = {ggml_tensor_overhead() * TENSORS + ggml_graph_overhead(), nullptr, true};
    Context context(ggml_init(params));
    if (!context) throw std::bad_alloc();
    return context;
}

Buffer allocate(ggml_context * context, ggml_backend_t backend) {
    Buffer buffer(ggml_backend_alloc_ctx_tensors(context, backend));
    if (!buffer) throw std::bad_alloc();
    return buffer;
}

class GgmlContender : public AttentionContender {
  public:
    GgmlContender(ggml_type type, Layout layout, const AttentionShape & shape, int64_t capacity, const TokenRows & rows);

    const std::string & name() const override { return name_; }
    uint64_t bytes() const override {
        return 2 * ggml_row_size(k_->type, shape_.channels()) * static_cast<uint64_t>(cells_ * sequences_);
    }
    void prepare(const AttentionCall & call, int threads) override;
    void run() override;
    std::vector<float> output() const override;
    std::vector<uint16_t> content(vidkv_side side) const override;

  private:
    // Bytes from one cell to the next, and from one KV head to the next.
    size_t cell_stride() const;
    size_t head_stride() const;
    void fill(ggml_tensor * cache, const float * rows);
    ggml_tensor * view(ggml_tensor * cache) const;
    void build(const AttentionCall & call);

    std::string name_;
    Layout layout_;
    AttentionShape shape_;
    int64_t capacity_;
    Backend backend_;
    Context cache_context_, call_context_;
    Buffer cache_buffer_, call_buffer_;
    ggml_tensor *k_ = nullptr, *v_ = nullptr, *out_ = nullptr; // k_, v_: [channels, capacity]
    ggml_cgraph * graph_ = nullptr;
    int64_t cells_ = 0;
    int sequences_ = 1;
};

GgmlContender::GgmlContender(ggml_type type, Layout layout, const AttentionShape & shape, int64_t capacity,
                             const TokenRows & rows)
    : name_(std::string(layout == Layout::BY_HEAD ? "ggml-" : "llama.cpp-") + ggml_type_name(type)), layout_(layout),
      shape_(shape), capacity_(capacity), backend_(ggml_backend_dev_init(cpu_device(), nullptr)),
      cache_context_(new_context()) {
    if (!backend_) throw Error("ggml's CPU back-end does not start");
    k_ = ggml_new_tensor_2d(cache_context_.get(), type, shape.channels(), capacity);
    v_ = ggml_new_tensor_2d(cache_context_.get(), type, shape.channels(), capacity);
    cache_buffer_ = allocate(cache_context_.get(), backend_.get());
    fill(k_, rows.keys());
    fill(v_, rows.values());
}

size_t GgmlContender::cell_stride() const {
    return ggml_row_size(k_->type, layout_ == Layout::BY_CELL ? shape_.channels() : shape_.head_dim);
}

size_t GgmlContender::head_stride() const {
    const size_t row = ggml_row_size(k_->type, shape_.head_dim);
    return layout_ == Layout::BY_CELL ? row : row * static_cast<size_t>(capacity_);
}

void GgmlContender::fill(ggml_tensor * cache, const float * rows) {
    const size_t row = ggml_row_size(cache->type, shape_.head_dim);
    std::vector<char> block(row * static_cast<size_t>(TokenRows::BLOCK * shape_.kv_heads)); // [cell][head]
    ggml_quantize_chunk(cache->type, rows, block.data(), 0, TokenRows::BLOCK * shape_.kv_heads, shape_.head_dim, nullptr);
    auto * data = static_cast<char *>(ggml_get_data(cache));
    for (int64_t cell = 0; cell < capacity_; ++cell) {
        for (int64_t head = 0; head < shape_.kv_heads; ++head) {
            const char * from = block.data() + static_cast<size_t>(cell % TokenRows::BLOCK * shape_.kv_heads + head) * row;
            std::memcpy(data + static_cast<size_t>(cell) * cell_stride() + static_cast<size_t>(head) * head_stride(), from,
                        row);
        }
    }
}

// [head_dim, cells, kv_heads], without a copy.
ggml_tensor * GgmlContender::view(ggml_tensor * cache) const {
    return ggml_view_3d(call_context_.get(), cache, shape_.head_dim, cells_, shape_.kv_heads, cell_stride(), head_stride(),
                        0);
}

void GgmlContender::build(const AttentionCall & call) {
    call_context_ = new_context();
    ggml_context * context = call_context_.get();
    ggml_tensor * q = ggml_new_tensor_3d(context, GGML_TYPE_F32, shape_.head_dim, shape_.heads, call.query_tokens);
    ggml_tensor * mask = ggml_new_tensor_2d(context, GGML_TYPE_F16, cells_, call.query_tokens);
    out_ = ggml_flash_attn_ext(context, ggml_permute(context, q, 0, 2, 1, 3), view(k_), view(v_), mask,
                               1.0f / std::sqrt(static_cast<float>(shape_.head_dim)), 0, 0);
    graph_ = ggml_new_graph(context);
    ggml_build_forward_expand(graph_, out_);
    call_buffer_ = allocate(context, backend_.get());
    ggml_backend_tensor_set(q, call.q.data(), 0, ggml_nbytes(q));
    ggml_backend_tensor_set(mask, call.mask.data(), 0, ggml_nbytes(mask));
}

void GgmlContender::prepare(const AttentionCall & call, int threads) {
    cells_ = call.cells();
    sequences_ = call.sequences;
    build(call);
    const auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(cpu_registry(), "ggml_backend_set_n_threads"));
    if (set_threads) set_threads(backend_.get(), threads);
}

// Sequences are caches of their own: the one that there is is read for each of them, and is larger than what processors keep.
void GgmlContender::run() {
    for (int i = 0; i < sequences_; ++i) {
        if (ggml_backend_graph_compute(backend_.get(), graph_) != GGML_STATUS_SUCCESS)
            throw Error("ggml's flash attention failed on " + name_);
    }
}

std::vector<float> GgmlContender::output() const {
    std::vector<float> values(static_cast<size_t>(ggml_nelements(out_)));
    ggml_backend_tensor_get(out_, values.data(), 0, ggml_nbytes(out_));
    return values;
}

std::vector<uint16_t> GgmlContender::content(vidkv_side side) const {
    const ggml_tensor * cache = side == VIDKV_KEYS ? k_ : v_;
    const auto * data = static_cast<const char *>(ggml_get_data(cache));
    std::vector<float> row(static_cast<size_t>(shape_.head_dim));
    std::vector<uint16_t> halves(static_cast<size_t>(cells_) * static_cast<size_t>(shape_.channels()));
    uint16_t * to = halves.data();
    for (int64_t cell = 0; cell < cells_; ++cell) {
        for (int64_t head = 0; head < shape_.kv_heads; ++head, to += shape_.head_dim) {
            const char * from =
                data + static_cast<size_t>(cell) * cell_stride() + static_cast<size_t>(head) * head_stride();
            ggml_get_type_traits(cache->type)->to_float(from, row.data(), shape_.head_dim);
            ggml_fp32_to_fp16_row(row.data(), to, shape_.head_dim);
        }
    }
    return halves;
}

} // namespace

std::unique_ptr<AttentionContender> make_ggml_contender(ggml_type type, Layout layout, const AttentionShape & shape,
                                                        int64_t capacity, const TokenRows & rows) {
    return std::make_unique<GgmlContender>(type, layout, shape, capacity, rows);
}

std::string ggml_isa() {
    const auto features = reinterpret_cast<ggml_backend_get_features_t>(
        ggml_backend_reg_get_proc_address(cpu_registry(), "ggml_backend_get_features"));
    std::string best = "scalar";
    if (!features) return best;
    for (const ggml_backend_feature * feature = features(cpu_registry()); feature->name; ++feature) {
        const std::string name = feature->name;
        if (name == "AVX512") return "avx512";
        if (name == "AVX2") best = "avx2";
        if (name == "NEON") best = "neon";
    }
    return best;
}

} // namespace vidkv::cli
