#include "codec/presets.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>

#include "base/error.h"
#include "codec/layout.h"

namespace vidkv {

namespace {

constexpr vidkv_params defaults{16, 16, 32, 128, 4};
constexpr const char * listed[] = {"f16", "k2v2", "k1.5v2", "k1.5v1.58", "k1.5v1.58-g128"};

// Reads the number after a letter; false unless it is there and made of digits and one point.
bool number_after(const char *& text, char letter, float & value) {
    if (*text != letter || text[1] < '0' || text[1] > '9') return false;
    char * end = nullptr;
    const std::string digits(text + 1, std::strspn(text + 1, "0123456789."));
    value = std::strtof(digits.c_str(), &end);
    if (*end != '\0') return false;
    text += 1 + digits.size();
    return true;
}

// Nothing more, or "-g" and the group size.
bool group_suffix(const char * text, int32_t & group_size) {
    if (*text == '\0') return true;
    for (const int32_t size : {32, 64, 96, 128}) {
        if ("-g" + std::to_string(size) != text) continue;
        group_size = size;
        return true;
    }
    return false;
}

} // namespace

vidkv_status params_from_preset(const char * name, vidkv_params & out) {
    vidkv_params params = defaults;
    if (std::strcmp(name, "f16") != 0) {
        const char * rest = name;
        const bool bits = number_after(rest, 'k', params.key_bits) && number_after(rest, 'v', params.value_bits);
        if (!bits || !group_suffix(rest, params.group_size)) {
            return fail(VIDKV_E_ARGUMENT, "unknown preset '" + std::string(name) +
                                              "': use f16, k2v2, k1.5v2, k1.5v1.58, or k<bits>v<bits>[-g<group size>] with key "
                                              "bits 1 to 2 (or 16), value bits 1.58 or 2 (or 16), group size 32, 64, 96 or 128");
        }
        if (vidkv_status status = check_params(params, 0)) {
            return fail(status, "preset '" + std::string(name) + "': " + last_error());
        }
    }
    out = params;
    return VIDKV_OK;
}

const char * preset_name(size_t index) { return index < std::size(listed) ? listed[index] : nullptr; }

vidkv_status check_params(const vidkv_params & p, int head_dim) {
    const auto number = [](auto value) {
        std::string text = std::to_string(value);
        if (text.find('.') != std::string::npos) text.erase(text.find_last_not_of("0") + 1);
        if (text.back() == '.') text.pop_back();
        return text;
    };
    if (p.key_bits != 16.0f && !(p.key_bits >= 1.0f && p.key_bits <= 2.0f)) {
        return fail(VIDKV_E_ARGUMENT, "key bits must be 1 to 2, or 16 for f16; got " + number(p.key_bits));
    }
    if (p.value_bits != 16.0f && p.value_bits != 2.0f && p.value_bits != 1.58f) {
        return fail(VIDKV_E_ARGUMENT, "value bits must be 1.58 or 2, or 16 for f16; got " + number(p.value_bits));
    }
    if (p.group_size < 32 || p.group_size > 128 || p.group_size % 32 != 0) {
        return fail(VIDKV_E_ARGUMENT, "group size must be 32, 64, 96 or 128; got " + number(p.group_size));
    }
    if (p.residual_length < 0) {
        return fail(VIDKV_E_ARGUMENT, "residual length must not be negative; got " + number(p.residual_length));
    }
    if (p.sink_tokens < 0 || p.sink_tokens > p.group_size) {
        return fail(VIDKV_E_ARGUMENT, "sink tokens must be 0 to the group size; got " + number(p.sink_tokens));
    }
    if (head_dim != 0 && (head_dim < 8 || head_dim > 512 || head_dim % 8 != 0)) {
        return fail(VIDKV_E_ARGUMENT, "head_dim must be a multiple of 8 from 8 to 512; got " + number(head_dim));
    }
    return VIDKV_OK;
}

double true_bits(const vidkv_params & params, vidkv_side side, int head_dim) {
    if (head_dim <= 0 || check_params(params, head_dim) != VIDKV_OK) return 0;
    return 8.0 * static_cast<double>(group_bytes(params, side, head_dim)) / (static_cast<double>(head_dim) * params.group_size);
}

} // namespace vidkv
