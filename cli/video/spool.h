// Bytes that come once - a pipe, a server that cannot seek - kept in a file without a name, so that FFmpeg can go back in
// them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

extern "C" {
#include <libavformat/avio.h>
}

namespace vidkv::cli {

class Spool {
  public:
    // Gets up to n more bytes: their number, 0 at the end, or FFmpeg's error.
    using Pull = std::function<int(uint8_t * to, int n)>;

    explicit Spool(Pull pull);
    ~Spool();
    Spool(const Spool &) = delete;
    Spool & operator=(const Spool &) = delete;

    AVIOContext * io() const { return io_; }
    void rewind();

  private:
    static int read(void * self, uint8_t * to, int n);
    static int64_t seek(void * self, int64_t offset, int whence);
    int keep_more();

    Pull pull_;
    int file_ = -1;
    int64_t kept_ = 0, at_ = 0;
    bool ended_ = false;
    AVIOContext * io_ = nullptr;
};

// Bytes of a pipe, a device or standard input ("-"); waits for them, and ends the waiting on Ctrl-C.
std::unique_ptr<Spool> spool_of_pipe(const std::string & path);
// Bytes of a server that sends a file from its start only; nothing if it can seek, or sends no plain file.
std::unique_ptr<Spool> spool_of_url(const std::string & url);

} // namespace vidkv::cli
