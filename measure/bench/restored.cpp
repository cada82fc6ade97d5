#include "bench/restored.h"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <iostream>

#include <sys/prctl.h>
#include <unistd.h>
#include <xxhash.h>

#include "commands/data.h"
#include "engine/sequence_state.h"
#include "engine/video_file.h"
#include "error.h"
#include "eval/clip_set.h"
#include "subprocess.h"
#include "text.h"

namespace vidkv::cli {

namespace {

constexpr int RESTORES = 3;

uint64_t hash_of(const std::vector<float> & logits) { return XXH3_64bits(logits.data(), logits.size() * sizeof(float)); }

std::string program() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

// A child that has said all it will say.
[[noreturn]] void fail(Subprocess & child) {
    child.wait();
    throw Error("a part of this measurement failed: " + last_line(child.complaints()));
}

class RestoredProcess {
  public:
    RestoredProcess(const SavedOptions & o, const std::string & file, const std::string & model)
        : child_({program(), "bench", "saved", "--restore", file, "--model", model, "--shape", o.shape, "--layers",
                  std::to_string(o.layers), "--tokens", o.tokens, "--kv", o.kv, "-t", std::to_string(o.threads)}) {
        std::string line;
        for (char c = 0; c != '\n'; line += c)
            if (child_.read(&c, 1) == 0) fail(child_);
        report_ = Json::parse(line);
    }

    const Json & report() const { return report_; }
    uint64_t memory(const std::string & name) const {
        return proc_bytes("/proc/" + std::to_string(report_["pid"].get<int>()) + "/smaps_rollup", name);
    }

  private:
    Subprocess child_;
    Json report_;
};

} // namespace

void hold_restored(const SavedOptions & options) {
    prctl(PR_SET_PDEATHSIG, SIGKILL); // nobody else would end it
    const SavedModel model(options, options.model);
    Stopwatch opening;
    { const VideoFile opened(options.restore, false, options.threads); }
    Json report = {{"pid", getpid()}, {"open_s", opening.seconds()}};
    double best = INFINITY;
    Context context;
    for (int i = 0; i < RESTORES; ++i) {
        context.reset();
        context = model.make_context();
        const Stopwatch restoring;
        load_sequence(context.get(), false, VideoFile(options.restore, false, options.threads));
        best = std::min(best, restoring.seconds());
    }
    report["restore_s"] = best;
    report["logits"] = hash_of(model.logits(context.get()));
    report["peak_bytes"] = peak_memory();
    std::cout << report.dump() << std::endl;
    while (true) pause();
}

Json restore_in_two_processes(const SavedOptions & options, const std::string & file, const std::string & model,
                              const std::vector<float> & wanted) {
    const RestoredProcess first(options, file, model);
    const uint64_t alone = first.memory("Pss");
    const RestoredProcess second(options, file, model);
    const auto is_same = [&](const RestoredProcess & each) { return each.report()["logits"] == hash_of(wanted); };
    return {{"open_s", first.report()["open_s"]},
            {"restore_s", first.report()["restore_s"]},
            {"same_logits", is_same(first) && is_same(second)},
            {"restore_peak_bytes", first.report()["peak_bytes"]},
            {"one_process_pss", alone},
            {"two_processes_rss", first.memory("Rss") + second.memory("Rss")},
            {"two_processes_pss", first.memory("Pss") + second.memory("Pss")}};
}

Json ask_twice(const SavedOptions & options, const std::string & folder) {
    if (options.clip == "none") return Json::object();
    DataOptions data;
    data.seed = 1;
    data.split = options.clip;
    data.count = 1;
    data.out = folder + "/clip";
    generate_data(data);
    const Clip clip = read_set(data.out).front();
    Json report = Json::object();
    for (const char * name : {"first_ask_s", "second_ask_s"}) {
        const Stopwatch answering;
        Subprocess child({"env", "VIDKV_VIDEOS_DIR=" + folder + "/videos", program(), "ask", clip.path, "-q",
                          clip.questions.front().text, "--kv", options.kv, "-t", std::to_string(options.threads)});
        char byte;
        if (child.read(&byte, 1) == 0) fail(child);
        report[name] = answering.seconds();
        child.read_all();
        if (child.wait() != 0) fail(child);
    }
    return report;
}

} // namespace vidkv::cli
