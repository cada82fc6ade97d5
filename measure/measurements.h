// The commands that measure: vidkv eval, bench and report.
#pragma once

#include "commands.h"

namespace vidkv::cli {

void add_bench(CLI::App & app, Command & run);
void add_benchmark(CLI::App & app, Command & run);
void add_eval_answers(CLI::App & eval, Command & run);
void add_eval_kl(CLI::App & eval, Command & run);
void add_eval_layers(CLI::App & eval, Command & run);
void add_eval_retrieval(CLI::App & eval, Command & run);
void add_eval_video(CLI::App & eval, Command & run);
void add_report(CLI::App & app, Command & run);

} // namespace vidkv::cli
