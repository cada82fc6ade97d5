// vidkv pack and vidkv unpack: llama-server's slot files made small, and back.
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>

#include <nlohmann/json.hpp>

#include "commands.h"
#include "engine/slot_file.h"
#include "error.h"
#include "options.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

namespace {

struct PackOptions {
    std::string from, to;
    int threads = 0;
    bool json = false;
};

// The same file under two names would be read while it is written.
void check_names(const PackOptions & options) {
    std::error_code failed;
    if (fs::equivalent(options.from, options.to, failed))
        throw Error("'" + options.to + "' would take the place of what it is made of");
    if (fs::is_directory(options.to, failed)) throw Error("'" + options.to + "' is a folder: name a file");
}

void print(const PackOptions & options, const SlotReport & report) {
    constexpr double MIB = 1024.0 * 1024.0;
    if (options.json) {
        const nlohmann::ordered_json document = {{"from", options.from},
                                                 {"to", options.to},
                                                 {"tokens", report.cells},
                                                 {"slot_bytes", report.slot_bytes},
                                                 {"packed_bytes", report.file_bytes},
                                                 {"rows", report.rows},
                                                 {"rows_packed", report.packed_rows}};
        std::cout << document.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << "\n";
        return;
    }
    std::fprintf(stderr, "%s: %lld tokens, slot file %.1f MiB, packed %.1f MiB (%.1f times less)\n", options.to.c_str(),
                 static_cast<long long>(report.cells), static_cast<double>(report.slot_bytes) / MIB,
                 static_cast<double>(report.file_bytes) / MIB,
                 static_cast<double>(report.slot_bytes) / static_cast<double>(report.file_bytes));
}

using Work = SlotReport (*)(const std::string & from, const std::string & to, int threads);

void run_work(PackOptions options, Work work) {
    if (options.threads == 0) options.threads = available_cores();
    check_names(options);
    print(options, work(options.from, options.to, options.threads));
}

struct Words {
    const char *name, *description, *from, *to, *footer;
};

void add_one(CLI::App & app, Command & run, const Words & words, Work work) {
    auto options = std::make_shared<PackOptions>();
    CLI::App * command = app.add_subcommand(words.name, words.description);
    command->add_option(words.from, options->from, std::string("the file to read"))->required();
    command->add_option(words.to, options->to, "the file to write; what is there is replaced once the new one is whole")
        ->required();
    command->add_option("-t,--threads", options->threads, "threads (default: all cores)")
        ->check(CLI::Range(1, 1024))
        ->type_name("N");
    command->add_flag("--json", options->json,
                      "print one JSON document: tokens, bytes, rows, rows that lie in packed pages");
    command->footer(words.footer);
    command->callback([options, &run, work] { run = [options, work] { run_work(*options, work); }; });
}

constexpr const char * PACK_FOOTER =
    R"(A slot file that llama-server saves with the plug-in holds every row in f16, and in the lowest bits of those rows the
packed pages that they came from. pack keeps the pages, and what is not packed yet, a tenth of it all; unpack gives
back every byte. A slot file of a server without the plug-in holds no pages: it is refused, and so is a conversation
shorter than a page (128 tokens and the window of newest ones). Values of k1.5v2 stay
in f16, and k2v2 does not fit into a slot file at all.

EXAMPLES
  curl -d '{"filename":"holiday"}' 'http://127.0.0.1:8080/slots/0?action=save'
  vidkv pack ~/.cache/vidkv/slots/holiday holiday.vidkv
  vidkv unpack holiday.vidkv ~/.cache/vidkv/slots/holiday
  vidkv show holiday.vidkv)";

constexpr const char * UNPACK_FOOTER =
    R"(CLIP.vidkv is a file of vidkv pack, or a video that vidkv ask or chat saved or kept (vidkv videos --json names the files):
the slot file of that is one for the same model and vision tower, and needs the same video in the request (vidkv serve
--video does it all).

EXAMPLES
  vidkv unpack holiday.vidkv ~/.cache/vidkv/slots/holiday
  curl -d '{"filename":"holiday"}' 'http://127.0.0.1:8080/slots/0?action=restore')";

} // namespace

void add_pack(CLI::App & app, Command & run) {
    add_one(app, run, {"pack", "Make a small file of a slot that llama-server saved", "SLOT", "CLIP.vidkv", PACK_FOOTER},
            pack_slot);
    add_one(app, run, {"unpack", "Make the slot file again, byte for byte", "CLIP.vidkv", "SLOT", UNPACK_FOOTER},
            [](const std::string & from, const std::string & to, int threads) { return unpack_slot(from, to, threads); });
}

} // namespace vidkv::cli
