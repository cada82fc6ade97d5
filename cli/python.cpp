#include "python.h"

#include <cstdlib>

#include "error.h"
#include "subprocess.h"

namespace vidkv::cli {

namespace {

bool can_import(const std::string & python, const std::string & module) {
    try {
        Subprocess probe({python, "-c", "import " + module});
        return probe.wait() == 0;
    } catch (const Error &) {
        return false; // not installed
    }
}

} // namespace

std::string find_python(const std::string & module) {
    const char * chosen = std::getenv("VIDKV_PYTHON");
    if (chosen && *chosen) {
        if (can_import(chosen, module)) return chosen;
        throw Error(std::string("VIDKV_PYTHON (") + chosen + ") cannot import " + module + ": name a Python that has it");
    }
    for (const char * python : {"python3", "/usr/bin/python3"})
        if (can_import(python, module)) return python;
    throw Error("this needs python3 with " + module + ": install python3-" + module + ", or set VIDKV_PYTHON");
}

} // namespace vidkv::cli
