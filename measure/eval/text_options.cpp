#include "eval/text_options.h"

#include "options.h"

namespace vidkv::cli {

void TextOptions::add_model(CLI::App & app, const std::string & what_the_text_is_for) {
    app.add_option("-m,--model", model, std::string("GGUF of a text model, or ") + TEXT_MODELS + " (default smollm2)")
        ->envname("VIDKV_TEXT_MODEL");
    app.add_option("--text", text, what_the_text_is_for);
}

void TextOptions::add_run(CLI::App & app) {
    threads = available_cores();
    app.add_option("-t,--threads", threads, "threads (default: all cores)")->check(CLI::Range(1, 1024));
    app.add_flag("--json", json, "print one JSON document instead of a table");
    app.add_flag("-v,--verbose", verbose, "show what llama.cpp logs");
}

std::string TextOptions::model_file() const { return text_model(model.empty() ? DEFAULT_TEXT_MODEL : model); }

Text TextOptions::words() const { return text.empty() ? default_text() : read_text(text); }

void FileOptions::add_files(CLI::App & app) {
    add_model(app, "text file that the files are cut from (default: as for eval kl)");
    app.add_option("--kv", kv, "codecs, separated by commas (default f16,q8_0,q4_0,t2.2,t1.65,t1.15,k1.5v1.58)")
        ->delimiter(',');
    app.add_option("--count", count, "files of each length (default 4)")->check(CLI::Range(1, 10000));
    app.add_option("--seed", seed, "the same seed makes the same files (default 0)");
}

} // namespace vidkv::cli
