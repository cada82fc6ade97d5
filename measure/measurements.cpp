#include "measurements.h"

namespace vidkv::cli {

void add_measurements(CLI::App & app, Command & run) {
    const std::string group = "MEASURE";
    CLI::App * eval = app.add_subcommand("eval", "Measure what presets do to answers and distributions")->group(group);
    eval->require_subcommand(1);
    add_eval_kl(*eval, run);
    add_eval_layers(*eval, run);
    add_eval_retrieval(*eval, run);
    add_eval_answers(*eval, run);
    add_eval_video(*eval, run);
    add_bench(app, run);
    add_report(app, run);
    add_benchmark(app, run);
    for (const char * name : {"bench", "report", "benchmark"}) app.get_subcommand(name)->group(group);
}

} // namespace vidkv::cli
