// Help texts: plain type names, wrapped to the terminal; and a hint for a mistyped command.
#pragma once

#include <memory>
#include <string>

#include <CLI/CLI.hpp>

namespace vidkv::cli {

std::shared_ptr<CLI::FormatterBase> help_formatter();

// "" or a line on the first word of the command line that should name a command and does not.
std::string unknown_command(const CLI::App & app, int argc, char ** argv);

} // namespace vidkv::cli
