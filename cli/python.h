// The Python that runs the scripts beside this program.
#pragma once

#include <string>

namespace vidkv::cli {

// The first that can import `module`: VIDKV_PYTHON (taken as it is), the one in PATH, Debian's. Throws Error.
std::string find_python(const std::string & module);

} // namespace vidkv::cli
