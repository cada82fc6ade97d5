// vidkv report: one HTML page with plots of what eval kl and eval video measured.
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>

#include "measurements.h"
#include "error.h"
#include "paths.h"
#include "python.h"
#include "subprocess.h"
#include "text.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

namespace {

struct ReportOptions {
    std::string out, kl, far, video;
    std::string windows = "6", clips = "20";
    std::vector<std::string> kv = {"all"};
};

std::string joined(const std::vector<std::string> & names) {
    std::string list;
    for (const std::string & name : names) list += (list.empty() ? "" : ",") + name;
    return list;
}

// Runs this program's own `eval` with --json into a file.
void measure_into(const std::string & file, std::vector<std::string> arguments) {
    std::cerr << "measuring: vidkv";
    for (const std::string & argument : arguments) std::cerr << ' ' << argument;
    std::cerr << std::endl;
    arguments.insert(arguments.begin(), fs::read_symlink("/proc/self/exe").string());
    Subprocess measurement(arguments);
    const std::string document = measurement.read_all();
    if (measurement.wait() != 0) {
        const std::string complaint = first_line(measurement.complaints());
        throw Error(complaint.starts_with("vidkv: ") ? complaint.substr(7) : complaint);
    }
    std::ofstream out(file);
    if (!(out << document) || (out.close(), !out)) throw Error("cannot write '" + file + "': is the disk full?");
}

// `report all` means everything, which is measured anyway; hours later it would be a folder of that name.
void check_folder(const std::string & folder) {
    if (folder == "all")
        throw UsageError("name the folder for the page, as in 'vidkv report page': everything is measured anyway");
}

void run_report(const ReportOptions & options) {
    check_folder(options.out);
    const std::string python = find_python("matplotlib"), script = script_path("measure/eval/report.py");
    for (const std::string & given : {options.kl, options.far, options.video})
        if (!given.empty() && !std::ifstream(given)) throw Error("cannot read '" + given + "'");
    const std::string codecs = joined(options.kv);
    std::string kl = options.kl, far = options.far, video = options.video;
    if (kl.empty() && far.empty() &&
        video.empty()) { // measured into FOLDER, so that hours of work outlast what comes after them
        const auto file = [&](const char * name) { return (fs::path(options.out) / name).string(); };
        std::error_code failed;
        fs::create_directories(options.out, failed);
        if (failed) throw Error("cannot make the folder '" + options.out + "': " + failed.message());
        kl = file("kl.json");
        measure_into(kl, {"eval", "kl", "--kv", codecs, "--windows", options.windows, "--details", "--json"});
        far = file("far.json");
        measure_into(
            far, {"eval", "kl", "--protocol", "far", "--kv", codecs, "--windows", options.windows, "--details", "--json"});
        video = file("video.json");
        measure_into(video, {"eval", "video", "--kv", codecs, "--split", "long", "--count", options.clips, "--json"});
    }
    std::vector<std::string> command = {python, script, "--out", options.out};
    for (const auto & [option, file] : {std::pair("--kl", kl), {"--far", far}, {"--video", video}}) {
        if (!file.empty()) command.insert(command.end(), {option, file});
    }
    Subprocess plot(command);
    const std::string written = plot.read_all();
    if (plot.wait() != 0) throw Error("cannot make the report: " + first_line(plot.complaints()));
    std::cout << written;
}

} // namespace

void add_report(CLI::App & app, Command & run) {
    auto options = std::make_shared<ReportOptions>();
    CLI::App * report = app.add_subcommand("report", "One HTML page with plots of what eval kl and eval video measure");
    report->add_option("--kl", options->kl,
                       "JSON of vidkv eval kl --details; without --kl, --far and --video all are measured");
    report->add_option("--far", options->far, "JSON of vidkv eval kl --protocol far");
    report->add_option("--video", options->video, "JSON of vidkv eval video");
    report->add_option("--kv", options->kv, "codecs to measure, separated by commas (default all)")->delimiter(',');
    report->add_option("--windows", options->windows, "windows to measure (default 6)");
    report->add_option("--clips", options->clips, "long clips to measure (default 20)");
    report
        ->add_option("FOLDER", options->out,
                     "where index.html, the PNG plots and what was measured go; parts that lie there already are shown too")
        ->required();
    report->footer(R"(EXAMPLES
  vidkv report page                       measure everything (hours), then plot
  vidkv eval kl --details --json > kl.json && vidkv report --kl kl.json page)");
    report->callback([options, &run] { run = [options] { run_report(*options); }; });
}

} // namespace vidkv::cli
