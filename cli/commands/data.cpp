// vidkv data: runs the clip generator.
#include "commands/data.h"

#include <cerrno>
#include <cstring>
#include <memory>

#include <unistd.h>

#include "commands.h"
#include "error.h"
#include "paths.h"
#include "python.h"
#include "subprocess.h"
#include "text.h"

namespace vidkv::cli {

namespace {

constexpr const char * SPLITS =
    "short: up to 300 visual tokens per clip; long: 2,000 to 4,000; still, noise, pan, cuts: as long, before a texture "
    "under a camera that stands still, is noisy, pans slowly or cuts; mixed: these four, one after the other, in 20,000";

std::vector<std::string> generator_command(const DataOptions & options) {
    std::vector<std::string> command = {find_python("numpy"),
                                        script_path("models/clips/generate.py"),
                                        "--seed",
                                        std::to_string(options.seed),
                                        "--split",
                                        options.split,
                                        "--count",
                                        std::to_string(options.count)};
    if (options.blank) command.push_back("--blank");
    command.push_back("--");
    command.push_back(options.out);
    return command;
}

// Becomes the generator, so that its messages, Ctrl-C and exit code are the user's.
[[noreturn]] void run_data(const DataOptions & options) {
    const std::vector<std::string> command = generator_command(options);
    std::vector<char *> arguments;
    for (const std::string & argument : command) arguments.push_back(const_cast<char *>(argument.c_str()));
    arguments.push_back(nullptr);
    execvp(arguments[0], arguments.data());
    throw Error("cannot run '" + command[0] + "' (" + std::strerror(errno) + "): install python3 and python3-numpy");
}

} // namespace

void add_data_options(CLI::App & app, DataOptions & options) {
    app.add_option("--seed", options.seed, "the same seed makes the same clips (default 0)")
        ->check(CLI::Range(int64_t(0), INT64_MAX));
    app.add_option("--split", options.split, std::string(SPLITS) + " (default short)")
        ->check(CLI::IsMember({"short", "long", "still", "noise", "pan", "cuts", "mixed"}));
    app.add_option("--count", options.count, "clips")->check(CLI::Range(1, 100000));
}

void generate_data(const DataOptions & options) {
    Subprocess generator(generator_command(options));
    generator.read_all();
    if (generator.wait() != 0) {
        const std::string complaint = generator.complaints();
        throw Error("cannot make clips: " + first_line(complaint.starts_with("vidkv: ") ? complaint.substr(7) : complaint));
    }
}

void add_data(CLI::App & app, Command & run) {
    auto options = std::make_shared<DataOptions>();
    CLI::App * data = app.add_subcommand("data", "Make video clips with questions and answers");
    add_data_options(*data, *options);
    data->get_option("--seed")->required()->description("the same seed makes the same clips");
    data->get_option("--split")->required()->description(SPLITS);
    data->get_option("--count")->required();
    data->add_flag("--blank", options->blank, "the same questions over empty frames");
    data->add_option("OUT", options->out, "a new or empty folder: clip-00000.mp4 ... and questions.jsonl")->required();
    data->callback([options, &run] { run = [options] { run_data(*options); }; });
}

} // namespace vidkv::cli
