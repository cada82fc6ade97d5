#include "eval/facts.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <random>

namespace vidkv::cli {

namespace {

constexpr std::array ADJECTIVES = {"amber", "brisk",  "calm",  "dusty", "eager", "faint", "grand", "hollow",
                                   "icy",   "jolly",  "keen",  "lunar", "mild",  "noble", "olive", "pale",
                                   "quiet", "rustic", "solar", "tidy",  "umber", "vivid", "warm",  "young"};
constexpr std::array NOUNS = {"anchor", "beacon", "canyon",  "dolphin", "ember",  "falcon", "glacier", "heron",
                              "island", "jasper", "kestrel", "lantern", "meadow", "nettle", "orchid",  "pebble",
                              "quarry", "raven",  "saddle",  "thistle", "urchin", "violet", "walnut",  "yarrow"};
constexpr size_t PAIRS = ADJECTIVES.size() * NOUNS.size();
constexpr const char * ALONE = " Answer with the number alone.";

// The standard's distributions differ between libraries; this does not.
class Dice {
  public:
    Dice(uint64_t seed, int64_t sample) : engine_(seed * 1'000'003 + static_cast<uint64_t>(sample)) {}
    size_t below(size_t n) { return static_cast<size_t>(engine_() % n); }

  private:
    std::mt19937_64 engine_;
};

std::string upper(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::toupper(c); });
    return text;
}

Fact constant(const std::string & first, const std::string & second, const std::string & number) {
    const std::string name = upper(first + "_" + second) + "_LIMIT";
    return {"constant", "constexpr int " + name + " = " + number + ";",
            "What is the value of the constant " + name + " in the file?" + ALONE, number};
}

Fact port(const std::string & first, const std::string & second, const std::string & number) {
    const std::string name = first + "-" + second;
    return {"port", "# 09:14:55 INFO service " + name + " listens on port " + number,
            "On which port does the service " + name + " listen, by the file?" + ALONE, number};
}

Fact function(const std::string & first, const std::string & second, const std::string & number) {
    const std::string name = "quota_of_" + first + "_" + second;
    return {"function", "int " + name + "() { return " + number + "; }",
            "What does the function " + name + "() of the file return?" + ALONE, number};
}

} // namespace

std::vector<Fact> make_facts(uint64_t seed, int64_t sample, int n) {
    constexpr std::array KINDS = {constant, port, function};
    Dice dice(seed, sample);
    const size_t first_pair = dice.below(PAIRS), first_kind = dice.below(KINDS.size());
    std::vector<Fact> facts;
    for (int i = 0; i < n; ++i) {
        const auto at = static_cast<size_t>(i);
        const size_t pair = (first_pair + 131 * at) % PAIRS; // 131 has no divisor in common with 576: no pair comes twice
        const std::string number = std::to_string(10'000 + dice.below(50'000)); // a port is a number of 16 bits
        facts.push_back(
            KINDS[(first_kind + at) % KINDS.size()](ADJECTIVES[pair / NOUNS.size()], NOUNS[pair % NOUNS.size()], number));
        facts.back().depth = (i + static_cast<double>(dice.below(1000)) / 1000) / n;
    }
    return facts;
}

std::string plant(const std::string & text, const std::vector<Fact> & facts, uint64_t seed, int64_t sample, size_t bytes) {
    Dice dice(seed + 1, sample);
    size_t at = text.find('\n', dice.below(text.size()));
    at = at == std::string::npos ? 0 : at + 1;
    std::string file;
    size_t planted = 0;
    const auto due = [&](const Fact & fact) {
        return static_cast<double>(file.size()) >= fact.depth * static_cast<double>(bytes);
    };
    while (file.size() < bytes || planted < facts.size()) {
        if (planted < facts.size() && due(facts[planted])) {
            file += facts[planted++].line + "\n";
            continue;
        }
        const size_t end = std::min(text.find('\n', at), text.size());
        file += text.substr(at, end - at) + "\n";
        at = end + 1 < text.size() ? end + 1 : 0;
    }
    return file;
}

std::string first_number(const std::string & answer) {
    const auto digit = [](char c) { return std::isdigit(static_cast<unsigned char>(c)) != 0; };
    std::string number;
    for (size_t i = 0; i < answer.size(); ++i) {
        const bool comma = answer[i] == ',' && !number.empty() && i + 1 < answer.size() && digit(answer[i + 1]);
        if (digit(answer[i]))
            number += answer[i];
        else if (!number.empty() && !comma)
            break;
    }
    return number;
}

} // namespace vidkv::cli
