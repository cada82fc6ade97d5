// The C API of blocks: a batch is written, attended to and packed.
#include "vidkv/blocks.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "api/sized.h"
#include "attention/attention.h"
#include "base/error.h"
#include "base/thread_pool.h"
#include "cache/blocks.h"
#include "codec/presets.h"
#include "kernels/dispatch.h"

namespace vidkv {

namespace {

vidkv_status refuse(const std::string & message) { return fail(VIDKV_E_ARGUMENT, "blocks: " + message); }

Blocks * unwrap(vidkv_blocks * blocks) { return reinterpret_cast<Blocks *>(blocks); }
const Blocks * unwrap(const vidkv_blocks * blocks) { return reinterpret_cast<const Blocks *>(blocks); }

PageShape shape_of(const BlockLayout & layout, vidkv_side side) {
    return {layout.packs(side), layout.head_dim, layout.kv_heads, &layout.keys, &layout.values};
}

// The blocks of one text. Pages from first_open on are read from their f16 rows where they have some.
class BlockPages : public PageSource {
  public:
    BlockPages(const Blocks & blocks, vidkv_side side, const int32_t * table, int64_t first_open)
        : PageSource(shape_of(blocks.layout(), side)), blocks_(blocks), side_(side), table_(table),
          first_open_(first_open) {}
    PageView view(int64_t page, int kv_head, int heads) const override {
        const PageView view = blocks_.view(side_, table_[page], kv_head, page >= first_open_);
        // A page is looked at once before it is attended to, when the one before it is.
        for (int h = 0; side_ == VIDKV_KEYS && view.state == PageState::sealed && h < heads; ++h)
            blocks_.fetch_plan(table_[page], kv_head + h);
        return view;
    }
    int plan_sets() const override { return 0; }
    const ChannelPlan & plan(int, int) const override { return no_plan_; }
    void page_plan(int64_t page, int kv_head, ChannelPlan & out) const override {
        blocks_.plan(table_[page], kv_head, out);
    }

  private:
    const Blocks & blocks_;
    const vidkv_side side_;
    const int32_t * table_;
    const int64_t first_open_;
    const ChannelPlan no_plan_;
};

// Tokens of one text in one block.
struct Piece {
    int64_t block, first; // the token of its text that the block begins with
    int cell, count;
    int64_t token; // the first one's row in the batch
};

// One call of vidkv_blocks_attend.
class Batch {
  public:
    Batch(Blocks & blocks, const vidkv_blocks_batch & args, int residual)
        : blocks_(blocks), args_(args), residual_(residual) {}

    vidkv_status check() const {
        if (args_.texts < 0 || args_.heads < 1 || args_.heads % blocks_.layout().kv_heads != 0)
            return refuse("query heads must be a positive multiple of the KV heads");
        if (args_.threads < 1) return refuse("threads must be at least 1");
        if (!args_.k != !args_.v) return refuse("k and v come together");
        for (int r = 0; r < args_.texts; ++r) {
            if (tokens(r) < 0 || tokens(r) > args_.lengths[r] || args_.lengths[r] > args_.table_stride * page_tokens)
                return refuse("text " + std::to_string(r) + " has a length that does not fit its tokens or its table");
            for (int64_t page = 0; page * page_tokens < args_.lengths[r]; ++page) {
                if (block(r, page) < 0 || block(r, page) >= blocks_.count())
                    return refuse("there is no block " + std::to_string(block(r, page)));
            }
        }
        return VIDKV_OK;
    }

    vidkv_status write() {
        if (!args_.k) return VIDKV_OK;
        std::vector<Piece> pieces;
        for (int r = 0; r < args_.texts; ++r) cut(r, pieces);
        for (const Piece & piece : pieces) {
            if (vidkv_status status = blocks_.prepare(piece.block, piece.cell, piece.first)) return status;
        }
        const int threads = pieces.size() > 1 ? args_.threads : 1;
        std::atomic<bool> no_memory{false};
        parallel_for(static_cast<int64_t>(pieces.size()), threads, [&](int64_t i) {
            try {
                fill(pieces[static_cast<size_t>(i)]);
            } catch (const std::bad_alloc &) {
                no_memory = true;
            }
        });
        if (no_memory) throw std::bad_alloc();
        return VIDKV_OK;
    }

    vidkv_status check_filled() const { // nothing that was never written is attended to
        for (int r = 0; r < args_.texts; ++r) {
            for (int64_t page = 0; page * page_tokens < args_.lengths[r]; ++page) {
                const int64_t wanted = std::min<int64_t>(page_tokens, args_.lengths[r] - page * page_tokens);
                if (tokens(r) > 0 && blocks_.filled(block(r, page)) < wanted)
                    return refuse("block " + std::to_string(block(r, page)) + " holds " +
                                  std::to_string(blocks_.filled(block(r, page))) + " tokens of the " +
                                  std::to_string(wanted) + " that are asked for");
            }
        }
        return VIDKV_OK;
    }

    void attend_all() const {
        std::vector<int> texts;
        for (int r = 0; r < args_.texts; ++r) {
            if (tokens(r) > 0) texts.push_back(r);
        }
        if (!are_alike(texts)) {
            for (const int r : texts) attend_text(r, args_.threads);
            return;
        }
        std::atomic<bool> no_memory{false};
        parallel_for(static_cast<int64_t>(texts.size()), args_.threads, [&](int64_t i) {
            try {
                attend_text(texts[static_cast<size_t>(i)], 1);
            } catch (const std::bad_alloc &) {
                no_memory = true;
            }
        });
        if (no_memory) throw std::bad_alloc();
    }

    void pack() {
        std::vector<int64_t> full, window;
        for (int r = 0; r < args_.texts; ++r) {
            const int64_t length = args_.lengths[r], certain = std::max<int64_t>(length - args_.drafts, 0);
            for (int64_t page = (length - tokens(r)) / page_tokens; page < certain / page_tokens; ++page) {
                if (args_.k) full.push_back(block(r, page));
            }
            const int64_t first = std::max<int64_t>(length - residual_, 0) / page_tokens;
            for (int64_t page = first; page * page_tokens < length; ++page) window.push_back(block(r, page));
            // Drafts that were taken for certain by now may have filled the block before.
            for (int64_t page = first; page < certain / page_tokens; ++page) full.push_back(block(r, page));
        }
        std::erase_if(full, [&](int64_t index) { return blocks_.filled(index) != page_tokens; });
        blocks_.seal(full, args_.threads);
        if (args_.k) blocks_.settle(window, args_.threads);
    }

  private:
    int tokens(int r) const { return args_.query_start[r + 1] - args_.query_start[r]; }
    int64_t block(int r, int64_t page) const { return args_.table[r * args_.table_stride + page]; }

    void cut(int r, std::vector<Piece> & pieces) {
        const int64_t end = args_.lengths[r];
        int64_t token = args_.query_start[r];
        for (int64_t at = end - tokens(r); at < end;) {
            const int cell = static_cast<int>(at % page_tokens);
            const int count = static_cast<int>(std::min<int64_t>(page_tokens - cell, end - at));
            pieces.push_back({block(r, at / page_tokens), at - cell, cell, count, token});
            at += count;
            token += count;
        }
    }

    void fill(const Piece & piece) {
        const TokenRows rows{args_.k + piece.token * args_.k_stride,
                             args_.v + piece.token * args_.v_stride,
                             args_.q ? args_.q + piece.token * args_.q_stride : nullptr,
                             args_.k_stride,
                             args_.v_stride,
                             args_.q_stride,
                             args_.heads};
        blocks_.fill(piece.block, piece.cell, piece.count, rows);
    }

    // Whether threads that take a text each are busy to the end: that saves waking them for every text.
    bool are_alike(const std::vector<int> & texts) const {
        int64_t all = 0, largest = 0;
        for (const int r : texts) {
            const int64_t work = int64_t{tokens(r)} * args_.lengths[r];
            all += work;
            largest = std::max(largest, work);
        }
        return args_.threads > 1 && texts.size() > 1 && 4 * largest * args_.threads <= 5 * all;
    }

    void attend_text(int r, int threads) const {
        vidkv_attention_args call{};
        const int head_dim = blocks_.layout().head_dim;
        call.q = args_.q + args_.query_start[r] * args_.q_stride;
        call.out = args_.out + args_.query_start[r] * args_.out_stride;
        call.q_token_stride = args_.q_stride, call.out_token_stride = args_.out_stride;
        call.q_head_stride = call.out_head_stride = head_dim;
        call.tokens = tokens(r);
        call.heads = args_.heads;
        call.cells = args_.lengths[r];
        call.causal = args_.causal;
        call.scale = args_.scale, call.softcap = args_.softcap;
        call.sinks = args_.sinks;
        call.threads = worthwhile_threads(call, 2 * head_dim) > 1 ? threads : 1;
        // What had left the window before this batch is read as it is packed, whoever else still has its rows.
        const int64_t before = args_.lengths[r] - tokens(r);
        const int64_t first_open = std::max<int64_t>(before - residual_, 0) / page_tokens;
        const int32_t * table = args_.table + r * args_.table_stride;
        attend(BlockPages(blocks_, VIDKV_KEYS, table, first_open), BlockPages(blocks_, VIDKV_VALUES, table, first_open),
               call, active_kernels());
    }

    Blocks & blocks_;
    const vidkv_blocks_batch & args_;
    const int residual_;
};

template <typename Body> vidkv_status guarded(Body body) {
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return fail(VIDKV_E_MEMORY, "not enough memory for the blocks");
    } catch (const std::exception & error) {
        return fail(VIDKV_E_MEMORY, error.what());
    }
}

vidkv_status null_pointer() { return refuse("a pointer that must not be null is null"); }

} // namespace

} // namespace vidkv

using namespace vidkv;

uint64_t vidkv_block_bytes_sized(const vidkv_params * params, size_t params_size, int32_t kv_heads, int32_t head_dim) {
    if (!params) return 0;
    vidkv_blocks_shape shape{};
    shape.kv_heads = kv_heads, shape.head_dim = head_dim;
    uint64_t bytes = 0;
    guarded([&] {
        vidkv_params own;
        if (vidkv_status status = copy_in(params, params_size, own)) return status;
        if (vidkv_status status = check_blocks(shape, own)) return status;
        bytes = BlockLayout(own, kv_heads, head_dim).bytes;
        return VIDKV_OK;
    });
    return bytes;
}

vidkv_status vidkv_blocks_create_sized(const vidkv_blocks_shape * shape, size_t shape_size, const vidkv_params * params,
                                       size_t params_size, vidkv_blocks ** out) {
    if (!shape || !params || !out) return null_pointer();
    return guarded([&] {
        vidkv_params own;
        vidkv_blocks_shape wanted;
        if (vidkv_status status = copy_in(params, params_size, own)) return status;
        if (vidkv_status status = copy_in(shape, shape_size, wanted)) return status;
        if (vidkv_status status = check_blocks(wanted, own)) return status;
        const size_t bytes = BlockLayout(own, wanted.kv_heads, wanted.head_dim).bytes;
        if (wanted.blocks < 1 || wanted.blocks > INT32_MAX || !wanted.memory)
            return refuse("there must be blocks, and memory for them");
        if (wanted.stride % 64 != 0 || wanted.stride < bytes || reinterpret_cast<uintptr_t>(wanted.memory) % 64 != 0)
            return refuse("memory and stride must be multiples of 64, the stride at least " + std::to_string(bytes) +
                          " bytes");
        *out = reinterpret_cast<vidkv_blocks *>(new Blocks(wanted, own));
        return VIDKV_OK;
    });
}

void vidkv_blocks_free(vidkv_blocks * blocks) { delete unwrap(blocks); }

vidkv_status vidkv_blocks_attend_sized(vidkv_blocks * blocks, const vidkv_blocks_batch * batch, size_t batch_size) {
    if (!blocks || !batch) return null_pointer();
    return guarded([&] {
        vidkv_blocks_batch own;
        if (vidkv_status status = copy_in(batch, batch_size, own)) return status;
        if (!own.query_start || !own.lengths || !own.table || !own.q != !own.out || (!own.q && !own.k))
            return null_pointer();
        Batch call(*unwrap(blocks), own, unwrap(blocks)->residual());
        if (vidkv_status status = call.check()) return status;
        if (vidkv_status status = call.write()) return status;
        if (own.q) {
            if (vidkv_status status = call.check_filled()) return status;
            call.attend_all();
        }
        call.pack();
        return VIDKV_OK;
    });
}

vidkv_status vidkv_blocks_learn(vidkv_blocks * blocks, int64_t from, const float * q, int64_t q_stride, int64_t tokens,
                                int32_t heads) {
    if (!blocks || (!q && tokens > 0)) return null_pointer();
    if (from < 0) return refuse("a text has no token before its first");
    if (tokens < 0 || heads < 1 || heads % unwrap(blocks)->layout().kv_heads != 0)
        return refuse("query heads must be a positive multiple of the KV heads");
    return guarded([&] {
        unwrap(blocks)->learn(from, q, tokens, heads, q_stride);
        return VIDKV_OK;
    });
}

uint64_t vidkv_blocks_export(const vidkv_blocks * blocks, int64_t block, uint8_t * bytes_out) {
    if (!blocks || block < 0 || block >= unwrap(blocks)->count()) return 0;
    const size_t bytes = unwrap(blocks)->export_bytes(block);
    if (bytes > 0 && bytes_out) unwrap(blocks)->export_to(block, bytes_out);
    return bytes;
}

vidkv_status vidkv_blocks_import(vidkv_blocks * blocks, int64_t block, const uint8_t * bytes, uint64_t size) {
    if (!blocks || !bytes) return null_pointer();
    if (block < 0 || block >= unwrap(blocks)->count()) return refuse("there is no block " + std::to_string(block));
    return guarded([&] { return unwrap(blocks)->import_from(block, bytes, size); });
}

vidkv_status vidkv_blocks_read_f16(const vidkv_blocks * blocks, vidkv_side side, int64_t block, uint16_t * rows) {
    if (!blocks || !rows) return null_pointer();
    if (side != VIDKV_KEYS && side != VIDKV_VALUES) return refuse("side must be keys or values");
    if (block < 0 || block >= unwrap(blocks)->count()) return refuse("there is no block " + std::to_string(block));
    return guarded([&] {
        unwrap(blocks)->read(side, block, rows);
        return VIDKV_OK;
    });
}

void vidkv_blocks_get_stats_sized(const vidkv_blocks * blocks, vidkv_blocks_stats * out, size_t stats_size) {
    if (blocks && out) copy_out(unwrap(blocks)->stats(), out, stats_size);
}
