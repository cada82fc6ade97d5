// Names of tests that are run for each preset: GoogleTest takes letters, digits and underscores.
#pragma once

#include <cctype>
#include <string>

namespace vidkv::test {

inline std::string test_name(std::string text) {
    for (char & c : text) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
    return text;
}

inline constexpr auto by_preset = [](const auto & instance) { return test_name(instance.param); };

} // namespace vidkv::test
