// Numbers of tokens as options name them.
#pragma once

#include <cstdint>
#include <string>

namespace vidkv::cli {

// "4096", "32k" (32,768), "1M" (1,048,576). Throws UsageError.
int64_t parse_tokens(const std::string & text);

} // namespace vidkv::cli
