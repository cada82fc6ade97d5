// What has been put into a cache, as llama-server remembers it: tokens, and chunks of pictures with names by which it knows them again.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "llama.h"
#include "mtmd.h"

namespace vidkv::cli {

class PromptTokens {
  public:
    void clear() { *this = {}; }
    void add(const std::vector<llama_token> & tokens);
    void add(const mtmd_input_chunk * chunk);
    // Rows that llama-server has no chunk for: from now on nothing can be said.
    void add_unknown() { known_ = false; }
    void keep_first(int64_t n);

    // In llama-server's own format, which slot files have (server_tokens); empty: it cannot be said.
    std::vector<uint8_t> bytes() const;
    // Of such bytes; unknown where they are of another version.
    static PromptTokens from_bytes(std::string_view bytes);

  private:
    bool known_ = true;
    std::vector<llama_token> tokens_;            // LLAMA_TOKEN_NULL in the place of pictures
    std::map<int64_t, std::vector<char>> media_; // by their first tokens
};

// llama-server knows a video's pictures by its SHA-256, which is not looked for before it is needed: until then this stands in its
// place, of the same length.
std::string video_stand_in(size_t number);

} // namespace vidkv::cli
