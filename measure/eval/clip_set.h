// Clips with questions whose answers are known, as vidkv data makes them.
#pragma once

#include <string>
#include <vector>

#include "commands/data.h"
#include "temporary_folder.h"

namespace vidkv::cli {

struct Question {
    std::string text, answer, type;
    int candidates = 0;
};

struct Clip {
    std::string path;
    std::vector<Question> questions;
};

// A generated set in a folder that is removed again.
class TemporarySet {
  public:
    explicit TemporarySet(DataOptions options);
    const std::string & folder() const { return folder_.path(); }

  private:
    TemporaryFolder folder_;
};

// Throws Error if the folder holds no set.
std::vector<Clip> read_set(const std::string & folder);

} // namespace vidkv::cli
