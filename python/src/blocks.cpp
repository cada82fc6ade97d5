#include "blocks.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "arrays.h"
#include "vidkv/blocks.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace vidkv::python {

namespace {

struct BlocksDelete {
    void operator()(vidkv_blocks * blocks) const { vidkv_blocks_free(blocks); }
};

bool is_i32(const ConstArray & a) { return is_type(a.dtype(), nb::dlpack::dtype_code::Int, 32); }

void require_tokens(const ConstArray & a, const char * name, size_t heads, size_t head_dim) {
    require(is_f32(a), std::string(name) + " must be float32");
    require_rows(a, name, 3);
    require(a.shape(2) == head_dim && (heads == 0 || a.shape(1) == heads),
            std::string(name) + " has the wrong number of heads or channels");
    require(a.shape(1) <= 1 || a.stride(1) == static_cast<int64_t>(head_dim),
            std::string(name) + " must have its heads side by side");
}

class Blocks {
  public:
    // memory: uint8 [blocks, bytes]; kept alive.
    Blocks(const nb::object & memory, int kv_heads, int head_dim, const vidkv_params & params, int spare)
        : memory_(memory), kv_heads_(static_cast<size_t>(kv_heads)), head_dim_(static_cast<size_t>(head_dim)) {
        const auto array = nb::cast<Array>(memory);
        require(array.ndim() == 2 && array.dtype().bits == 8 && array.stride(1) == 1,
                "memory must be bytes [blocks, bytes of a block]");
        const int64_t stride = array.shape(0) > 1 ? array.stride(0) : static_cast<int64_t>((array.shape(1) + 63) / 64 * 64);
        require(stride >= static_cast<int64_t>(array.shape(1)), "the blocks of memory must not overlap");
        const vidkv_blocks_shape shape{kv_heads,
                                       head_dim,
                                       static_cast<int64_t>(array.shape(0)),
                                       static_cast<uint8_t *>(array.data()),
                                       static_cast<uint64_t>(stride),
                                       spare};
        vidkv_blocks * blocks = nullptr;
        check(vidkv_blocks_create(&shape, &params, &blocks));
        blocks_.reset(blocks);
    }

    void attend(const ConstArray & q, const std::optional<ConstArray> & k, const std::optional<ConstArray> & v,
                const Array & out, const ConstArray & query_start, const ConstArray & lengths, const ConstArray & table,
                float scale, float softcap, bool causal, int drafts, const std::optional<ConstArray> & sinks, int threads) {
        require_tokens(q, "q", 0, head_dim_);
        require(is_f32(out) && out.ndim() == 3 && out.shape(0) == q.shape(0) && out.shape(1) == q.shape(1) &&
                    out.shape(2) == head_dim_ && out.stride(2) == 1 &&
                    (out.shape(1) <= 1 || out.stride(1) == static_cast<int64_t>(head_dim_)),
                "out must be float32 and have the shape of q");
        vidkv_blocks_batch batch = texts_of(query_start, lengths, table, q.shape(0));
        batch.q = static_cast<const float *>(q.data());
        batch.q_stride = q.stride(0);
        if (k && v) {
            require_tokens(*k, "k", kv_heads_, head_dim_);
            require_tokens(*v, "v", kv_heads_, head_dim_);
            require(k->shape(0) == q.shape(0) && v->shape(0) == q.shape(0), "q, k and v must have the same tokens");
            batch.k = static_cast<const float *>(k->data());
            batch.v = static_cast<const float *>(v->data());
            batch.k_stride = k->stride(0), batch.v_stride = v->stride(0);
        }
        batch.out = static_cast<float *>(out.data());
        batch.out_stride = out.stride(0);
        batch.heads = static_cast<int32_t>(q.shape(1));
        batch.causal = causal;
        batch.drafts = drafts;
        batch.scale = scale;
        batch.softcap = softcap;
        if (sinks) {
            require(is_f32(*sinks) && sinks->ndim() == 1 && sinks->shape(0) == q.shape(1) && is_dense(*sinks),
                    "sinks must be a contiguous float32 array [heads]");
            batch.sinks = static_cast<const float *>(sinks->data());
        }
        batch.threads = threads;
        vidkv_status status;
        {
            nb::gil_scoped_release release;
            status = vidkv_blocks_attend(blocks_.get(), &batch);
        }
        check(status);
    }

    // Without queries: the statistics of keys stay empty.
    void write(const ConstArray & k, const ConstArray & v, const ConstArray & query_start, const ConstArray & lengths,
               const ConstArray & table) {
        require_tokens(k, "k", kv_heads_, head_dim_);
        require_tokens(v, "v", kv_heads_, head_dim_);
        require(k.shape(0) == v.shape(0), "k and v must have the same tokens");
        vidkv_blocks_batch batch = texts_of(query_start, lengths, table, k.shape(0));
        batch.k = static_cast<const float *>(k.data());
        batch.v = static_cast<const float *>(v.data());
        batch.k_stride = k.stride(0), batch.v_stride = v.stride(0);
        batch.heads = static_cast<int32_t>(kv_heads_);
        batch.threads = 1;
        check(vidkv_blocks_attend(blocks_.get(), &batch));
    }

    void learn(const ConstArray & q, int64_t from) {
        require_tokens(q, "q", 0, head_dim_);
        check(vidkv_blocks_learn(blocks_.get(), from, static_cast<const float *>(q.data()), q.stride(0),
                                 static_cast<int64_t>(q.shape(0)), static_cast<int32_t>(q.shape(1))));
    }

    void forget() { check(vidkv_blocks_learn(blocks_.get(), 0, nullptr, 0, 0, static_cast<int32_t>(kv_heads_))); }

    nb::object export_block(int64_t block) const {
        const uint64_t size = vidkv_blocks_export(blocks_.get(), block, nullptr);
        if (size == 0) return nb::none();
        std::vector<uint8_t> bytes(size);
        vidkv_blocks_export(blocks_.get(), block, bytes.data());
        return nb::bytes(bytes.data(), bytes.size());
    }

    void import_block(int64_t block, const nb::bytes & bytes) {
        check(vidkv_blocks_import(blocks_.get(), block, reinterpret_cast<const uint8_t *>(bytes.c_str()), bytes.size()));
    }

    void read(const std::string & side, int64_t block, const Array & out) const {
        require(is_f16(out) && out.ndim() == 2 && is_dense(out) && out.shape(0) == VIDKV_PAGE &&
                    out.shape(1) == kv_heads_ * head_dim_,
                "out must be a contiguous float16 array [128, kv_heads * head_dim]");
        check(vidkv_blocks_read_f16(blocks_.get(), side_from(side), block, static_cast<uint16_t *>(out.data())));
    }

    vidkv_blocks_stats stats() const {
        vidkv_blocks_stats stats{};
        vidkv_blocks_get_stats(blocks_.get(), &stats);
        return stats;
    }

  private:
    static vidkv_blocks_batch texts_of(const ConstArray & query_start, const ConstArray & lengths, const ConstArray & table,
                                       size_t tokens) {
        require(is_i32(query_start) && is_i32(lengths) && is_i32(table) && is_dense(query_start) && is_dense(lengths) &&
                    table.ndim() == 2 && (table.shape(1) <= 1 || table.stride(1) == 1),
                "query_start, lengths and table must be int32 and contiguous");
        const size_t texts = lengths.shape(0);
        require(query_start.ndim() == 1 && lengths.ndim() == 1 && query_start.shape(0) == texts + 1 &&
                    table.shape(0) >= texts,
                "query_start must have one number more than lengths, table a row for each text");
        vidkv_blocks_batch batch{};
        batch.query_start = static_cast<const int32_t *>(query_start.data());
        require(batch.query_start[texts] <= static_cast<int64_t>(tokens) && batch.query_start[0] >= 0,
                "query_start names tokens that are not there");
        batch.lengths = static_cast<const int32_t *>(lengths.data());
        batch.table = static_cast<const int32_t *>(table.data());
        batch.table_stride = texts > 1 ? table.stride(0) : static_cast<int64_t>(table.shape(1));
        batch.texts = static_cast<int32_t>(texts);
        return batch;
    }

    nb::object memory_;
    std::unique_ptr<vidkv_blocks, BlocksDelete> blocks_;
    size_t kv_heads_, head_dim_;
};

} // namespace

void bind_blocks(nb::module_ & m) {
    nb::class_<vidkv_blocks_stats>(m, "BlocksStats", "What is held beside the host's memory.")
        .def_ro("bytes_beside", &vidkv_blocks_stats::bytes_beside, "f16 rows, statistics, sinks, tables.")
        .def_ro("bytes_rows", &vidkv_blocks_stats::bytes_rows, "Of that, f16 rows.")
        .def_ro("open", &vidkv_blocks_stats::open, "Blocks with f16 rows.")
        .def_ro("packed", &vidkv_blocks_stats::packed, "Packed blocks.");
    nb::class_<Blocks>(m, "Blocks",
                       "Packed pages of one layer in the memory of a host that addresses them by number, keys and values.")
        .def(nb::init<nb::object, int, int, const vidkv_params &, int>(), "memory"_a, "kv_heads"_a, "head_dim"_a,
             "params"_a, "spare"_a = 16, "memory: bytes [blocks, at least block_bytes()], on a boundary of 64 bytes.")
        .def(
            "attend", &Blocks::attend, "q"_a, "k"_a.none(), "v"_a.none(), "out"_a, "query_start"_a, "lengths"_a, "table"_a,
            nb::kw_only(), "scale"_a, "softcap"_a = 0.0f, "causal"_a = true, "drafts"_a = 0, "sinks"_a = nb::none(),
            "threads"_a = 1,
            "Writes k and v of a batch of texts, attends with q, packs what is full. Tokens are float32 [tokens, heads, head_dim].")
        .def("write", &Blocks::write, "k"_a, "v"_a, "query_start"_a, "lengths"_a, "table"_a,
             "The same without queries: writes and packs.")
        .def(
            "learn", &Blocks::learn, "q"_a, "start"_a = 0,
            "q [tokens, heads, head_dim]: keys of blocks begun from now on, at token `start` of their text or behind it, up to the next start\n"
            "that was learned, are packed as if these queries had been seen before.")
        .def("forget", &Blocks::forget, "Undoes every learn.")
        .def("export_block", &Blocks::export_block, "block"_a, "The bytes of a full block; None if it is not full.")
        .def("import_block", &Blocks::import_block, "block"_a, "bytes"_a,
             "Makes a block what export_block gave. ValueError if it cannot be.")
        .def("read", &Blocks::read, "side"_a, "block"_a, "out"_a, "Fills out [128, kv_heads * head_dim], float16.")
        .def("stats", &Blocks::stats);
    m.def(
        "block_bytes",
        [](const vidkv_params & params, int kv_heads, int head_dim) {
            const uint64_t bytes = vidkv_block_bytes(&params, kv_heads, head_dim);
            require(bytes > 0, vidkv_last_error());
            return bytes;
        },
        "params"_a, "kv_heads"_a, "head_dim"_a,
        "Bytes of a block of 128 tokens, keys and values. ValueError if the parameters do not fit.");
}

} // namespace vidkv::python
