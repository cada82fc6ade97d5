#include "cache/seal.h"

#include <atomic>
#include <bit>

#include "base/bytes.h"
#include "base/half.h"
#include "base/thread_pool.h"
#include "codec/two_bit.h"
#include "codec/key_page.h"
#include "codec/trellis_keys.h"
#include "codec/value_page.h"

namespace vidkv {

namespace {

bool has(const PageBits & bits, int i) { return bits[i / 64] >> (i % 64) & 1u; }

// Runs task(i) on several threads; a bad_alloc in one of them is thrown here.
void for_each(size_t count, int threads, const std::function<void(size_t)> & task) {
    std::atomic<bool> no_memory{false};
    parallel_for(static_cast<int64_t>(count), threads, [&](int64_t i) {
        try {
            task(static_cast<size_t>(i));
        } catch (const std::bad_alloc &) {
            no_memory = true;
        }
    });
    if (no_memory) throw std::bad_alloc();
}

using Use = std::array<uint8_t, page_tokens>;

Use use_of(const OpenPage & page) {
    Use use;
    for (int t = 0; t < page_tokens; ++t) use[t] = has(page.use, t);
    return use;
}

// One head of a page as f32 [head_dim][128], what is not finite as 0.
KeyRows gather_keys(const OpenPage & page, int head, int head_dim, int kv_heads) {
    KeyRows x(static_cast<size_t>(head_dim) * page_tokens);
    for (int t = 0; t < page_tokens; ++t) {
        const uint16_t * row = page.rows + static_cast<size_t>(t) * kv_heads * head_dim + static_cast<size_t>(head) * head_dim;
        for (int c = 0; c < head_dim; ++c) x[c * page_tokens + t] = sanitize(half_to_float(row[c]));
    }
    return x;
}

// What all pages and heads of one sealing have in common.
struct KeySealing {
    const KeyLayout & layout;
    std::vector<ChannelPlan> & plans;
    const QueryStatistics * statistics;
    const std::vector<OpenPage> & pages;
    int threads;
    std::vector<KeyRows> rows; // [page][head]
    std::vector<uint8_t> use;  // [page][128]
    std::vector<KeyFeedback> feedback; // [head], trellis

    size_t heads() const { return static_cast<size_t>(layout.kv_heads); }
    const KeyRows & rows_of(size_t page, size_t head) const { return rows[page * heads() + head]; }
    const uint8_t * use_of_page(size_t page) const { return &use[page * page_tokens]; }
    std::vector<const KeyRows *> pages_of(size_t head) const {
        std::vector<const KeyRows *> out;
        for (size_t p = 0; p < pages.size(); ++p) out.push_back(&rows_of(p, head));
        return out;
    }

    void gather() {
        rows.resize(pages.size() * heads());
        for (const OpenPage & page : pages) {
            const Use flags = vidkv::use_of(page);
            use.insert(use.end(), flags.begin(), flags.end());
        }
        for_each(rows.size(), threads, [&](size_t i) {
            rows[i] = gather_keys(pages[i / heads()], static_cast<int>(i % heads()), layout.head_dim, layout.kv_heads);
        });
    }

    void prepare() {
        const bool choose = plans.empty();
        if (choose) plans.resize(heads());
        feedback.resize(heads());
        for_each(heads(), threads, [&](size_t head) {
            const std::vector<const KeyRows *> of_head = pages_of(head);
            if (layout.codec == VIDKV_CODEC_TRELLIS) {
                feedback[head] = make_feedback(statistics, static_cast<int>(head), layout.head_dim, of_head, use);
                if (choose) plans[head] = plan_trellis_keys(feedback[head], of_head, use);
            } else if (choose) {
                plans[head] = choose_channels(of_head, use, layout.head_dim, layout.wide);
            }
        });
    }

    void encode_paper(std::vector<SealedPage> & sealed) {
        for_each(rows.size(), threads, [&](size_t i) {
            const size_t page = i / heads(), head = i % heads();
            uint8_t * data = sealed[page].data.get();
            encode_paper_keys(layout, plans[head], rows[i].data(), use_of_page(page), data + head * layout.head_codes,
                              data + heads() * layout.head_codes + head * layout.head_meta);
        });
    }

    void encode_trellis(std::vector<SealedPage> & sealed) {
        const size_t quads = static_cast<size_t>(layout.head_dim / 4);
        std::vector<std::vector<QuadCode>> codes(pages.size());
        for_each(pages.size(), threads, [&](size_t page) {
            std::vector<const KeyRows *> of_heads;
            for (size_t head = 0; head < heads(); ++head) of_heads.push_back(&rows_of(page, head));
            codes[page] = allot_bits(layout, plans, feedback, of_heads, page);
            size_t start = 0;
            uint8_t * starts = sealed[page].data.get() + layout.head_codes + heads() * layout.head_meta;
            for (size_t head = 0; head < heads(); ++head) {
                store_at(starts, head, static_cast<uint16_t>(start / quad_bit_bytes));
                for (size_t q = 0; q < quads; ++q) start += quad_bytes(codes[page][head * quads + q], page_tokens);
            }
        });
        for_each(rows.size(), threads, [&](size_t i) {
            const size_t page = i / heads(), head = i % heads();
            uint8_t * data = sealed[page].data.get();
            const KeyPage place = key_page(layout, data, static_cast<int>(head));
            encode_trellis_keys(plans[head], feedback[head], &codes[page][head * quads], rows[i], feedback[head].page(page),
                                data + (place.codes - data), data + (place.meta - data));
        });
    }
};

// Which cells of a page get the better code: the marked ones, cut or filled up to whole units.
PageBits choose_protected(const ValueLayout & layout, const OpenPage & page, int & units) {
    const PageBits wanted{page.marked[0] & page.use[0], page.marked[1] & page.use[1]};
    units = layout.protected_units(std::popcount(wanted[0]) + std::popcount(wanted[1]));
    int left = units * layout.unit();
    PageBits chosen{};
    for (const bool marked : {true, false}) {
        for (int t = 0; t < page_tokens && left > 0; ++t) {
            if (has(wanted, t) != marked) continue;
            chosen[t / 64] |= uint64_t{1} << (t % 64);
            --left;
        }
    }
    return chosen;
}

void encode_value_head(const ValueLayout & layout, const OpenPage & page, size_t head, int units, uint8_t * data) {
    const ValuePage place = value_page(layout, data, static_cast<int>(head));
    const size_t head_dim = static_cast<size_t>(layout.head_dim), channels = head_dim * static_cast<size_t>(layout.kv_heads);
    std::vector<float> x(page_tokens * head_dim);
    const auto tokens = slot_tokens(place);
    Use use;
    for (size_t slot = 0; slot < page_tokens; ++slot) {
        const int token = tokens[slot];
        use[slot] = has(page.use, token);
        const uint16_t * row = page.rows + static_cast<size_t>(token) * channels + head * head_dim;
        for (size_t c = 0; c < head_dim; ++c) x[slot * head_dim + c] = half_to_float(row[c]);
    }
    encode_values(layout, x.data(), use.data(), units, data + (place.codes - data), data + (place.meta - data));
}

} // namespace

std::vector<SealedPage> seal_keys(const KeyLayout & layout, std::vector<ChannelPlan> & plans, const QueryStatistics * statistics,
                                  const std::vector<OpenPage> & pages, int threads) {
    KeySealing sealing{layout, plans, statistics, pages, threads, {}, {}, {}};
    sealing.gather();
    sealing.prepare();
    std::vector<SealedPage> sealed(pages.size());
    for (SealedPage & page : sealed) page = {make_page(layout.page_bytes), static_cast<uint32_t>(layout.page_bytes)};
    if (layout.codec == VIDKV_CODEC_TRELLIS) sealing.encode_trellis(sealed);
    else sealing.encode_paper(sealed);
    return sealed;
}

std::vector<SealedPage> seal_values(const ValueLayout & layout, const std::vector<OpenPage> & pages, int threads) {
    const size_t heads = static_cast<size_t>(layout.kv_heads);
    std::vector<SealedPage> sealed(pages.size());
    std::vector<int> units(pages.size(), 0);
    for (size_t p = 0; p < pages.size(); ++p) {
        const PageBits chosen = layout.protects ? choose_protected(layout, pages[p], units[p]) : PageBits{};
        const size_t bytes = layout.page_bytes(units[p]);
        sealed[p] = {make_page(bytes), static_cast<uint32_t>(bytes)};
        if (layout.protects) std::memcpy(sealed[p].data.get(), chosen.data(), sizeof(chosen));
    }
    for_each(pages.size() * heads, threads, [&](size_t i) {
        encode_value_head(layout, pages[i / heads], i % heads, units[i / heads], sealed[i / heads].data.get());
    });
    return sealed;
}

} // namespace vidkv
