#include "eval/made_up.h"

#include <array>

namespace vidkv::cli {

namespace {

constexpr std::array ADJECTIVES = {"amber", "brisk",  "calm",  "dusty", "eager", "faint", "grand", "hollow",
                                   "icy",   "jolly",  "keen",  "lunar", "mild",  "noble", "olive", "pale",
                                   "quiet", "rustic", "solar", "tidy",  "umber", "vivid", "warm",  "young"};
constexpr std::array NOUNS = {"anchor", "beacon", "canyon",  "dolphin", "ember",  "falcon", "glacier", "heron",
                              "island", "jasper", "kestrel", "lantern", "meadow", "nettle", "orchid",  "pebble",
                              "quarry", "raven",  "saddle",  "thistle", "urchin", "violet", "walnut",  "yarrow"};
constexpr size_t PAIRS = ADJECTIVES.size() * NOUNS.size();
constexpr size_t STEP = 131; // has no divisor in common with 576: no pair comes twice

} // namespace

Names::Names(Dice & dice) : at_(dice.below(PAIRS)) {}

Name Names::next() {
    const size_t pair = at_;
    at_ = (at_ + STEP) % PAIRS;
    return {ADJECTIVES[pair / NOUNS.size()], NOUNS[pair % NOUNS.size()]};
}

std::string Names::next(char between) {
    const Name name = next();
    return name.first + between + name.second;
}

} // namespace vidkv::cli
