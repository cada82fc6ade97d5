#include "cuda/launch.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "base/error.h"
#include "base/softmax_math.h"
#include "codec/layout.h"
#include "codec/page_mean.h"
#include "codec/rotation.h"
#include "codec/trellis.h"

namespace vidkv::cuda {

namespace {

constexpr int workspace_unit = 256;

uint64_t round_up(uint64_t n, uint64_t unit) { return (n + unit - 1) / unit * unit; }

// Level of a state of a trellis, by the lowest bits of the ring from the state's first bit on.
uint32_t level(QuadCode code, unsigned bits, int step, int sample) {
    const TrellisTable & table = trellis_table(code);
    return table.level(sample, static_cast<uint8_t>(bits >> step * table.bits));
}

// The signs of the rotation, a bit for each channel (docs/format.md, "Trellis values").
void fill_signs(uint32_t (&signs)[4]) {
    uint32_t state = 1;
    for (uint32_t & word : signs) {
        word = 0;
        for (int i = 0; i < 32; ++i) word |= uint32_t{next_sign(state)} << i;
    }
}

bool aligned(const void * at, size_t unit) { return reinterpret_cast<uintptr_t>(at) % unit == 0; }

vidkv_status check_rows(const vidkv_cuda_rows & rows, int64_t count, const char * what) {
    if (count <= 0) return VIDKV_OK;
    if (!rows.rows) return fail(VIDKV_E_ARGUMENT, std::string(what) + ": there are cells in f16, but no rows");
    if (!aligned(rows.rows, 16) || rows.row_stride % 8 || rows.head_stride % 8)
        return fail(VIDKV_E_ARGUMENT, std::string(what) + ": rows must begin at multiples of 16 bytes");
    return VIDKV_OK;
}

vidkv_status check_sequence(const vidkv_cuda_sequence & s) {
    constexpr int64_t longest = int64_t{1} << 30;
    if (s.pages < 0 || s.cells < 1 || s.cells > longest || s.pages * page_tokens > s.cells)
        return fail(VIDKV_E_ARGUMENT, "a sequence must have 1 to 2^30 cells, and its pages no more than these");
    if (s.pages > 0 && (!s.key_pages || !s.value_pages || !s.order || !s.means))
        return fail(VIDKV_E_ARGUMENT, "sealed pages need their addresses, a channel order and means");
    if (s.sinks < 0 || s.sinks > page_tokens) return fail(VIDKV_E_ARGUMENT, "sinks must be 0 to 128");
    const int64_t sinks = s.pages > 0 ? s.sinks : 0, window = s.cells - s.pages * page_tokens;
    if (vidkv_status status = check_rows(s.key_sinks, sinks, "key_sinks")) return status;
    if (vidkv_status status = check_rows(s.value_sinks, sinks, "value_sinks")) return status;
    if (vidkv_status status = check_rows(s.keys, window, "keys")) return status;
    return check_rows(s.values, window, "values");
}

vidkv_status check_args(const vidkv_cuda_attention_args & a) {
    if (vidkv_status status = check_format(a.params, a.head_dim)) return status;
    if (a.kv_heads < 1 || a.heads < 1 || a.heads % a.kv_heads)
        return fail(VIDKV_E_ARGUMENT, "query heads must be a multiple of the KV heads, both at least 1");
    if (a.tokens < 1 || a.tokens > 4096) return fail(VIDKV_E_ARGUMENT, "tokens must be 1 to 4096");
    if (a.sequences < 1 || !a.sequence || !a.q || !a.out)
        return fail(VIDKV_E_ARGUMENT, "sequences, q and out must be given");
    for (const int32_t number : {a.q_number, a.out_number}) {
        if (number < VIDKV_CUDA_F32 || number > VIDKV_CUDA_BF16)
            return fail(VIDKV_E_ARGUMENT, "q_number and out_number must be a vidkv_cuda_number");
    }
    for (int i = 0; i < a.sequences; ++i) {
        if (vidkv_status status = check_sequence(a.sequence[i])) return status;
    }
    return VIDKV_OK;
}

HalfRowsOf rows_of(const vidkv_cuda_rows & rows) { return {rows.rows, rows.head_stride, rows.row_stride}; }

SequenceParams sequence_of(const vidkv_cuda_sequence & s) {
    return {s.key_pages,
            s.value_pages,
            s.order,
            s.means,
            rows_of(s.key_sinks),
            rows_of(s.value_sinks),
            rows_of(s.keys),
            rows_of(s.values),
            static_cast<int32_t>(s.pages),
            s.sinks,
            static_cast<int32_t>(s.cells)};
}

void copy_arguments(const vidkv_cuda_attention_args & a, int first, int count, AttentionParams & p) {
    p.kv_heads = a.kv_heads;
    p.ratio = a.heads / a.kv_heads;
    p.tokens = a.tokens;
    p.q_number = static_cast<Number>(a.q_number);
    p.out_number = static_cast<Number>(a.out_number);
    const int64_t q_size = p.q_number == Number::f32 ? 4 : 2, out_size = p.out_number == Number::f32 ? 4 : 2;
    p.q = static_cast<const uint8_t *>(a.q) + q_size * first * a.q_sequence_stride;
    p.out = static_cast<uint8_t *>(a.out) + out_size * first * a.out_sequence_stride;
    p.q_sequence = a.q_sequence_stride;
    p.q_token = a.q_token_stride;
    p.q_head = a.q_head_stride;
    p.out_sequence = a.out_sequence_stride;
    p.out_token = a.out_token_stride;
    p.out_head = a.out_head_stride;
    p.mask = a.mask;
    p.mask_stride = a.mask_stride;
    p.sinks = a.sinks;
    p.factor = a.softcap == 0.0f ? a.scale * exponential::log2_e : a.scale / a.softcap;
    p.softcap = a.softcap;
    p.causal = a.causal != 0;
    for (int i = 0; i < count; ++i) p.sequences[i] = sequence_of(a.sequence[first + i]);
    fill_signs(p.signs);
}

void copy_format(const vidkv_cuda_attention_args & a, AttentionParams & p) {
    const KeyLayout keys = make_key_layout(a.params, a.head_dim, a.kv_heads);
    const ValueLayout values = make_value_layout(a.params, a.head_dim, a.kv_heads);
    p.key_codes = static_cast<int32_t>(keys.head_codes);
    p.value_code = values.plain_code;
    p.value_quad = static_cast<int32_t>(values.plain_quad);
    p.narrow_code = values.narrow_code;
    p.narrow_quad = static_cast<int32_t>(values.narrow_quad);
    p.first_narrow[0] = page_tokens / 4 - values.mean_quads;
    p.first_narrow[1] = page_tokens / 4 - values.direction_quads;
    p.mean_bytes = static_cast<int32_t>(page_mean_bytes(a.head_dim));
    p.direction_bytes = static_cast<int32_t>(page_direction_bytes(a.head_dim, page_tokens));
    p.value_head_codes = static_cast<int32_t>(values.head_codes(0));
    // Heads share the bits of a page, so one may have more than its share.
    p.key_room = static_cast<int32_t>(round_up(static_cast<uint64_t>(p.key_codes / p.kv_heads * 9 / 8 + 64), 16));
    p.value_room = static_cast<int32_t>(round_up(static_cast<uint64_t>(p.value_head_codes), 16));
}

template <int D, int NT> int shared_bytes_of(const AttentionParams & p) {
    using Layout = BlockLayout<D, NT>;
    const int merge = Layout::tables + p.warps * PartLayout<D, NT>::floats * 4;
    const int finish = Layout::tables + PartLayout<D, NT>::rows * (p.splits + 1 + D) * 4;
    return std::max({Layout::warps + p.warps * p.warp_bytes, merge, finish});
}

// As many warps as there is memory for; without room for codes if need be, which are read where they are then.
template <int D, int NT> vidkv_status fit(const Device & device, Launch & out) {
    AttentionParams & p = out.params;
    for (p.warps = device.most_warps / NT; p.warps > 0; --p.warps) {
        p.warp_bytes = p.key_room + p.value_room + BlockLayout<D, NT>::warp_rest;
        out.shared_bytes = shared_bytes_of<D, NT>(p);
        if (out.shared_bytes <= device.shared_bytes) return VIDKV_OK;
        if (p.warps <= 4) p.key_room = p.value_room = 0;
    }
    return fail(VIDKV_E_UNSUPPORTED, "this device has too little shared memory");
}

vidkv_status fit_shape(int head_dim, const Device & device, Launch & out) {
    if (head_dim == 128) return out.row_tiles == 1 ? fit<128, 1>(device, out) : fit<128, 2>(device, out);
    return out.row_tiles == 1 ? fit<64, 1>(device, out) : fit<64, 2>(device, out);
}

// Parts of the pages, so that all multiprocessors have one; f16 rows take a block of their own, which counts where there are few.
int splits_for(const Device & device, int items, int64_t most_pages) {
    if (most_pages == 0) return 0;
    const int share = device.multiprocessors / items, wanted = share >= 8 ? share - 1 : share;
    return static_cast<int>(std::clamp<int64_t>(wanted, 1, (most_pages + 1) / 2));
}

} // namespace

vidkv_status check_format(const vidkv_params & params, int head_dim) {
    if (vidkv_status status = vidkv_params_check(&params, head_dim)) return status;
    const bool trellis = params.key_codec == VIDKV_CODEC_TRELLIS && params.value_codec == VIDKV_CODEC_TRELLIS;
    if (!trellis || is_f16(params, VIDKV_KEYS) || is_f16(params, VIDKV_VALUES))
        return fail(VIDKV_E_UNSUPPORTED,
                    "the CUDA kernels read trellis codes of keys and values (t4.2 to t1.0), no others");
    if (params.protect != 0.0f) return fail(VIDKV_E_UNSUPPORTED, "the CUDA kernels read no pages with protected tokens");
    if (head_dim != 64 && head_dim != 128)
        return fail(VIDKV_E_UNSUPPORTED, "the CUDA kernels need a head_dim of 64 or 128");
    return VIDKV_OK;
}

vidkv_status plan_launch(const vidkv_cuda_attention_args & args, int first, const Device & device, Launch & out) {
    if (vidkv_status status = check_args(args)) return status;
    AttentionParams & p = out.params;
    const int count = std::min(args.sequences - first, sequences_per_launch);
    copy_arguments(args, first, count, p);
    copy_format(args, p);
    const int rows = p.tokens * p.ratio;
    out.row_tiles = rows <= rows_per_tile ? 1 : 2;
    p.row_blocks = (rows + rows_per_tile * out.row_tiles - 1) / (rows_per_tile * out.row_tiles);
    out.items = count * p.kv_heads * p.row_blocks;
    int64_t most_pages = 0;
    for (int i = 0; i < count; ++i) most_pages = std::max<int64_t>(most_pages, p.sequences[i].pages);
    p.splits = splits_for(device, out.items, most_pages);
    if (vidkv_status status = fit_shape(args.head_dim, device, out)) return status;
    out.blocks = out.items * (p.splits + 1);
    out.threads = p.warps * lanes_per_warp;
    out.counter_bytes = round_up(static_cast<uint64_t>(out.items) * 4, workspace_unit);
    const uint64_t part_floats =
        static_cast<uint64_t>(rows_per_tile * out.row_tiles) * static_cast<uint64_t>(args.head_dim + 2);
    out.workspace_bytes = out.counter_bytes + static_cast<uint64_t>(out.blocks) * part_floats * 4;
    return VIDKV_OK;
}

void place_workspace(Launch & launch, void * workspace) {
    launch.params.counters = static_cast<int32_t *>(workspace);
    launch.params.parts = reinterpret_cast<float *>(static_cast<uint8_t *>(workspace) + launch.counter_bytes);
}

std::unique_ptr<LevelTables> make_level_tables() {
    auto tables = std::make_unique<LevelTables>();
    for (unsigned bits = 0; bits < 2048; ++bits) {
        uint32_t one = 0, one_half = 0, three = 0;
        for (int i = 0; i < 4; ++i) {
            one |= level(QuadCode::trellis1, bits, i, 0) << 8 * i;
            one_half |= level(QuadCode::trellis1_5, bits, i / 2, i % 2) << 8 * i;
            if (i < 2) three |= level(QuadCode::trellis3, bits, i, 0) << 8 * i;
        }
        tables->one[bits] = one;
        tables->one_half[bits] = one_half;
        tables->three[bits] = static_cast<uint16_t>(three);
    }
    for (unsigned bits = 0; bits < 16384; ++bits) {
        uint32_t two = 0;
        for (int i = 0; i < 4; ++i) two |= level(QuadCode::trellis2, bits, i, 0) << 4 * i;
        tables->two[bits] = static_cast<uint16_t>(two);
    }
    return tables;
}

} // namespace vidkv::cuda
