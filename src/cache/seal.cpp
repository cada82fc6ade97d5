#include "cache/seal.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <utility>

#include "base/bytes.h"
#include "base/half.h"
#include "base/thread_pool.h"
#include "codec/two_bit.h"
#include "codec/key_page.h"
#include "codec/packed_keys.h"
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
    for (int t = 0; t < page.held; ++t) {
        const uint16_t * row =
            page.rows + static_cast<size_t>(t) * kv_heads * head_dim + static_cast<size_t>(head) * head_dim;
        for (int c = 0; c < head_dim; ++c) x[c * page_tokens + t] = sanitize(half_to_float(row[c]));
    }
    return x;
}

Ref<PageBytes> new_page(size_t bytes, const OpenPage & page) {
    Ref<PageBytes> made = PageBytes::make(bytes, page.sink_bytes);
    if (page.sink_bytes) std::memcpy(made->data() + PageBytes::sinks_at(bytes), page.rows, page.sink_bytes);
    return made;
}

// The keys of one job on their way, step by step.
class KeySealing {
  public:
    explicit KeySealing(SealJob & job)
        : layout_(*job.key_layout), plans_(job.plans), statistics_(job.statistics), pages_(job.pages), sealed_(job.sealed),
          choose_(job.plans.empty()), rows_(pages_.size() * heads()), feedback_(heads()), packed_(rows_.size()),
          codes_(pages_.size()), kept_(pages_.size()) {
        if (choose_) plans_.resize(heads());
        for (const OpenPage & page : pages_) {
            const Use flags = vidkv::use_of(page);
            use_.insert(use_.end(), flags.begin(), flags.end());
            sealed_.push_back(new_page(layout_.page_bytes, page));
        }
    }

    size_t heads() const { return static_cast<size_t>(layout_.kv_heads); }
    size_t pages() const { return pages_.size(); }
    bool trellis() const { return layout_.codec == VIDKV_CODEC_TRELLIS; }

    void gather(size_t i) { // one head of a page
        rows_[i] = gather_keys(pages_[i / heads()], static_cast<int>(i % heads()), layout_.head_dim, layout_.kv_heads);
        if (trellis()) packed_[i] = find_codes(rows_[i], use_of_page(i / heads()));
    }

    void prepare(size_t head) {
        const std::vector<const KeyRows *> of_head = pages_of(head);
        if (trellis()) {
            feedback_[head] = make_feedback(statistics_, static_cast<int>(head), layout_.head_dim, of_head, use_);
            if (!choose_) return;
            plans_[head] = plan_trellis_keys(feedback_[head], of_head, use_);
            fit_plan(packed_pages_of(head), plans_[head]);
        } else if (choose_) {
            plans_[head] = choose_channels(of_head, use_, layout_.head_dim, layout_.wide);
        }
    }

    void allot(size_t page) { // trellis: which quads get how many bits, and where each head's codes start
        const size_t quads = static_cast<size_t>(layout_.head_dim / 4);
        std::vector<const KeyRows *> of_heads;
        for (size_t head = 0; head < heads(); ++head) of_heads.push_back(&rows_of(page, head));
        if (was_packed(page)) codes_[page] = fitting_codes(layout_, plans_, &packed_[page * heads()]);
        kept_[page] = !codes_[page].empty();
        if (!kept_[page]) codes_[page] = allot_bits(layout_, plans_, feedback_, of_heads, page);
        size_t start = 0;
        uint8_t * starts = sealed_[page]->data() + layout_.head_codes + heads() * layout_.head_meta;
        for (size_t head = 0; head < heads(); ++head) {
            store_at(starts, head, static_cast<uint16_t>(start / quad_bit_bytes));
            for (size_t q = 0; q < quads; ++q) start += quad_bytes(codes_[page][head * quads + q], page_tokens);
        }
    }

    void encode(size_t i) { // one head of a page
        const size_t page = i / heads(), head = i % heads();
        uint8_t * data = sealed_[page]->data();
        if (!trellis()) {
            encode_paper_keys(layout_, plans_[head], rows_[i].data(), use_of_page(page), data + head * layout_.head_codes,
                              data + heads() * layout_.head_codes + head * layout_.head_meta);
            return;
        }
        const KeyPage place = key_page(layout_, data, static_cast<int>(head));
        uint8_t *codes = data + (place.codes - data), *meta = data + (place.meta - data);
        if (kept_[page]) return encode_packed_keys(plans_[head], packed_[i], use_of_page(page), codes, meta);
        encode_trellis_keys(plans_[head], feedback_[head], &codes_[page][head * static_cast<size_t>(layout_.head_dim / 4)],
                            rows_[i], feedback_[head].page(page), codes, meta);
    }

  private:
    const KeyRows & rows_of(size_t page, size_t head) const { return rows_[page * heads() + head]; }
    const uint8_t * use_of_page(size_t page) const { return &use_[page * page_tokens]; }
    std::vector<const KeyRows *> pages_of(size_t head) const {
        std::vector<const KeyRows *> out;
        for (size_t p = 0; p < pages_.size(); ++p) out.push_back(&rows_of(p, head));
        return out;
    }

    bool was_packed(size_t page) const {
        const auto first = packed_.begin() + static_cast<ptrdiff_t>(page * heads());
        return std::none_of(first, first + layout_.kv_heads, [](const PackedHead & head) { return head.empty(); });
    }
    std::vector<const PackedHead *> packed_pages_of(size_t head) const {
        std::vector<const PackedHead *> out;
        for (size_t p = 0; p < pages_.size(); ++p) {
            if (was_packed(p)) out.push_back(&packed_[p * heads() + head]);
        }
        return out;
    }

    const KeyLayout & layout_;
    std::vector<ChannelPlan> & plans_;
    const QueryStatistics * statistics_;
    const std::vector<OpenPage> & pages_;
    std::vector<Ref<PageBytes>> & sealed_;
    bool choose_;
    std::vector<KeyRows> rows_;                // [page][head]
    std::vector<uint8_t> use_;                 // [page][128]
    std::vector<KeyFeedback> feedback_;        // [head], trellis
    std::vector<PackedHead> packed_;           // [page][head], trellis: pages packed before
    std::vector<std::vector<QuadCode>> codes_; // [page], trellis
    std::vector<uint8_t> kept_;                // [page], trellis: the codes are those it had before
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
    const size_t head_dim = static_cast<size_t>(layout.head_dim),
                 channels = head_dim * static_cast<size_t>(layout.kv_heads);
    std::vector<float> x(page_tokens * head_dim);
    const auto tokens = slot_tokens(place);
    Use use;
    for (size_t slot = 0; slot < page_tokens; ++slot) {
        const int token = tokens[slot];
        use[slot] = has(page.use, token);
        if (token >= page.held) continue; // zeros
        const uint16_t * row = page.rows + static_cast<size_t>(token) * channels + head * head_dim;
        for (size_t c = 0; c < head_dim; ++c) x[slot * head_dim + c] = half_to_float(row[c]);
    }
    encode_values(layout, x.data(), use.data(), units, data + (place.codes - data), data + (place.meta - data));
}

// The values of one job on their way.
class ValueSealing {
  public:
    explicit ValueSealing(SealJob & job)
        : layout_(*job.value_layout), pages_(job.pages), sealed_(job.sealed), units_(pages_.size(), 0) {
        for (size_t p = 0; p < pages_.size(); ++p) {
            const PageBits chosen = layout_.protects ? choose_protected(layout_, pages_[p], units_[p]) : PageBits{};
            const size_t bytes = layout_.page_bytes(units_[p]);
            sealed_.push_back(new_page(bytes, pages_[p]));
            if (layout_.protects) std::memcpy(sealed_[p]->data(), chosen.data(), sizeof(chosen));
        }
    }

    size_t heads() const { return static_cast<size_t>(layout_.kv_heads); }
    size_t pages() const { return pages_.size(); }
    void encode(size_t i) { // one head of a page
        encode_value_head(layout_, pages_[i / heads()], i % heads(), units_[i / heads()], sealed_[i / heads()]->data());
    }

  private:
    const ValueLayout & layout_;
    const std::vector<OpenPage> & pages_;
    std::vector<Ref<PageBytes>> & sealed_;
    std::vector<int> units_;
};

// Runs task(sealing, i) for i in [0, count(sealing)) of every sealing, all in one parallel loop.
template <typename Sealing, typename Count, typename Task>
void for_all(std::vector<Sealing> & sealings, int threads, Count count, Task task) {
    std::vector<std::pair<Sealing *, size_t>> tasks;
    for (Sealing & sealing : sealings) {
        for (size_t i = 0; i < count(sealing); ++i) tasks.emplace_back(&sealing, i);
    }
    for_each(tasks.size(), threads, [&](size_t i) { task(*tasks[i].first, tasks[i].second); });
}

size_t rows_of(const KeySealing & s) { return s.pages() * s.heads(); }
size_t heads_of(const KeySealing & s) { return s.heads(); }
size_t pages_to_allot(const KeySealing & s) { return s.trellis() ? s.pages() : 0; }

void seal_keys(std::vector<KeySealing> & sealings, int threads) {
    for_all(sealings, threads, rows_of, [](KeySealing & s, size_t i) { s.gather(i); });
    for_all(sealings, threads, heads_of, [](KeySealing & s, size_t head) { s.prepare(head); });
    for_all(sealings, threads, pages_to_allot, [](KeySealing & s, size_t page) { s.allot(page); });
    for_all(sealings, threads, rows_of, [](KeySealing & s, size_t i) { s.encode(i); });
}

// Floats that key jobs are gathered into.
size_t gathered(const SealJob & job) {
    return job.key_layout ? job.pages.size() * page_tokens * static_cast<size_t>(job.key_layout->head_dim) *
                                static_cast<size_t>(job.key_layout->kv_heads)
                          : 0;
}

} // namespace

void seal(std::vector<SealJob> & jobs, int threads) {
    constexpr size_t most_gathered = size_t{16} << 20;
    std::vector<ValueSealing> values;
    for (SealJob & job : jobs) {
        if (job.value_layout) values.emplace_back(job);
    }
    for_all(
        values, threads, [](const ValueSealing & s) { return s.pages() * s.heads(); },
        [](ValueSealing & s, size_t i) { s.encode(i); });
    std::vector<KeySealing> keys; // as many at once as fit into that memory
    size_t sum = 0;
    for (SealJob & job : jobs) {
        if (!job.key_layout) continue;
        if (!keys.empty() && sum + gathered(job) > most_gathered) {
            seal_keys(keys, threads);
            keys.clear();
            sum = 0;
        }
        keys.emplace_back(job);
        sum += gathered(job);
    }
    seal_keys(keys, threads);
}

} // namespace vidkv
