// The Python that runs the scripts beside this program.
#pragma once

#include <string>

namespace vidkv::cli {

// The first of these that can import `module`: VIDKV_PYTHON (if set, no other is tried), python3 in PATH, Debian's. Throws
// Error.
std::string find_python(const std::string & module);

} // namespace vidkv::cli
