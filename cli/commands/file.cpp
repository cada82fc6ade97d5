// vidkv show and vidkv verify: what a .vidkv file holds, and whether it is whole.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <thread>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "commands.h"
#include "error.h"
#include "vidkv/file.h"

using nlohmann::json;

namespace vidkv::cli {

namespace {

constexpr double MIB = 1024.0 * 1024.0;

struct FileOptions {
    std::string path;
    bool json = false;
};

struct FileClose {
    void operator()(vidkv_file * file) const { vidkv_file_close(file); }
};
using File = std::unique_ptr<vidkv_file, FileClose>;

void check(vidkv_status status) {
    if (status != VIDKV_OK) throw Error(vidkv_last_error());
}

File open(const std::string & path) {
    vidkv_file * file = nullptr;
    check(vidkv_file_open(path.c_str(), 0, &file));
    return File(file);
}

// The name of the preset with these parameters, or "".
std::string preset_of(const vidkv_params & params) {
    for (size_t i = 0; const char * name = vidkv_preset_name(i); ++i) {
        vidkv_params each;
        check(vidkv_params_from_preset(name, &each));
        if (each.key_bits == params.key_bits && each.value_bits == params.value_bits &&
            each.key_codec == params.key_codec && each.value_codec == params.value_codec &&
            each.group_size == params.group_size && each.protect == params.protect)
            return name;
    }
    return "";
}

json manifest_of(const vidkv_file * file) {
    uint64_t bytes = 0;
    const auto * text = static_cast<const char *>(vidkv_file_section(file, "manifest", &bytes));
    json manifest = text ? json::parse(text, text + bytes, nullptr, false) : json();
    return manifest.is_object() ? manifest : json(nullptr);
}

struct Totals {
    int64_t cells = 0, sealed = 0, pages = 0;
    double bytes = 0, f16 = 0;
    bool bits_by_layer = false;
};

// What the stores of the file hold, summed over all but the number of cells, which all have.
Totals totals_of(const vidkv_file * file, const vidkv_file_info & whole) {
    Totals sum;
    for (int64_t i = 0; i < whole.stores; ++i) {
        vidkv_file_store_info info;
        check(vidkv_file_get_store(file, i, &info));
        sum.cells = std::max(sum.cells, info.cells);
        sum.sealed += info.pages_sealed;
        const float usual = info.side == VIDKV_KEYS ? whole.params.key_bits : whole.params.value_bits;
        sum.bits_by_layer = sum.bits_by_layer || info.bits != usual;
        sum.bytes += static_cast<double>(info.bytes);
        sum.f16 += 2.0 * info.channels * static_cast<double>(info.cells_written);
    }
    return sum;
}

json describe(const std::string & path, const vidkv_file * file) {
    vidkv_file_info info;
    vidkv_file_get_info(file, &info);
    const Totals sum = totals_of(file, info);
    json sections = json::object();
    for (int64_t i = 0; const char * name = vidkv_file_section_name(file, i); ++i) {
        uint64_t bytes = 0;
        vidkv_file_section(file, name, &bytes);
        sections[name] = bytes;
    }
    vidkv_file_store_info first{};
    if (info.stores > 0) check(vidkv_file_get_store(file, 0, &first));
    return {{"file", path},
            {"bytes", info.bytes},
            {"format", 3},
            {"preset", preset_of(info.params)},
            {"key_bits", info.params.key_bits},
            {"value_bits", info.params.value_bits},
            {"bits_by_layer", sum.bits_by_layer}, // the two above are then what the preset has, and layers have their own
            {"protect", info.params.protect},
            {"layers", info.layers},
            {"sequences", info.sequences},
            {"stores", info.stores},
            {"channels", first.channels},
            {"head_dim", first.head_dim},
            {"cells", sum.cells},
            {"pages_packed", sum.sealed},
            {"bytes_of_stores", sum.bytes},
            {"bytes_f16", sum.f16},
            {"sections", sections},
            {"manifest", manifest_of(file)}};
}

// One line for each fact of the manifest; what has no short form is left to --json.
void print_manifest(const json & manifest) {
    for (const auto & [name, value] : manifest.items()) {
        const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
        if (text.size() <= 200) std::printf("  %-18s %s\n", name.c_str(), text.c_str());
    }
}

void print(const json & about) {
    const double bytes = about["bytes"].get<double>(), f16 = about["bytes_f16"].get<double>();
    const std::string preset = about["preset"].get<std::string>();
    std::printf("%s: %.1f MiB", about["file"].get<std::string>().c_str(), bytes / MIB);
    if (f16 > 0) std::printf(", %.1f times less than in f16", f16 / bytes);
    std::printf("\n  %-18s %lld tokens, %d layers of %d channels (head_dim %d)\n", "cache", about["cells"].get<long long>(),
                about["layers"].get<int>(), about["channels"].get<int>(), about["head_dim"].get<int>());
    if (about["sequences"].get<int>() > 1) std::printf("  %-18s %d\n", "sequences", about["sequences"].get<int>());
    std::printf("  %-18s %s%s\n", "preset",
                preset.empty() ? ("keys " + std::to_string(about["key_bits"].get<float>()) + " bits, values " +
                                  std::to_string(about["value_bits"].get<float>()) + " bits")
                                     .c_str()
                               : preset.c_str(),
                about["bits_by_layer"].get<bool>() ? ", bits by layer" : "");
    if (!about["manifest"].is_null()) print_manifest(about["manifest"]);
    for (const auto & [name, size] : about["sections"].items())
        std::printf("  %-18s %llu bytes\n", ("section " + name).c_str(), size.get<unsigned long long>());
}

void show(const FileOptions & options) {
    const File file = open(options.path);
    const json about = describe(options.path, file.get());
    if (options.json)
        std::cout << about.dump(2, ' ', false, json::error_handler_t::replace) << "\n";
    else
        print(about);
}

void verify(const FileOptions & options) {
    const File file = open(options.path);
    check(vidkv_file_verify(file.get(), static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))));
    vidkv_file_info info;
    vidkv_file_get_info(file.get(), &info);
    std::printf("%s: whole, %llu bytes\n", options.path.c_str(), static_cast<unsigned long long>(info.bytes));
}

CLI::App * add(CLI::App & app, const char * name, const char * description, const std::shared_ptr<FileOptions> & options) {
    CLI::App * command = app.add_subcommand(name, description);
    command->add_option("file", options->path, "a .vidkv file")->required()->type_name("FILE");
    return command;
}

} // namespace

void add_file(CLI::App & app, Command & run) {
    const auto shown = std::make_shared<FileOptions>(), verified = std::make_shared<FileOptions>();
    CLI::App * show_command = add(app, "show", "Say what a .vidkv file holds", shown);
    show_command->add_flag("--json", shown->json, "print one JSON document instead of text");
    show_command->callback([shown, &run] { run = [shown] { show(*shown); }; });
    CLI::App * verify_command =
        add(app, "verify", "Read all of a .vidkv file: every checksum, and the structure of every page", verified);
    verify_command->callback([verified, &run] { run = [verified] { verify(*verified); }; });
}

} // namespace vidkv::cli
