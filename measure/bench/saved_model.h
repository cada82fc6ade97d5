// A model whose cache has a shape that is asked for, and whose weights are next to nothing: what bench saved fills, saves and
// restores.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bench/attention.h"
#include "llama.h"
#include "vidkv/vidkv.h"

namespace vidkv::cli {

struct SavedOptions {
    std::string shape = "28/4/128", tokens = "4k";
    int layers = 28, threads = 0;
    std::string kv, folder;
    std::string clip = "long";  // of vidkv data, asked about twice; "none": no clip
    std::string model, restore; // of the process that starts this one, to restore the file
    bool json = false;
};

struct ModelFree {
    void operator()(llama_model * model) const { llama_model_free(model); }
};
struct ContextFree {
    void operator()(llama_context * context) const { llama_free(context); }
};
using Context = std::unique_ptr<llama_context, ContextFree>;

class SavedModel {
  public:
    // The model is written to `path` if there is none.
    SavedModel(const SavedOptions & options, const std::string & path);

    int64_t tokens() const { return tokens_; } // of the cache
    const AttentionShape & shape() const { return shape_; }
    const std::string & path() const { return path_; }
    // Larger caches are never in f16 as a whole.
    bool passes_through_f16() const { return tokens_ <= int64_t(64) * 1024; }

    Context make_context() const;
    void decode(llama_context * context, int n, llama_pos from, llama_seq_id sequence = 0) const;
    // After one more token, which is taken back.
    std::vector<float> logits(llama_context * context, llama_seq_id sequence = 0) const;

  private:
    SavedOptions options_;
    AttentionShape shape_;
    int64_t tokens_;
    vidkv_params params_{};
    std::string path_;
    std::unique_ptr<llama_model, ModelFree> model_;
};

class Stopwatch {
  public:
    double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

  private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// A number of kB in a file of /proc, in bytes; 0 where it is not there.
uint64_t proc_bytes(const std::string & file, const std::string & name);
// What this process has held at most since forget_peak(), in bytes.
inline uint64_t peak_memory() { return proc_bytes("/proc/self/status", "VmHWM"); }
void forget_peak();

} // namespace vidkv::cli
