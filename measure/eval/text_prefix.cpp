#include "eval/text_prefix.h"

#include <algorithm>

#include "engine/logs.h"
#include "error.h"
#include "interrupt.h"

namespace vidkv::cli {

namespace {

constexpr int64_t BATCH = 512;

llama_context_params context_params(const KvChoice & kv, int64_t cells, int threads) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(cells);
    params.n_batch = params.n_ubatch = BATCH;
    params.n_threads = params.n_threads_batch = threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.type_k = params.type_v = kv.type;
    params.offload_kqv = !kv.stock; // a stock cache lies with the CPU
    params.swa_full = true;         // all cells can be read back
    params.abort_callback = interrupt_callback;
    return params;
}

llama_batch batch_at(std::span<const llama_token> tokens, int64_t position, bool every_logit) {
    const auto n = static_cast<int32_t>(tokens.size());
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int32_t i = 0; i < n; ++i) {
        batch.token[i] = tokens[static_cast<size_t>(i)];
        batch.pos[i] = static_cast<llama_pos>(position + i);
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = every_logit || i + 1 == n;
    }
    return batch;
}

} // namespace

TextContext::TextContext(const Model & model, const KvChoice & kv, int64_t cells, int threads)
    : held_(std::make_unique<HeldSealing>()) {
    if (!kv.stock) configure_plugin(kv.params, kv.losses);
    forget_logged_error();
    context_.reset(llama_init_from_model(model.text(), context_params(kv, cells, threads)));
    if (!context_)
        throw Error("llama.cpp cannot make a context of " + std::to_string(cells) + " tokens: " + logged_error());
}

void TextContext::append(std::span<const llama_token> tokens, bool every_logit) {
    while (!tokens.empty()) {
        const std::span<const llama_token> part = tokens.first(std::min<size_t>(tokens.size(), BATCH));
        const llama_batch batch = batch_at(part, size_, every_logit);
        forget_logged_error();
        const int status = llama_decode(get(), batch);
        llama_batch_free(batch);
        check_interrupt();
        if (status != 0) throw Error("llama.cpp failed to decode (" + std::to_string(status) + "): " + logged_error());
        size_ += static_cast<int64_t>(part.size());
        tokens = tokens.subspan(part.size());
    }
}

const float * TextContext::logits(int32_t i) const { return llama_get_logits_ith(get(), i); }

void TextContext::rewind(int64_t n) {
    if (n < size_ && !llama_memory_seq_rm(llama_get_memory(get()), 0, static_cast<llama_pos>(n), -1))
        throw Error("this model's memory cannot be rolled back");
    size_ = n;
}

TextPrefix::TextPrefix(const Model & model, std::span<const llama_token> tokens, int64_t cells, int threads,
                       const std::function<void(int64_t)> & on_read)
    : model_(model), size_(static_cast<int64_t>(tokens.size())), cells_(cells), threads_(threads) {
    TextContext context(model, parse_kv("f16"), cells, threads);
    read(context, tokens, on_read);
    state_.resize(llama_state_seq_get_size(context.get(), 0));
    if (llama_state_seq_get_data(context.get(), state_.data(), state_.size(), 0) != state_.size())
        throw Error("llama.cpp cannot save this model's cache: " + logged_error());
    if (live_stores().empty()) throw Error("the cache of this model cannot be packed (see --verbose)");
}

void TextPrefix::hear(void * prefix, int32_t layer, int32_t, const float * q, int64_t tokens, int32_t heads,
                      int64_t token_stride, int64_t head_stride) {
    HeardQueries & heard = static_cast<TextPrefix *>(prefix)->queries_[layer];
    heard.heads = heads;
    const auto width = static_cast<size_t>(heard.head_dim);
    for (int64_t token = 0; token < tokens; ++token)
        for (int32_t head = 0; head < heads; ++head) {
            const float * from = q + token * token_stride + head * head_stride;
            heard.rows.insert(heard.rows.end(), from, from + width);
        }
}

void TextPrefix::read(TextContext & context, std::span<const llama_token> tokens,
                      const std::function<void(int64_t)> & on_read) {
    for (const vidkv_kv_info & store : live_stores())
        if (store.side == VIDKV_KEYS) queries_[store.layer].head_dim = store.head_dim;
    inspector().listen(hear, this);
    try {
        for (int64_t at = 0; at < size_; at += BATCH) {
            on_read(at);
            context.append(tokens.subspan(static_cast<size_t>(at), static_cast<size_t>(std::min(BATCH, size_ - at))),
                           false);
        }
        llama_synchronize(context.get());
    } catch (...) {
        inspector().listen(nullptr, nullptr);
        throw;
    }
    inspector().listen(nullptr, nullptr);
}

void TextPrefix::replay_queries() const {
    const std::vector<vidkv_kv_info> stores = live_stores();
    for (size_t i = 0; i < stores.size(); ++i) {
        if (stores[i].side != VIDKV_KEYS) continue;
        const HeardQueries & queries = queries_.at(stores[i].layer);
        check_plugin(inspector().observe(static_cast<int32_t>(i), 0, queries.rows.data(), size_, queries.heads));
    }
}

TextContext TextPrefix::packed(const Contender & contender) const {
    TextContext context(model_, contender.kv, cells_, threads_);
    if (llama_state_seq_set_data(context.get(), state_.data(), state_.size(), 0) == 0)
        throw Error("llama.cpp does not take the state of its own cache: " + logged_error());
    context.set_size(size_);
    if (!contender.kv.stock) replay_queries();
    pack(contender, size_, threads_, &queries_);
    return context;
}

} // namespace vidkv::cli
