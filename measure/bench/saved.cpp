// vidkv bench saved: a packed cache inside llama.cpp into a file and back, and through the state that llama-server's slots are
// made of.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>

#include <sys/stat.h>

#include "bench/attention.h"
#include "bench/bench.h"
#include "machine.h"
#include "bench/matmul.h"
#include "bench/random_model.h"
#include "engine/logs.h"
#include "engine/plugin.h"
#include "engine/sequence_state.h"
#include "engine/video_file.h"
#include "error.h"
#include "interrupt.h"
#include "options.h"
#include "progress.h"
#include "temporary_folder.h"

namespace vidkv::cli {

namespace {

constexpr uint32_t SEED = 20251126;
constexpr int64_t SPARE_CELLS = 512;
constexpr int RESTORES = 3;
constexpr int64_t BLOCK_TOKENS = 8192;     // of a cache too large to pass through f16 as a whole
constexpr int64_t MOST_IN_F16 = 64 * 1024; // tokens

struct SavedOptions {
    std::string shape = "28/4/128", tokens = "4k";
    int layers = 28, threads = 0;
    std::string kv = DEFAULT_KV, folder;
    bool json = false;
};

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct ModelFree {
    void operator()(llama_model * model) const { llama_model_free(model); }
};
struct ContextFree {
    void operator()(llama_context * context) const { llama_free(context); }
};
using Context = std::unique_ptr<llama_context, ContextFree>;

// llama.cpp's state of a sequence of n tokens, with the rows that make_row gives.
class StateWriter {
  public:
    // like: a state of the same context, of any length.
    StateWriter(const std::vector<uint8_t> & like, int layers, int64_t channels)
        : head_(like.begin(), like.begin() + 12), layout_(like.end(), like.end()), layers_(layers), channels_(channels) {
        const size_t cells = at<uint32_t>(like, 12);
        const size_t after = 16 + cells * CELL;
        layout_.assign(like.begin() + static_cast<ptrdiff_t>(after), like.begin() + static_cast<ptrdiff_t>(after + 16));
        type_ = at<int32_t>(like, after + 16);
    }

    // The same state with the positions from `first` on.
    static void move_to(std::vector<uint8_t> & state, llama_pos first) {
        for (uint32_t i = 0; i < at<uint32_t>(state, 12); ++i) {
            const llama_pos position = first + static_cast<llama_pos>(i);
            std::memcpy(&state[16 + i * CELL], &position, sizeof(position));
        }
    }

    std::vector<uint8_t> write(int64_t tokens, const std::vector<uint16_t> & rows) const {
        std::vector<uint8_t> out;
        out.reserve(static_cast<size_t>(tokens) * (CELL + static_cast<size_t>(2 * layers_ * channels_) * 2) + 4096);
        add(out, head_.data(), head_.size());
        number(out, static_cast<uint32_t>(tokens));
        for (int64_t i = 0; i < tokens; ++i) {
            number(out, static_cast<llama_pos>(i));
            number(out, uint32_t{1});
            number(out, llama_seq_id{0});
        }
        add(out, layout_.data(), layout_.size());
        const auto row_bytes = static_cast<uint64_t>(channels_) * 2;
        for (int tensor = 0; tensor < 2 * layers_; ++tensor) {
            number(out, type_);
            number(out, row_bytes);
            for (int64_t i = 0; i < tokens; ++i) // another order in each tensor
                add(out, &rows[static_cast<size_t>((i * 7 + tensor * 131) % TokenRows::BLOCK * channels_)], row_bytes);
        }
        return out;
    }

  private:
    static constexpr size_t CELL = 12;
    template <typename T> static T at(const std::vector<uint8_t> & bytes, size_t offset) {
        T value;
        std::memcpy(&value, bytes.data() + offset, sizeof(T));
        return value;
    }
    static void add(std::vector<uint8_t> & out, const void * data, size_t n) {
        const size_t at = out.size();
        out.resize(at + n);
        std::memcpy(out.data() + at, data, n);
    }
    template <typename T> static void number(std::vector<uint8_t> & out, T value) { add(out, &value, sizeof(T)); }

    std::vector<uint8_t> head_, layout_;
    int layers_;
    int64_t channels_;
    int32_t type_ = 0;
};

class SavedBench {
  public:
    explicit SavedBench(const SavedOptions & options);

    Json run();

  private:
    Context make_context() const;
    void decode(llama_context * context, int n, llama_pos from) const;
    std::vector<float> logits(llama_context * context) const;
    std::vector<uint8_t> state(llama_context * context) const;
    double set_state(llama_context * context, const std::vector<uint8_t> & state, llama_seq_id sequence = 0) const;
    double fill(llama_context * context, Progress & progress) const;
    Json run_slots(const Context & first, double packing, const std::vector<float> & wanted, Progress & progress) const;
    bool passes_through_f16() const { return tokens_ <= MOST_IN_F16; }
    std::string manifest() const;

    SavedOptions options_;
    AttentionShape shape_;
    int64_t tokens_;
    vidkv_params params_{};
    TemporaryFolder folder_;
    std::string file_;
    std::unique_ptr<llama_model, ModelFree> model_;
};

SavedBench::SavedBench(const SavedOptions & options)
    : options_(options), shape_(parse_shape(options.shape)), tokens_(parse_tokens(options.tokens)),
      folder_("vidkv-bench", options.folder), file_(folder_.file("cache.vidkv")) {
    if (vidkv_params_from_preset(options_.kv.c_str(), &params_) != VIDKV_OK) throw UsageError(vidkv_last_error());
    const vidkv_test::ModelShape shape =
        vidkv_test::cache_shape(options_.layers, shape_.heads, shape_.kv_heads, shape_.head_dim);
    const std::string model = vidkv_test::write_random_model(shape, SEED, folder_.path());
    std::array<ggml_backend_dev_t, 2> devices = {kv_device(), nullptr};
    llama_model_params params = llama_model_default_params();
    params.devices = devices.data();
    params.n_gpu_layers = 999;
    model_.reset(llama_model_load_from_file(model.c_str(), params));
    if (!model_) throw Error("cannot load the random model: " + logged_error());
}

Context SavedBench::make_context() const {
    configure_plugin(params_);
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(tokens_ + SPARE_CELLS);
    params.n_seq_max = 2; // one of them while the cache is filled
    params.kv_unified = true;
    if (!passes_through_f16()) params.n_batch = params.n_ubatch = 32; // masks are as wide as the context
    params.n_threads = params.n_threads_batch = options_.threads;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
    Context context(llama_init_from_model(model_.get(), params));
    if (!context)
        throw Error("llama.cpp cannot make a context of " + std::to_string(tokens_) + " tokens: " + logged_error());
    return context;
}

void SavedBench::decode(llama_context * context, int n, llama_pos from) const {
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; ++i) {
        batch.token[i] = (from + i) * 37 % llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
        batch.pos[i] = from + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = i + 1 == n;
    }
    const int status = llama_decode(context, batch);
    llama_batch_free(batch);
    check_interrupt();
    if (status != 0) throw Error("llama.cpp failed to decode: " + logged_error());
    llama_synchronize(context);
}

// After one more token, which is taken back.
std::vector<float> SavedBench::logits(llama_context * context) const {
    const llama_pos next = llama_memory_seq_pos_max(llama_get_memory(context), 0) + 1;
    decode(context, 1, next);
    const float * row = llama_get_logits_ith(context, -1);
    std::vector<float> all(row, row + llama_vocab_n_tokens(llama_model_get_vocab(model_.get())));
    llama_memory_seq_rm(llama_get_memory(context), 0, next, -1);
    return all;
}

std::vector<uint8_t> SavedBench::state(llama_context * context) const {
    std::vector<uint8_t> bytes(llama_state_seq_get_size(context, 0));
    if (llama_state_seq_get_data(context, bytes.data(), bytes.size(), 0) != bytes.size())
        throw Error("llama.cpp cannot save the cache: " + logged_error());
    return bytes;
}

double SavedBench::set_state(llama_context * context, const std::vector<uint8_t> & state, llama_seq_id sequence) const {
    const auto start = Clock::now();
    if (llama_state_seq_set_data(context, state.data(), state.size(), sequence) != state.size())
        throw Error("llama.cpp cannot restore the cache: " + logged_error());
    return seconds_since(start);
}

std::string SavedBench::manifest() const {
    Manifest manifest;
    manifest.kv = options_.kv;
    manifest.used = manifest.prefix.tokens = tokens_;
    manifest.position = manifest.prefix.position = static_cast<llama_pos>(tokens_);
    return manifest.text();
}

std::vector<uint16_t> half_rows(int channels) {
    const std::vector<float> numbers = gaussian(static_cast<size_t>(TokenRows::BLOCK * channels), SEED);
    std::vector<uint16_t> rows(numbers.size());
    ggml_fp32_to_fp16_row(numbers.data(), rows.data(), static_cast<int64_t>(rows.size()));
    return rows;
}

// Fills a sequence with rows that are packed once; returns how long that took. A large cache is made of equal blocks, which carry
// their packed pages.
double SavedBench::fill(llama_context * context, Progress & progress) const {
    const int64_t block = passes_through_f16() ? tokens_ : BLOCK_TOKENS;
    decode(context, 1, 0);
    const StateWriter writer(state(context), options_.layers, shape_.channels());
    const double packing = set_state(context, writer.write(block, half_rows(shape_.channels())));
    if (block == tokens_) return packing;
    std::vector<uint8_t> packed = state(context);
    llama_memory_t memory = llama_get_memory(context);
    for (int64_t at = block; at < tokens_; at += block) {
        check_interrupt();
        progress.show("filling the cache", at, tokens_, "tokens");
        StateWriter::move_to(packed, static_cast<llama_pos>(at));
        set_state(context, packed, 1);
        llama_memory_seq_cp(memory, 1, 0, -1, -1);
        llama_memory_seq_rm(memory, 1, -1, -1);
    }
    return packing;
}

// What this process has held at most since `forget`, in bytes.
uint64_t peak_memory() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.starts_with("VmHWM:")) return std::strtoull(line.c_str() + 6, nullptr, 10) * 1024;
    return 0;
}

void forget_peak() { std::ofstream("/proc/self/clear_refs") << "5"; }

Json SavedBench::run_slots(const Context & first, double packing, const std::vector<float> & wanted,
                           Progress & progress) const {
    const auto start = Clock::now();
    const std::vector<uint8_t> slot = state(first.get());
    const double saving = seconds_since(start);
    progress.show("restoring a slot", 0, 0, "");
    const Context slots = make_context();
    const double restoring = set_state(slots.get(), slot);
    return {{"slot_bytes", slot.size()},
            {"slot_save_s", saving},
            {"slot_restore_s", restoring},
            {"slot_same_logits", logits(slots.get()) == wanted},
            {"slot_restore_by_packing_s", packing},
            {"slot_speedup", packing / restoring}};
}

Json SavedBench::run() {
    Progress progress(options_.json);
    Context first = make_context();
    progress.show("filling the cache", 0, tokens_, "tokens");
    const double packing = fill(first.get(), progress);
    const vidkv_store_stats held = plugin_stats();
    const std::vector<float> wanted = logits(first.get());

    progress.show("saving", 0, 0, "");
    const std::string text = manifest();
    forget_peak();
    auto start = Clock::now();
    save_sequence(first.get(), false, file_, {{"manifest", {text.begin(), text.end()}}});
    const double saving = seconds_since(start);
    const uint64_t saving_peak = peak_memory();
    struct stat found = {};
    stat(file_.c_str(), &found);
    const Json slots = passes_through_f16() ? run_slots(first, packing, wanted, progress) : Json::object();
    first.reset();

    progress.show("restoring", 0, 0, "");
    start = Clock::now();
    { const VideoFile whole(file_, true, options_.threads); }
    const double verifying = seconds_since(start);
    start = Clock::now();
    { const VideoFile opened(file_, false, options_.threads); }
    const double opening = seconds_since(start);
    double restoring = INFINITY;
    bool same = true;
    forget_peak();
    for (int i = 0; i < RESTORES; ++i) {
        const Context context = make_context();
        start = Clock::now();
        load_sequence(context.get(), false, VideoFile(file_, false, options_.threads));
        restoring = std::min(restoring, seconds_since(start));
        same = same && logits(context.get()) == wanted;
    }
    const uint64_t restoring_peak = peak_memory();
    progress.clear();
    const PrefillEstimate prefill = estimate_prefill(options_.threads);
    const double prefill_seconds = prefill.seconds_per_token * static_cast<double>(tokens_);
    Json report = {{"cpu", cpu_name()},
                   {"shape", shape_.name()},
                   {"layers", options_.layers},
                   {"kv", options_.kv},
                   {"tokens", tokens_},
                   {"threads", options_.threads},
                   {"bytes_held", held.bytes},
                   {"bytes_f16", held.bytes_f16},
                   {"file_bytes", found.st_size},
                   {"file_per_held", static_cast<double>(found.st_size) / static_cast<double>(held.bytes)},
                   {"save_s", saving},
                   {"save_peak_bytes", saving_peak},
                   {"open_s", opening},
                   {"verify_s", verifying},
                   {"restore_s", restoring},
                   {"restore_peak_bytes", restoring_peak},
                   {"same_logits", same},
                   {"prefill_estimate_s", prefill_seconds},
                   {"prefill_estimate", prefill.method},
                   {"restore_per_prefill", restoring / prefill_seconds}};
    report.update(slots);
    return report;
}

void print_report(const Json & r) {
    const auto number = [&](const char * name) { return r[name].get<double>(); };
    constexpr double MIB = 1 << 20, GIB = 1 << 30;
    std::printf("%s, shape %s, %d layers, %s, %lld tokens, %d threads\n", r["cpu"].get<std::string>().c_str(),
                r["shape"].get<std::string>().c_str(), r["layers"].get<int>(), r["kv"].get<std::string>().c_str(),
                r["tokens"].get<long long>(), r["threads"].get<int>());
    std::printf("file            %10.1f MiB, %.3f of the bytes held (f16: %.1f MiB)\n", number("file_bytes") / MIB,
                number("file_per_held"), number("bytes_f16") / MIB);
    std::printf("save            %10.3f s, %.2f GiB of memory at most\n", number("save_s"),
                number("save_peak_bytes") / GIB);
    std::printf("open            %10.4f s; all of it checked in %.2f s\n", number("open_s"), number("verify_s"));
    std::printf("restore         %10.3f s, warm, %s logits; %.5f of its prefill (%s)\n", number("restore_s"),
                r["same_logits"].get<bool>() ? "the same" : "OTHER", number("restore_per_prefill"),
                r["prefill_estimate"].get<std::string>().c_str());
    std::printf("                           %.2f GiB of memory at most\n", number("restore_peak_bytes") / GIB);
    if (!r.contains("slot_bytes")) return void(std::puts("slots           left out: too large to pass through f16"));
    std::printf("slot save       %10.3f s, %.1f MiB\n", number("slot_save_s"), number("slot_bytes") / MIB);
    std::printf("slot restore    %10.3f s, %s logits; by packing anew %.3f s, %.1f times as long\n",
                number("slot_restore_s"), r["slot_same_logits"].get<bool>() ? "the same" : "other",
                number("slot_restore_by_packing_s"), number("slot_speedup"));
}

void run_saved(SavedOptions options) {
    if (options.threads == 0) options.threads = available_cores();
    capture_logs(false);
    const Json report = SavedBench(options).run();
    options.json ? void(std::cout << report.dump(2) << "\n") : print_report(report);
}

} // namespace

void add_bench_saved(CLI::App & bench, Command & run) {
    auto options = std::make_shared<SavedOptions>();
    CLI::App * saved =
        bench.add_subcommand("saved", "A packed cache into a file and back, and through llama-server's slots");
    saved->add_option("--shape", options->shape, "query heads/KV heads/head_dim (default 28/4/128)")->type_name("SHAPE");
    saved->add_option("--layers", options->layers, "layers (default 28)")->check(CLI::Range(1, 200));
    saved->add_option("--tokens", options->tokens, "tokens in the cache (default 4k)")->type_name("N");
    saved->add_option("--kv", options->kv, "preset (default " + std::string(DEFAULT_KV) + ")")->type_name("PRESET");
    saved->add_option("-t,--threads", options->threads, "threads (default: all cores)")->check(CLI::Range(1, 1024));
    saved->add_option("--folder", options->folder, "where the file is written (default: the temporary folder)")
        ->type_name("FOLDER");
    saved->add_flag("--json", options->json, "print one JSON document");
    saved->footer("EXAMPLES\n  vidkv bench saved --tokens 32k\n  vidkv bench saved --shape 9/3/64 --layers 30 --kv t2.2");
    saved->callback([options, &run] { run = [options] { run_saved(*options); }; });
}

} // namespace vidkv::cli
