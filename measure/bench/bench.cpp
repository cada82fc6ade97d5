// vidkv bench: what the commands under it share.
#include "bench/bench.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "error.h"
#include "paths.h"
#include "subprocess.h"
#include "text.h"
#include "vidkv/vidkv.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

namespace {

fs::path program() { return fs::read_symlink("/proc/self/exe"); }

} // namespace

void check_presets(const std::vector<std::string> & names) {
    for (const std::string & name : names) {
        vidkv_params params;
        if (vidkv_params_from_preset(name.c_str(), &params) != VIDKV_OK)
            throw UsageError("no preset '" + name + "': " + vidkv_last_error());
    }
}

std::vector<std::string> packed_presets() {
    std::vector<std::string> names;
    for (size_t i = 0; const char * name = vidkv_preset_name(i); ++i)
        if (std::string(name) != "f16") names.push_back(name);
    return names;
}

Json run_child(const std::vector<std::string> & arguments) {
    std::vector<std::string> command = {program().string()};
    command.insert(command.end(), arguments.begin(), arguments.end());
    Subprocess child(command);
    const std::string report = child.read_all();
    if (child.wait() != 0) {
        const std::string complaint = last_line(child.complaints()), name = "vidkv: ";
        if (complaint.empty()) throw Error("a run of '" + arguments[1] + "' ended without a report");
        throw Error(complaint.starts_with(name) ? complaint.substr(name.size()) : complaint);
    }
    return Json::parse(report);
}

std::string ggml_built_for(const std::string & isa) {
    const fs::path library = program().parent_path() / ("libggml-cpu-" + isa + ".so");
    std::error_code failed;
    return fs::is_regular_file(library, failed) ? library.string() : "";
}

void write_csv(const std::string & path, const std::vector<std::string> & header, const Json & rows) {
    std::ofstream file(path);
    for (const std::string & line : header) file << "# " << line << "\n";
    for (size_t i = 0; i < rows.size(); ++i) {
        std::string names, values;
        for (const auto & [name, value] : rows[i].items()) {
            names += (names.empty() ? "" : ",") + name;
            values += (values.empty() ? "" : ",") + (value.is_string() ? value.get<std::string>()
                                                     : value.is_null() ? ""
                                                                       : value.dump());
        }
        if (i == 0) file << names << "\n";
        file << values << "\n";
    }
    file.close();
    if (!file) throw Error("cannot write '" + path + "': no such folder, no permission, or the disk is full");
}

void plot_roofline(const std::string & csv, const std::string & out) {
    const char * chosen = std::getenv("VIDKV_PYTHON");
    Subprocess python({chosen && *chosen ? chosen : "python3", script_path("measure/bench/roofline.py"), csv, out});
    python.read_all();
    if (python.wait() == 0) return;
    const std::string complaint = python.complaints();
    if (complaint.find("matplotlib") != std::string::npos)
        throw Error("--plot needs matplotlib: install python3-matplotlib, or set VIDKV_PYTHON to a Python that has it");
    throw Error("cannot draw '" + out + "': " + first_line(complaint));
}

void add_bench(CLI::App & app, Command & run) {
    CLI::App * bench = app.add_subcommand("bench", "Measure speed and memory against ggml's own caches");
    bench->require_subcommand(1);
    add_bench_attention(*bench, run);
    add_bench_seal(*bench, run);
    add_bench_model(*bench, run);
    add_bench_memory(*bench, run);
    add_bench_file(*bench, run);
    add_bench_video(*bench, run);
    add_bench_saved(*bench, run);
    add_bench_latency(*bench, run);
}

} // namespace vidkv::cli
