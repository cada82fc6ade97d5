#include "eval/kl_run.h"

#include <algorithm>

#include "engine/log_softmax.h"
#include "engine/plugin.h"

namespace vidkv::cli {

namespace {

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

std::span<const llama_token> unscored(const Window & window) {
    return std::span(window.tokens).first(window.tokens.size() - SCORED_TOKENS);
}

} // namespace

WindowRun::WindowRun(const Model & model, const Window & window, int threads)
    : window_(window), vocabulary_(llama_vocab_n_tokens(model.vocab())),
      prefix_(model, unscored(window), static_cast<int64_t>(window.tokens.size()), threads) {
    TextContext context = prefix_.packed(parse_contender("f16"));
    const std::vector<vidkv_kv_info> stores = live_stores();
    for (size_t i = 0; i < stores.size(); ++i)
        rows_.push_back(read_rows(static_cast<int>(i), 0, prefix_.size(), stores[i].channels));
    reference_ = score_tokens(context);
}

std::vector<float> WindowRun::score_tokens(TextContext & context) const {
    context.append(scored(), true);
    std::vector<float> scores(static_cast<size_t>(SCORED_TOKENS * vocabulary_));
    for (int i = 0; i < SCORED_TOKENS; ++i) {
        float * to = &scores[static_cast<size_t>(i * vocabulary_)];
        std::copy_n(context.logits(i), vocabulary_, to);
        log_softmax(to, vocabulary_);
    }
    return scores;
}

void WindowRun::add_errors(const Contender & contender, WindowResult & result) const {
    const std::vector<vidkv_kv_info> stores = live_stores();
    const int64_t cells = packed_prefix(contender, prefix_.size());
    for (size_t i = 0; i < stores.size(); ++i) {
        const std::vector<float> after = read_rows(static_cast<int>(i), 0, cells, stores[i].channels);
        (stores[i].side == VIDKV_KEYS ? result.keys : result.values)[stores[i].layer] = channel_errors(
            rows_[i], after, cells, contender.kv.params.sink_tokens, static_cast<size_t>(stores[i].channels));
    }
}

uint64_t WindowRun::f16_bytes(int64_t cells) const {
    uint64_t elements = 0;
    for (const std::vector<float> & rows : rows_) elements += rows.size() / static_cast<size_t>(prefix_.size());
    return 2 * elements * static_cast<uint64_t>(cells);
}

std::vector<int> WindowRun::packed_layers(const Contender & contender) const {
    const TextContext context = prefix_.packed(contender);
    std::vector<int> layers;
    for (const vidkv_kv_info & store : live_stores()) {
        if (store.side == VIDKV_KEYS && store.stats.cells_sealed > 0) layers.push_back(store.layer);
    }
    std::sort(layers.begin(), layers.end());
    return layers;
}

WindowResult WindowRun::score(const Contender & contender, bool details) const {
    TextContext context = prefix_.packed(contender);
    WindowResult result;
    if (details) add_errors(contender, result);
    const std::vector<float> measured = score_tokens(context);
    for (int i = window_.skipped; i < SCORED_TOKENS; ++i) {
        const size_t at = static_cast<size_t>(i * vocabulary_);
        result.divergence.add(&reference_[at], &measured[at], vocabulary_);
        if (i + 1 == SCORED_TOKENS) break;
        result.divergence.add_text_token(measured[at + static_cast<size_t>(scored()[static_cast<size_t>(i) + 1])]);
    }
    const auto cells = static_cast<int64_t>(window_.tokens.size());
    result.packed = measure(contender, prefix_.size(), cells);
    if (contender.kv.stock) result.packed = {16, 16, f16_bytes(cells)};
    return result;
}

} // namespace vidkv::cli
