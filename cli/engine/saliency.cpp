#include "engine/saliency.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>

#include "error.h"
#include "ggml.h"
#include "gguf.h"

namespace vidkv::cli {

namespace {

constexpr const char * EMBEDDINGS = "token_embd.weight";

// The input embeddings of single tokens, read from the model's file.
class TokenEmbeddings {
  public:
    explicit TokenEmbeddings(const std::string & path) : path_(path), file_(path, std::ios::binary) {
        ggml_context * tensors = nullptr;
        const std::unique_ptr<gguf_context, decltype(&gguf_free)> gguf(gguf_init_from_file(path.c_str(), {true, &tensors}),
                                                                       gguf_free);
        const std::unique_ptr<ggml_context, decltype(&ggml_free)> owner(tensors, ggml_free);
        const int64_t index = gguf ? gguf_find_tensor(gguf.get(), EMBEDDINGS) : -1;
        if (index < 0) throw Error("'" + path + "' holds no " + EMBEDDINGS + ": leave --protect out");
        const ggml_tensor * tensor = ggml_get_tensor(tensors, EMBEDDINGS);
        type_ = tensor->type;
        width_ = tensor->ne[0];
        offset_ = gguf_get_data_offset(gguf.get()) + gguf_get_tensor_offset(gguf.get(), index);
    }

    int64_t width() const { return width_; }

    std::vector<float> row(llama_token token) {
        std::vector<char> packed(ggml_row_size(type_, width_));
        file_.seekg(static_cast<std::streamoff>(offset_ + packed.size() * static_cast<size_t>(token)));
        if (!file_.read(packed.data(), static_cast<std::streamsize>(packed.size())))
            throw Error("'" + path_ + "' is cut off: " + EMBEDDINGS + " cannot be read");
        std::vector<float> numbers(static_cast<size_t>(width_));
        if (type_ == GGML_TYPE_F32)
            std::copy_n(reinterpret_cast<const float *>(packed.data()), numbers.size(), numbers.begin());
        else
            ggml_get_type_traits(type_)->to_float(packed.data(), numbers.data(), width_);
        return numbers;
    }

  private:
    std::string path_;
    std::ifstream file_;
    ggml_type type_ = GGML_TYPE_F32;
    int64_t width_ = 0;
    size_t offset_ = 0;
};

// A mean of dot products is the dot product with the mean.
std::vector<float> mean_embedding(const Model & model, const std::vector<std::string> & questions) {
    TokenEmbeddings embeddings(model.options().files.text);
    std::vector<float> mean(static_cast<size_t>(embeddings.width()));
    for (const std::string & question : questions) {
        for (const llama_token token : model.tokenize(question, false)) {
            const std::vector<float> row = embeddings.row(token);
            for (size_t i = 0; i < mean.size(); ++i) mean[i] += row[i];
        }
    }
    return mean;
}

struct Salient {
    int64_t cell;
    float saliency;
};

} // namespace

std::vector<int64_t> salient_cells(const Model & model, const EncodedVideo & video,
                                   const std::vector<std::string> & questions, double share) {
    const std::vector<float> wanted = mean_embedding(model, questions);
    const auto stride = static_cast<size_t>(llama_model_n_embd_inp(model.text())); // further layers' inputs may follow
    std::vector<Salient> tokens;
    int64_t cell = 0;
    for (const Piece & piece : video.pieces) {
        for (int64_t i = 0; piece.visual() && i < piece.size(); ++i) {
            const float * embedding = &piece.embeddings[static_cast<size_t>(i) * stride];
            float sum = 0;
            for (size_t c = 0; c < wanted.size(); ++c) sum += embedding[c] * wanted[c];
            tokens.push_back({cell + i, sum});
        }
        cell += piece.size();
    }
    std::ranges::stable_sort(tokens, [](const Salient & a, const Salient & b) { return a.saliency > b.saliency; });
    tokens.resize(static_cast<size_t>(std::llround(share * static_cast<double>(tokens.size()))));
    std::vector<int64_t> cells;
    cells.reserve(tokens.size());
    for (const Salient & token : tokens) cells.push_back(token.cell);
    std::ranges::sort(cells);
    return cells;
}

} // namespace vidkv::cli
