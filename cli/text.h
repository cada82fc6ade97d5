// Small pieces of text.
#pragma once

#include <string>

namespace vidkv::cli {

inline std::string first_line(const std::string & text) { return text.substr(0, text.find('\n')); }

} // namespace vidkv::cli
