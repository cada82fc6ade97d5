#include "settings.h"

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <system_error>

#include "vidkv/layers.hpp"

namespace vidkv_ggml {

namespace {

constexpr const char * default_preset = "t1.65";

std::mutex mutex;
Settings settings;

const char * environment(const char * name) {
    const char * value = std::getenv(name);
    return value && *value ? value : nullptr;
}

std::string complaint(const std::string & variable, const char * value, const std::string & what) {
    return variable + "=" + value + ": " + what;
}

bool read_number(const char * text, float & out) {
    const char * end = text + std::strlen(text); // not strtof: its point is the locale's
    const auto read = std::from_chars(text, end, out);
    return read.ec == std::errc() && read.ptr == end && std::isfinite(out);
}

bool read_number(const char * text, int32_t & out) {
    char * end = nullptr;
    errno = 0;
    const long value = std::strtol(text, &end, 10);
    out = static_cast<int32_t>(value);
    return errno == 0 && end != text && *end == '\0' && value == out;
}

// Takes one parameter from its variable, if that is set; the others are known to be good.
template <typename Number>
std::string override_from(const char * variable, Number vidkv_params::*member, vidkv_params & params, bool & changed) {
    const char * text = environment(variable);
    if (!text) return "";
    Number value{};
    if (!read_number(text, value)) {
        return complaint(variable, text, std::is_integral_v<Number> ? "not a whole number" : "not a number");
    }
    vidkv_params candidate = params;
    candidate.*member = value;
    if (vidkv_params_check(&candidate, 0) != VIDKV_OK) return complaint(variable, text, vidkv_last_error());
    changed = changed || params.*member != value;
    params = candidate;
    return "";
}

// Runs work; "" or the line that says why libvidkv refused it.
template <typename Work> std::string refusal(Work work) {
    try {
        work();
        return "";
    } catch (const vidkv::Error & error) {
        return error.what();
    }
}

std::string read_environment(Settings & out) {
    const char * preset = environment("VIDKV_PRESET");
    Settings read{{}, preset ? preset : default_preset, {}};
    const size_t at = read.name.find('@'); // PRESET@FILE
    if (vidkv_params_from_preset(read.name.substr(0, at).c_str(), &read.params) != VIDKV_OK) {
        return complaint("VIDKV_PRESET", read.name.c_str(), vidkv_last_error());
    }
    vidkv_params & params = read.params;
    bool changed = false;
    std::string error = override_from("VIDKV_KEY_BITS", &vidkv_params::key_bits, params, changed);
    if (error.empty()) error = override_from("VIDKV_VALUE_BITS", &vidkv_params::value_bits, params, changed);
    if (error.empty()) error = override_from("VIDKV_GROUP_SIZE", &vidkv_params::group_size, params, changed);
    if (error.empty()) error = override_from("VIDKV_RESIDUAL_LENGTH", &vidkv_params::residual_length, params, changed);
    if (error.empty()) error = override_from("VIDKV_SINK_TOKENS", &vidkv_params::sink_tokens, params, changed);
    if (!error.empty()) return error;
    if (at != std::string::npos)
        error = refusal([&] {
            read.losses = vidkv::read_layer_losses(read.name.substr(at + 1));
            vidkv::params_by_layer(read.params, read.losses);
        });
    if (!error.empty()) return complaint("VIDKV_PRESET", read.name.c_str(), error);
    if (changed) read.name = "custom";
    out = read;
    return "";
}

} // namespace

vidkv_params CacheSettings::params_of(int layer) const {
    const auto own = by_layer.find(layer);
    return own == by_layer.end() ? params : own->second;
}

std::string load_settings_from_environment() {
    const std::lock_guard lock(mutex);
    return read_environment(settings);
}

std::string configure(const char * preset, const vidkv_params * override_or_null) {
    const std::lock_guard lock(mutex);
    if (!preset && !override_or_null) return read_environment(settings);
    Settings wanted{{}, preset ? preset : "custom", {}};
    if (preset && vidkv_params_from_preset(preset, &wanted.params) != VIDKV_OK) return vidkv_last_error();
    if (override_or_null) {
        if (vidkv_params_check(override_or_null, 0) != VIDKV_OK) return vidkv_last_error();
        wanted.params = *override_or_null;
    }
    settings = wanted;
    return "";
}

std::string configure_layers(const vidkv_layer_loss * losses, int64_t n) {
    const std::lock_guard lock(mutex);
    const std::vector<vidkv_layer_loss> wanted(losses, losses + n);
    std::string error = refusal([&] { vidkv::params_by_layer(settings.params, wanted); });
    if (error.empty()) settings.losses = wanted;
    return error;
}

CacheSettings settings_for(const std::set<int> & layers) {
    const std::lock_guard lock(mutex);
    return {settings.params, settings.name, vidkv::params_by_layer(settings.params, settings.losses, layers)};
}

} // namespace vidkv_ggml
