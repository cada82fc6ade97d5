// vidkv: ask a video, with a packed KV cache.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <new>

#include <CLI/CLI.hpp>

#include "commands.h"
#include "commands/arguments.h"
#include "error.h"
#include "help.h"
#include "interrupt.h"
#include "spinning.h"
#include "vidkv/vidkv.h"

namespace vidkv::cli {

namespace {

constexpr const char * DESCRIPTION = R"(vidkv - ask a video, with a KV cache of 1.x bits per element

Decodes a video file, shows it to a video language model through llama.cpp, and answers questions about it. The cache
that holds the video is packed by VidKV's codecs. The answer goes to standard output, everything else to standard error.)";

constexpr const char * FOOTER = R"(EXAMPLES
  vidkv ask clip.mp4 "What colour is the circle?"
  vidkv ask holiday.mp4 "Where are we?" -hf ggml-org/Qwen2.5-VL-3B-Instruct-GGUF
  vidkv ask before.mp4 after.mp4 -- "What has changed?"
  vidkv chat clip.mp4
  vidkv videos
  vidkv serve -m Qwen2.5-VL-7B.gguf --mmproj mmproj.gguf
  vidkv frames clip.mp4 --frames 16 --out frames
  vidkv presets
  vidkv plan --minutes 30 --fps 1
  vidkv data --seed 7 --split short --count 20 clips
  vidkv eval kl --kv all --text manual.txt
  vidkv eval video --kv f16,t2.2,t1.65,t1.15 --seed 7 --count 20
  vidkv eval retrieval --model qwen2.5-coder-1.5b --tokens 8k --count 2
  vidkv report page
  vidkv bench attention --shape 28/4/128 --tokens 32k --kv t2.2,t1.65,t1.15
  ("vidkv COMMAND --help" has more of each)

ENVIRONMENT
  VIDKV_MODEL, VIDKV_MMPROJ, VIDKV_KV, VIDKV_FPS, VIDKV_FRAMES, VIDKV_CTX_SIZE, VIDKV_PREDICT, VIDKV_THREADS
                      defaults of the options of that name
  VIDKV_MODEL_DIR     folder of the small video model (vidkv-tiny.gguf, mmproj-vidkv-tiny.gguf)
  VIDKV_PLUGIN        path of libggml-vidkv.so (default: beside this program)
  VIDKV_LLAMA_SERVER  the llama-server of serve (default: beside llama.cpp's libraries, beside this program, or in PATH)
  VIDKV_PYTHON        the Python with numpy that makes clips, and with matplotlib that plots (default: python3)
  VIDKV_TEXT_MODEL    the text model of eval kl (default: SmolLM2-135M, fetched into VIDKV_CACHE_DIR)
  VIDKV_CACHE_DIR     where that is kept (default: ~/.cache/vidkv)
  VIDKV_VIDEOS_DIR, VIDKV_VIDEOS_MAX_SIZE
                      where watched videos are kept (default: videos/ in there), and how much (default 10G; 0: none)
  VIDKV_FORCE_ISA     instruction set of the codecs: scalar, avx2, avxvnni, avx512vnni, avx512 or neon (default: the best)
  HF_TOKEN, HF_ENDPOINT, LLAMA_CACHE
                      of -hf, as llama.cpp takes them
  GOMP_SPINCOUNT, OMP_WAIT_POLICY
                      how threads wait for each other, as libgomp takes them (default: a spin count of 1000)

EXIT CODES
  0  done                1  failed: one line on standard error says why and what to do
  2  usage               130  interrupted (Ctrl-C))";

std::string one_line(std::string text) {
    while (!text.empty() && text.back() == '\n') text.pop_back();
    for (char & c : text)
        if (c == '\n' || c == '\r') c = ' ';
    return text;
}

int complain(const std::string & what, ExitCode code) {
    std::cout.flush();
    std::fprintf(stderr, "vidkv: %s\n", one_line(what).c_str());
    return code;
}

int finish() {
    std::cout.flush();
    if (!std::cout || std::fflush(stdout) != 0)
        return complain("cannot write to standard output: is the disk full?", EXIT_FAILED);
    return EXIT_OK;
}

// A wrong VIDKV_FORCE_ISA would otherwise be measured as the best instruction set.
void check_instruction_set() {
    if (const std::string wrong = vidkv_isa_error(); !wrong.empty()) std::fprintf(stderr, "vidkv: %s\n", wrong.c_str());
}

// llama.cpp's name of an option has two letters behind one dash, which would be two options here.
std::vector<std::string> arguments_of(int argc, char ** argv) {
    std::vector<std::string> arguments = name_questions({argv + std::min(argc, 1), argv + argc});
    bool options = true;
    std::ranges::reverse(arguments); // the parser takes them from behind
    for (auto argument = arguments.rbegin(); argument != arguments.rend() && options; ++argument) {
        options = *argument != "--";
        if (*argument == "-hf" || *argument == "-hfr") *argument = "--hf-repo";
    }
    return arguments;
}

int run(int argc, char ** argv) {
    CLI::App app(DESCRIPTION, "vidkv");
    app.formatter(help_formatter());
    app.require_subcommand(1);
    app.set_version_flag("--version", std::string("vidkv ") + vidkv_version());
    Command command;
    add_ask(app, command);
    add_chat(app, command);
    add_videos(app, command);
    add_serve(app, command);
    add_frames(app, command);
    add_file(app, command);
    add_pack(app, command);
    add_presets(app, command);
    add_plan(app, command);
    add_data(app, command);
#if defined(VIDKV_MEASURE)
    add_measurements(app, command);
#endif
    app.footer(FOOTER); // last: commands would inherit it
    if (const std::string unknown = unknown_command(app, argc, argv); !unknown.empty()) throw UsageError(unknown);
    try {
        app.parse(arguments_of(argc, argv));
    } catch (const CLI::Success & success) {
        app.exit(success);
        return finish();
    } catch (const CLI::ParseError & error) {
        return complain(std::string(error.what()) + " (see vidkv --help)", EXIT_USAGE);
    }
    check_instruction_set();
    command();
    return finish();
}

} // namespace

} // namespace vidkv::cli

int main(int argc, char ** argv) {
    using namespace vidkv::cli;
    bound_spinning(argv);
    catch_interrupts();
    try {
        return run(argc, argv);
    } catch (const Interrupted &) {
        std::fputs("\n", stderr);
        return EXIT_INTERRUPTED;
    } catch (const UsageError & error) {
        return complain(std::string(error.what()) + " (see vidkv --help)", EXIT_USAGE);
    } catch (const Error & error) {
        return complain(error.what(), EXIT_FAILED);
    } catch (const std::bad_alloc &) {
        return complain("no memory left: use fewer --frames, or a smaller model", EXIT_FAILED);
    } catch (const std::exception & error) {
        return complain(std::string("unexpected failure: ") + error.what(), EXIT_FAILED);
    }
}
