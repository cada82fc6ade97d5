#include "temporary_folder.h"

#include <cstdlib>
#include <filesystem>

#include "error.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

std::string temporary_place() {
    const char * chosen = std::getenv("TMPDIR");
    std::string place = chosen && *chosen ? chosen : "/tmp";
    std::error_code failed;
    if (!fs::is_directory(place, failed)) throw Error("no folder '" + place + "' for temporary files: set TMPDIR to one");
    return place;
}

TemporaryFolder::TemporaryFolder(const std::string & name, const std::string & parent) {
    const std::string place = parent.empty() ? temporary_place() : parent;
    path_ = (fs::path(place) / (name + "-XXXXXX")).string();
    if (!mkdtemp(path_.data()))
        throw Error("cannot make a folder in '" + place + "'" + (parent.empty() ? ": set TMPDIR" : ""));
}

TemporaryFolder::~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
}

} // namespace vidkv::cli
