#include "engine/video_file.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

#include <nlohmann/json.hpp>
#include <xxhash.h>

#include "build-info.h"
#include "engine/slot_file.h"
#include "error.h"
#include "vidkv/file.h"

using nlohmann::json;

namespace vidkv::cli {

namespace {

constexpr int64_t MOST_TOKENS = int64_t(1) << 30; // -c takes no more
constexpr const char * AGAIN = ": save it again with --save-cache";

// Tells one model file from another: its size, its first MiB and its last.
std::string fingerprint(const std::string & path) {
    constexpr uint64_t PART = 1 << 20;
    std::error_code failed;
    const uint64_t size = std::filesystem::file_size(path, failed);
    std::ifstream file(path, std::ios::binary);
    if (failed || !file) throw Error("cannot read the model '" + path + "': no such file, or no permission");
    uint64_t hash = XXH3_64bits(&size, sizeof(size));
    std::vector<char> part(std::min(PART, size));
    for (const uint64_t at : {uint64_t(0), size - part.size()}) {
        file.seekg(static_cast<std::streamoff>(at));
        file.read(part.data(), static_cast<std::streamsize>(part.size()));
        hash = XXH3_64bits_withSeed(part.data(), part.size(), hash);
    }
    std::array<char, 17> text;
    std::snprintf(text.data(), text.size(), "%016llx", static_cast<unsigned long long>(hash));
    return text.data();
}

// The facts of a manifest, each of the type it must have.
class Facts {
  public:
    Facts(std::string path, json facts) : path_(std::move(path)), facts_(std::move(facts)) {
        if (!facts_.is_object()) throw Error("the saved cache '" + path_ + "' has no valid manifest" + AGAIN);
    }
    bool has(const char * name) const { return facts_.contains(name); }
    std::string text(const char * name) const {
        if (!facts_.contains(name) || !facts_[name].is_string()) wrong(name);
        return facts_[name];
    }
    int64_t whole(const char * name, int64_t least, int64_t most) const {
        if (!facts_.contains(name) || !facts_[name].is_number_integer()) wrong(name);
        const int64_t value = facts_[name];
        if (value < least || value > most) wrong(name);
        return value;
    }
    double seconds(const char * name) const {
        if (!facts_.contains(name) || !facts_[name].is_number()) wrong(name);
        return facts_[name];
    }
    std::vector<Facts> list(const char * name) const {
        if (!facts_.contains(name) || !facts_[name].is_array()) wrong(name);
        std::vector<Facts> all;
        for (const json & each : facts_[name]) all.emplace_back(path_, each);
        return all;
    }

  private:
    [[noreturn]] void wrong(const char * name) const {
        throw Error("the saved cache '" + path_ + "' has no valid '" + name + "' in its manifest" + AGAIN);
    }

    std::string path_;
    json facts_;
};

Manifest read_manifest(const std::string & path, std::string_view text) {
    const Facts facts(path, json::parse(text, nullptr, false));
    Manifest manifest;
    manifest.kv = facts.text("kv");
    manifest.model = facts.text("model");
    manifest.mmproj = facts.text("mmproj");
    manifest.engine = facts.text("engine");
    manifest.library = facts.text("library");
    manifest.sampling = facts.text("sampling");
    if (facts.has("pictures")) manifest.pictures = facts.text("pictures");
    for (const Facts & file : facts.list("files")) {
        const auto bytes = static_cast<uint64_t>(file.whole("bytes", 0, INT64_MAX));
        manifest.files.push_back({file.text("path"), bytes, file.text("stat"), file.text("content")});
    }
    const int64_t tokens = facts.whole("tokens", 1, MOST_TOKENS), used = facts.whole("used", tokens, MOST_TOKENS);
    const int64_t position = facts.whole("position", 1, MOST_TOKENS);
    manifest.prefix = {facts.text("video"),
                       facts.whole("frames", 0, MOST_TOKENS),
                       facts.whole("visual_tokens", 0, tokens),
                       tokens,
                       static_cast<llama_pos>(position),
                       facts.seconds("seconds")};
    manifest.used = used;
    manifest.position = static_cast<llama_pos>(facts.whole("end_position", position, MOST_TOKENS));
    for (const Facts & turn : facts.list("turns")) manifest.turns.push_back({turn.text("question"), turn.text("answer")});
    return manifest;
}

// What VidKVCache.save (python/vidkv/transformers/saved.py) says. One sequence, none of it padding; models with M-RoPE say by how
// much positions differ from the number of tokens.
Manifest foreign_manifest(const std::string & path, const json & all) {
    const Facts facts(path, all);
    const std::vector<Facts> layers = facts.list("layers");
    if (layers.empty()) throw Error("the saved cache '" + path + "' holds nothing");
    Manifest manifest;
    manifest.kv = facts.text("preset");
    manifest.library = facts.text("vidkv");
    manifest.used = layers.front().whole("length", 1, MOST_TOKENS);
    const json deltas = all.value("rope_deltas", json());
    const json * delta = &deltas;
    while (delta->is_array() && delta->size() == 1) delta = &delta->front();
    if (!delta->is_null() && !delta->is_number_integer())
        throw Error("the saved cache '" + path + "' is of several sequences: save one of them by itself");
    const int64_t position = manifest.used + (delta->is_null() ? 0 : delta->get<int64_t>());
    if (position < 1 || position > MOST_TOKENS) throw Error("the saved cache '" + path + "' has no valid positions");
    manifest.position = static_cast<llama_pos>(position);
    manifest.prefix.video = facts.has("title") ? facts.text("title") : path;
    manifest.prefix.tokens = manifest.used;
    manifest.prefix.position = manifest.position;
    return manifest;
}

// A file that the command before this one's version wrote.
bool is_older(const std::string & path) {
    std::array<char, 8> magic = {};
    std::ifstream(path, std::ios::binary).read(magic.data(), magic.size());
    return std::string_view(magic.data(), magic.size()) == "VIDKVSES";
}

std::string advice(int error) {
    if (error == ENOSPC || error == EFBIG || error == EDQUOT) return "free some space, or name another place";
    if (error == ENOENT || error == ENOTDIR) return "make its folder first, or name another place";
    return "name another place";
}

[[noreturn]] void throw_cannot_save(const std::string & path, int error) {
    throw Error("cannot save the cache to '" + path + "' (" + std::strerror(error) + "): " + advice(error));
}

} // namespace

std::string Manifest::text() const {
    json listed = json::array(), said = json::array();
    for (const WatchedFile & file : files)
        listed.push_back({{"path", file.path}, {"bytes", file.bytes}, {"stat", file.stat}, {"content", file.content}});
    for (const Exchange & turn : turns) said.push_back({{"question", turn.question}, {"answer", turn.answer}});
    return json{{"kv", kv},
                {"model", model},
                {"mmproj", mmproj},
                {"engine", engine},
                {"library", library},
                {"sampling", sampling},
                {"files", listed},
                {"pictures", pictures},
                {"video", prefix.video},
                {"frames", prefix.frames},
                {"visual_tokens", prefix.visual_tokens},
                {"seconds", prefix.seconds},
                {"tokens", prefix.tokens},
                {"position", prefix.position},
                {"used", used},
                {"end_position", position},
                {"turns", said}}
        .dump(-1, ' ', false, json::error_handler_t::replace);
}

Manifest manifest_of(const ModelFiles & model) {
    Manifest manifest;
    manifest.model = fingerprint(model.text);
    manifest.mmproj = model.mmproj.empty() ? "" : fingerprint(model.mmproj);
    manifest.engine = llama_build_info();
    manifest.library = vidkv_version();
    return manifest;
}

void VideoFile::Closer::operator()(vidkv_file * file) const { vidkv_file_close(file); }

VideoFile::VideoFile(const std::string & path, bool whole, int threads) : path_(path) {
    if (!std::ifstream(path)) throw Error("cannot read the saved cache '" + path + "': no such file, or no permission");
    if (is_older(path)) throw Error("the saved cache '" + path + "' is of an older version of VidKV" + AGAIN);
    vidkv_file * file = nullptr;
    vidkv_status status = vidkv_file_open(path.c_str(), 0, &file);
    copied_ = status == VIDKV_E_IO; // no mmap there, perhaps
    if (copied_) status = vidkv_file_open(path.c_str(), 1, &file);
    file_.reset(file);
    if (status == VIDKV_OK && whole) status = vidkv_file_verify(file, threads);
    if (status != VIDKV_OK) throw Error("the saved cache cannot be used: " + std::string(vidkv_last_error()));
    const std::string_view manifest = section("manifest");
    const json facts = json::parse(manifest, nullptr, false);
    if (facts.is_object() && facts.value("kind", json()) == SLOT_KIND)
        throw Error("'" + path + "' is a packed slot of llama-server: vidkv unpack makes its slot file again");
    foreign_ = facts.is_object() && facts.value("kind", json()) == "transformers";
    manifest_ = foreign_ ? foreign_manifest(path, facts) : read_manifest(path, manifest);
}

uint64_t VideoFile::bytes() const {
    vidkv_file_info info = {};
    vidkv_file_get_info(file_.get(), &info);
    return info.bytes;
}

bool VideoFile::has_section(const std::string & name) const {
    uint64_t bytes = 0;
    return vidkv_file_section(file_.get(), name.c_str(), &bytes) != nullptr;
}

std::string_view VideoFile::section(const std::string & name) const {
    uint64_t bytes = 0;
    const void * data = vidkv_file_section(file_.get(), name.c_str(), &bytes);
    if (!data) throw Error("the saved cache '" + path_ + "' has no " + name + ": it comes from another program");
    return {static_cast<const char *>(data), bytes};
}

Difference differing_fact(const Manifest & a, const Manifest & b) {
    if (a.model != b.model) return Difference::MODEL;
    if (a.mmproj != b.mmproj) return Difference::MMPROJ;
    if (a.engine != b.engine) return Difference::ENGINE;
    if (a.kv != b.kv) return Difference::KV;
    if (a.library != b.library) return Difference::LIBRARY;
    return a.sampling != b.sampling ? Difference::SAMPLING : Difference::NONE;
}

void check_shape(const VideoFile & file, const llama_model * model) {
    if (!file.is_foreign()) return;
    const json all = json::parse(file.section("manifest"), nullptr, false), facts = all.value("model", json::object());
    const auto check = [&](const char * name, int64_t here) {
        if (facts.is_object() && facts.contains(name) && facts[name] != here)
            throw Error("the saved cache '" + file.path() + "' is of another model: its " + name + " is " +
                        facts[name].dump() + ", not " + std::to_string(here) +
                        "; name the GGUF of the same weights with -m");
    };
    if (llama_model_rope_type(model) == LLAMA_ROPE_TYPE_NORM) // its converter puts pairs side by side
        throw Error("the saved cache '" + file.path() +
                    "' is of no use here: llama.cpp orders this model's key channels in another way");
    check("num_hidden_layers", llama_model_n_layer(model));
    check("hidden_size", llama_model_n_embd(model));
    check("num_attention_heads", llama_model_n_head(model));
    check("num_key_value_heads", llama_model_n_head_kv(model));
    check("vocab_size", llama_vocab_n_tokens(llama_model_get_vocab(model)));
}

// The library may be another one, and how the video was taken is the file's. transformers does not know the GGUF: check_shape does
// what can be done there.
void check_origin(const VideoFile & file, const ModelFiles & model, const std::string & asked) {
    const Manifest & saved = file.manifest();
    Manifest here = manifest_of(model);
    if (file.is_foreign()) {
        here.model = saved.model;
        here.mmproj = saved.mmproj;
        here.engine = saved.engine;
    }
    here.library = saved.library;
    here.sampling = saved.sampling;
    here.kv = asked.empty() ? saved.kv : asked;
    const std::string it = "the saved cache '" + file.path() + "' ";
    const Difference differs = differing_fact(saved, here);
    if (differs == Difference::MODEL) throw Error(it + "is of another model: name that model with -m and --mmproj");
    if (differs == Difference::MMPROJ) throw Error(it + "is of another vision tower: name that one with --mmproj");
    if (differs == Difference::ENGINE)
        throw Error(it + "was saved with llama.cpp " + saved.engine + ", this is " + here.engine + AGAIN);
    if (differs == Difference::KV)
        throw Error(it + "was kept as " + saved.kv + ": leave --kv out, or use --kv " + saved.kv);
}

void check_savable(const std::string & path) {
    const std::string beside = path + ".part";
    std::error_code failed;
    if (std::filesystem::is_directory(path, failed)) throw_cannot_save(path, EISDIR);
    const std::unique_ptr<std::FILE, int (*)(std::FILE *)> file(std::fopen(beside.c_str(), "ab"), std::fclose);
    if (!file) throw_cannot_save(path, errno);
    if (std::filesystem::file_size(beside, failed) == 0) std::remove(beside.c_str());
}

std::string cannot_save(const std::string & path, const std::string & why) {
    return "cannot save the cache to '" + path + "' (" + why + "): free some space, or name another place";
}

} // namespace vidkv::cli
