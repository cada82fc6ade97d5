// vidkv serve: the stock llama-server with a packed cache.
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <memory>

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "commands.h"
#include "engine/kv_choice.h"
#include "engine/slot_videos.h"
#include "error.h"
#include "interrupt.h"
#include "options.h"
#include "paths.h"
#include "text.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

namespace {

struct ServeOptions {
    Options common;
    std::string host = "127.0.0.1";
    int port = 8080;
    int64_t context = 0;
    std::vector<std::string> videos; // watched before
    std::vector<std::string> more;   // for llama-server
};

// llama-server with its output in a pipe. It ends when this object does.
class Server {
  public:
    Server(const std::vector<std::string> & arguments, const std::vector<std::pair<std::string, std::string>> & settings);
    ~Server();
    Server(const Server &) = delete;
    Server & operator=(const Server &) = delete;

    // The next line that it writes; false at the end. Throws Interrupted.
    bool read_line(std::string & line);
    int wait();

  private:
    pid_t child_ = -1;
    std::unique_ptr<Child> guard_;
    int output_ = -1;
    std::string read_;
};

Server::Server(const std::vector<std::string> & arguments,
               const std::vector<std::pair<std::string, std::string>> & settings) {
    std::vector<char *> pointers;
    for (const std::string & argument : arguments) pointers.push_back(const_cast<char *>(argument.c_str()));
    pointers.push_back(nullptr);
    for (const auto & [name, value] : settings) setenv(name.c_str(), value.c_str(), 1);
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) throw Error(std::string("cannot make a pipe: ") + std::strerror(errno));
    output_ = ends[0];
    const pid_t parent = getpid();
    child_ = fork();
    if (child_ == 0) {
        setpgid(0, 0); // Ctrl-C is this command's, which then ends the server
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent) _exit(1);
        dup2(ends[1], STDOUT_FILENO);
        dup2(ends[1], STDERR_FILENO);
        execv(pointers[0], pointers.data());
        _exit(127);
    }
    close(ends[1]);
    if (child_ < 0) throw Error(std::string("cannot start llama-server: ") + std::strerror(errno));
    guard_ = std::make_unique<Child>(child_);
}

Server::~Server() {
    if (child_ > 0) {
        kill(child_, SIGTERM);
        wait();
    }
    close(output_);
}

bool Server::read_line(std::string & line) {
    size_t end;
    while ((end = read_.find('\n')) == std::string::npos) {
        check_interrupt();
        char block[4096];
        const ssize_t got = read(output_, block, sizeof(block));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        read_.append(block, static_cast<size_t>(got));
    }
    line = read_.substr(0, end);
    read_.erase(0, end + 1);
    return true;
}

int Server::wait() {
    int status = 0;
    while (waitpid(child_, &status, 0) < 0 && errno == EINTR) {
    }
    child_ = -1;
    guard_.reset();
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// What the server works with.
struct Served {
    fs::path slots, media;
    std::vector<std::unique_ptr<SlotVideo>> videos;
};

// So that the server takes the videos as they were taken, and its prompts begin as theirs.
void add_videos(std::vector<std::string> & arguments, const Served & served, bool small) {
    const ServedSampling & sampling = served.videos.front()->sampling();
    const auto add = [&](const char * option, const std::string & value) {
        arguments.insert(arguments.end(), {option, value});
    };
    add("--media-path", served.media.string());
    arguments.insert(arguments.end(), {"--no-jinja", "--kv-unified"});
    if (sampling.fps > 0) add("--video-fps", std::to_string(sampling.fps));
    if (sampling.frame_tokens > 0) add("--image-max-tokens", std::to_string(sampling.frame_tokens));
    if (sampling.timestamps >= 0 && !small)
        add("--video-timestamp-interval", std::to_string(std::lround(sampling.timestamps * 1000)));
}

std::vector<std::string> arguments_of(const ServeOptions & options, const ModelOptions & model, const KvChoice & kv,
                                      const Served & served) {
    const std::string program = server_path();
    if (program.empty())
        throw Error("no llama-server beside llama.cpp's libraries or in PATH: set VIDKV_LLAMA_SERVER to its path");
    if (access(program.c_str(), X_OK) != 0)
        throw Error("cannot run '" + program + "' (" + std::strerror(errno) +
                    "): set VIDKV_LLAMA_SERVER to the path of llama-server");
    std::vector<std::string> arguments = {program,
                                          "-m",
                                          model.files.text,
                                          "--mmproj",
                                          model.files.mmproj,
                                          "--host",
                                          options.host,
                                          "--port",
                                          std::to_string(options.port),
                                          "-t",
                                          std::to_string(options.common.session.threads),
                                          "-fa",
                                          "on",
                                          "--slot-save-path",
                                          served.slots.string()};
    const auto add = [&](std::initializer_list<std::string> more) { arguments.insert(arguments.end(), more); };
    if (!kv.stock) add({"--device", "VIDKV"});
    if (options.context > 0) add({"-c", std::to_string(options.context)});
    if (model.small) // what it was trained with
        add({"--image-max-tokens", std::to_string(model.frame_tokens), "--video-fps", "4", "--video-timestamp-interval",
             "0"});
    if (!served.videos.empty()) add_videos(arguments, served, model.small);
    arguments.insert(arguments.end(), options.more.begin(), options.more.end());
    return arguments;
}

std::vector<std::pair<std::string, std::string>> settings_of(const KvChoice & kv) {
    if (kv.stock) return {};
    const std::string plugin = plugin_path();
    if (plugin.empty()) throw Error("libggml-vidkv.so is not beside this program: set VIDKV_PLUGIN to its path");
    return {{"GGML_BACKEND_PATH", plugin}, {"VIDKV_PRESET", plugin_preset(kv.name)}};
}

void list_slots(const Served & served) {
    std::string names, videos;
    const auto is_video = [&](const std::string & name) {
        return std::ranges::any_of(served.videos, [&](const auto & video) { return video->name() == name; });
    };
    std::error_code failed;
    for (const auto & entry : fs::directory_iterator(served.slots, failed)) {
        const std::string name = entry.path().filename().string();
        if (!name.starts_with(".") && !is_video(name)) names += (names.empty() ? "" : ", ") + name;
    }
    for (const auto & video : served.videos) videos += (videos.empty() ? "" : ", ") + video->name();
    if (!names.empty()) std::fprintf(stderr, "saved conversations: %s (POST /slots/0?action=restore)\n", names.c_str());
    if (!videos.empty())
        std::fprintf(stderr, "watched videos: %s (POST /slots/0?action=restore, then ask with file://NAME)\n",
                     videos.c_str());
}

// Everything the server says with --verbose, the two lines that matter otherwise; the last complaint.
std::string follow(Server & server, bool verbose, const Served & served) {
    std::string line, complaint;
    bool listening = false;
    while (server.read_line(line)) {
        if (verbose) std::fprintf(stderr, "%s\n", line.c_str());
        const size_t packed = line.find("VidKV: KV cache"), address = line.find("listening on http");
        if (packed != std::string::npos && !verbose) std::fprintf(stderr, "%s\n", line.c_str() + packed);
        if (line.find(" E ") != std::string::npos || line.find("error") != std::string::npos) complaint = trim(line);
        if (address == std::string::npos || listening) continue;
        listening = true;
        complaint.clear();
        std::cout << line.substr(address + std::strlen("listening on ")) << std::endl;
        list_slots(served);
    }
    return complaint;
}

fs::path make_folder(const char * name) {
    fs::path folder = cache_folder() / name;
    std::error_code failed;
    fs::create_directories(folder, failed);
    if (failed) throw Error("cannot make the folder '" + folder.string() + "' (" + failed.message() + ")");
    return folder;
}

Served make_served(const ServeOptions & options, const ModelOptions & model, const KvChoice & kv) {
    Served served{make_folder("slots"), options.videos.empty() ? fs::path() : make_folder("served"), {}};
    remove_left_slots(served.slots);
    const VideoCache cache;
    for (const std::string & name : options.videos) {
        served.videos.push_back(std::make_unique<SlotVideo>(cache, name, model.files, kv.name,
                                                            options.common.session.threads, served.slots, served.media));
        if (served.videos.back()->sampling() != served.videos.front()->sampling())
            throw Error("'" + name + "' was watched with another --fps, --timestamps or --frame-tokens than '" +
                        options.videos.front() + "': a server takes all videos alike");
    }
    return served;
}

void run_serve(ServeOptions & options) {
    Progress progress(false);
    options.common.fetch(progress);
    progress.clear();
    const KvChoice kv = parse_kv(options.common.kv_name());
    const ModelOptions model = options.common.model_options();
    const Served served = make_served(options, model, kv);
    Server server(arguments_of(options, model, kv, served), settings_of(kv));
    const std::string complaint = follow(server, options.common.verbose, served);
    const int status = server.wait();
    check_interrupt();
    if (status != 0)
        throw Error("llama-server ended with " + std::to_string(status) +
                    (complaint.empty() ? "" : " (" + complaint + ")") + ": --verbose shows what it says");
}

} // namespace

void add_serve(CLI::App & app, Command & run) {
    auto options = std::make_shared<ServeOptions>();
    CLI::App * serve = app.add_subcommand("serve", "Start llama-server with a packed cache");
    options->common.add_model(*serve);
    options->common.add_hub(*serve);
    serve->add_option("--kv", options->common.kv, "how the cache is kept (default " + std::string(DEFAULT_KV) + ")")
        ->type_name("PRESET");
    serve->add_option("--host", options->host, "address to listen on (default 127.0.0.1)")->type_name("ADDRESS");
    serve->add_option("--port", options->port, "port to listen on (default 8080)")
        ->check(CLI::Range(1, 65535))
        ->type_name("PORT");
    serve->add_option("-c,--ctx-size", options->context, "tokens the cache holds (default: llama-server's)")
        ->check(CLI::Range(int64_t(1), int64_t(1) << 30))
        ->type_name("N");
    serve
        ->add_option("--video", options->videos,
                     "offer a video that was watched before (vidkv videos), by the name of its file; may be given again")
        ->allow_extra_args(false)
        ->type_name("NAME");
    serve->allow_extras();
    serve->footer(
        R"(Any other option goes to llama-server as it is (-np 2, --api-key KEY). The address goes to standard output once it listens, and
one line about the cache to standard error; Ctrl-C ends both. What a slot holds is kept by name, and is there after a restart:
  curl -d '{"filename":"holiday"}' 'http://127.0.0.1:8080/slots/0?action=save'      (or action=restore)

A video that vidkv ask has watched is offered with --video: restored into a slot, the server knows it, and a question
about it waits for no frame to be looked at. The request names it as file://, for llama-server tells pictures by the
file that they are of:
  curl -d '{"filename":"holiday.mp4"}' 'http://127.0.0.1:8080/slots/0?action=restore'
  curl -d '{"messages":[{"role":"user","content":[{"type":"input_video","input_video":{"url":"file://holiday.mp4"}},
           {"type":"text","text":"Where are we?"}]}]}' http://127.0.0.1:8080/v1/chat/completions
The server still opens the video, to count its frames. With --video it uses llama.cpp's own chat formats (--no-jinja),
as ask does.

EXAMPLES
  vidkv serve
  vidkv serve --video holiday.mp4
  vidkv serve -m Qwen2.5-VL-7B.gguf --mmproj mmproj.gguf --port 8000 -np 2)");
    serve->callback([options, serve, &run] {
        options->more = serve->remaining();
        run = [options] { run_serve(*options); };
    });
}

} // namespace vidkv::cli
