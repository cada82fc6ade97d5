// A language model and its vision tower, loaded through llama.cpp and libmtmd.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/kv_choice.h"
#include "engine/llava_onevision.h"
#include "mtmd-helper.h"
#include "mtmd.h"
#include "paths.h"

namespace vidkv::cli {

struct ModelDeleter {
    void operator()(llama_model * model) const { llama_model_free(model); }
};
struct VisionDeleter {
    void operator()(mtmd_context * vision) const { mtmd_free(vision); }
};

struct ModelOptions {
    ModelFiles files;
    std::string system; // said before the video; "": nothing
    bool small = false; // the project's own model, whose frames, sizes and timestamps are known
    int threads = 1;
    bool vision = true;   // false: the video is in a saved cache, and no tower is loaded
    int frame_tokens = 0; // most visual tokens per frame pair or frame; 0: what the model says
};

// What surrounds the video and the question in the model's chat format.
struct Turn {
    std::string before; // up to the video
    std::string after;  // the question and what follows it, up to the answer
};

// A question that was answered.
struct Exchange {
    std::string question, answer;
};

class Model {
  public:
    // kv decides which device holds the cache. Throws Error with one line if a file does not fit.
    Model(const ModelOptions & options, const KvChoice & kv);

    llama_model * text() const { return text_.get(); }
    mtmd_context * vision() const { return vision_.get(); }
    const llama_vocab * vocab() const { return llama_model_get_vocab(text_.get()); }
    const ModelOptions & options() const { return options_; }
    int head_dim() const;
    // What LLaVA-OneVision needs beside libmtmd; nullptr for every other model.
    const LlavaOnevision * llava_onevision() const { return llava_onevision_ ? &*llava_onevision_ : nullptr; }

    Turn format(const std::string & question) const;
    // What follows the last answer of earlier turns when a question comes after them.
    std::string format_next(const std::vector<Exchange> & turns, const std::string & question) const;
    // With special tokens; start: with the BOS token where the model wants one.
    std::vector<llama_token> tokenize(const std::string & words, bool start) const;
    std::string piece(llama_token token) const;

  private:
    // The chat format of these turns and one more question, up to where its answer begins.
    std::string conversation(const std::vector<Exchange> & turns, const std::string & question) const;
    std::string llava_conversation(const std::vector<Exchange> & turns, const std::string & question) const;
    void load_text(const KvChoice & kv);
    void load_vision();
    void read_own_prompt();

    ModelOptions options_;
    std::unique_ptr<llama_model, ModelDeleter> text_;
    std::unique_ptr<mtmd_context, VisionDeleter> vision_;
    std::optional<LlavaOnevision> llava_onevision_;
};

// Throws Error if the preset cannot take the model's head_dim.
void check_fits(const KvChoice & kv, const Model & model);

} // namespace vidkv::cli
