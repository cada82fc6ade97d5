#include "run_record.h"

#include <array>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "machine.h"
#include "vidkv/vidkv.h"

namespace vidkv::cli {

namespace {

std::string today() {
    const std::time_t now = std::time(nullptr);
    std::tm utc = {};
    std::array<char, 32> text = {};
    if (gmtime_r(&now, &utc)) std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M UTC", &utc);
    return text.data();
}

// As it was typed, but for the path of the program.
std::string command() {
    std::ifstream file("/proc/self/cmdline", std::ios::binary);
    const std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    std::string line;
    for (size_t at = 0; at < all.size(); at = all.find('\0', at) + 1) {
        const std::string word = all.c_str() + at;
        line += at == 0 ? std::filesystem::path(word).filename().string() : " " + word;
    }
    return line;
}

} // namespace

nlohmann::ordered_json run_record() {
    return {{"version", vidkv_version()}, {"cpu", cpu_name()}, {"date", today()}, {"command", command()}};
}

} // namespace vidkv::cli
