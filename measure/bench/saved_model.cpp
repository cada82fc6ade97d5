#include "bench/saved_model.h"

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "bench/random_model.h"
#include "engine/logs.h"
#include "engine/plugin.h"
#include "error.h"
#include "interrupt.h"
#include "parse_tokens.h"

namespace vidkv::cli {

namespace {

constexpr uint32_t SEED = 20251126;
constexpr int64_t SPARE_CELLS = 512;

} // namespace

SavedModel::SavedModel(const SavedOptions & options, const std::string & path)
    : options_(options), shape_(parse_shape(options.shape)), tokens_(parse_tokens(options.tokens)), path_(path) {
    if (vidkv_params_from_preset(options_.kv.c_str(), &params_) != VIDKV_OK) throw UsageError(vidkv_last_error());
    if (!std::filesystem::exists(path_)) {
        const vidkv_test::ModelShape shape =
            vidkv_test::cache_shape(options_.layers, shape_.heads, shape_.kv_heads, shape_.head_dim);
        const std::string folder = std::filesystem::path(path_).parent_path().string();
        std::filesystem::rename(vidkv_test::write_random_model(shape, SEED, folder), path_);
    }
    std::array<ggml_backend_dev_t, 2> devices = {kv_device(), nullptr};
    llama_model_params params = llama_model_default_params();
    params.devices = devices.data();
    params.n_gpu_layers = 999;
    model_.reset(llama_model_load_from_file(path_.c_str(), params));
    if (!model_) throw Error("cannot load the random model: " + logged_error());
}

Context SavedModel::make_context() const {
    configure_plugin(params_);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(tokens_ + SPARE_CELLS);
    params.n_seq_max = 2; // one of them while the cache is filled, and for the fork
    params.kv_unified = true;
    if (!passes_through_f16()) params.n_batch = params.n_ubatch = 32; // masks are as wide as the context
    params.n_threads = params.n_threads_batch = options_.threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    Context context(llama_init_from_model(model_.get(), params));
    if (!context)
        throw Error("llama.cpp cannot make a context of " + std::to_string(tokens_) + " tokens: " + logged_error());
    return context;
}

void SavedModel::decode(llama_context * context, int n, llama_pos from, llama_seq_id sequence) const {
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; ++i) {
        batch.token[i] = (from + i) * 37 % llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
        batch.pos[i] = from + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = sequence;
        batch.logits[i] = i + 1 == n;
    }
    const int status = llama_decode(context, batch);
    llama_batch_free(batch);
    check_interrupt();
    if (status != 0) throw Error("llama.cpp failed to decode: " + logged_error());
    llama_synchronize(context);
}

std::vector<float> SavedModel::logits(llama_context * context, llama_seq_id sequence) const {
    const llama_pos next = llama_memory_seq_pos_max(llama_get_memory(context), sequence) + 1;
    decode(context, 1, next, sequence);
    const float * row = llama_get_logits_ith(context, -1);
    std::vector<float> all(row, row + llama_vocab_n_tokens(llama_model_get_vocab(model_.get())));
    llama_memory_seq_rm(llama_get_memory(context), sequence, next, -1);
    return all;
}

uint64_t proc_bytes(const std::string & file, const std::string & name) {
    std::ifstream status(file);
    for (std::string line; std::getline(status, line);)
        if (line.starts_with(name + ":")) return std::strtoull(line.c_str() + name.size() + 1, nullptr, 10) * 1024;
    return 0;
}

void forget_peak() { std::ofstream("/proc/self/clear_refs") << "5"; }

} // namespace vidkv::cli
