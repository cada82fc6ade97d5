#include "engine/model.h"

#include <array>
#include <fstream>

#include "engine/backends.h"
#include "engine/logs.h"
#include "engine/plugin.h"
#include "error.h"
#include "interrupt.h"
#include "text.h"

namespace vidkv::cli {

namespace {

// llama.cpp's own words, in brackets, or nothing.
std::string because() {
    const std::string reason = logged_error();
    return reason.empty() ? "" : " (" + reason + ")";
}

void check_gguf(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Error("cannot read the model '" + path + "': no such file, or no permission");
    std::array<char, 4> magic = {};
    file.read(magic.data(), magic.size());
    if (!file || std::string(magic.data(), 4) != "GGUF")
        throw Error("'" + path + "' is not a GGUF model: convert it with llama.cpp's convert_hf_to_gguf.py");
}

std::string metadata(const llama_model * model, const std::string & key) {
    std::array<char, 128> value = {};
    return llama_model_meta_val_str(model, key.c_str(), value.data(), value.size()) < 0 ? "" : value.data();
}

} // namespace

void check_fits(const KvChoice & kv, const Model & model) {
    if (kv.stock || vidkv_params_check(&kv.params, model.head_dim()) == VIDKV_OK) return;
    throw Error("preset " + kv.name + " does not fit this model (head_dim " + std::to_string(model.head_dim()) +
                "): " + vidkv_last_error() + "; use --kv f16");
}

Model::Model(const ModelOptions & options, const KvChoice & kv) : options_(options) {
    check_gguf(options_.files.text);
    if (!options_.files.mmproj.empty()) check_gguf(options_.files.mmproj);
    load_cpu_backend();
    forget_logged_error();
    load_text(kv);
    forget_logged_error();
    if (options_.files.mmproj.empty()) return;
    if (options_.vision) load_vision();
    read_own_prompt();
}

void Model::load_text(const KvChoice & kv) {
    std::array<ggml_backend_dev_t, 2> devices = {kv.stock ? nullptr : kv_device(), nullptr};
    llama_model_params params = llama_model_default_params();
    params.devices = devices.data();
    params.n_gpu_layers = kv.stock ? 0 : 999; // the device takes the cache; weights stay with the CPU
    params.progress_callback = go_on_loading;
    text_.reset(llama_model_load_from_file(options_.files.text.c_str(), params));
    check_interrupt();
    if (!text_) throw Error("cannot load the model '" + options_.files.text + "'" + because());
    if (llama_vocab_n_tokens(vocab()) == 0 || !llama_model_has_decoder(text_.get())) {
        throw Error("'" + options_.files.text +
                    "' is not a language model: -m takes the text model, --mmproj its vision tower");
    }
    check_fits(kv, *this);
}

void Model::load_vision() {
    mtmd_context_params params = mtmd_context_params_default();
    params.use_gpu = false;
    params.print_timings = false;
    params.warmup = false;
    params.n_threads = options_.threads;
    params.progress_callback = go_on_loading;
    if (options_.frame_tokens > 0) params.image_max_tokens = options_.frame_tokens;
    vision_.reset(mtmd_init_from_file(options_.files.mmproj.c_str(), text_.get(), params));
    check_interrupt();
    if (!vision_) {
        throw Error("'" + options_.files.mmproj + "' does not fit the model '" + options_.files.text + "'" + because() +
                    "; name the mmproj made for that model");
    }
    if (!mtmd_support_vision(vision_.get()))
        throw Error("'" + options_.files.mmproj + "' has no vision tower: it cannot take video");
}

void Model::read_own_prompt() {
    llava_onevision_ = read_llava_onevision(options_.files.mmproj);
    if (llava_onevision_ && llava_onevision_->newline.size() != static_cast<size_t>(llama_model_n_embd_inp(text())))
        throw Error("'" + options_.files.mmproj +
                    "' ends videos with an embedding of another width than the model's: convert it anew");
}

int Model::head_dim() const {
    const std::string stated = metadata(text(), metadata(text(), "general.architecture") + ".attention.key_length");
    if (!stated.empty()) return std::atoi(stated.c_str());
    const int heads = llama_model_n_head(text());
    return heads > 0 ? llama_model_n_embd(text()) / heads : 0;
}

// By the prompt of the model's own folder. Later turns begin as the first does, without what may come before it.
std::string Model::llava_conversation(const std::vector<Exchange> & turns, const std::string & question) const {
    constexpr const char * TURN = "<|im_start|>";
    const LlavaOnevision & own = *llava_onevision_;
    const std::string end = own.prompt_after.substr(0, own.prompt_after.find(TURN));
    const size_t last = own.prompt_before.rfind(TURN);
    const std::string again = end + own.prompt_before.substr(last == std::string::npos ? 0 : last) + own.prompt_between;
    const std::string system =
        options_.system.empty() ? "" : TURN + ("system " + own.prompt_between) + options_.system + end;
    std::string text = system + own.prompt_before + mtmd_default_marker() + own.prompt_between;
    for (const Exchange & turn : turns) text += turn.question + own.prompt_after + turn.answer + again;
    return text + question + own.prompt_after;
}

std::string Model::conversation(const std::vector<Exchange> & turns, const std::string & question) const {
    if (llava_onevision_) return llava_conversation(turns, question);
    std::vector<llama_chat_message> messages;
    if (!options_.system.empty()) messages.push_back({"system", options_.system.c_str()});
    const std::string first = mtmd_default_marker() + (turns.empty() ? question : turns.front().question); // the video
    for (const Exchange & turn : turns) {
        messages.push_back({"user", &turn == &turns.front() ? first.c_str() : turn.question.c_str()});
        messages.push_back({"assistant", turn.answer.c_str()});
    }
    messages.push_back({"user", turns.empty() ? first.c_str() : question.c_str()});
    const char * own = llama_model_chat_template(text(), nullptr);
    const char * chat_template = own ? own : "chatml";
    std::string buffer(1024, '\0');
    const auto apply = [&] {
        return llama_chat_apply_template(chat_template, messages.data(), messages.size(), true, buffer.data(),
                                         static_cast<int>(buffer.size()));
    };
    int length = apply();
    if (length > static_cast<int>(buffer.size())) {
        buffer.resize(static_cast<size_t>(length));
        length = apply();
    }
    if (length < 0) throw Error("llama.cpp does not know the chat template of '" + options_.files.text + "'");
    buffer.resize(static_cast<size_t>(length));
    return buffer;
}

Turn Model::format(const std::string & question) const {
    const std::string marker = mtmd_default_marker(), whole = conversation({}, question);
    const size_t at = whole.find(marker);
    if (at == std::string::npos) throw Error("the chat template of '" + options_.files.text + "' drops the user's message");
    return {whole.substr(0, at), whole.substr(at + marker.size())};
}

std::string Model::format_next(const std::vector<Exchange> & turns, const std::string & question) const {
    const std::vector<Exchange> earlier(turns.begin(), turns.end() - 1);
    const std::string so_far = conversation(earlier, turns.back().question), whole = conversation(turns, question);
    for (const std::string & answer : {turns.back().answer, trim(turns.back().answer)}) // some templates trim
        if (whole.starts_with(so_far + answer)) return whole.substr(so_far.size() + answer.size());
    throw Error("the chat template of '" + options_.files.text + "' rewrites earlier turns: use /clear, and ask anew");
}

std::vector<llama_token> Model::tokenize(const std::string & words, bool start) const {
    std::vector<llama_token> tokens(words.size() + 8);
    const int n = llama_tokenize(vocab(), words.data(), static_cast<int>(words.size()), tokens.data(),
                                 static_cast<int>(tokens.size()), start, true);
    if (n < 0) throw Error("the question could not be split into tokens");
    tokens.resize(static_cast<size_t>(n));
    return tokens;
}

std::string Model::piece(llama_token token) const {
    std::string text(256, '\0');
    const int n = llama_token_to_piece(vocab(), token, text.data(), static_cast<int>(text.size()), 0, false);
    text.resize(n > 0 ? static_cast<size_t>(n) : 0);
    return text;
}

} // namespace vidkv::cli
