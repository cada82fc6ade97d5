#include "video/watched_file.h"

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <vector>

#include <sys/stat.h>

#include <xxhash.h>

#include "error.h"
#include "interrupt.h"
#include "video/source.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

namespace {

std::string hexadecimal(uint64_t hash) {
    char text[17];
    std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash));
    return text;
}

std::vector<std::string> files_of(const Source & source) {
    return source.kind == Source::IMAGES ? source.images : std::vector<std::string>{source.name};
}

std::string stat_text(const std::string & path, uint64_t & bytes) {
    struct stat found = {};
    if (stat(path.c_str(), &found) != 0) throw Error("'" + path + "' cannot be read: check its permissions");
    bytes += static_cast<uint64_t>(found.st_size);
    std::string text = path;
    for (const int64_t number : {int64_t(found.st_size), int64_t(found.st_mtim.tv_sec), int64_t(found.st_mtim.tv_nsec),
                                 int64_t(found.st_ctim.tv_sec), int64_t(found.st_ctim.tv_nsec), int64_t(found.st_ino)})
        text += ' ' + std::to_string(number);
    return text;
}

uint64_t hash_file(const std::string & path, uint64_t seed) {
    std::ifstream file(path, std::ios::binary);
    std::vector<char> part(1 << 20);
    while (file) {
        check_interrupt();
        file.read(part.data(), static_cast<std::streamsize>(part.size()));
        seed = XXH3_64bits_withSeed(part.data(), static_cast<size_t>(file.gcount()), seed);
    }
    if (!file.eof()) throw Error("'" + path + "' cannot be read: check its permissions");
    return seed;
}

} // namespace

std::string fingerprint_of(const std::string & text) { return hexadecimal(XXH3_64bits(text.data(), text.size())); }

std::optional<WatchedFile> look_at(const std::string & argument) {
    const Source source = find_source(argument);
    if (source.kind == Source::PIPE || source.kind == Source::URL) return std::nullopt;
    WatchedFile file;
    file.path = fs::absolute(argument).lexically_normal().string();
    std::string text;
    for (const std::string & path : files_of(source)) text += stat_text(path, file.bytes) + '\n';
    file.stat = fingerprint_of(text);
    return file;
}

std::string content_of(const std::string & argument) {
    uint64_t hash = 0;
    for (const std::string & path : files_of(find_source(argument))) hash = hash_file(path, hash + 1);
    return hexadecimal(hash);
}

} // namespace vidkv::cli
