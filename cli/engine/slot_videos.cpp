#include "engine/slot_videos.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <system_error>

extern "C" {
#include <libavutil/mem.h>
#include <libavutil/sha.h>
}
#include <nlohmann/json.hpp>

#include "engine/prompt_tokens.h"
#include "engine/slot_file.h"
#include "error.h"
#include "interrupt.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

namespace {

constexpr const char * MARK = ".vidkv-video"; // beside a slot file that was made here: its size and time

std::string sha256_of(const std::string & path) {
    const std::unique_ptr<AVSHA, void (*)(AVSHA *)> sha(av_sha_alloc(), [](AVSHA * each) { av_free(each); });
    if (!sha || av_sha_init(sha.get(), 256) != 0) throw std::bad_alloc();
    std::ifstream file(path, std::ios::binary);
    std::vector<char> part(1 << 20);
    while (file) {
        check_interrupt();
        file.read(part.data(), static_cast<std::streamsize>(part.size()));
        av_sha_update(sha.get(), reinterpret_cast<const uint8_t *>(part.data()), static_cast<size_t>(file.gcount()));
    }
    if (!file.eof()) throw Error("'" + path + "' cannot be read: check its permissions");
    uint8_t digest[32];
    av_sha_final(sha.get(), digest);
    std::string text;
    for (const uint8_t byte : digest) {
        char digits[3];
        std::snprintf(digits, sizeof(digits), "%02x", byte);
        text += digits;
    }
    return text;
}

std::string state_of(const fs::path & file) {
    std::error_code failed;
    const auto size = fs::file_size(file, failed);
    const auto time = fs::last_write_time(file, failed).time_since_epoch().count();
    return failed ? "" : std::to_string(size) + ' ' + std::to_string(time);
}

fs::path mark_of(const fs::path & slot) { return slot.parent_path() / ('.' + slot.filename().string() + MARK); }

bool is_made_here(const fs::path & slot) {
    std::string state;
    std::ifstream mark(mark_of(slot));
    return std::getline(mark, state) && state == state_of(slot);
}

void remove_slot(const fs::path & slot) {
    std::error_code failed;
    if (is_made_here(slot)) fs::remove(slot, failed);
    fs::remove(mark_of(slot), failed);
}

KeptVideo find_video(const VideoCache & cache, const std::string & name, const std::string & kv) {
    std::vector<KeptVideo> videos = cache.videos();
    std::erase_if(videos, [&](const KeptVideo & video) { return !video.is_named(name); });
    if (videos.empty())
        throw Error("no watched video '" + name + "': ask about it once (vidkv ask), or see vidkv videos for the names");
    const auto found = std::ranges::find(videos, kv, [](const KeptVideo & video) { return video.manifest.kv; });
    if (found == videos.end())
        throw Error("'" + name + "' was watched with " + videos.front().manifest.kv + ": use --kv " +
                    videos.front().manifest.kv);
    return *found;
}

// Throws Error where llama-server could not take the same pictures.
ServedSampling served_sampling(const Manifest & manifest, const std::string & name) {
    const nlohmann::json facts = nlohmann::json::parse(manifest.sampling, nullptr, false);
    const auto number = [&](const char * fact, double otherwise) {
        return facts.is_object() && facts.contains(fact) && facts[fact].is_number() ? facts[fact].get<double>() : otherwise;
    };
    const bool part = number("frames", 0) > 0 || number("start", 0) > 0 || number("end", -1) >= 0;
    if (!facts.is_object() || part)
        throw Error("'" + name +
                    "' was watched with --frames, --start or --end, which llama-server does not know: ask about it " +
                    "without them");
    return {number("fps", 0), number("timestamps", -1), static_cast<int>(number("frame_tokens", 0))};
}

std::string the_only_file(const KeptVideo & video, const std::string & name) {
    if (video.manifest.files.size() != 1 || !fs::is_regular_file(video.manifest.files.front().path))
        throw Error("'" + name + "' is not one video file (any more): llama-server cannot be offered it");
    const WatchedFile & file = video.manifest.files.front();
    if (const auto now = look_at(file.path); now && now->stat != file.stat && content_of(file.path) != file.content)
        throw Error("'" + file.path + "' was changed since it was watched: ask about it once more (vidkv ask)");
    return file.path;
}

} // namespace

SlotVideo::SlotVideo(const VideoCache & cache, const std::string & name, const ModelFiles & model, const std::string & kv,
                     int threads, const fs::path & slots, const fs::path & media) {
    const KeptVideo video = find_video(cache, name, kv);
    check_origin(VideoFile(video.path, false, threads), model, kv);
    const std::string file = the_only_file(video, name);
    name_ = fs::path(file).filename().string();
    sampling_ = served_sampling(video.manifest, name);
    slot_ = slots / name_;
    mark_ = mark_of(slot_);
    std::error_code failed;
    if (fs::exists(slot_, failed) && !is_made_here(slot_))
        throw Error("a conversation is saved as '" + slot_.string() +
                    "': move it away, so that the video can have its name");
    unpack_slot(video.path, slot_.string(), threads, {{video_stand_in(0), sha256_of(file)}});
    std::ofstream(mark_) << state_of(slot_) << '\n';
    fs::remove(media / name_, failed);
    fs::create_symlink(file, media / name_, failed);
    if (failed) throw Error("cannot make a link in '" + media.string() + "' (" + failed.message() + ")");
}

SlotVideo::~SlotVideo() { remove_slot(slot_); }

void remove_left_slots(const fs::path & slots) {
    std::vector<fs::path> left;
    std::error_code failed;
    for (const auto & entry : fs::directory_iterator(slots, failed)) {
        const std::string name = entry.path().filename().string();
        if (name.starts_with(".") && name.ends_with(MARK))
            left.push_back(slots / name.substr(1, name.size() - 1 - std::string(MARK).size()));
    }
    for (const fs::path & slot : left) remove_slot(slot);
}

} // namespace vidkv::cli
