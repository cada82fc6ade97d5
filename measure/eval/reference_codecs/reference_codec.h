// Codecs of others, as plain reference code to measure VidKV against. Each takes rows, replaces them by what its packed
// form decodes to, and says how many bits per element that form would take.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "vidkv/vidkv.h"

namespace vidkv::cli {

// What a codec may be calibrated on: queries of the layer, [query tokens][query_heads][head_dim], and its keys before any codec,
// [tokens][heads][head_dim].
struct Calibration {
    std::span<const float> queries, keys;
    int query_heads;
};

// Keys or values of one layer: data [tokens][heads][head_dim].
struct ReferenceRows {
    float * data;
    int64_t tokens;
    int heads;
    int head_dim;
    const Calibration * calibration = nullptr; // for codecs that are calibrated

    float & at(int64_t token, int head, int channel) const { return data[(token * heads + head) * head_dim + channel]; }
};

struct ReferenceCodec {
    const char * name;
    const char * source; // where it is described
    double (*bits)(vidkv_side side, int heads, int head_dim);
    void (*round_trip)(const ReferenceRows & rows, vidkv_side side);
    bool calibrated = false; // needs rows.calibration
};

const std::vector<ReferenceCodec> & all_reference_codecs();
// Null for an unknown name.
const ReferenceCodec * find_reference_codec(const std::string & name);

// x rounded to IEEE binary16, as scales are stored.
float to_half(float x);

// Asymmetric uniform code of n numbers, `stride` apart: f16 minimum and step, codes of `bits` bits. In place.
void min_max_round_trip(float * x, int64_t n, int64_t stride, int bits);

// Orthonormal Hadamard transform of each `block` of n numbers, a power of two; its own inverse.
void hadamard(float * x, int64_t n, int block);
// Of each row, in blocks of the largest power of two in head_dim.
void turn_heads(const ReferenceRows & rows);

ReferenceCodec kivi2_reference();
ReferenceCodec turbo2_reference();
ReferenceCodec turbo3_reference();
ReferenceCodec q8_0_reference();
ReferenceCodec q5_1_reference();
ReferenceCodec q5_0_reference();
ReferenceCodec q4_0_reference();
ReferenceCodec q8_0_rotated_reference();
ReferenceCodec q5_0_rotated_reference();
ReferenceCodec q4_0_rotated_reference();
ReferenceCodec kvarn2_reference();
ReferenceCodec oscar_omni2_reference();
ReferenceCodec oscar_spectral2_reference();
ReferenceCodec trellis1_reference();
ReferenceCodec trellis2_reference();
ReferenceCodec vidkv_released_reference();

} // namespace vidkv::cli
