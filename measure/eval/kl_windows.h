// The texts that `vidkv eval kl` scores, cut into windows of tokens.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/model.h"

namespace vidkv::cli {

// In which order a window's text comes. Near: as written. Far: 64 tokens of the text, a passage of 256 tokens from elsewhere
// in it, the text again, and at the end the same passage once more: what is scored was last read over a thousand tokens ago.
enum class Protocol { near, far };

constexpr int SCORED_TOKENS = 256; // a window's last ones
// Far: the first tokens of the repeated passage do not tell yet that it is one, and are not scored.
constexpr int RECOGNISED_AFTER = 32;

struct Window {
    std::vector<llama_token> tokens;
    int skipped = 0; // of the last SCORED_TOKENS, from their first
};

// Evenly spaced over the text, never overlapping; fewer than wanted if the text is short. Throws Error if not one fits.
std::vector<Window> cut_windows(const Model & model, const std::string & text, Protocol protocol, int wanted, int length);

} // namespace vidkv::cli
