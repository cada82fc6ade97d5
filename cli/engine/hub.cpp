#include "engine/hub.h"

#include <chrono>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <tuple>

#include <unistd.h>

#include "common.h"
#include "download.h"
#include "error.h"
#include "interrupt.h"
#include "log.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

namespace {

constexpr int SILENT = -1;
constexpr std::chrono::milliseconds LOOK_INTERVAL(50);
constexpr int64_t MIB = 1 << 20;

// What was received of all files, filled by the threads that fetch them.
class Received : public common_download_callback {
  public:
    void on_start(const common_download_progress & file) override { on_update(file); }
    void on_done(const common_download_progress & file, bool) override { on_update(file); }
    void on_update(const common_download_progress & file) override {
        const std::lock_guard lock(mutex_);
        files_[file.url] = {file.downloaded, file.total};
    }
    std::pair<int64_t, int64_t> sum() const { // received, expected
        const std::lock_guard lock(mutex_);
        std::pair<int64_t, int64_t> bytes;
        for (const auto & [url, file] : files_) {
            bytes.first += static_cast<int64_t>(file.first);
            bytes.second += static_cast<int64_t>(file.second);
        }
        return bytes;
    }

  private:
    mutable std::mutex mutex_;
    std::map<std::string, std::pair<size_t, size_t>> files_; // url -> received, expected
};

// Runs `work` beside this thread, which looks for Ctrl-C meanwhile: a connection that hangs cannot be told to stop, so the
// program ends with it.
template <typename Work, typename Look> auto interruptibly(Work work, Look look) {
    std::packaged_task<decltype(work())()> task(std::move(work));
    auto result = task.get_future();
    std::thread worker(std::move(task));
    while (result.wait_for(LOOK_INTERVAL) != std::future_status::ready) {
        look();
        if (!interrupted()) continue;
        if (write(STDERR_FILENO, "\n", 1) < 0) _exit(EXIT_INTERRUPTED);
        _exit(EXIT_INTERRUPTED);
    }
    worker.join();
    return result.get();
}

std::string token() {
    const char * value = std::getenv("HF_TOKEN");
    return value ? value : "";
}

common_download_opts download_options(const HubModel & model, bool with_mmproj) {
    common_download_opts options;
    options.bearer_token = token();
    options.offline = model.offline;
    options.download_mmproj = with_mmproj;
    return options;
}

// 0: no answer.
long status_of(const std::string & repository) {
    common_remote_params request;
    request.timeout = 10;
    if (!token().empty()) request.headers.emplace_back("Authorization", "Bearer " + token());
    try {
        return common_remote_get_content(common_get_model_endpoint() + "api/models/" + repository + "/refs", request).first;
    } catch (const std::exception &) {
        return 0;
    }
}

std::string gguf_names(const hf_cache::hf_files & files) {
    std::string names;
    for (const hf_cache::hf_file & file : files)
        if (file.path.ends_with(".gguf")) names += (names.empty() ? "" : ", ") + file.path;
    return names;
}

// Nothing was found: why.
[[noreturn]] void explain(const HubModel & model, const std::string & repository, const std::string & quantization) {
    const std::string endpoint = common_get_model_endpoint();
    if (model.offline)
        throw Error("'" + model.name + "' is not in " + hf_cache::get_cache_path() + ": leave out --offline to fetch it");
    const long status = status_of(repository);
    if (status == 0)
        throw Error("cannot reach " + endpoint + ": is there a network? Name a file with -m, or set HF_ENDPOINT");
    if (status == 401 || status == 403 || status == 404)
        throw Error("no model '" + repository + "' at " + endpoint + " (" + std::to_string(status) +
                    "): check the name; a private or gated one needs HF_TOKEN");
    if (status != 200)
        throw Error(endpoint + " answers with " + std::to_string(status) + " to '" + repository + "': try again later");
    const std::string names = gguf_names(hf_cache::get_repo_files(repository, token()));
    if (names.empty()) throw Error("'" + repository + "' holds no GGUF: name a repository of GGUF files");
    throw Error("'" + repository + "' has no GGUF" + (quantization.empty() ? "" : " of quantization " + quantization) +
                "; it has " + names);
}

common_download_hf_plan plan_of(const HubModel & model, bool with_mmproj) {
    std::string repository, quantization;
    try {
        std::tie(repository, quantization) = common_download_split_repo_tag(model.name);
    } catch (const std::invalid_argument &) {
        throw UsageError("-hf takes USER/MODEL or USER/MODEL:QUANTIZATION, not '" + model.name + "'");
    }
    common_params_model named;
    named.hf_repo = model.name;
    common_download_hf_plan plan = common_download_get_hf_plan(named, download_options(model, with_mmproj));
    if (!plan.preset.path.empty())
        throw Error("'" + repository + "' holds settings of llama.cpp, no model: name the model's own repository");
    if (plan.primary.path.empty()) explain(model, repository, quantization);
    if (with_mmproj && plan.mmproj.path.empty())
        throw Error("'" + repository +
                    "' has no mmproj, so no vision tower: name one with --mmproj, or take a model for video");
    return plan;
}

bool is_there(const std::string & path) {
    std::error_code failed;
    return fs::exists(path, failed);
}

void fetch(const common_download_hf_plan & plan, const common_download_opts & options) {
    std::vector<common_download_task> tasks;
    for (const hf_cache::hf_file & file : plan.model_files) tasks.emplace_back(file, options);
    if (!plan.mmproj.path.empty()) tasks.emplace_back(plan.mmproj, options);
    try {
        common_download_run_tasks(tasks);
    } catch (const std::exception & error) {
        std::error_code failed;
        const fs::space_info space = fs::space(hf_cache::get_cache_path(), failed);
        if (!failed && space.available < static_cast<uintmax_t>(MIB))
            throw Error("no space left in " + hf_cache::get_cache_path() +
                        ": free some, or set LLAMA_CACHE to another folder");
        throw Error("fetching broke off (" + std::string(error.what()) + "): try again, it goes on where it stopped");
    }
}

// All of it, on a thread of its own.
ModelFiles fetch_all(const HubModel & model, const std::string & mmproj, Received & received) {
    const common_download_hf_plan plan = plan_of(model, mmproj.empty());
    common_download_opts options = download_options(model, mmproj.empty());
    options.callback = &received;
    fetch(plan, options);
    for (const hf_cache::hf_file & file : plan.model_files) hf_cache::finalize_file(file);
    ModelFiles files = {hf_cache::finalize_file(plan.primary),
                        mmproj.empty() ? hf_cache::finalize_file(plan.mmproj) : mmproj};
    for (const std::string & file : {files.text, files.mmproj})
        if (!is_there(file))
            throw Error("'" + file + "' was not fetched: remove its folder in " + hf_cache::get_cache_path());
    return files;
}

} // namespace

ModelFiles fetch_model(const HubModel & model, const std::string & mmproj, Progress & progress) {
    if (!model.verbose) common_log_set_verbosity_thold(SILENT);
    Received received;
    ModelFiles files = interruptibly([&] { return fetch_all(model, mmproj, received); },
                                     [&] {
                                         const auto [bytes, expected] = received.sum();
                                         if (expected > 0) progress.show("fetching", bytes / MIB, expected / MIB, "MiB");
                                     });
    progress.clear();
    return files;
}

} // namespace vidkv::cli
