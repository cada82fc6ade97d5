#include "eval/clip_set.h"

#include <filesystem>
#include <fstream>
#include <map>

#include <nlohmann/json.hpp>

#include "error.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

TemporarySet::TemporarySet(DataOptions options) : folder_("vidkv-eval") {
    options.out = folder_.path();
    generate_data(options);
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
