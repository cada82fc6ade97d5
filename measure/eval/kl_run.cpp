#include "eval/kl_run.h"

#include <algorithm>

#include "engine/log_softmax.h"
#include "error.h"
#include "interrupt.h"
#include "engine/logs.h"
#include "engine/plugin.h"

namespace vidkv::cli {

namespace {

constexpr int BATCH = 512;

// Decodes tokens first .. first + n - 1 of a window at their places.
void decode(llama_context * context, const Window & window, int64_t first, int n, bool want_logits) {
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; ++i) {
        batch.token[i] = window.tokens[static_cast<size_t>(first + i)];
        batch.pos[i] = static_cast<llama_pos>(first + i);
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = want_logits;
    }
    forget_logged_error();
    const int status = llama_decode(context, batch);
    llama_batch_free(batch);
    check_interrupt();
    if (status != 0) throw Error("llama.cpp failed to decode (" + std::to_string(status) + "): " + logged_error());
}

ChannelErrors channel_errors(const std::vector<float> & before, const std::vector<float> & after, int64_t cells,
                             int64_t first, size_t channels) {
    ChannelErrors sums{std::vector<double>(channels), std::vector<double>(channels)};
    for (size_t channel = 0; channel < channels; ++channel) {
        double mean = 0;
        for (int64_t cell = first; cell < cells; ++cell) mean += before[static_cast<size_t>(cell) * channels + channel];
        mean /= static_cast<double>(std::max<int64_t>(1, cells - first));
        for (int64_t cell = first; cell < cells; ++cell) {
            const size_t at = static_cast<size_t>(cell) * channels + channel;
            const double off = after[at] - before[at], spread = before[at] - mean;
            sums.error[channel] += off * off;
            sums.variance[channel] += spread * spread;
        }
    }
    return sums;
}

} // namespace

WindowRun::WindowRun(const Model & model, const Window & window, int threads)
    : model_(model), window_(window), threads_(threads), vocabulary_(llama_vocab_n_tokens(model.vocab())),
      prefix_(static_cast<int64_t>(window.tokens.size()) - SCORED_TOKENS) {
    const Context context = make_context(parse_kv("f16"));
    read_prefix(context.get());
    state_.resize(llama_state_seq_get_size(context.get(), 0));
    if (llama_state_seq_get_data(context.get(), state_.data(), state_.size(), 0) != state_.size())
        throw Error("llama.cpp cannot save this model's cache: " + logged_error());
    const std::vector<vidkv_kv_info> stores = live_stores();
    if (stores.empty()) throw Error("the cache of this model cannot be packed (see --verbose)");
    for (size_t i = 0; i < stores.size(); ++i)
        rows_.push_back(read_rows(static_cast<int>(i), 0, prefix_, stores[i].channels));
    reference_ = score_tokens(context.get());
}

WindowRun::~WindowRun() = default;

WindowRun::Context WindowRun::make_context(const KvChoice & kv) const {
    if (!kv.stock) configure_plugin(kv.params);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(window_.tokens.size());
    params.n_batch = params.n_ubatch = BATCH;
    params.n_threads = params.n_threads_batch = threads_;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.type_k = params.type_v = kv.type;
    params.offload_kqv = !kv.stock; // a stock cache lies with the CPU
    params.swa_full = true;         // all cells can be read back
    params.abort_callback = interrupt_callback;
    forget_logged_error();
    Context context(llama_init_from_model(model_.text(), params));
    if (!context) throw Error("llama.cpp cannot make a context: " + logged_error());
    return context;
}

void WindowRun::hear(void * run, int32_t layer, int32_t, const float * q, int64_t tokens, int32_t heads,
                     int64_t token_stride, int64_t head_stride) {
    auto * self = static_cast<WindowRun *>(run);
    Queries & heard = self->queries_[layer];
    heard.heads = heads;
    const auto width = static_cast<size_t>(heard.head_dim);
    for (int64_t token = 0; token < tokens; ++token)
        for (int32_t head = 0; head < heads; ++head) {
            const float * from = q + token * token_stride + head * head_stride;
            heard.rows.insert(heard.rows.end(), from, from + width);
        }
}

void WindowRun::read_prefix(llama_context * context) {
    for (const vidkv_kv_info & store : live_stores())
        if (store.side == VIDKV_KEYS) queries_[store.layer].head_dim = store.head_dim;
    inspector().listen(hear, this);
    try {
        for (int64_t at = 0; at < prefix_; at += BATCH)
            decode(context, window_, at, static_cast<int>(std::min<int64_t>(BATCH, prefix_ - at)), false);
        llama_synchronize(context);
    } catch (...) {
        inspector().listen(nullptr, nullptr);
        throw;
    }
    inspector().listen(nullptr, nullptr);
}

void WindowRun::restore(llama_context * context) const {
    if (llama_state_seq_set_data(context, state_.data(), state_.size(), 0) == 0)
        throw Error("llama.cpp does not take the state of its own cache: " + logged_error());
}

void WindowRun::replay_queries() const {
    const std::vector<vidkv_kv_info> stores = live_stores();
    for (size_t i = 0; i < stores.size(); ++i) {
        if (stores[i].side != VIDKV_KEYS) continue;
        const Queries & queries = queries_.at(stores[i].layer);
        check_plugin(inspector().observe(static_cast<int32_t>(i), 0, queries.rows.data(), prefix_, queries.heads));
    }
}

std::vector<float> WindowRun::score_tokens(llama_context * context) const {
    decode(context, window_, prefix_, SCORED_TOKENS, true);
    std::vector<float> scores(static_cast<size_t>(SCORED_TOKENS * vocabulary_));
    for (int i = 0; i < SCORED_TOKENS; ++i) {
        float * to = &scores[static_cast<size_t>(i * vocabulary_)];
        std::copy_n(llama_get_logits_ith(context, i), vocabulary_, to);
        log_softmax(to, vocabulary_);
    }
    return scores;
}

void WindowRun::add_errors(const Contender & contender, WindowResult & result) const {
    const std::vector<vidkv_kv_info> stores = live_stores();
    const int64_t cells = packed_prefix(contender, prefix_);
    for (size_t i = 0; i < stores.size(); ++i) {
        const std::vector<float> after = read_rows(static_cast<int>(i), 0, cells, stores[i].channels);
        (stores[i].side == VIDKV_KEYS ? result.keys : result.values)[stores[i].layer] = channel_errors(
            rows_[i], after, cells, contender.kv.params.sink_tokens, static_cast<size_t>(stores[i].channels));
    }
}

uint64_t WindowRun::f16_bytes(int64_t cells) const {
    uint64_t elements = 0;
    for (const std::vector<float> & rows : rows_) elements += rows.size() / static_cast<size_t>(prefix_);
    return 2 * elements * static_cast<uint64_t>(cells);
}

WindowResult WindowRun::score(const Contender & contender, bool details) {
    const HeldSealing held;
    const Context context = make_context(contender.kv);
    restore(context.get());
    if (!contender.kv.stock) replay_queries();
    pack(contender, prefix_, threads_);
    WindowResult result;
    if (details) add_errors(contender, result);
    const std::vector<float> measured = score_tokens(context.get());
    for (int i = window_.skipped; i < SCORED_TOKENS; ++i) {
        const size_t at = static_cast<size_t>(i * vocabulary_);
        result.divergence.add(&reference_[at], &measured[at], vocabulary_);
        if (i + 1 == SCORED_TOKENS) break;
        const llama_token next = window_.tokens[static_cast<size_t>(prefix_ + i + 1)];
        result.divergence.add_text_token(measured[at + static_cast<size_t>(next)]);
    }
    const auto cells = static_cast<int64_t>(window_.tokens.size());
    result.packed = measure(contender, prefix_, cells);
    if (contender.kv.stock) result.packed = {16, 16, f16_bytes(cells)};
    return result;
}

} // namespace vidkv::cli
