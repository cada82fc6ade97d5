// Small pieces of text.
#pragma once

#include <string>

namespace vidkv::cli {

inline std::string first_line(const std::string & text) { return text.substr(0, text.find('\n')); }

// Of a program's complaints: what ended it stands last.
inline std::string last_line(std::string text) {
    while (text.ends_with('\n')) text.pop_back();
    return text.substr(text.rfind('\n') + 1);
}

// Without white space at both ends.
inline std::string trim(const std::string & text) {
    const size_t first = text.find_first_not_of(" \t\r\n"), last = text.find_last_not_of(" \t\r\n");
    return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

} // namespace vidkv::cli
