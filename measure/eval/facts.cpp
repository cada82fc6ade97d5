#include "eval/facts.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <regex>

#include "eval/made_up.h"

namespace vidkv::cli {

namespace {

constexpr const char * ALONE = " Answer with the number alone.";

constexpr const char *NAME = "[a-z]+-[a-z]+", *WORD = "[A-Za-z0-9_-]+", *CODE = "[A-Za-z0-9_]+|[^\\sA-Za-z0-9_]",
                     *NUMBER = "[0-9]+(,[0-9]+)*";

std::vector<std::string> matches(const std::string & text, const char * pattern) {
    const std::regex what(pattern);
    return {std::sregex_token_iterator(text.begin(), text.end(), what), std::sregex_token_iterator()};
}

// Without the commas between their digits.
std::vector<std::string> numbers(const std::string & text) {
    std::vector<std::string> all = matches(text, NUMBER);
    for (std::string & each : all) std::erase(each, ',');
    return all;
}

// One after the other, with nothing between them.
bool holds(const std::vector<std::string> & all, const std::vector<std::string> & part) {
    return std::search(all.begin(), all.end(), part.begin(), part.end()) != all.end();
}

std::string upper(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::toupper(c); });
    return text;
}

Fact constant(const std::string & first, const std::string & second, const std::string & number) {
    const std::string name = upper(first + "_" + second) + "_LIMIT";
    return {"constant",
            "constexpr int " + name + " = " + number + ";",
            "What is the value of the constant " + name + " in the file?" + ALONE,
            number,
            0,
            Compared::first_number};
}

Fact port(const std::string & first, const std::string & second, const std::string & number) {
    const std::string name = first + "-" + second;
    return {"port",
            "# 09:14:55 INFO service " + name + " listens on port " + number,
            "On which port does the service " + name + " listen, by the file?" + ALONE,
            number,
            0,
            Compared::first_number};
}

Fact function(const std::string & first, const std::string & second, const std::string & number) {
    const std::string name = "quota_of_" + first + "_" + second;
    return {"function",
            "int " + name + "() { return " + number + "; }",
            "What does the function " + name + "() of the file return?" + ALONE,
            number,
            0,
            Compared::first_number};
}

} // namespace

std::vector<Fact> make_facts(uint64_t seed, int64_t sample, int n) {
    constexpr std::array KINDS = {constant, port, function};
    Dice dice(seed, sample);
    Names names(dice);
    const size_t first_kind = dice.below(KINDS.size());
    std::vector<Fact> facts;
    for (int i = 0; i < n; ++i) {
        const auto at = static_cast<size_t>(i);
        const Name name = names.next();
        const std::string number = std::to_string(10'000 + dice.below(50'000)); // a port is a number of 16 bits
        facts.push_back(KINDS[(first_kind + at) % KINDS.size()](name.first, name.second, number));
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
    const std::vector<std::string> all = numbers(answer);
    return all.empty() ? "" : all.front();
}

bool is_right(const Fact & fact, const std::string & answer) {
    switch (fact.compared) {
    case Compared::first_number: return first_number(answer) == fact.answer;
    case Compared::last_number: return !numbers(answer).empty() && numbers(answer).back() == fact.answer;
    case Compared::names: return matches(answer, NAME) == matches(fact.answer, NAME);
    case Compared::words: return holds(matches(answer, WORD), matches(fact.answer, WORD));
    case Compared::code: return holds(matches(answer, CODE), matches(fact.answer, CODE));
    }
    return false;
}

} // namespace vidkv::cli
