// vidkv bench video: what a few frames of a long video cost, against decoding all of it.
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>

#include <sys/resource.h>

#include "bench/bench.h"
#include "machine.h"
#include "error.h"
#include "progress.h"
#include "subprocess.h"
#include "temporary_folder.h"
#include "text.h"
#include "video/reader.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

namespace {

struct VideoOptions {
    std::string size = "1920x1080";
    int minutes = 60;
    int64_t frames = 64;
    bool json = false;
};

double processor_seconds(int whose) {
    rusage used = {};
    getrusage(whose, &used);
    const auto seconds = [](const timeval & t) {
        return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
    };
    return seconds(used.ru_utime) + seconds(used.ru_stime);
}

// Runs the program ffmpeg; its processor seconds.
double ffmpeg(const std::vector<std::string> & arguments) {
    std::vector<std::string> command = {"ffmpeg", "-nostdin", "-y", "-loglevel", "error"};
    command.insert(command.end(), arguments.begin(), arguments.end());
    const double before = processor_seconds(RUSAGE_CHILDREN);
    Subprocess child(command);
    child.read_all();
    if (child.wait() != 0) throw Error("ffmpeg failed: " + first_line(child.complaints()));
    return processor_seconds(RUSAGE_CHILDREN) - before;
}

// ffmpeg's test picture with a key frame every 2 s.
void make_minute(const std::string & size, const std::string & path) {
    ffmpeg({"-f", "lavfi", "-i", "testsrc2=r=25:d=60:s=" + size, "-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt",
            "yuv420p", "-g", "50", path});
}

Json measure(const VideoOptions & options) {
    const TemporaryFolder folder("vidkv-bench");
    const std::string minute = folder.file("minute.mp4"), video = folder.file("long.mp4");
    Progress progress(options.json);
    progress.show("making a video", 0, 0, "");
    make_minute(options.size, minute);
    ffmpeg({"-stream_loop", std::to_string(options.minutes - 1), "-i", minute, "-c", "copy", video});
    progress.show("decoding a minute of it", 0, 0, "");
    const double whole = ffmpeg({"-i", minute, "-f", "null", "-"}) * options.minutes;
    Sampling sampling;
    sampling.max_frames = options.frames;
    const double before = processor_seconds(RUSAGE_SELF);
    FrameReader reader(video, sampling);
    int64_t taken = 0;
    while (reader.next()) progress.show("taking frames", ++taken, options.frames, "frames");
    const double sparse = processor_seconds(RUSAGE_SELF) - before;
    return {{"cpu", cpu_name()},
            {"size", options.size},
            {"minutes", options.minutes},
            {"bytes", fs::file_size(video)},
            {"frames", taken},
            {"packets_decoded", reader.decoded()},
            {"processor_seconds", sparse},
            {"processor_seconds_of_all", whole},
            {"share", sparse / whole}};
}

void print(const Json & report) {
    std::printf(
        "%s\n%d minutes of %s, %.0f MiB: %lld frames, %lld packets decoded, %.1f processor seconds; decoding all of it takes "
        "%.1f (a minute's times %d): %.1f %%\n",
        report["cpu"].get<std::string>().c_str(), report["minutes"].get<int>(), report["size"].get<std::string>().c_str(),
        report["bytes"].get<double>() / (1 << 20), report["frames"].get<long long>(),
        report["packets_decoded"].get<long long>(), report["processor_seconds"].get<double>(),
        report["processor_seconds_of_all"].get<double>(), report["minutes"].get<int>(),
        100 * report["share"].get<double>());
}

void run_video(const VideoOptions & options) {
    const Json report = measure(options);
    options.json ? void(std::cout << report.dump(2) << "\n") : print(report);
}

} // namespace

void add_bench_video(CLI::App & bench, Command & run) {
    auto options = std::make_shared<VideoOptions>();
    CLI::App * app = bench.add_subcommand("video", "A few frames of a long video, against decoding all of it");
    app->add_option("--minutes", options->minutes, "length of the video, which is made first, 100 MB a minute (default 60)")
        ->check(CLI::Range(1, 1440));
    app->add_option("--size", options->size, "of its pictures (default 1920x1080)");
    app->add_option("--frames", options->frames, "frames to take, evenly (default 64)")->check(CLI::Range(1, 100000));
    app->add_flag("--json", options->json, "print one JSON document instead of text");
    app->callback([options, &run] { run = [options] { run_video(*options); }; });
}

} // namespace vidkv::cli
