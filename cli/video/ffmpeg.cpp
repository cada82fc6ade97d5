#include "video/ffmpeg.h"

#include <array>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>

#include "interrupt.h"

extern "C" {
#include <libavutil/error.h>
#include <libavutil/log.h>
}

namespace vidkv::cli {

namespace {

constexpr const char * SERVER_TIMEOUT = "30000000"; // microseconds

std::mutex guard; // decoders complain from threads of their own
std::string kept;

void keep_first(void *, int level, const char * format, va_list arguments) {
    if (level > AV_LOG_ERROR) return;
    const std::lock_guard lock(guard);
    if (!kept.empty()) return;
    std::array<char, 512> text = {};
    std::vsnprintf(text.data(), text.size(), format, arguments);
    kept = text.data();
    while (!kept.empty() && (kept.back() == '\n' || kept.back() == ' ' || kept.back() == '.')) kept.pop_back();
}

template <typename T> T * existing(T * object) {
    if (!object) throw std::bad_alloc();
    return object;
}

} // namespace

void set_open_options(Dictionary & options) {
    options.set("rw_timeout", SERVER_TIMEOUT);
    options.set("rtsp_transport", "tcp"); // datagrams get lost
    options.set("tls_verify", "1");       // as curl does; FFmpeg would take any server for the one that is named
    const char * authorities = std::getenv("SSL_CERT_FILE");
    if (authorities && *authorities) options.set("ca_file", authorities);
}

AVIOInterruptCB interrupt_of_ffmpeg() {
    return {[](void *) { return interrupted() ? 1 : 0; }, nullptr};
}

FramePtr make_frame() { return FramePtr(existing(av_frame_alloc())); }
PacketPtr make_packet() { return PacketPtr(existing(av_packet_alloc())); }

std::string error_words(int error) {
    std::array<char, AV_ERROR_MAX_STRING_SIZE> text = {};
    av_strerror(error, text.data(), text.size());
    return text.data();
}

void keep_complaints() { av_log_set_callback(keep_first); }

std::string first_complaint() {
    const std::lock_guard lock(guard);
    return kept;
}

void forget_complaints() {
    const std::lock_guard lock(guard);
    kept.clear();
}

} // namespace vidkv::cli
