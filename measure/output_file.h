// Files that commands leave behind.
#pragma once

#include <string>

#include "error.h"

namespace vidkv::cli {

inline Error cannot_write(const std::string & path) {
    return Error("cannot write '" + path + "': is the folder there, and not full?");
}

} // namespace vidkv::cli
