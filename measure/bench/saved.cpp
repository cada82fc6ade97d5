// vidkv bench saved: a packed cache inside llama.cpp into a file and back, forked, and through the state that llama-server's slots
// are made of.
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>

#include <malloc.h>

#include "bench/bench.h"
#include "bench/matmul.h"
#include "bench/restored.h"
#include "bench/saved_model.h"
#include "bench/saved_state.h"
#include "engine/logs.h"
#include "engine/packed_store.h"
#include "engine/plugin.h"
#include "engine/sequence_state.h"
#include "engine/video_file.h"
#include "error.h"
#include "interrupt.h"
#include "machine.h"
#include "options.h"
#include "progress.h"
#include "temporary_folder.h"

namespace vidkv::cli {

namespace {

constexpr int64_t BLOCK_TOKENS = 8192; // of a cache too large to pass through f16 as a whole

class SavedBench {
  public:
    explicit SavedBench(const SavedOptions & options)
        : options_(options), folder_("vidkv-bench", options.folder), file_(folder_.file("cache.vidkv")),
          model_(options, folder_.file("model.gguf")), progress_(options.json) {}

    Json run();

  private:
    std::vector<uint8_t> state(llama_context * context) const;
    double set_state(llama_context * context, const std::vector<uint8_t> & state, llama_seq_id sequence = 0) const;
    double fill(llama_context * context);
    Json save(llama_context * context) const;
    Json fork_in_host(llama_context * context, const std::vector<float> & wanted) const;
    Json fork() const;
    Json pass_through_slot(llama_context * context, double packing, const std::vector<float> & wanted);
    std::string manifest() const;

    SavedOptions options_;
    TemporaryFolder folder_;
    std::string file_;
    SavedModel model_;
    Progress progress_;
};

std::vector<uint8_t> SavedBench::state(llama_context * context) const {
    std::vector<uint8_t> bytes(llama_state_seq_get_size(context, 0));
    if (llama_state_seq_get_data(context, bytes.data(), bytes.size(), 0) != bytes.size())
        throw Error("llama.cpp cannot save the cache: " + logged_error());
    return bytes;
}

double SavedBench::set_state(llama_context * context, const std::vector<uint8_t> & state, llama_seq_id sequence) const {
    const Stopwatch setting;
    if (llama_state_seq_set_data(context, state.data(), state.size(), sequence) != state.size())
        throw Error("llama.cpp cannot restore the cache: " + logged_error());
    return setting.seconds();
}

std::string SavedBench::manifest() const {
    Manifest manifest;
    manifest.kv = options_.kv;
    manifest.used = manifest.prefix.tokens = model_.tokens();
    manifest.position = manifest.prefix.position = static_cast<llama_pos>(model_.tokens());
    return manifest.text();
}

// Fills a sequence with rows that are packed once; returns how long that took. A large cache is made of equal blocks, which carry
// their packed pages.
double SavedBench::fill(llama_context * context) {
    const int64_t block = model_.passes_through_f16() ? model_.tokens() : BLOCK_TOKENS;
    model_.decode(context, 1, 0);
    const StateWriter writer(state(context), options_.layers, model_.shape().channels());
    const double packing = set_state(context, writer.write(block));
    if (block == model_.tokens()) return packing;
    std::vector<uint8_t> packed = state(context);
    llama_memory_t memory = llama_get_memory(context);
    for (int64_t at = block; at < model_.tokens(); at += block) {
        check_interrupt();
        progress_.show("filling the cache", at, model_.tokens(), "tokens");
        StateWriter::move_to(packed, static_cast<llama_pos>(at));
        set_state(context, packed, 1);
        llama_memory_seq_cp(memory, 1, 0, -1, -1);
        llama_memory_seq_rm(memory, 1, -1, -1);
    }
    return packing;
}

Json SavedBench::save(llama_context * context) const {
    const std::string text = manifest();
    malloc_trim(0); // what filling has left
    forget_peak();
    const Stopwatch saving;
    save_sequence(context, false, file_, {{"manifest", {text.begin(), text.end()}}});
    const double seconds = saving.seconds();
    const auto bytes = std::filesystem::file_size(file_);
    const uint64_t held = plugin_stats().bytes;
    return {{"bytes_held", held},  {"bytes_f16", plugin_stats().bytes_f16},
            {"file_bytes", bytes}, {"file_per_held", static_cast<double>(bytes) / static_cast<double>(held)},
            {"save_s", seconds},   {"save_peak_bytes", peak_memory()}};
}

// A second sequence that goes on from all of the first, in llama.cpp, which notes every cell of it.
Json SavedBench::fork_in_host(llama_context * context, const std::vector<float> & wanted) const {
    llama_memory_t memory = llama_get_memory(context);
    const uint64_t before = plugin_stats().bytes;
    const Stopwatch forking;
    llama_memory_seq_cp(memory, 0, 1, -1, -1);
    llama_synchronize(context);
    const double seconds = forking.seconds();
    const uint64_t more = plugin_stats().bytes - before;
    const bool same = model_.logits(context, 1) == wanted;
    llama_memory_seq_rm(memory, 1, -1, -1);
    return {{"host_fork_s", seconds}, {"host_fork_bytes", more}, {"host_fork_same_logits", same}};
}

// The same by the library alone, of what was saved.
Json SavedBench::fork() const {
    vidkv_file * opened = nullptr;
    check_status(vidkv_file_open(file_.c_str(), 0, &opened));
    const PackedFile file(opened);
    vidkv_file_info info = {};
    vidkv_file_get_info(opened, &info);
    const vidkv_cache_shape shape{options_.layers, model_.shape().kv_heads, model_.shape().head_dim,
                                  model_.tokens() + BLOCK_TOKENS, 2};
    vidkv_cache * made = nullptr;
    check_status(vidkv_cache_create(&shape, &info.params, &made));
    const std::unique_ptr<vidkv_cache, void (*)(vidkv_cache *)> cache(made, vidkv_cache_free);
    for (int layer = 0; layer < options_.layers; ++layer)
        for (vidkv_store * store : {vidkv_cache_keys(made, layer), vidkv_cache_values(made, layer)})
            check_status(vidkv_file_load(opened, layer, 0, store, 0, nullptr, 0));
    vidkv_store_stats before = {}, after = {};
    vidkv_cache_get_stats(made, &before);
    const Stopwatch forking;
    check_status(vidkv_cache_copy_sequence(made, 0, 1));
    const double seconds = forking.seconds();
    vidkv_cache_get_stats(made, &after);
    return {{"fork_s", seconds},
            {"fork_per_held", static_cast<double>(after.bytes - before.bytes) / static_cast<double>(before.bytes)}};
}

Json SavedBench::pass_through_slot(llama_context * context, double packing, const std::vector<float> & wanted) {
    if (!model_.passes_through_f16()) return Json::object();
    progress_.show("saving a slot", 0, 0, "");
    const Stopwatch saving;
    const std::vector<uint8_t> slot = state(context);
    const double seconds = saving.seconds();
    progress_.show("restoring a slot", 0, 0, "");
    const Context slots = model_.make_context();
    const double restoring = set_state(slots.get(), slot);
    return {{"slot_bytes", slot.size()},
            {"slot_save_s", seconds},
            {"slot_restore_s", restoring},
            {"slot_same_logits", model_.logits(slots.get()) == wanted},
            {"slot_restore_by_packing_s", packing},
            {"slot_speedup", packing / restoring}};
}

// The figures that were aimed at, for 32k tokens of Qwen2.5-VL-7B's shape.
Json targets_of(const Json & r) {
    Json targets = Json::array();
    const auto add = [&](const char * what, const char * name, double most, const char * also = nullptr) {
        if (!r.contains(name)) return;
        const double value = r[name].get<double>();
        const bool met = value <= most && (!also || r[also].get<bool>());
        targets.push_back({{"what", what}, {"value", value}, {"most", most}, {"met", met}});
    };
    add("file, of the bytes held", "file_per_held", 1.03);
    add("restore, warm, s", "restore_s", 0.5, "same_logits");
    add("restore, of its prefill", "restore_per_prefill", 0.01, "same_logits");
    add("fork, s", "fork_s", 0.001);
    add("fork, of the bytes held", "fork_per_held", 0.01);
    add("slot restored, of packing anew", "slot_per_packing", 0.2, "slot_same_logits");
    add("second ask, to its first token, s", "second_ask_s", 1);
    return targets;
}

Json SavedBench::run() {
    Context first = model_.make_context();
    progress_.show("filling the cache", 0, model_.tokens(), "tokens");
    const double packing = fill(first.get());
    const std::vector<float> wanted = model_.logits(first.get());
    Json report = {{"cpu", cpu_name()}, {"shape", model_.shape().name()}, {"layers", options_.layers},
                   {"kv", options_.kv}, {"tokens", model_.tokens()},      {"threads", options_.threads}};
    progress_.show("saving", 0, 0, "");
    report.update(save(first.get()));
    report.update(fork_in_host(first.get(), wanted));
    report.update(pass_through_slot(first.get(), packing, wanted));
    if (report.contains("slot_speedup")) report["slot_per_packing"] = 1 / report["slot_speedup"].get<double>();
    first.reset();
    malloc_trim(0);

    progress_.show("restoring", 0, 0, "");
    const Stopwatch verifying;
    { const VideoFile whole(file_, true, options_.threads); }
    report["verify_s"] = verifying.seconds();
    report.update(fork());
    report.update(restore_in_two_processes(options_, file_, model_.path(), wanted));
    const PrefillEstimate prefill = estimate_prefill(options_.threads);
    const double prefill_seconds = prefill.seconds_per_token * static_cast<double>(model_.tokens());
    report["prefill_estimate_s"] = prefill_seconds;
    report["prefill_estimate"] = prefill.method;
    report["restore_per_prefill"] = report["restore_s"].get<double>() / prefill_seconds;
    progress_.show("asking about a clip", 0, 0, "");
    report.update(ask_twice(options_, folder_.path()));
    progress_.clear();
    report["targets"] = targets_of(report);
    return report;
}

void print_slots(const Json & r) {
    const auto number = [&](const char * name) { return r[name].get<double>(); };
    if (!r.contains("slot_bytes")) return void(std::puts("slots           left out: too large to pass through f16"));
    std::printf("slot save       %10.3f s, %.1f MiB\n", number("slot_save_s"), number("slot_bytes") / (1 << 20));
    std::printf("slot restore    %10.3f s, %s logits; by packing anew %.3f s, %.1f times as long\n",
                number("slot_restore_s"), r["slot_same_logits"].get<bool>() ? "the same" : "OTHER",
                number("slot_restore_by_packing_s"), number("slot_speedup"));
}

void print_report(const Json & r) {
    const auto number = [&](const char * name) { return r[name].get<double>(); };
    const auto which = [&](const char * name) { return r[name].get<bool>() ? "the same" : "OTHER"; };
    constexpr double MIB = 1 << 20, GIB = 1 << 30;
    std::printf("%s, shape %s, %d layers, %s, %lld tokens, %d threads\n", r["cpu"].get<std::string>().c_str(),
                r["shape"].get<std::string>().c_str(), r["layers"].get<int>(), r["kv"].get<std::string>().c_str(),
                r["tokens"].get<long long>(), r["threads"].get<int>());
    std::printf("file            %10.1f MiB, %.3f of the bytes held (f16: %.1f MiB)\n", number("file_bytes") / MIB,
                number("file_per_held"), number("bytes_f16") / MIB);
    std::printf("save            %10.3f s, %.2f GiB of memory at most\n", number("save_s"),
                number("save_peak_bytes") / GIB);
    std::printf(
        "fork            %10.6f s, %.4f of the bytes held; in llama.cpp, which notes each cell, %.6f s, %s logits\n",
        number("fork_s"), number("fork_per_held"), number("host_fork_s"), which("host_fork_same_logits"));
    std::printf("open            %10.4f s; all of it checked in %.2f s\n", number("open_s"), number("verify_s"));
    std::printf("restore         %10.3f s, warm, %s logits; %.5f of its prefill (%s)\n", number("restore_s"),
                which("same_logits"), number("restore_per_prefill"), r["prefill_estimate"].get<std::string>().c_str());
    std::printf("                           %.2f GiB of memory at most in a process of its own; Pss %.2f GiB, of two at "
                "once %.2f (Rss %.2f)\n",
                number("restore_peak_bytes") / GIB, number("one_process_pss") / GIB, number("two_processes_pss") / GIB,
                number("two_processes_rss") / GIB);
    print_slots(r);
    if (r.contains("second_ask_s"))
        std::printf("ask             %10.3f s to the first token; a second time %.3f s\n", number("first_ask_s"),
                    number("second_ask_s"));
    std::puts("\ntargets, for 32k tokens of 28/4/128 with 28 layers");
    for (const Json & each : r["targets"])
        std::printf("%-36s %10.6f, at most %g: %s\n", each["what"].get<std::string>().c_str(), each["value"].get<double>(),
                    each["most"].get<double>(), each["met"].get<bool>() ? "met" : "MISSED");
}

void run_saved(SavedOptions options) {
    if (options.threads == 0) options.threads = available_cores();
    capture_logs(false);
    if (!options.restore.empty()) hold_restored(options);
    const Json report = SavedBench(options).run();
    options.json ? void(std::cout << report.dump(2) << "\n") : print_report(report);
}

} // namespace

void add_bench_saved(CLI::App & bench, Command & run) {
    auto options = std::make_shared<SavedOptions>();
    options->kv = DEFAULT_KV;
    CLI::App * saved =
        bench.add_subcommand("saved", "A packed cache into a file and back, and through llama-server's slots");
    saved->add_option("--shape", options->shape, "query heads/KV heads/head_dim (default 28/4/128)")->type_name("SHAPE");
    saved->add_option("--layers", options->layers, "layers (default 28)")->check(CLI::Range(1, 200));
    saved->add_option("--tokens", options->tokens, "tokens in the cache (default 4k)")->type_name("N");
    saved->add_option("--kv", options->kv, "preset (default " + std::string(DEFAULT_KV) + ")")->type_name("PRESET");
    saved->add_option("-t,--threads", options->threads, "threads (default: all cores)")->check(CLI::Range(1, 1024));
    saved->add_option("--folder", options->folder, "where the file is written (default: the temporary folder)")
        ->type_name("FOLDER");
    saved
        ->add_option("--clip", options->clip,
                     "clip of vidkv data that is asked about twice: long (the default), short, or none")
        ->check(CLI::IsMember({"long", "short", "none"}));
    saved->add_option("--model", options->model)->group("");
    saved->add_option("--restore", options->restore)->group("");
    saved->add_flag("--json", options->json, "print one JSON document");
    saved->footer("EXAMPLES\n  vidkv bench saved --tokens 32k\n  vidkv bench saved --shape 9/3/64 --layers 30 --kv t2.2");
    saved->callback([options, &run] { run = [options] { run_saved(*options); }; });
}

} // namespace vidkv::cli
