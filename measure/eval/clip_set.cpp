#include "eval/clip_set.h"

#include <filesystem>
#include <fstream>
#include <map>

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "error.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

TemporarySet::TemporarySet(DataOptions options) {
    std::string name = (fs::temp_directory_path() / "vidkv-eval-XXXXXX").string();
    if (!mkdtemp(name.data()))
        throw Error("cannot make a folder in '" + fs::temp_directory_path().string() + "': set TMPDIR");
    folder_ = name;
    options.out = name;
    try {
        generate_data(options);
    } catch (...) {
        remove();
        throw;
    }
}

TemporarySet::~TemporarySet() { remove(); }

void TemporarySet::remove() const {
    std::error_code ignored;
    fs::remove_all(folder_, ignored);
}

std::vector<Clip> read_set(const std::string & folder) {
    const std::string path = (fs::path(folder) / "questions.jsonl").string();
    std::ifstream file(path);
    if (!file) throw Error("no questions.jsonl in '" + folder + "': make a set with vidkv data");
    std::vector<Clip> clips;
    std::map<std::string, size_t> index;
    int line_number = 0;
    for (std::string line; std::getline(file, line);) {
        ++line_number;
        const nlohmann::json entry = nlohmann::json::parse(line, nullptr, false);
        try {
            const std::string video = entry.at("video");
            const auto [at, added] = index.emplace(video, clips.size());
            if (added) clips.push_back({(fs::path(folder) / video).string(), {}});
            clips[at->second].questions.push_back(
                {entry.at("question"), entry.at("answer"), entry.at("type"), entry.at("candidates")});
        } catch (const nlohmann::json::exception &) {
            throw Error("line " + std::to_string(line_number) + " of '" + path +
                        "' is not a question: make the set again with vidkv data");
        }
    }
    if (clips.empty()) throw Error("'" + path + "' holds no questions: make the set again with vidkv data");
    return clips;
}

} // namespace vidkv::cli
