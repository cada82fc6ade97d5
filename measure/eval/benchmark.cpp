// vidkv benchmark: the paper's benchmarks through lmms-eval. The work is done by the Python package
// (python/vidkv/benchmark).
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <unistd.h>

#include "error.h"
#include "measurements.h"
#include "python.h"

namespace vidkv::cli {

namespace {

std::string python_with_package() {
    try {
        return find_python("vidkv.benchmark.__main__");
    } catch (const Error &) {
        throw Error("vidkv benchmark needs a Python with the package vidkv and lmms-eval: `pip install .[demo]` and "
                    "`pip install --no-deps -r measure/benchmarks/requirements.txt`, and VIDKV_PYTHON set to it "
                    "(docs/benchmarks.md)");
    }
}

// Becomes the Python program, so that Ctrl-C, output and exit code are its own.
void become_benchmark(const std::vector<std::string> & arguments) {
    std::vector<std::string> words = {python_with_package(), "-m", "vidkv.benchmark"};
    words.insert(words.end(), arguments.begin(), arguments.end());
    std::vector<char *> argv;
    for (std::string & word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    execvp(argv[0], argv.data());
    throw Error("cannot start '" + words[0] + "': " + std::strerror(errno));
}

} // namespace

void add_benchmark(CLI::App & app, Command & run) {
    CLI::App * benchmark =
        app.add_subcommand("benchmark", "The paper's benchmarks with any cache, through lmms-eval (--help: its options)");
    benchmark->set_help_flag(); // all that follows is the Python program's
    benchmark->prefix_command();
    benchmark->callback([benchmark, &run] { run = [words = benchmark->remaining()] { become_benchmark(words); }; });
}

} // namespace vidkv::cli
