#include "random_model.h"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <initializer_list>
#include <random>
#include <stdexcept>

#include "ggml.h"
#include "gguf.h"

namespace vidkv_test {

namespace {

class Writer {
  public:
    Writer(const ModelShape & shape, uint32_t seed) : shape_(shape), random_(seed) {
        tensors_ = ggml_init({size_t{64} << 20, nullptr, false});
    }
    ~Writer() {
        gguf_free(file_);
        ggml_free(tensors_);
    }
    Writer(const Writer &) = delete;
    Writer & operator=(const Writer &) = delete;

    void number(const std::string & key, uint32_t value) { gguf_set_val_u32(file_, name(key).c_str(), value); }
    void number(const std::string & key, float value) { gguf_set_val_f32(file_, name(key).c_str(), value); }

    // Normal numbers around `mean`; matrices keep the length of what they multiply, times gain.
    void weight(const std::string & tensor, std::initializer_list<int64_t> size, float gain = 1.0f, float mean = 0.0f) {
        ggml_tensor * t = ggml_new_tensor(tensors_, GGML_TYPE_F32, static_cast<int>(size.size()), size.begin());
        ggml_set_name(t, tensor.c_str());
        const float deviation = size.size() > 1 ? gain / std::sqrt(static_cast<float>(*size.begin())) : 0.1f * gain;
        std::normal_distribution<float> normal(mean, deviation);
        auto * data = static_cast<float *>(t->data);
        for (int64_t i = 0; i < ggml_nelements(t); ++i) data[i] = normal(random_);
        gguf_add_tensor(file_, t);
    }
    void norm(const std::string & tensor) { weight(tensor, {shape_.width}, 1.0f, 1.0f); }

    std::string save(const std::string & folder) {
        gguf_set_val_str(file_, "general.architecture", shape_.architecture.c_str());
        gguf_set_val_str(file_, "tokenizer.ggml.model", "no_vocab");
        const auto path =
            (folder.empty() ? std::filesystem::temp_directory_path() : std::filesystem::path(folder)) /
            ("vidkv-" + shape_.architecture + "-" + std::to_string(getpid()) + "-" + std::to_string(counter()++) + ".gguf");
        if (!gguf_write_to_file(file_, path.c_str(), false)) throw std::runtime_error("cannot write " + path.string());
        return path.string();
    }

  private:
    std::string name(const std::string & key) const { return shape_.architecture + "." + key; }
    static int & counter() {
        static int count = 0;
        return count;
    }

    ModelShape shape_;
    std::mt19937 random_;
    gguf_context * file_ = gguf_init_empty();
    ggml_context * tensors_ = nullptr;
};

void write_numbers(Writer & w, const ModelShape & s) {
    w.number("vocab_size", s.vocabulary);
    w.number("context_length", 8192u);
    w.number("embedding_length", s.width);
    w.number("block_count", s.layers);
    w.number("feed_forward_length", 2 * s.width);
    w.number("attention.head_count", s.heads);
    w.number("attention.head_count_kv", s.kv_heads);
    w.number("attention.key_length", s.head_dim);
    w.number("attention.value_length", s.head_dim);
    w.number("attention.layer_norm_rms_epsilon", 1e-5f);
    w.number("attention.layer_norm_epsilon", 1e-5f);
    w.number("attention.sliding_window", s.sliding_window);
    if (s.architecture == "gemma2") w.number("attn_logit_softcapping", 5.0f);
    if (s.architecture == "mpt") w.number("attention.max_alibi_bias", 8.0f);
    if (s.architecture == "gpt-oss") {
        w.number("expert_count", 2u);
        w.number("expert_used_count", 2u);
        w.number("expert_feed_forward_length", s.width);
    }
}

void write_attention(Writer & w, const ModelShape & s, const std::string & block) {
    const int64_t q = int64_t{s.heads} * s.head_dim, kv = int64_t{s.kv_heads} * s.head_dim;
    constexpr float sharp = 1.6f; // attention that looks at some cells more than at others
    w.norm(block + "attn_norm.weight");
    if (s.architecture == "mpt") {
        w.weight(block + "attn_qkv.weight", {s.width, q + 2 * kv}, sharp);
    } else {
        w.weight(block + "attn_q.weight", {s.width, q}, sharp);
        w.weight(block + "attn_k.weight", {s.width, kv}, sharp);
        w.weight(block + "attn_v.weight", {s.width, kv});
    }
    w.weight(block + "attn_output.weight", {q, s.width});
    if (s.architecture == "gemma2" || s.architecture == "gpt-oss") w.norm(block + "post_attention_norm.weight");
    if (s.architecture == "gpt-oss") {
        w.weight(block + "attn_output.bias", {s.width});
        w.weight(block + "attn_sinks.weight", {s.heads}, 10.0f, 2.0f);
    }
}

void write_feed_forward(Writer & w, const ModelShape & s, const std::string & block) {
    const int64_t wide = 2 * s.width, experts = 2;
    if (s.architecture == "gpt-oss") {
        w.weight(block + "ffn_gate_inp.weight", {s.width, experts});
        w.weight(block + "ffn_gate_inp.bias", {experts});
        for (const char * part : {"gate", "up", "down"}) {
            w.weight(block + "ffn_" + part + "_exps.weight", {s.width, s.width, experts});
            w.weight(block + "ffn_" + part + "_exps.bias", {s.width, experts});
        }
        return;
    }
    w.norm(block + "ffn_norm.weight");
    if (s.architecture != "mpt") w.weight(block + "ffn_gate.weight", {s.width, wide});
    w.weight(block + "ffn_up.weight", {s.width, wide});
    w.weight(block + "ffn_down.weight", {wide, s.width});
    if (s.architecture == "gemma2") w.norm(block + "post_ffw_norm.weight");
}

} // namespace

ModelShape cache_shape(int layers, int heads, int kv_heads, int head_dim) {
    ModelShape shape;
    shape.layers = static_cast<uint32_t>(layers);
    shape.width = 32;
    shape.heads = static_cast<uint32_t>(heads);
    shape.kv_heads = static_cast<uint32_t>(kv_heads);
    shape.head_dim = static_cast<uint32_t>(head_dim);
    return shape;
}

std::string write_random_model(const ModelShape & shape, uint32_t seed, const std::string & folder) {
    Writer writer(shape, seed);
    write_numbers(writer, shape);
    writer.weight("token_embd.weight", {shape.width, shape.vocabulary}, std::sqrt(static_cast<float>(shape.width)));
    writer.norm("output_norm.weight");
    if (shape.architecture != "gemma2") writer.weight("output.weight", {shape.width, shape.vocabulary});
    for (uint32_t i = 0; i < shape.layers; ++i) {
        const std::string block = "blk." + std::to_string(i) + ".";
        write_attention(writer, shape, block);
        write_feed_forward(writer, shape, block);
    }
    return writer.save(folder);
}

} // namespace vidkv_test
