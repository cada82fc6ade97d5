// XXH3, 64 bits: finds damage, not malice, so every number of a file is checked for sense as well.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace vidkv {

uint64_t checksum(const void * data, size_t size);

// Of bytes that come piece by piece.
class Checksum {
  public:
    Checksum();
    ~Checksum();
    void reset();
    void add(const void * data, size_t size);
    uint64_t value() const;

  private:
    struct State;
    std::unique_ptr<State> state_;
};

} // namespace vidkv
