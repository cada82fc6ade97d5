#include "eval/exact_weights.h"

#include <cstdlib>
#include <filesystem>
#include <memory>

#include <unistd.h>

#include "error.h"
#include "gguf.h"
#include "llama.h"
#include "temporary_folder.h"
#include "engine/logs.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

namespace {

constexpr int64_t MOST_WEIGHTS = 1'000'000'000; // 4 GB as f32

struct Contents {
    int64_t weights = 0;
    bool quantized = false;
};

// Throws nothing: what cannot be read is for the loader to complain about.
Contents look_into(const std::string & model) {
    ggml_context * tensors = nullptr;
    const std::unique_ptr<gguf_context, decltype(&gguf_free)> file(gguf_init_from_file(model.c_str(), {true, &tensors}),
                                                                   gguf_free);
    Contents contents;
    if (!file) return contents;
    for (ggml_tensor * tensor = ggml_get_first_tensor(tensors); tensor; tensor = ggml_get_next_tensor(tensors, tensor)) {
        contents.weights += ggml_nelements(tensor);
        contents.quantized = contents.quantized || ggml_is_quantized(tensor->type);
    }
    ggml_free(tensors);
    return contents;
}

} // namespace

ExactWeights::ExactWeights(const std::string & model, int64_t most_as_f16) : model_(model) {
    const Contents contents = look_into(model);
    const bool as_f32 = contents.weights <= MOST_WEIGHTS;
    too_many_ = contents.quantized && !as_f32 && contents.weights > most_as_f16;
    if (!contents.quantized || too_many_) return;
    const std::string folder = temporary_place();
    std::string name = (fs::path(folder) / "vidkv-f32-XXXXXX").string();
    const int file = mkstemp(name.data());
    if (file < 0) throw Error("cannot write to '" + folder + "': set TMPDIR");
    close(file);
    copy_ = name;
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = as_f32 ? LLAMA_FTYPE_ALL_F32 : LLAMA_FTYPE_MOSTLY_F16;
    params.allow_requantize = true;
    forget_logged_error();
    if (llama_model_quantize(model.c_str(), copy_.c_str(), &params) != 0) {
        fs::remove(copy_);
        throw Error("cannot write the weights of '" + model + "' out (" + logged_error() +
                    "): use --weights as-is, or set TMPDIR to a folder with more room");
    }
}

ExactWeights::~ExactWeights() {
    std::error_code ignored;
    if (copied()) fs::remove(copy_, ignored);
}

} // namespace vidkv::cli
