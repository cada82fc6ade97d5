#include "engine/prompt_tokens.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "engine/state_section.h"
#include "error.h"

namespace vidkv::cli {

namespace {

constexpr uint32_t VERSION = 1; // of llama-server's format

void append_32(std::vector<uint8_t> & to, uint32_t number) { append_bytes(to, &number, sizeof(number)); }

uint32_t take_32(SectionReader & in) {
    uint32_t number = 0;
    std::memcpy(&number, in.bytes(sizeof(number)).data(), sizeof(number));
    return number;
}

} // namespace

void PromptTokens::add(const std::vector<llama_token> & tokens) {
    tokens_.insert(tokens_.end(), tokens.begin(), tokens.end());
}

void PromptTokens::add(const mtmd_input_chunk * chunk) {
    size_t bytes = 0;
    if (mtmd_input_chunk_save(chunk, nullptr, 0, &bytes) != 0) return add_unknown();
    std::vector<char> saved(bytes);
    if (mtmd_input_chunk_save(chunk, saved.data(), saved.size(), nullptr) != 0) return add_unknown();
    media_[static_cast<int64_t>(tokens_.size())] = std::move(saved);
    tokens_.resize(tokens_.size() + mtmd_input_chunk_get_n_tokens(chunk), LLAMA_TOKEN_NULL);
}

void PromptTokens::keep_first(int64_t n) {
    tokens_.resize(std::min(tokens_.size(), static_cast<size_t>(n)));
    media_.erase(media_.lower_bound(n), media_.end());
}

std::vector<uint8_t> PromptTokens::bytes() const {
    std::vector<uint8_t> out;
    if (!known_ || tokens_.empty()) return out;
    append_32(out, static_cast<uint32_t>(LLAMA_TOKEN_NULL));
    append_32(out, VERSION);
    append_32(out, static_cast<uint32_t>(tokens_.size()));
    append_bytes(out, tokens_.data(), tokens_.size() * sizeof(llama_token));
    append_32(out, static_cast<uint32_t>(media_.size()));
    for (const auto & [first, chunk] : media_) append_32(out, static_cast<uint32_t>(first));
    for (const auto & [first, chunk] : media_) {
        append_32(out, static_cast<uint32_t>(chunk.size()));
        append_bytes(out, chunk.data(), chunk.size());
    }
    out.resize((out.size() + sizeof(llama_token) - 1) / sizeof(llama_token) * sizeof(llama_token));
    return out;
}

PromptTokens PromptTokens::from_bytes(std::string_view bytes) {
    PromptTokens prompt;
    try {
        SectionReader in(bytes);
        if (take_32(in) != static_cast<uint32_t>(LLAMA_TOKEN_NULL) || take_32(in) != VERSION)
            throw Error("another version");
        const uint32_t tokens = take_32(in);
        const std::string_view all = in.bytes(uint64_t(tokens) * sizeof(llama_token));
        prompt.tokens_.resize(tokens);
        if (tokens > 0) std::memcpy(prompt.tokens_.data(), all.data(), all.size());
        std::vector<uint32_t> firsts;
        for (uint32_t left = take_32(in); left > 0; --left) firsts.push_back(take_32(in));
        for (const uint32_t first : firsts) {
            const std::string_view chunk = in.bytes(take_32(in));
            prompt.media_[first].assign(chunk.begin(), chunk.end());
        }
    } catch (const Error &) {
        prompt.clear();
        prompt.add_unknown();
    }
    return prompt;
}

std::string video_stand_in(size_t number) {
    char text[65];
    std::snprintf(text, sizeof(text), "vidkv-video-%052zu", number);
    return text;
}

} // namespace vidkv::cli
