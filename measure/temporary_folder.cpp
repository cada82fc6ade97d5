#include "temporary_folder.h"

#include <cstdlib>
#include <filesystem>

#include "error.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

TemporaryFolder::TemporaryFolder(const std::string & name, const std::string & parent) {
    const std::string place = parent.empty() ? fs::temp_directory_path().string() : parent;
    path_ = (fs::path(place) / (name + "-XXXXXX")).string();
    if (!mkdtemp(path_.data()))
        throw Error("cannot make a folder in '" + place + "'" + (parent.empty() ? ": set TMPDIR" : ""));
}

TemporaryFolder::~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
}

} // namespace vidkv::cli
