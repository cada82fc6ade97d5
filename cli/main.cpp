// vidkv: ask a video, with a packed KV cache.
#include <cstdio>
#include <iostream>
#include <new>

#include <CLI/CLI.hpp>

#include "commands.h"
#include "error.h"
#include "interrupt.h"
#include "vidkv/vidkv.h"

#if defined(VIDKV_MEASURE)
#include "measurements.h"
#endif

namespace vidkv::cli {

namespace {

constexpr const char * DESCRIPTION = R"(vidkv - ask a video, with a KV cache of 1.x bits per element

Decodes a video file, shows it to a video language model through llama.cpp, and answers questions about it. The cache
that holds the video is packed by VidKV's codecs. The answer goes to standard output, everything else to standard error.)";

constexpr const char * FOOTER = R"(
EXAMPLES
  vidkv ask clip.mp4 "What colour is the circle?"
  vidkv ask clip.mp4 "What happens?" -m Qwen2.5-VL-7B.gguf --mmproj mmproj.gguf --kv k1.5v1.58 --frames 64
  vidkv ask clip.mp4 "First question" "Second question" --json
  vidkv ask clip.mp4 "First question" --save-cache clip.cache
  vidkv ask --load-cache clip.cache "Second question"
  vidkv chat clip.mp4
  vidkv presets
  vidkv data --seed 7 --split short --count 20 clips
  vidkv eval video --kv f16,t1.65,k1.5v1.58 --seed 7 --count 20
  vidkv eval kl --kv all --text manual.txt
  vidkv report out
  vidkv bench attention --shape 28/4/128 --tokens 32k --kv k2v2,t1.65

ENVIRONMENT
  VIDKV_MODEL, VIDKV_MMPROJ, VIDKV_KV, VIDKV_FPS, VIDKV_FRAMES, VIDKV_CTX_SIZE, VIDKV_PREDICT, VIDKV_THREADS
                      defaults of the options of that name
  VIDKV_MODEL_DIR     folder of the small video model (vidkv-tiny.gguf, mmproj-vidkv-tiny.gguf)
  VIDKV_PLUGIN        path of libggml-vidkv.so (default: beside this program)
  VIDKV_PYTHON        the Python with numpy that makes clips, and with matplotlib that plots (default: python3)
  VIDKV_TEXT_MODEL    the text model of eval kl (default: SmolLM2-135M, fetched into VIDKV_CACHE_DIR)
  VIDKV_CACHE_DIR     where that is kept (default: ~/.cache/vidkv)
  VIDKV_FORCE_ISA     scalar or avx2: instruction set of the codecs

EXIT CODES
  0  done                1  failed: one line on standard error says why and what to do
  2  usage               130  interrupted (Ctrl-C)

Needs the programs ffmpeg and ffprobe; vidkv data and eval video also need python3 with numpy, vidkv
report matplotlib.)";

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

int run(int argc, char ** argv) {
    CLI::App app(DESCRIPTION, "vidkv");
    app.footer(FOOTER);
    app.require_subcommand(1);
    app.set_version_flag("--version", std::string("vidkv ") + vidkv_version());
    app.get_formatter()->column_width(34);
    Command command;
    add_ask(app, command);
    add_chat(app, command);
    add_presets(app, command);
    add_data(app, command);
#if defined(VIDKV_MEASURE)
    add_measurements(app, command);
#endif
    try {
        app.parse(argc, argv);
    } catch (const CLI::Success & success) {
        app.exit(success);
        return finish();
    } catch (const CLI::ParseError & error) {
        return complain(std::string(error.what()) + " (see vidkv --help)", EXIT_USAGE);
    }
    command();
    return finish();
}

} // namespace

} // namespace vidkv::cli

int main(int argc, char ** argv) {
    using namespace vidkv::cli;
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
