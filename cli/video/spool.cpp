#include "video/spool.h"

#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include "error.h"
#include "interrupt.h"
#include "video/ffmpeg.h"

extern "C" {
#include <libavutil/mem.h>
#include <libavutil/opt.h>
}

namespace vidkv::cli {

namespace {

constexpr int BLOCK = 1 << 16;
constexpr int POLL_MILLISECONDS = 100;

int unnamed_file() {
    const char * chosen = std::getenv("TMPDIR");
    const std::string folder = chosen && *chosen ? chosen : "/tmp";
    if (const int file = open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600); file >= 0) return file;
    std::string name = folder + "/vidkv-XXXXXX"; // not every file system has unnamed files
    const int file = mkostemp(name.data(), O_CLOEXEC);
    if (file < 0) throw Error("cannot keep the video in '" + folder + "' (" + std::strerror(errno) + "): set TMPDIR");
    unlink(name.c_str());
    return file;
}

bool write_all(int file, const uint8_t * data, int64_t n, int64_t at) {
    while (n > 0) {
        const ssize_t written = pwrite(file, data, static_cast<size_t>(n), at);
        if (written <= 0 && errno != EINTR) return false;
        if (written <= 0) continue;
        data += written;
        n -= written;
        at += written;
    }
    return true;
}

// A file descriptor that is waited for in short steps: a signal may reach another thread than the one that reads.
class Descriptor {
  public:
    explicit Descriptor(const std::string & path) : own_(path != "-") {
        file_ = own_ ? open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC) : STDIN_FILENO;
        if (file_ < 0) throw Error("'" + path + "' cannot be read: " + std::strerror(errno));
    }
    ~Descriptor() {
        if (own_) close(file_);
    }
    Descriptor(const Descriptor &) = delete;
    Descriptor & operator=(const Descriptor &) = delete;

    int read(uint8_t * to, int n) const {
        for (;;) {
            if (interrupted()) return AVERROR_EXIT;
            pollfd waiting = {file_, POLLIN, 0};
            if (poll(&waiting, 1, POLL_MILLISECONDS) <= 0) continue;
            const ssize_t got = ::read(file_, to, static_cast<size_t>(n));
            if (got >= 0) return static_cast<int>(got);
            if (errno != EINTR && errno != EAGAIN) return AVERROR(errno);
        }
    }

  private:
    bool own_;
    int file_ = -1;
};

bool is_playlist(AVIOContext * io) {
    uint8_t * type = nullptr;
    av_opt_get(io, "mime_type", AV_OPT_SEARCH_CHILDREN, &type);
    const std::string text = type ? reinterpret_cast<const char *>(type) : "";
    av_free(type);
    return text.find("mpegurl") != std::string::npos || text.find("dash+xml") != std::string::npos;
}

} // namespace

Spool::Spool(Pull pull) : pull_(std::move(pull)), file_(unnamed_file()) {
    auto * buffer = static_cast<uint8_t *>(av_malloc(BLOCK));
    io_ = buffer ? avio_alloc_context(buffer, BLOCK, 0, this, read, nullptr, seek) : nullptr;
    if (io_) return;
    av_free(buffer);
    close(file_);
    throw std::bad_alloc();
}

Spool::~Spool() {
    av_freep(&io_->buffer);
    avio_context_free(&io_);
    close(file_);
}

void Spool::rewind() {
    avio_seek(io_, 0, SEEK_SET);
    io_->eof_reached = 0;
    io_->error = 0;
}

int Spool::keep_more() {
    std::array<uint8_t, BLOCK> block;
    const int got = pull_(block.data(), BLOCK);
    if (got <= 0) {
        ended_ = true;
        return got;
    }
    if (!write_all(file_, block.data(), got, kept_)) return AVERROR(errno);
    kept_ += got;
    return got;
}

int Spool::read(void * self, uint8_t * to, int n) {
    auto & spool = *static_cast<Spool *>(self);
    while (spool.at_ >= spool.kept_ && !spool.ended_)
        if (const int got = spool.keep_more(); got < 0) return got;
    const ssize_t got = pread(spool.file_, to, static_cast<size_t>(n), spool.at_);
    if (got < 0) return AVERROR(errno);
    if (got == 0) return AVERROR_EOF;
    spool.at_ += got;
    return static_cast<int>(got);
}

int64_t Spool::seek(void * self, int64_t offset, int whence) {
    auto & spool = *static_cast<Spool *>(self);
    whence &= ~AVSEEK_FORCE;
    if (whence == AVSEEK_SIZE) return spool.ended_ ? spool.kept_ : AVERROR(ENOSYS);
    if (whence == SEEK_CUR) offset += spool.at_;
    if (whence == SEEK_END || offset < 0) return AVERROR(EINVAL);
    return spool.at_ = offset;
}

std::unique_ptr<Spool> spool_of_pipe(const std::string & path) {
    const auto descriptor = std::make_shared<Descriptor>(path);
    return std::make_unique<Spool>([descriptor](uint8_t * to, int n) { return descriptor->read(to, n); });
}

std::unique_ptr<Spool> spool_of_url(const std::string & url) {
    if (!url.starts_with("http")) return nullptr;
    AVIOContext * opened = nullptr;
    Dictionary options;
    set_open_options(options);
    const AVIOInterruptCB on_interrupt = interrupt_of_ffmpeg();
    if (avio_open2(&opened, url.c_str(), AVIO_FLAG_READ, &on_interrupt, options.address()) < 0) return nullptr;
    const std::shared_ptr<AVIOContext> io(opened, [](AVIOContext * each) { avio_close(each); });
    if (io->seekable & AVIO_SEEKABLE_NORMAL || is_playlist(io.get())) return nullptr;
    return std::make_unique<Spool>([io](uint8_t * to, int n) {
        const int got = avio_read_partial(io.get(), to, n);
        return got == AVERROR_EOF ? 0 : got;
    });
}

} // namespace vidkv::cli
