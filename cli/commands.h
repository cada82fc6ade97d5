// The commands. Each adds itself to the command line; what runs it is set by the parser.
#pragma once

#include <functional>

#include <CLI/CLI.hpp>

namespace vidkv::cli {

using Command = std::function<void()>;

void add_ask(CLI::App & app, Command & run);
void add_chat(CLI::App & app, Command & run);
void add_file(CLI::App & app, Command & run); // show and verify
void add_pack(CLI::App & app, Command & run); // and unpack
void add_videos(CLI::App & app, Command & run);
void add_serve(CLI::App & app, Command & run);
void add_frames(CLI::App & app, Command & run);
void add_presets(CLI::App & app, Command & run);
void add_plan(CLI::App & app, Command & run);
void add_data(CLI::App & app, Command & run);
// Those that measure, where they are built (VIDKV_BUILD_MEASURE): defined in measure/.
void add_measurements(CLI::App & app, Command & run);

} // namespace vidkv::cli
