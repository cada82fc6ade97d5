#include "session.h"

#include <cmath>
#include <mutex>
#include <stdexcept>

#include "ggml-backend.h"
#include "ggml-vidkv.h"

namespace vidkv_test {

namespace {

std::mutex log_mutex;
std::string log_text;

void remember(ggml_log_level, const char * text, void *) {
    const std::lock_guard lock(log_mutex);
    log_text += text;
}

// Finds the plug-in through GGML_BACKEND_PATH, as the stock tools do.
ggml_backend_dev_t plug_in() {
    static ggml_backend_dev_t device = [] {
        llama_log_set(remember, nullptr);
        ggml_backend_load_all();
        return ggml_backend_dev_by_name(VIDKV_DEVICE_NAME);
    }();
    if (!device) throw std::runtime_error("no device VIDKV: is GGML_BACKEND_PATH set to libggml-vidkv.so?\n" + log_text);
    return device;
}

void * plug_in_function(const char * name) {
    return ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(plug_in()), name);
}

llama_token token_of(int index, int vocabulary) {
    const uint32_t mixed = (static_cast<uint32_t>(index) * 2654435761u) >> 7;
    return static_cast<llama_token>(mixed % static_cast<uint32_t>(vocabulary));
}

struct Batch {
    explicit Batch(int n) : batch(llama_batch_init(n, 0, 1)) { batch.n_tokens = n; }
    ~Batch() { llama_batch_free(batch); }
    Batch(const Batch &) = delete;
    Batch & operator=(const Batch &) = delete;

    void set(int i, llama_token token, int position, int sequence, bool wanted) const {
        batch.token[i] = token;
        batch.pos[i] = position;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = sequence;
        batch.logits[i] = wanted;
    }

    llama_batch batch;
};

} // namespace

Session::Session(const std::string & model, const SessionOptions & options) {
    ggml_backend_dev_t devices[] = {plug_in(), nullptr};
    ggml_backend_dev_t none[] = {nullptr};
    llama_model_params model_params = llama_model_default_params();
    model_params.devices = options.preset.empty() ? none : devices;
    model_params.n_gpu_layers = options.preset.empty() ? 0 : 99;
    if (!options.preset.empty()) {
        if (const char * error = configure(options.preset.c_str())) throw std::runtime_error(error);
    }
    model_.reset(llama_model_load_from_file(model.c_str(), model_params));
    if (!model_) throw std::runtime_error("the model could not be loaded\n" + log_text);

    llama_context_params params = llama_context_default_params();
    params.n_ctx = options.cells * (options.unified ? 1 : options.sequences);
    params.n_batch = 256;
    params.n_ubatch = 64;
    params.n_seq_max = options.sequences;
    params.kv_unified = options.unified;
    params.n_threads = params.n_threads_batch = 2;
    params.type_k = params.type_v = options.type;
    params.swa_full = options.full_window_cache;
    params.flash_attn_type = options.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    context_.reset(llama_init_from_model(model_.get(), params));
    if (!context_) throw std::runtime_error("the context could not be made\n" + log_text);
    vocabulary_ = llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
}

const Logits & Session::decode(const llama_batch & batch) {
    if (llama_decode(context_.get(), batch) != 0) throw std::runtime_error("llama_decode failed\n" + log_text);
    const float * logits = llama_get_logits_ith(context_.get(), -1);
    trace_.emplace_back(logits, logits + vocabulary_);
    return trace_.back();
}

const Logits & Session::feed(int first, int n, int position, int sequence) {
    constexpr int most = 256;
    for (int done = 0; done < n;) {
        const int count = std::min(most, n - done);
        Batch batch(count);
        for (int i = 0; i < count; ++i) {
            batch.set(i, token_of(first + done + i, vocabulary_), position + done + i, sequence, i == count - 1);
        }
        decode(batch.batch);
        done += count;
    }
    return trace_.back();
}

const Logits & Session::feed_together(int first, int n, int position) {
    Batch batch(n);
    for (int i = 0; i < n; ++i) batch.set(i, token_of(first + i, vocabulary_), position, i, true);
    return decode(batch.batch);
}

std::vector<std::string> logged(const std::string & text) {
    const std::lock_guard lock(log_mutex);
    std::vector<std::string> lines;
    for (size_t start = 0; start < log_text.size();) {
        const size_t end = std::min(log_text.find('\n', start), log_text.size());
        const std::string line = log_text.substr(start, end - start);
        if (line.find(text) != std::string::npos) lines.push_back(line);
        start = end + 1;
    }
    return lines;
}

void forget_log() {
    const std::lock_guard lock(log_mutex);
    log_text.clear();
}

vidkv_store_stats stats() {
    vidkv_store_stats sum{};
    reinterpret_cast<vidkv_stats_t>(plug_in_function(VIDKV_PROC_STATS))(&sum);
    return sum;
}

std::vector<uint16_t> rows_of(int store, int64_t first, int64_t n, int channels) {
    std::vector<uint16_t> rows(static_cast<size_t>(n * channels));
    const vidkv_inspector * inspector = reinterpret_cast<vidkv_inspector_t>(plug_in_function(VIDKV_PROC_INSPECTOR))();
    if (const char * error = inspector->read(store, 0, first, n, rows.data())) throw std::runtime_error(error);
    return rows;
}

const char * configure(const char * preset, const vidkv_params * params) {
    return reinterpret_cast<vidkv_configure_t>(plug_in_function(VIDKV_PROC_CONFIGURE))(preset, params);
}

double relative_error(const Logits & a, const Logits & b) {
    double difference = 0, length = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
        length += double{b[i]} * b[i];
    }
    return std::sqrt(difference / length);
}

} // namespace vidkv_test
