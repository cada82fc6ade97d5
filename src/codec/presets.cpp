#include "codec/presets.h"

#include <charconv>
#include <cmath>
#include <cstring>
#include <iterator>
#include <string>

#include "base/error.h"
#include "codec/layout.h"

namespace vidkv {

namespace {

constexpr int32_t default_residual = 128, default_sinks = 4;
constexpr vidkv_params f16_params{16, 16, VIDKV_CODEC_PAPER, VIDKV_CODEC_PAPER, 32, default_residual, default_sinks, 0};

constexpr const char * listed[] = {"f16",  "k2v2",  "k1.5v2", "k1.5v1.58", "k1.5v1.58-g128", "t4.2", "t3.2",
                                   "t2.2", "t1.65", "t1.15",  "t1.0"};

// The t presets fill the promise in their name: mean true bits of keys and values at head_dim 64 and 128.
struct Alias {
    const char * name;
    float key_bits, value_bits;
};
constexpr Alias aliases[] = {{"t4.2", 4.125f, 4.0f}, {"t3.2", 3.125f, 3.0f}, {"t2.2", 2.0625f, 2.0f},
                             {"t1.65", 1.5f, 1.5f},  {"t1.15", 1.0f, 1.0f},  {"t1.0", 0.734375f, 1.0f}};

// Reads digits and one point, from 0 on, whatever the locale; false unless there is a number.
bool number_at(const char *& text, float & value) {
    const char * end = text + std::strspn(text, "0123456789.");
    if (*text == '.') return false;
    const auto read = std::from_chars(text, end, value, std::chars_format::fixed);
    if (read.ec != std::errc() || read.ptr != end) return false;
    text = end;
    return true;
}

// A side: its letter, "t" for trellis codes, bits.
bool side_at(const char *& text, char letter, float & bits, int32_t & codec) {
    if (*text != letter) return false;
    ++text;
    codec = *text == 't' ? VIDKV_CODEC_TRELLIS : VIDKV_CODEC_PAPER;
    if (*text == 't') ++text;
    return number_at(text, bits);
}

bool prefix_at(const char *& text, const char * prefix) {
    const size_t n = std::strlen(prefix);
    if (std::strncmp(text, prefix, n) != 0) return false;
    text += n;
    return true;
}

// "-g<group size>" and "-stp<share>", in this order, both optional; false if anything else follows.
bool suffixes_at(const char *& text, vidkv_params & params) {
    float number;
    if (prefix_at(text, "-g")) {
        if (!number_at(text, number)) return false;
        params.group_size = number == 32 || number == 64 || number == 128 ? static_cast<int32_t>(number) : 0;
    }
    if (prefix_at(text, "-stp") && !number_at(text, params.protect)) return false;
    return *text == '\0';
}

bool parse(const char * name, vidkv_params & params) {
    const char * rest = name;
    if (prefix_at(rest, "f16")) return *rest == '\0';
    for (const Alias & alias : aliases) {
        rest = name;
        if (!prefix_at(rest, alias.name) || (*rest != '\0' && *rest != '-')) continue;
        params.key_bits = alias.key_bits;
        params.value_bits = alias.value_bits;
        params.key_codec = params.value_codec = VIDKV_CODEC_TRELLIS;
        return suffixes_at(rest, params);
    }
    rest = name;
    return side_at(rest, 'k', params.key_bits, params.key_codec) &&
           side_at(rest, 'v', params.value_bits, params.value_codec) && suffixes_at(rest, params);
}

std::string number(float value) {
    char text[64];
    return std::string(text, std::to_chars(text, std::end(text), value).ptr);
}

vidkv_status check_bits(const vidkv_params & p) {
    const auto known_codec = [](int32_t codec) { return codec == VIDKV_CODEC_PAPER || codec == VIDKV_CODEC_TRELLIS; };
    if (!known_codec(p.key_codec) || !known_codec(p.value_codec)) {
        return fail(VIDKV_E_ARGUMENT, "a codec must be VIDKV_CODEC_PAPER or VIDKV_CODEC_TRELLIS");
    }
    const bool trellis_keys = p.key_codec == VIDKV_CODEC_TRELLIS, trellis_values = p.value_codec == VIDKV_CODEC_TRELLIS;
    const float k = p.key_bits, v = p.value_bits;
    if (k != 16.0f && (trellis_keys ? !(k >= 0.5f && k <= 5.0f) : !(k >= 1.0f && k <= 2.0f))) {
        return fail(VIDKV_E_ARGUMENT, std::string("key bits must be ") + (trellis_keys ? "0.5 to 5 (trellis)" : "1 to 2") +
                                          ", or 16 for f16; got " + number(k));
    }
    const bool known =
        trellis_values ? v == 1.0f || v == 1.5f || v == 2.0f || v == 3.0f || v == 4.0f : v == 2.0f || v == 1.58f;
    if (v != 16.0f && !known) {
        return fail(VIDKV_E_ARGUMENT, std::string("value bits must be ") +
                                          (trellis_values ? "1, 1.5, 2, 3 or 4 (trellis)" : "1.58 or 2") +
                                          ", or 16 for f16; got " + number(v));
    }
    if (!(p.protect >= 0.0f && p.protect <= 0.5f)) {
        return fail(VIDKV_E_ARGUMENT, "the share of protected tokens must be 0 to 0.5; got " + number(p.protect));
    }
    if (p.protect > 0.0f && v >= (trellis_values ? 3.0f : 2.0f)) {
        return fail(VIDKV_E_ARGUMENT,
                    "protected tokens need values of fewer bits to be protected from: 1.58, or trellis 1 to 2");
    }
    return VIDKV_OK;
}

} // namespace

vidkv_status params_from_preset(const char * name, vidkv_params & out) {
    vidkv_params params = f16_params;
    if (!parse(name, params)) {
        return fail(
            VIDKV_E_ARGUMENT,
            "unknown preset '" + std::string(name) +
                "': use f16, t4.2, t3.2, t2.2, t1.65, t1.15, t1.0, k2v2, k1.5v2, k1.5v1.58, or k<bits>v<bits>[-g<group size>][-stp<share>] with "
                "key bits 1 to 2 (or 16), value bits 1.58 or 2 (or 16), group size 32, 64 or 128; kt and vt for trellis codes");
    }
    if (vidkv_status status = check_params(params, 0)) {
        return fail(status, "preset '" + std::string(name) + "': " + last_error());
    }
    out = params;
    return VIDKV_OK;
}

const char * preset_name(size_t index) { return index < std::size(listed) ? listed[index] : nullptr; }

vidkv_status check_params(const vidkv_params & p, int head_dim) {
    if (vidkv_status status = check_bits(p)) return status;
    if (p.group_size != 32 && p.group_size != 64 && p.group_size != 128) {
        return fail(VIDKV_E_ARGUMENT, "group size must be 32, 64 or 128");
    }
    if (p.residual_length < 0) {
        return fail(VIDKV_E_ARGUMENT, "residual length must not be negative; got " + std::to_string(p.residual_length));
    }
    if (p.sink_tokens < 0 || p.sink_tokens > 32) {
        return fail(VIDKV_E_ARGUMENT, "sink tokens must be 0 to 32; got " + std::to_string(p.sink_tokens));
    }
    if (head_dim != 0 && (head_dim < 8 || head_dim > 512 || head_dim % 8 != 0)) {
        return fail(VIDKV_E_ARGUMENT, "head_dim must be a multiple of 8 from 8 to 512; got " + std::to_string(head_dim));
    }
    return VIDKV_OK;
}

double true_bits(const vidkv_params & params, vidkv_side side, int head_dim) {
    if (head_dim <= 0 || check_params(params, head_dim) != VIDKV_OK) return 0;
    return 8.0 * static_cast<double>(page_bytes(params, side, head_dim, 1)) / (static_cast<double>(head_dim) * page_tokens);
}

} // namespace vidkv
