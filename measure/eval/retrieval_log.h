// What vidkv eval retrieval has measured, a line of JSON for each sample and codec: a run that ended early goes on from it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace vidkv::cli {

struct Answered {
    std::string kind, question, expected, answer;
    double depth = 0;
    bool right = false;
    double kl = 0;                // mean over the tokens of the f16 cache's answer
    int64_t tokens = 0, same = 0; // of the answer; how many of them are the f16 cache's, up to the first that is another
};

// One codec's answers to the questions about one file.
struct SampleResult {
    int64_t tokens = 0; // asked for
    int64_t sample = 0;
    std::string kv;
    int64_t prompt = 0; // tokens the file came to
    double k_bits = 16, v_bits = 16;
    uint64_t bytes = 0; // held once the file was packed
    std::vector<Answered> answers;
};

class RetrievalLog {
  public:
    // path "": kept in memory alone. A file that is there goes on, if its settings are these; a last line that was not
    // finished is dropped. Throws Error.
    RetrievalLog(std::string path, const nlohmann::ordered_json & settings);

    const SampleResult * find(int64_t tokens, int64_t sample, const std::string & kv) const;
    void add(const SampleResult & result);
    const std::vector<SampleResult> & results() const { return results_; }

  private:
    void read(const nlohmann::ordered_json & settings);
    void append(const std::string & line) const;

    std::string path_;
    std::vector<SampleResult> results_;
};

} // namespace vidkv::cli
