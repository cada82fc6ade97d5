#include "eval/kl_windows.h"

#include <algorithm>

#include "error.h"

namespace vidkv::cli {

namespace {

constexpr int LEAD = 64; // far: tokens before the passage

using Tokens = std::vector<llama_token>;

void append(Tokens & to, const Tokens & from, size_t first, size_t n) {
    to.insert(to.end(), from.begin() + static_cast<int64_t>(first), from.begin() + static_cast<int64_t>(first + n));
}

} // namespace

std::vector<Window> cut_windows(const Model & model, const std::string & text, Protocol protocol, int wanted, int length) {
    const Tokens tokens = model.tokenize(text, false);
    const bool start = llama_vocab_get_add_bos(model.vocab());
    const size_t body = static_cast<size_t>(length) - (start ? 1 : 0);
    const size_t passage = protocol == Protocol::far ? SCORED_TOKENS : 0;
    const size_t straight = body - 2 * passage; // of text as written
    const size_t fitting = tokens.size() / (straight + passage);
    if (fitting == 0) {
        throw Error("the text has " + std::to_string(tokens.size()) + " tokens and a window takes " +
                    std::to_string(straight + passage) + ": name a longer --text, or a smaller --window-length");
    }
    const size_t count = std::min(static_cast<size_t>(wanted), fitting), spacing = tokens.size() / count;
    std::vector<Window> windows(count);
    for (size_t i = 0; i < count; ++i) {
        Window & window = windows[i];
        const size_t at = i * spacing;
        if (start) window.tokens.push_back(llama_vocab_bos(model.vocab()));
        if (protocol == Protocol::near) {
            append(window.tokens, tokens, at, straight);
            continue;
        }
        // The passage lies at the end of the window's share of the text, which the rest of the window does not reach.
        const size_t from = at + spacing - passage;
        append(window.tokens, tokens, at, LEAD);
        append(window.tokens, tokens, from, passage);
        append(window.tokens, tokens, at + LEAD, straight - LEAD);
        append(window.tokens, tokens, from, passage);
        window.skipped = RECOGNISED_AFTER;
    }
    return windows;
}

} // namespace vidkv::cli
