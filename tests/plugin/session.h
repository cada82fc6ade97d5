// An unmodified llama.cpp that runs a model on a device, and remembers the logits it computed and the lines it logged.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "llama.h"
#include "vidkv/vidkv.h"

namespace vidkv_test {

using Logits = std::vector<float>;

struct SessionOptions {
    std::string preset; // empty: the CPU alone, without the plug-in
    uint32_t cells = 1024;
    uint32_t sequences = 1;
    bool unified = false;
    bool flash_attention = true;
    ggml_type type = GGML_TYPE_F16;
    bool full_window_cache = false;
};

class Session {
  public:
    // Throws std::runtime_error if the model or the context cannot be made.
    Session(const std::string & model, const SessionOptions & options);

    llama_context * context() { return context_.get(); }
    llama_memory_t memory() { return llama_get_memory(context_.get()); }

    // Decodes tokens first .. first + n - 1 of an endless text at positions position.. of a sequence; logits of the last.
    const Logits & feed(int first, int n, int position, int sequence = 0);

    // One token for each sequence 0 .. n - 1, in one batch; logits of the last.
    const Logits & feed_together(int first, int n, int position);

    const std::vector<Logits> & trace() const { return trace_; }

  private:
    const Logits & decode(const llama_batch & batch);

    struct FreeModel {
        void operator()(llama_model * model) const { llama_model_free(model); }
    };
    struct FreeContext {
        void operator()(llama_context * context) const { llama_free(context); }
    };
    std::unique_ptr<llama_model, FreeModel> model_;
    std::unique_ptr<llama_context, FreeContext> context_;
    int vocabulary_ = 0;
    std::vector<Logits> trace_;
};

// The lines logged since the last call that contain `text`.
std::vector<std::string> logged(const std::string & text);
void forget_log();

// The plug-in's functions for hosts.
vidkv_store_stats stats();
std::vector<uint16_t> rows_of(int store, int64_t first, int64_t n, int channels); // f16, of the first sequence
const char * configure(const char * preset, const vidkv_params * params = nullptr);

// |a - b| / |b|
double relative_error(const Logits & a, const Logits & b);

} // namespace vidkv_test
