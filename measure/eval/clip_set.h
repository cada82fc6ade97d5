// Clips with questions whose answers are known, as vidkv data makes them.
#pragma once

#include <string>
#include <vector>

#include "commands/data.h"

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
    ~TemporarySet();
    TemporarySet(const TemporarySet &) = delete;
    TemporarySet & operator=(const TemporarySet &) = delete;
    const std::string & folder() const { return folder_; }

  private:
    void remove() const;
    std::string folder_;
};

// Throws Error if the folder holds no set.
std::vector<Clip> read_set(const std::string & folder);

} // namespace vidkv::cli
