// Made-up facts in a long file, and questions about them whose answers are known: numbers that no model can guess.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vidkv::cli {

// What of an answer has to be as expected.
enum class Compared {
    first_number,
    last_number, // after what was reckoned
    names,       // all that are made of two words, as amber-falcon, in their order
    words,       // somewhere in it, whatever stands between them
    code         // somewhere in it, whatever the white space
};

struct Fact {
    std::string kind;     // constant, port or function; of an exercise: code, list, arithmetic or copy
    std::string line;     // as it stands in the file; of an exercise: lines
    std::string question; // asked at its end
    std::string answer;
    double depth = 0; // where in the file, 0 to 1
    Compared compared = Compared::first_number;
};

bool is_right(const Fact & fact, const std::string & answer);

// n facts at growing depths, one in each n-th of the file; the same for the same seed and sample.
std::vector<Fact> make_facts(uint64_t seed, int64_t sample, int n);

// About `bytes` bytes of the text, from a line that seed and sample choose on, over its end again, with each fact on a line of
// its own.
std::string plant(const std::string & text, const std::vector<Fact> & facts, uint64_t seed, int64_t sample, size_t bytes);

// The first number in an answer, without commas between its digits; "" if there is none.
std::string first_number(const std::string & answer);

} // namespace vidkv::cli
