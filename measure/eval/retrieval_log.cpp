#include "eval/retrieval_log.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "error.h"
#include "output_file.h"

namespace vidkv::cli {

namespace {

using Json = nlohmann::ordered_json;

Json to_json(const SampleResult & result) {
    Json answers = Json::array();
    for (const Answered & each : result.answers)
        answers.push_back({{"kind", each.kind},
                           {"depth", each.depth},
                           {"question", each.question},
                           {"expected", each.expected},
                           {"answer", each.answer},
                           {"right", each.right},
                           {"kld", each.kl},
                           {"answer_tokens", each.tokens},
                           {"same_tokens", each.same}});
    return {{"tokens", result.tokens}, {"sample", result.sample}, {"kv", result.kv},       {"prompt_tokens", result.prompt},
            {"k_bits", result.k_bits}, {"v_bits", result.v_bits}, {"bytes", result.bytes}, {"answers", answers}};
}

SampleResult from_json(const Json & line) {
    SampleResult result{line.at("tokens"), line.at("sample"), line.at("kv"),    line.at("prompt_tokens"),
                        line.at("k_bits"), line.at("v_bits"), line.at("bytes"), {}};
    for (const Json & each : line.at("answers"))
        result.answers.push_back({each.at("kind"), each.at("question"), each.at("expected"), each.at("answer"),
                                  each.at("depth"), each.at("right"), each.at("kld"), each.at("answer_tokens"),
                                  each.at("same_tokens")});
    return result;
}

// An answer may end within a character; JSON holds whole ones.
std::string dump(const Json & line) { return line.dump(-1, ' ', false, Json::error_handler_t::replace); }

} // namespace

RetrievalLog::RetrievalLog(std::string path, const Json & settings) : path_(std::move(path)) {
    if (path_.empty()) return;
    std::error_code ignored;
    if (std::filesystem::exists(path_, ignored) && std::filesystem::file_size(path_, ignored) > 0)
        read(settings);
    else
        append(dump(settings));
}

void RetrievalLog::read(const Json & settings) {
    std::ifstream file(path_, std::ios::binary);
    std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    const size_t whole = all.rfind('\n') + 1; // 0 if not even the settings are whole
    for (size_t at = 0, number = 1; at < whole; at = all.find('\n', at) + 1, ++number) {
        const Json line = Json::parse(all.substr(at, all.find('\n', at) - at), nullptr, false);
        if (number == 1 && !(line == settings)) // what is no JSON is neither equal nor unequal
            throw Error("'" + path_ + "' is of a run with other settings, or no log: name another file with --log");
        try {
            if (number > 1) results_.push_back(from_json(line));
        } catch (const nlohmann::json::exception &) {
            throw Error("line " + std::to_string(number) + " of '" + path_ +
                        "' is no result: name another file with --log");
        }
    }
    if (whole == 0) throw Error("'" + path_ + "' is no log of this command: name another file with --log");
    if (whole < all.size()) std::filesystem::resize_file(path_, whole);
}

void RetrievalLog::append(const std::string & line) const {
    std::ofstream file(path_, std::ios::app);
    file << line << "\n";
    file.flush();
    if (!file) throw cannot_write(path_);
}

const SampleResult * RetrievalLog::find(int64_t tokens, int64_t sample, const std::string & kv) const {
    const auto found = std::find_if(results_.begin(), results_.end(), [&](const SampleResult & each) {
        return each.tokens == tokens && each.sample == sample && each.kv == kv;
    });
    return found == results_.end() ? nullptr : &*found;
}

void RetrievalLog::add(const SampleResult & result) {
    if (!path_.empty()) append(dump(to_json(result)));
    results_.push_back(result);
}

} // namespace vidkv::cli
