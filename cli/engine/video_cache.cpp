#include "engine/video_cache.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"
#include "interrupt.h"
#include "paths.h"

namespace fs = std::filesystem;

namespace vidkv::cli {

namespace {

constexpr const char * DEFAULT_MAX_SIZE = "10G";
constexpr const char * ENDING = ".vidkv";
constexpr int64_t LEFTOVER_SECONDS = 600; // a file being written is touched more often

std::string setting(const char * name, const std::string & otherwise) {
    const char * value = std::getenv(name);
    return value && *value ? value : otherwise;
}

// Held while files are renamed and removed, so that two processes do not each make room for the other. Without one (some network
// file systems) a video may be removed too many: it is then watched again.
class FolderLock {
  public:
    explicit FolderLock(const fs::path & folder)
        : file_(open((folder / "lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {
        while (file_ >= 0 && flock(file_, LOCK_EX) != 0 && errno == EINTR) check_interrupt();
    }
    ~FolderLock() {
        if (file_ >= 0) close(file_);
    }
    FolderLock(const FolderLock &) = delete;
    FolderLock & operator=(const FolderLock &) = delete;

  private:
    int file_;
};

// It has been used now.
void touch(const fs::path & path) { utimensat(AT_FDCWD, path.c_str(), nullptr, 0); }

// Empty: not there.
KeptVideo look_up(const fs::path & path) {
    struct stat found = {};
    if (stat(path.c_str(), &found) != 0) return {};
    return {path.stem().string(), path.string(),         static_cast<uint64_t>(found.st_size),
            found.st_mtim.tv_sec, found.st_mtim.tv_nsec, {}};
}

std::vector<KeptVideo> list(const fs::path & folder) {
    std::vector<KeptVideo> videos;
    std::error_code failed;
    for (const auto & entry : fs::directory_iterator(folder, failed)) {
        if (entry.path().extension() != ENDING) continue;
        KeptVideo video = look_up(entry.path());
        if (!video.path.empty()) videos.push_back(std::move(video));
    }
    std::ranges::sort(videos, [](const KeptVideo & a, const KeptVideo & b) {
        const auto when = [](const KeptVideo & video) { return std::pair(video.last_use, video.last_use_nanoseconds); };
        return when(a) != when(b) ? when(a) > when(b) : a.id < b.id;
    });
    return videos;
}

Manifest readable_manifest(const std::string & path) {
    try {
        return VideoFile(path, false, 1).manifest();
    } catch (const Error &) {
        return {};
    }
}

bool is_unchanged(const std::string & name, const WatchedFile & saved, const WatchedFile & now) {
    if (saved.path != now.path) return false;
    return saved.stat == now.stat || (saved.bytes == now.bytes && saved.content == content_of(name));
}

// Process 123 of this machine, in "0123456789abcdef.123.new".
pid_t writer_of(const fs::path & path) {
    const std::string name = path.filename().string();
    const size_t dot = name.find('.');
    return dot == std::string::npos ? 0 : std::atoi(name.c_str() + dot + 1);
}

bool is_leftover(const fs::path & path) {
    if (path.extension() != ".new" && path.extension() != ".part") return false;
    struct stat found = {};
    const pid_t writer = writer_of(path);
    const bool gone = writer <= 0 || (kill(writer, 0) != 0 && errno == ESRCH);
    return gone && stat(path.c_str(), &found) == 0 && time(nullptr) - found.st_mtim.tv_sec > LEFTOVER_SECONDS;
}

} // namespace

uint64_t parse_size(const std::string & text, const std::string & what) {
    double number = 0;
    const auto [rest, failed] = std::from_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed);
    std::string unit(rest, text.data() + text.size());
    while (unit.ends_with('B') || unit.ends_with('b') || unit.ends_with('i')) unit.pop_back();
    const size_t power = unit.empty() ? 0 : std::string("KMGT").find(static_cast<char>(std::toupper(unit[0]))) + 1;
    if (failed != std::errc() || !(number >= 0) || unit.size() > 1 || power > 4 || number > 1e6 * double(1ull << 40))
        throw UsageError(what + " takes a size such as 500M or 10G, not '" + text + "'");
    return static_cast<uint64_t>(std::min(number * double(1ull << (10 * power)), double(1ull << 62)));
}

std::string VideoKey::id() const {
    std::string text;
    for (const WatchedFile & file : manifest.files) text += file.path + '\n';
    for (const std::string & each :
         {manifest.kv, manifest.model, manifest.mmproj, manifest.engine, manifest.library, manifest.sampling})
        text += each + '\n';
    return fingerprint_of(text);
}

std::string KeptVideo::title() const {
    std::string title;
    for (const WatchedFile & file : manifest.files)
        title += (title.empty() ? "" : ", ") + fs::path(file.path).filename().string();
    return title.empty() ? manifest.prefix.video : title;
}

bool KeptVideo::is_named(const std::string & name) const {
    constexpr size_t shortest_id = 4;
    if (name.size() >= shortest_id && id.starts_with(name)) return true;
    if (title() == name) return true;
    const std::string absolute = fs::absolute(name).lexically_normal().string();
    return std::ranges::any_of(manifest.files, [&](const WatchedFile & file) { return file.path == absolute; });
}

VideoCache::VideoCache()
    : most_bytes_(parse_size(setting("VIDKV_VIDEOS_MAX_SIZE", DEFAULT_MAX_SIZE), "VIDKV_VIDEOS_MAX_SIZE")) {
    const std::string folder = setting("VIDKV_VIDEOS_DIR", "");
    try {
        folder_ = folder.empty() ? cache_folder() / "videos" : fs::path(folder);
    } catch (const Error &) { // no home folder
        most_bytes_ = 0;
    }
}

std::unique_ptr<VideoFile> VideoCache::find(const VideoKey & key, int threads, std::string & complaint) const {
    const fs::path path = path_of(key.id());
    if (look_up(path).path.empty()) return nullptr;
    std::unique_ptr<VideoFile> file;
    try {
        file = std::make_unique<VideoFile>(path.string(), true, threads);
    } catch (const Error & error) {
        complaint = std::string(error.what()) + "; it is removed, and the video is read anew";
        std::error_code failed;
        fs::remove(path, failed);
        return nullptr;
    }
    const Manifest &saved = file->manifest(), &now = key.manifest;
    if (differing_fact(saved, now) != Difference::NONE || saved.files.size() != now.files.size()) return nullptr;
    for (size_t i = 0; i < now.files.size(); ++i)
        if (!is_unchanged(key.names[i], saved.files[i], now.files[i])) return nullptr;
    touch(path);
    return file;
}

std::unique_ptr<VideoFile> VideoCache::find_pictures(const VideoKey & key, int64_t frames, int threads,
                                                     const std::function<std::string()> & pictures) const {
    std::string seen;
    for (const KeptVideo & video : list(folder_)) {
        const Manifest saved = readable_manifest(video.path);
        if (saved.pictures.empty() || differing_fact(saved, key.manifest) != Difference::NONE ||
            saved.files.size() != key.manifest.files.size())
            continue;
        constexpr int64_t leeway = 2; // containers are not exact about their lengths
        if (frames > 0 && std::abs(saved.prefix.frames - frames) > leeway) continue;
        if (seen.empty()) seen = pictures();
        if (saved.pictures != seen) continue;
        try {
            auto file = std::make_unique<VideoFile>(video.path, true, threads);
            touch(video.path);
            return file;
        } catch (const Error &) { // find() says so when it is asked for
        }
    }
    return nullptr;
}

void VideoCache::keep(const VideoKey & key,
                      const std::function<void(const std::string & path, const Manifest & manifest)> & save) const {
    std::error_code failed;
    fs::create_directories(folder_, failed);
    if (failed) throw Error("cannot make the folder '" + folder_.string() + "' (" + failed.message() + ")");
    Manifest manifest = key.manifest;
    for (size_t i = 0; i < key.names.size(); ++i) {
        manifest.files[i].content = content_of(key.names[i]);
        if (look_at(key.names[i])->stat != manifest.files[i].stat)
            throw Error("'" + key.names[i] + "' was changed while it was read");
    }
    const std::string id = key.id(), own = (folder_ / (id + '.' + std::to_string(getpid()) + ".new")).string();
    const UnfinishedFile beside(own), part(own + ".part");
    save(own, manifest);
    const uint64_t bytes = look_up(own).bytes;
    if (bytes > most_bytes_)
        throw Error("it takes " + std::to_string(bytes >> 20) + " MiB, more than VIDKV_VIDEOS_MAX_SIZE allows in all");
    {
        const FolderLock lock(folder_);
        if (std::rename(own.c_str(), path_of(id).c_str()) != 0)
            throw Error("'" + path_of(id).string() + "' cannot be written (" + std::strerror(errno) + ")");
        remove_leftovers();
    }
    prune(most_bytes_);
}

void VideoCache::remove_leftovers() const {
    std::error_code failed;
    std::vector<fs::path> leftovers;
    for (const auto & entry : fs::directory_iterator(folder_, failed))
        if (is_leftover(entry.path())) leftovers.push_back(entry.path());
    for (const fs::path & path : leftovers) fs::remove(path, failed);
}

std::vector<KeptVideo> VideoCache::videos() const {
    std::vector<KeptVideo> videos = list(folder_);
    for (KeptVideo & video : videos) video.manifest = readable_manifest(video.path);
    return videos;
}

bool VideoCache::remove(const KeptVideo & video) const {
    const FolderLock lock(folder_);
    std::error_code failed;
    const bool removed = fs::remove(video.path, failed);
    if (failed) throw Error("cannot remove '" + video.path + "': " + failed.message());
    return removed;
}

std::vector<KeptVideo> VideoCache::prune(uint64_t most_bytes) const {
    if (!fs::is_directory(folder_)) return {};
    const FolderLock lock(folder_);
    std::vector<KeptVideo> removed;
    uint64_t sum = 0;
    for (KeptVideo & video : list(folder_)) { // a process that has one open goes on with it
        sum += video.bytes;
        if (sum <= most_bytes) continue;
        std::error_code failed;
        if (!fs::remove(video.path, failed)) continue;
        removed.push_back(std::move(video));
    }
    return removed;
}

} // namespace vidkv::cli
