// One video in the cache, and questions about it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/encode.h"
#include "engine/kv_choice.h"
#include "engine/model.h"
#include "engine/prompt_tokens.h"
#include "engine/video_file.h"
#include "progress.h"

namespace vidkv::cli {

struct SessionOptions {
    int64_t context = 0;         // cells; 0: as many as the video, the question and the answer need
    int max_tokens = 256;        // of an answer
    int spare_tokens = 0;        // cells kept for questions that are not known yet
    int conversation_tokens = 0; // cells for earlier turns, if context is 0
    float temperature = 0;       // 0: the likeliest token
    int top_k = 40;              // with a temperature: of so many of the likeliest tokens,
    float top_p = 0.95f;         // and of the likeliest that have this share together
    uint32_t seed = 0;
    int threads = 1;
};

class Session {
  public:
    // Makes room for `tokens` of video and for the longest of the questions with its answer.
    Session(const Model & model, const KvChoice & kv, const SessionOptions & options, int64_t tokens,
            const std::vector<std::string> & questions);

    // Puts the video into the cache. protected_cells: where the preset protects a share of the tokens, which
    // (salient_cells); empty: those that attention goes to.
    void prefill(const EncodedVideo & video, const std::string & name, const std::vector<int64_t> & protected_cells,
                 Progress & progress);
    // Answers a question about the video alone: earlier questions are forgotten. on_text gets the answer as it grows.
    std::string ask(const std::string & question, const std::function<void(const std::string &)> & on_text);

    // The same after the turns before it: a conversation. Where the context is full, earlier turns are forgotten, and
    // `forgot` says so.
    std::string ask_next(const std::string & question, const std::function<void(const std::string &)> & on_text,
                         bool & forgot);
    void forget_turns() { turns_.clear(); }
    size_t turns() const { return turns_.size(); }

    // The tokens of the last answer, without the one that ends it.
    const std::vector<llama_token> & answer_tokens() const { return answer_tokens_; }
    // Log-probabilities of the next token after the question and after each token of this answer: [1 + tokens][vocabulary].
    std::vector<float> answer_distributions(const std::string & question, const std::vector<llama_token> & answer);

    const VideoPrefix & prefix() const { return prefix_; }
    void name_video(const std::string & name) { prefix_.video = name; } // the same pictures, in another file
    int64_t used() const { return used_; }                              // cells
    int64_t cells() const { return llama_n_ctx(context_.get()); }
    KvReport kv_report() const;
    double tokens_per_second() const { return seconds_ > 0 ? static_cast<double>(generated_) / seconds_ : 0; }
    double prefill_seconds() const { return prefill_seconds_; } // of the video
    double decode_seconds() const { return seconds_; }
    int64_t generated() const { return generated_; } // tokens

    // All that is in the cache, turns too, into a file and back. manifest: what the session does not know. Throws Error with one
    // line; after a failed restore the cache is empty.
    void save(const std::string & path, Manifest manifest) const;
    void restore(const VideoFile & file);

  private:
    struct ContextDeleter {
        void operator()(llama_context * context) const { llama_free(context); }
    };

    void decode(const std::vector<llama_token> & tokens, bool want_logits);
    void decode_rows(const Piece & piece);
    void decode(const Piece & piece);
    void begin_question(const std::string & question);
    void feed(const std::string & words); // the question's side of a turn, up to where the answer begins
    std::string answer(const std::function<void(const std::string &)> & on_text);
    void check_decoded(int status) const;
    void forget_question();

    const Model & model_;
    KvChoice kv_;
    SessionOptions options_;
    std::unique_ptr<llama_context, ContextDeleter> context_;
    VideoPrefix prefix_;
    llama_pos position_ = 0;
    int64_t used_ = 0;    // cells
    PromptTokens prompt_; // what they hold
    std::vector<llama_token> answer_tokens_;
    int64_t generated_ = 0;
    double seconds_ = 0; // spent on generated_
    double prefill_seconds_ = 0;
    std::vector<Exchange> turns_; // in the cache behind the video
};

} // namespace vidkv::cli
