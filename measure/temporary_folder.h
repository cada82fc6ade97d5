#pragma once

#include <string>

namespace vidkv::cli {

// Where temporary files go: TMPDIR, or /tmp. Throws Error if there is no such folder.
std::string temporary_place();

// A folder of its own, which goes with all that is in it when this does.
class TemporaryFolder {
  public:
    // name: the folder's begins with it. parent "": temporary_place().
    explicit TemporaryFolder(const std::string & name, const std::string & parent = "");
    ~TemporaryFolder();
    TemporaryFolder(const TemporaryFolder &) = delete;
    TemporaryFolder & operator=(const TemporaryFolder &) = delete;

    const std::string & path() const { return path_; }
    std::string file(const std::string & name) const { return path_ + "/" + name; }

  private:
    std::string path_;
};

} // namespace vidkv::cli
