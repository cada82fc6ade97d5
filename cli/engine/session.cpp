#include "engine/session.h"

#include <algorithm>
#include <chrono>

#include "engine/log_softmax.h"
#include "engine/logs.h"
#include "engine/plugin.h"
#include "engine/sequence_state.h"
#include "engine/slot_file.h"
#include "engine/state_layout.h"
#include "error.h"
#include "interrupt.h"

namespace vidkv::cli {

namespace {

constexpr int BATCH = 512; // tokens per call of llama_decode

double seconds_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct SamplerDeleter {
    void operator()(llama_sampler * sampler) const { llama_sampler_free(sampler); }
};
using Sampler = std::unique_ptr<llama_sampler, SamplerDeleter>;

Sampler make_sampler(const SessionOptions & options) {
    Sampler chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    if (options.temperature <= 0) {
        llama_sampler_chain_add(chain.get(), llama_sampler_init_greedy());
        return chain;
    }
    llama_sampler_chain_add(chain.get(), llama_sampler_init_top_k(options.top_k));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_top_p(options.top_p, 1));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_temp(options.temperature));
    llama_sampler_chain_add(chain.get(), llama_sampler_init_dist(options.seed));
    return chain;
}

// Cells for the longest question and its answer.
int64_t question_cells(const Model & model, const std::vector<std::string> & questions, int max_tokens) {
    size_t longest = 0;
    for (const std::string & question : questions)
        longest = std::max(longest, model.tokenize(model.format(question).after, false).size());
    return static_cast<int64_t>(longest) + max_tokens;
}

llama_context_params context_params(const Model & model, const KvChoice & kv, const SessionOptions & options,
                                    int64_t cells) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(cells);
    params.n_batch = params.n_ubatch = BATCH;
    if (model.vision() && mtmd_decode_use_non_causal(model.vision(), nullptr)) { // an image must then fit one batch
        params.n_batch = params.n_ubatch =
            static_cast<uint32_t>(std::max<int64_t>(BATCH, std::min<int64_t>(cells, 4 * BATCH)));
    }
    params.n_threads = params.n_threads_batch = options.threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    params.type_k = params.type_v = kv.type;
    params.offload_kqv = !kv.stock; // a stock cache lies with the CPU
    params.abort_callback = interrupt_callback;
    return params;
}

PromptTokens prompt_of(const VideoFile & file) {
    PromptTokens unknown;
    unknown.add_unknown();
    if (!file.has_section(SLOT_SECTION)) return unknown;
    const std::vector<uint8_t> head = SlotSection::read(file.section(SLOT_SECTION)).head;
    const size_t begin = std::min(head.size(), head_of_slot({}).size());
    return PromptTokens::from_bytes({reinterpret_cast<const char *>(head.data()) + begin, head.size() - begin});
}

} // namespace

Session::Session(const Model & model, const KvChoice & kv, const SessionOptions & options, int64_t tokens,
                 const std::vector<std::string> & questions)
    : model_(model), kv_(kv), options_(options) {
    const int64_t asked = question_cells(model, questions, options.max_tokens + options.spare_tokens),
                  needed = tokens + asked;
    if (options.context > 0 && options.context < needed) {
        throw Error("the video takes " + std::to_string(tokens) + " tokens and a question with its answer " +
                    std::to_string(asked) + ", but the context holds " + std::to_string(options.context) + ": use -c " +
                    std::to_string(needed) + " or more, or lower --fps, --frames or -n");
    }
    const int64_t most = needed + options.conversation_tokens;
    if (!kv_.stock) configure_plugin(kv_.params, kv_.losses);
    forget_logged_error();
    context_.reset(llama_init_from_model(
        model.text(), context_params(model, kv_, options, options.context > 0 ? options.context : most)));
    if (!context_)
        throw Error("llama.cpp cannot make a context of " + std::to_string(needed) + " tokens: " + logged_error());
}

void Session::check_decoded(int status) const {
    check_interrupt();
    if (status == 1) throw Error("the context of " + std::to_string(cells()) + " tokens is full: use a larger -c");
    if (status != 0) throw Error("llama.cpp failed to decode (" + std::to_string(status) + "): " + logged_error());
}

void Session::decode(const std::vector<llama_token> & tokens, bool want_logits) {
    for (size_t at = 0; at < tokens.size(); at += BATCH) {
        const int n = static_cast<int>(std::min<size_t>(BATCH, tokens.size() - at));
        llama_batch batch = llama_batch_init(n, 0, 1);
        batch.n_tokens = n;
        for (int i = 0; i < n; ++i) {
            batch.token[i] = tokens[at + static_cast<size_t>(i)];
            batch.pos[i] = position_ + i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = want_logits && at + static_cast<size_t>(i) + 1 == tokens.size();
        }
        const int status = llama_decode(context_.get(), batch);
        llama_batch_free(batch);
        check_decoded(status);
        position_ += n;
        used_ += n;
    }
    prompt_.add(tokens);
}

// Embeddings at positions that follow each other.
void Session::decode_rows(const Piece & piece) {
    prompt_.add_unknown();
    const int64_t width = llama_model_n_embd_inp(model_.text());
    for (int64_t at = 0; at < piece.rows; at += BATCH) {
        const auto n = static_cast<int>(std::min<int64_t>(BATCH, piece.rows - at));
        llama_batch batch = llama_batch_init(n, static_cast<int32_t>(width), 1);
        batch.n_tokens = n;
        std::copy_n(piece.embeddings.data() + at * width, n * width, batch.embd);
        for (int i = 0; i < n; ++i) {
            batch.pos[i] = position_ + i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = false;
        }
        const int status = llama_decode(context_.get(), batch);
        llama_batch_free(batch);
        check_decoded(status);
        position_ += n;
        used_ += n;
    }
}

void Session::decode(const Piece & piece) {
    if (piece.rows > 0) return decode_rows(piece);
    if (!piece.chunk) return decode(piece.tokens, false);
    llama_pos next = position_;
    const int status = mtmd_helper_decode_image_chunk(
        model_.vision(), context_.get(), piece.chunk.get(), const_cast<float *>(piece.embeddings.data()), position_, 0,
        static_cast<int>(llama_n_batch(context_.get())), &next, nullptr, nullptr);
    check_decoded(status);
    position_ = next;
    used_ += piece.size();
    prompt_.add(piece.chunk.get());
}

void Session::prefill(const EncodedVideo & video, const std::string & name, const std::vector<int64_t> & protected_cells,
                      Progress & progress) {
    llama_memory_clear(llama_get_memory(context_.get()), true);
    if (!kv_.stock && !protected_cells.empty()) protect_cells(protected_cells);
    position_ = 0;
    used_ = 0;
    prompt_.clear();
    forget_logged_error();
    turns_.clear();
    const auto start = std::chrono::steady_clock::now();
    for (const Piece & piece : video.pieces) {
        check_interrupt();
        decode(piece);
        progress.show("filling the cache", used_, video.tokens, "tokens");
    }
    llama_synchronize(context_.get());
    prefill_seconds_ = seconds_since(start);
    prefix_ = {name, video.frames, video.visual_tokens, video.tokens, position_, video.seconds};
}

// Rolls the cache back to the end of the video.
void Session::forget_question() {
    if (used_ == prefix_.tokens) return;
    if (!llama_memory_seq_rm(llama_get_memory(context_.get()), 0, prefix_.position, -1))
        throw Error("this model's memory cannot be rolled back: ask one question at a time");
    position_ = prefix_.position;
    used_ = prefix_.tokens;
    prompt_.keep_first(used_);
}

void Session::begin_question(const std::string & question) {
    forget_question();
    turns_.clear();
    feed(model_.format(question).after);
}

void Session::feed(const std::string & words) {
    const std::vector<llama_token> tokens = model_.tokenize(words, false);
    if (used_ + static_cast<int64_t>(tokens.size()) >= cells()) {
        throw Error("the question takes " + std::to_string(tokens.size()) + " tokens and the context has " +
                    std::to_string(cells() - used_) + " left: use a larger -c");
    }
    decode(tokens, true);
}

std::string Session::ask(const std::string & question, const std::function<void(const std::string &)> & on_text) {
    begin_question(question);
    return answer(on_text);
}

std::string Session::ask_next(const std::string & question, const std::function<void(const std::string &)> & on_text,
                              bool & forgot) {
    forgot = false;
    std::string words = turns_.empty() ? "" : model_.format_next(turns_, question);
    if (!turns_.empty() &&
        used_ + static_cast<int64_t>(model_.tokenize(words, false).size()) + options_.max_tokens > cells()) {
        forgot = true;
        turns_.clear();
    }
    if (turns_.empty())
        begin_question(question);
    else
        feed(words);
    turns_.push_back({question, answer(on_text)});
    return turns_.back().answer;
}

std::string Session::answer(const std::function<void(const std::string &)> & on_text) {
    const Sampler sampler = make_sampler(options_);
    std::string text;
    answer_tokens_.clear();
    for (int i = 0; i < options_.max_tokens && used_ < cells(); ++i) {
        const auto start = std::chrono::steady_clock::now();
        const llama_token token = llama_sampler_sample(sampler.get(), context_.get(), -1);
        if (llama_vocab_is_eog(model_.vocab(), token)) break;
        const std::string piece = model_.piece(token);
        text += piece;
        on_text(piece);
        answer_tokens_.push_back(token);
        decode({token}, true);
        llama_synchronize(context_.get());
        seconds_ += seconds_since(start);
        ++generated_;
    }
    return text;
}

std::vector<float> Session::answer_distributions(const std::string & question, const std::vector<llama_token> & answer) {
    const int64_t vocabulary = llama_vocab_n_tokens(model_.vocab());
    std::vector<float> rows;
    const auto keep = [&] {
        const float * logits = llama_get_logits_ith(context_.get(), -1);
        rows.insert(rows.end(), logits, logits + vocabulary);
        log_softmax(&rows[rows.size() - static_cast<size_t>(vocabulary)], vocabulary);
    };
    begin_question(question);
    keep();
    for (const llama_token token : answer) {
        if (used_ >= cells()) break;
        decode({token}, true);
        keep();
    }
    return rows;
}

KvReport Session::kv_report() const {
    llama_synchronize(context_.get());
    KvReport report;
    report.true_bits = true_bits(kv_, model_.head_dim());
    if (kv_.stock) {
        const auto elements = 2.0 * static_cast<double>(used_) * llama_model_n_layer(model_.text()) *
                              llama_model_n_head_kv(model_.text()) * model_.head_dim();
        report.bytes = static_cast<uint64_t>(elements * report.true_bits / 8);
        report.bytes_f16 = static_cast<uint64_t>(elements * 2);
        return report;
    }
    const vidkv_store_stats stats = plugin_stats();
    report.bytes = stats.bytes;
    report.bytes_f16 = stats.bytes_f16;
    report.packed = stats.cells_sealed > 0;
    return report;
}

void Session::save(const std::string & path, Manifest manifest) const {
    manifest.kv = kv_.name;
    manifest.prefix = prefix_;
    manifest.used = used_;
    manifest.position = position_;
    manifest.turns = turns_;
    const std::string text = manifest.text();
    std::vector<Section> sections = {{"manifest", {text.begin(), text.end()}}};
    const std::vector<uint8_t> tokens = prompt_.bytes();
    if (!kv_.stock && !tokens.empty()) sections.push_back({SLOT_SECTION, SlotSection{head_of_slot(tokens), {}, 0}.bytes()});
    try {
        save_sequence(context_.get(), kv_.stock, path, std::move(sections));
    } catch (const Error & error) {
        throw Error(cannot_save(path, error.what()));
    }
}

void Session::restore(const VideoFile & file) {
    const Manifest & saved = file.manifest();
    check_shape(file, model_.text());
    load_sequence(context_.get(), kv_.stock, file);
    const llama_pos last = llama_memory_seq_pos_max(llama_get_memory(context_.get()), 0);
    if (last < 0 || last >= saved.position || saved.used > cells())
        throw Error("the saved cache '" + file.path() +
                    "' states another length than it has: save it again with --save-cache");
    prefix_ = saved.prefix;
    position_ = saved.position;
    used_ = saved.used;
    turns_ = saved.turns;
    prompt_ = prompt_of(file);
}

} // namespace vidkv::cli
