// A text that is read once at full precision, and then packed by one codec after the other.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "engine/model.h"
#include "engine/plugin.h"
#include "eval/contender.h"

namespace vidkv::cli {

// A context of llama.cpp that one text grows in. Nothing is packed behind its back until let_seal(). One may live at a time.
class TextContext {
  public:
    TextContext(const Model & model, const KvChoice & kv, int64_t cells, int threads);

    // Appends tokens; with logits of each, or of the last alone.
    void append(std::span<const llama_token> tokens, bool every_logit);
    // Logits of the i-th token of the last append that had them all; -1: of its last token.
    const float * logits(int32_t i) const;
    // Forgets all tokens but the first n.
    void rewind(int64_t n);
    // From now on pages are packed as they grow old, as a user's are.
    void let_seal() { held_.reset(); }

    llama_context * get() const { return context_.get(); }
    int64_t size() const { return size_; }
    void set_size(int64_t tokens) { size_ = tokens; } // where a state was restored

  private:
    struct Deleter {
        void operator()(llama_context * context) const { llama_free(context); }
    };
    std::unique_ptr<HeldSealing> held_;
    std::unique_ptr<llama_context, Deleter> context_;
    int64_t size_ = 0;
};

class TextPrefix {
  public:
    // Reads the tokens; keeps the f16 cache's state and the queries. cells: what the contexts made later hold.
    TextPrefix(
        const Model & model, std::span<const llama_token> tokens, int64_t cells, int threads,
        const std::function<void(int64_t)> & on_read = [](int64_t) {});

    // A context that holds the tokens, packed by the contender.
    TextContext packed(const Contender & contender) const;
    int64_t size() const { return size_; }

  private:
    void read(TextContext & context, std::span<const llama_token> tokens, const std::function<void(int64_t)> & on_read);
    void replay_queries() const;
    static void hear(void * prefix, int32_t layer, int32_t sequence, const float * q, int64_t tokens, int32_t heads,
                     int64_t token_stride, int64_t head_stride);

    const Model & model_;
    int64_t size_, cells_;
    int threads_;
    QueriesByLayer queries_;
    std::vector<uint8_t> state_;
};

} // namespace vidkv::cli
