#include "ops.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "host_functions.h"
#include "kv_allocation.h"
#include "kv_buffer.h"
#include "placement.h"
#include "rope_angles.h"

namespace vidkv_ggml {

namespace {

const ggml_tensor * root_of(const ggml_tensor * tensor) { return tensor->view_src ? tensor->view_src : tensor; }

bool is_view_op(const ggml_tensor * op) {
    return op->op == GGML_OP_NONE || op->op == GGML_OP_VIEW || op->op == GGML_OP_RESHAPE || op->op == GGML_OP_PERMUTE ||
           op->op == GGML_OP_TRANSPOSE;
}

size_t row_bytes(const ggml_tensor * kv) { return ggml_row_size(GGML_TYPE_F16, root_of(kv)->ne[0]); }
size_t stream_bytes(const ggml_tensor * kv) { return row_bytes(kv) * static_cast<size_t>(root_of(kv)->ne[1]); }
int first_stream(const ggml_tensor * kv) { return static_cast<int>(kv->view_offs / stream_bytes(kv)); }

ggml_status failed(const ggml_tensor * node) {
    GGML_LOG_ERROR("vidkv: %s on %s failed: %s\n", ggml_op_name(node->op), node->name, vidkv_last_error());
    return GGML_STATUS_FAILED;
}

// ---- which operations fit a store: "" or why not ----

std::string set_rows_obstacle(const ggml_tensor * op) {
    const ggml_tensor * rows = op->src[0];
    if (op->ne[0] != root_of(op)->ne[0]) return "values are stored transposed because flash attention is off (use -fa on)";
    const bool whole_rows =
        op->view_offs % row_bytes(op) == 0 && op->nb[1] == row_bytes(op) && op->ne[2] == 1 && op->ne[3] == 1;
    const bool dense = rows->nb[0] == ggml_type_size(rows->type) && rows->nb[1] % rows->nb[0] == 0;
    return whole_rows && dense ? "" : "its rows are written in a layout that is not known";
}

std::string rope_obstacle(const ggml_tensor * op) {
    const ggml_tensor * from = op->src[0];
    const bool in_place = from && store_of(from) == store_of(op) && from->view_offs == op->view_offs;
    if (!in_place || op->nb[2] != row_bytes(op) || op->ne[3] != 1)
        return "its rows are rotated in a layout that is not known";
    return store_of(op)->head_dim_obstacle(static_cast<int>(op->nb[1] / 2));
}

// A view of a store as [head_dim, cells, kv_heads, streams].
bool is_attention_view(const ggml_tensor * kv, int64_t streams) {
    const size_t head_bytes = ggml_row_size(GGML_TYPE_F16, kv->ne[0]);
    return kv->type == GGML_TYPE_F16 && kv->ne[0] * kv->ne[2] == root_of(kv)->ne[0] && kv->nb[1] == row_bytes(kv) &&
           (kv->ne[2] == 1 || kv->nb[2] == head_bytes) && (streams == 1 || kv->nb[3] == stream_bytes(kv)) &&
           kv->ne[3] == streams && kv->view_offs % stream_bytes(kv) == 0;
}

bool is_dense_f32(const ggml_tensor * tensor) {
    return tensor->type == GGML_TYPE_F32 && tensor->nb[0] == 4 && tensor->nb[1] % 4 == 0 && tensor->nb[2] % 4 == 0;
}

std::string attention_obstacle(const ggml_tensor * op) {
    const ggml_tensor *q = op->src[0], *k = op->src[1], *v = op->src[2], *mask = op->src[3];
    const bool stores =
        store_of(k) && store_of(v) && store_of(k)->side() == VIDKV_KEYS && store_of(v)->side() == VIDKV_VALUES;
    if (!stores || !is_attention_view(k, q->ne[3]) || !is_attention_view(v, q->ne[3]) || k->ne[1] != v->ne[1] ||
        k->ne[2] != v->ne[2] || q->ne[2] % k->ne[2] != 0 || !is_dense_f32(q) || !is_dense_f32(op)) {
        return "attention reads it in a layout that is not known";
    }
    const bool known_mask = !mask || (mask->type == GGML_TYPE_F16 && mask->ne[2] == 1 && mask->nb[0] == 2);
    if (!known_mask) return "attention uses a mask of its own for each head";
    const std::string why = store_of(k)->head_dim_obstacle(static_cast<int>(k->ne[0]));
    return why.empty() ? store_of(v)->head_dim_obstacle(static_cast<int>(v->ne[0])) : why;
}

std::string obstacle(const ggml_tensor * op) {
    switch (op->op) {
    case GGML_OP_SET_ROWS: return store_of(op) ? set_rows_obstacle(op) : "it is copied into another tensor";
    case GGML_OP_ROPE: return store_of(op) ? rope_obstacle(op) : "it is copied into another tensor";
    case GGML_OP_FLASH_ATTN_EXT: return attention_obstacle(op);
    case GGML_OP_MUL_MAT: return "attention reads it without flash attention (use -fa on)";
    default: return std::string("the model runs ") + ggml_op_name(op->op) + " on it";
    }
}

// Tells the stores of an operation without obstacle what it shows of them: their head_dim. "" or why that cannot be.
std::string learn_head_dims(const ggml_tensor * op) {
    const bool attends = op->op == GGML_OP_FLASH_ATTN_EXT;
    const bool known = op->op == GGML_OP_ROPE
                           ? set_head_dim(op, static_cast<int>(op->nb[1] / 2))
                           : !attends || (set_head_dim(op->src[1], static_cast<int>(op->src[1]->ne[0])) &&
                                          set_head_dim(op->src[2], static_cast<int>(op->src[2]->ne[0])));
    return known ? "" : vidkv_last_error();
}

// The operand of an operation that lies in a store; null if there is none.
const ggml_tensor * operand_in_store(const ggml_tensor * op) {
    if (store_of(op)) return op;
    for (const ggml_tensor * source : op->src) {
        if (source && store_of(source)) return source;
    }
    return nullptr;
}

// Flash attention over plain memory of this device, over the empty stand-in buffers of llama.cpp's memory-fitting pass, or
// over tensors that are not allocated (a vision tower): the host's CPU back-end computes it. Refusing would turn flash
// attention off for the whole model.
bool is_plain_attention(const ggml_tensor * op) {
    if (op->op != GGML_OP_FLASH_ATTN_EXT) return false;
    ggml_backend_buffer_t buffer = root_of(op->src[1])->buffer;
    return (!buffer || buffer->buft == default_buffer_type()) && host_cpu_supports(op);
}

// The stand-in buffers of the memory-fitting pass: writes to them count as this device's, as they will be later.
bool writes_to_stand_in(const ggml_tensor * op) {
    ggml_backend_buffer_t buffer = root_of(op)->buffer;
    if (!buffer || buffer->buft != default_buffer_type() || buffer->size != 0) return false;
    if (op->op == GGML_OP_SET_ROWS) return op->ne[0] == root_of(op)->ne[0] && root_of(op)->type == GGML_TYPE_F16;
    return op->op == GGML_OP_ROPE;
}

enum class Origin { inputs, our_weights, other_memory };

// Whose memory the first weight lies in that the value of an operation comes from: a vision tower's weights are this
// device's, while those of the language model are refused and lie elsewhere.
Origin origin_of(const ggml_tensor * op) {
    constexpr int most_visited = 256;
    std::vector<const ggml_tensor *> to_visit = {op};
    for (int visited = 0; !to_visit.empty(); ++visited) {
        const ggml_tensor * tensor = to_visit.back();
        to_visit.pop_back();
        ggml_backend_buffer_t buffer = root_of(tensor)->buffer;
        if (visited == most_visited || (buffer && store_of(tensor))) return Origin::other_memory;
        if (buffer && ggml_backend_buffer_get_usage(buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS) {
            return buffer->buft == default_buffer_type() && buffer->size != 0 ? Origin::our_weights : Origin::other_memory;
        }
        for (int i = GGML_MAX_SRC - 1; i >= 0; --i) { // the first source is visited first
            if (tensor->src[i] && tensor->src[i] != tensor)
                to_visit.push_back(tensor->src[i]); // a cast has itself as a source
        }
    }
    return Origin::inputs;
}

// What the host's CPU back-end computes for this device: a vision tower, and masks (of towers, too) on their way to f16.
bool is_forwarded(const ggml_tensor * op) {
    if (!host_cpu_supports(op)) return false;
    const Origin origin = origin_of(op);
    return origin == Origin::our_weights ||
           (origin == Origin::inputs && op->op == GGML_OP_CPY && op->type == GGML_TYPE_F16);
}

// ---- computing ----

// The ids that SET_ROWS writes to.
std::vector<int64_t> target_rows(const ggml_tensor * node) {
    const ggml_tensor * ids = node->src[1];
    const int64_t n = node->src[0]->ne[1], offset = static_cast<int64_t>(node->view_offs / row_bytes(node));
    std::vector<int64_t> targets(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
        const char * id = static_cast<const char *>(ids->data) + i * ids->nb[0];
        targets[i] = offset + (ids->type == GGML_TYPE_I64 ? *reinterpret_cast<const int64_t *>(id)
                                                          : *reinterpret_cast<const int32_t *>(id));
    }
    return targets;
}

ggml_status set_rows(ggml_tensor * node) {
    const ggml_tensor * rows = node->src[0];
    KvStore & store = *store_of(node);
    const std::vector<int64_t> targets = target_rows(node);
    const auto n = static_cast<int64_t>(targets.size()), stride = static_cast<int64_t>(rows->nb[1] / rows->nb[0]);
    const bool ok = rows->type == GGML_TYPE_F32
                        ? store.write_rows(targets.data(), n, static_cast<const float *>(rows->data), stride)
                        : store.write_rows(targets.data(), n, static_cast<const uint16_t *>(rows->data), stride);
    return ok ? GGML_STATUS_SUCCESS : failed(node);
}

template <typename Element> Element * at(const ggml_tensor * tensor, int64_t i3) {
    return reinterpret_cast<Element *>(static_cast<char *>(tensor->data) + i3 * static_cast<int64_t>(tensor->nb[3]));
}

// The mask that an attention node will look through, as it is known before the graph is computed: an input, or an input to
// be rounded.
const ggml_tensor * known_mask(const ggml_tensor * node) {
    const ggml_tensor * mask = node->src[3];
    return mask && mask->op == GGML_OP_CPY ? mask->src[0] : mask;
}

// The masks of an attention node, stream by stream.
BatchMasks masks_of(const ggml_tensor * node) {
    BatchMasks masks;
    const ggml_tensor *q = node->src[0], *k = node->src[1], *mask = known_mask(node);
    if (!mask || mask->op != GGML_OP_NONE || (mask->type != GGML_TYPE_F16 && mask->type != GGML_TYPE_F32)) return masks;
    masks.tokens = q->ne[1];
    for (int64_t stream = 0; stream < q->ne[3]; ++stream) {
        MaskView view;
        if (mask->type == GGML_TYPE_F16)
            view.halves = at<const uint16_t>(mask, stream % mask->ne[3]);
        else
            view.floats = at<const float>(mask, stream % mask->ne[3]);
        view.stride = static_cast<int64_t>(mask->nb[1] / mask->nb[0]);
        view.cells = k->ne[1];
        masks.of_stream.push_back(view);
    }
    return masks;
}

// The next attention in the graph that reads the same KV cache; null if there is none.
const ggml_tensor * next_attention(ggml_cgraph * graph, int index, const Placement * placement) {
    for (int i = index + 1; i < ggml_graph_n_nodes(graph); ++i) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
        const KvStore * keys = node->op == GGML_OP_FLASH_ATTN_EXT ? store_of(node->src[1]) : nullptr;
        if (keys && keys->placement() == placement) return node;
    }
    return nullptr;
}

// Attention over places instead of cells, where these differ.
void look_at_places(Placement * placement, vidkv_attention_args & args, int stream) {
    const uint16_t * rows = placement && args.mask
                                ? placement->translated(stream, args.mask, args.mask_stride, args.tokens, args.cells)
                                : nullptr;
    if (!rows) return;
    args.mask = rows;
    args.mask_stride = args.cells = placement->map(stream).places();
}

// What a seal wants to know of a layer: its queries, and which keys belong to which values.
bool learn(KvStore & keys, KvStore & values, const vidkv_attention_args & args) {
    values.pair_with(keys, args.scale);
    tell_queries(keys, args.sequence, args.q, args.tokens, args.heads, args.q_token_stride, args.q_head_stride);
    return keys.observe_queries(args.sequence, args.q, args.tokens, args.heads, args.q_token_stride, args.q_head_stride,
                                args.threads);
}

ggml_status attention(ggml_tensor * node, int threads) {
    const ggml_tensor *q = node->src[0], *k = node->src[1], *v = node->src[2], *mask = node->src[3], *sinks = node->src[4];
    vidkv_attention_args args{};
    args.q_token_stride = static_cast<int64_t>(q->nb[1] / 4);
    args.q_head_stride = static_cast<int64_t>(q->nb[2] / 4);
    args.out_head_stride = static_cast<int64_t>(node->nb[1] / 4);
    args.out_token_stride = static_cast<int64_t>(node->nb[2] / 4);
    args.tokens = q->ne[1];
    args.heads = static_cast<int32_t>(q->ne[2]);
    float parameters[3]; // scale, max_bias, softcap
    std::memcpy(parameters, node->op_params, sizeof(parameters));
    args.scale = parameters[0];
    args.max_bias = parameters[1];
    args.softcap = parameters[2];
    args.sinks = sinks ? static_cast<const float *>(sinks->data) : nullptr;
    args.threads = threads;
    std::vector<vidkv_attention_args> calls; // streams share one parallel loop, and the pages that copies have in common
    for (int64_t stream = 0; stream < q->ne[3]; ++stream) {
        args.q = at<const float>(q, stream);
        args.out = at<float>(node, stream);
        args.cells = k->ne[1];
        args.mask = mask ? at<const uint16_t>(mask, stream % mask->ne[3]) : nullptr;
        args.mask_stride = mask ? static_cast<int64_t>(mask->nb[1] / 2) : 0;
        args.sequence = first_stream(k) + static_cast<int32_t>(stream);
        args.value_sequence = first_stream(v) + static_cast<int32_t>(stream);
        look_at_places(store_of(k)->placement(), args, args.sequence);
        if (!learn(*store_of(k), *store_of(v), args)) return failed(node);
        calls.push_back(args);
    }
    const vidkv_status status =
        vidkv_attention_batch(store_of(k)->store(), store_of(v)->store(), calls.data(), static_cast<int64_t>(calls.size()));
    if (status != VIDKV_OK) return failed(node);
    for (const ggml_tensor * kv : {k, v}) {
        if (Placement * placement = store_of(kv)->placement()) placement->attended(*store_of(kv));
    }
    return GGML_STATUS_SUCCESS;
}

// Rotates f16 rows [channels][n] in memory as `node` would rotate them in the store, by n angles.
ggml_status rotate(const ggml_tensor * node, std::vector<uint16_t> & rows, const std::vector<int32_t> & shifts,
                   HostCpu & cpu) {
    const int64_t n = static_cast<int64_t>(shifts.size());
    ggml_context * context = ggml_init({4 * ggml_tensor_overhead(), nullptr, true});
    if (!context) return GGML_STATUS_ALLOC_FAILED;
    ggml_tensor * memory = ggml_new_tensor_2d(context, GGML_TYPE_F16, root_of(node)->ne[0], n);
    ggml_tensor * positions = ggml_new_tensor_1d(context, GGML_TYPE_I32, n);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(context, ggml_backend_cpu_buffer_type());
    ggml_status status = GGML_STATUS_ALLOC_FAILED;
    if (buffer) {
        std::memcpy(memory->data, rows.data(), ggml_nbytes(memory));
        std::memcpy(positions->data, shifts.data(), ggml_nbytes(positions));
        ggml_tensor * heads = ggml_view_3d(context, memory, node->ne[0], node->ne[1], n, node->nb[1], node->nb[2],
                                           node->view_offs % row_bytes(node));
        ggml_tensor * rotated = ggml_view_tensor(context, heads);
        rotated->op = GGML_OP_ROPE;
        rotated->flags |= GGML_TENSOR_FLAG_COMPUTE;
        std::memcpy(rotated->op_params, node->op_params, sizeof(node->op_params));
        rotated->src[0] = heads;
        rotated->src[1] = positions;
        rotated->src[2] = node->src[2];
        status = cpu.compute(rotated);
        std::memcpy(rows.data(), memory->data, ggml_nbytes(memory));
    }
    ggml_backend_buffer_free(buffer);
    ggml_free(context);
    return status;
}

// A row of the tensor, and the positions that its key moves by.
struct MovedRow {
    int64_t id;
    int32_t positions;
};

// Rows in f16 are rotated as the host would rotate them, and their pages packed again if they were packed.
ggml_status rotate_rows(ggml_tensor * node, const std::vector<MovedRow> & moved, HostCpu & cpu) {
    constexpr size_t rows_at_once = 512;
    KvStore & store = *store_of(node);
    const int64_t channels = store.channels();
    std::vector<uint16_t> rows;
    std::vector<int32_t> shifts;
    std::vector<int64_t> ids;
    for (size_t done = 0; done < moved.size(); done += shifts.size()) {
        const size_t n = std::min(rows_at_once, moved.size() - done);
        rows.resize(n * static_cast<size_t>(channels));
        shifts.resize(n);
        ids.resize(n);
        for (size_t i = 0; i < n; ++i) {
            ids[i] = moved[done + i].id;
            shifts[i] = moved[done + i].positions;
        }
        // Neighbours are read together: reading one row of a sealed page decodes the whole page.
        for (size_t i = 0, end; i < n; i = end) {
            for (end = i + 1; end < n && ids[end] == ids[end - 1] + 1;) ++end;
            uint16_t * to = &rows[i * static_cast<size_t>(channels)];
            if (!store.read_rows(ids[i], static_cast<int64_t>(end - i), to)) return failed(node);
        }
        if (ggml_status status = rotate(node, rows, shifts, cpu); status != GGML_STATUS_SUCCESS) return status;
        if (!store.write_rows(ids.data(), static_cast<int64_t>(n), rows.data(), channels)) return failed(node);
    }
    ids.clear();
    for (const MovedRow & row : moved) ids.push_back(row.id);
    const bool ok = !store.placement() ||
                    store.placement()->end_change(store, ids.data(), static_cast<int64_t>(ids.size()), cpu.threads());
    return ok ? GGML_STATUS_SUCCESS : failed(node);
}

// Moves the keys of packed pages by an angle, where the rotation can be said so; what is left in `moved` is to be rotated.
bool shift_pages(const ggml_tensor * node, std::vector<MovedRow> & moved) {
    const std::optional<RopeAngles> rope = rope_angles(node);
    if (!rope) return true;
    std::vector<int64_t> ids;
    std::vector<int32_t> positions;
    for (const MovedRow & row : moved) {
        ids.push_back(row.id);
        positions.push_back(row.positions);
    }
    const vidkv_rotation rotation = rope->rotation();
    std::vector<int64_t> left;
    if (!store_of(node)->shift(ids, positions, rotation, left)) return false;
    for (size_t i = 0; i < left.size(); ++i) moved[i] = moved[static_cast<size_t>(left[i])];
    moved.resize(left.size());
    return true;
}

// A context shift: keys go to new positions. Codes stay, f16 rows are rotated.
ggml_status rope(ggml_tensor * node, HostCpu & cpu) {
    const auto first_row = static_cast<int64_t>(node->view_offs / store_of(node)->row_bytes());
    const auto * shift = static_cast<const int32_t *>(node->src[1]->data);
    std::vector<MovedRow> moved;
    for (int64_t i = 0; i < node->ne[2]; ++i) {
        if (shift[i] != 0) moved.push_back({first_row + i, shift[i]});
    }
    if (!shift_pages(node, moved)) return failed(node);
    return rotate_rows(node, moved, cpu);
}

} // namespace

bool supports_op(const ggml_tensor * op) {
    if (is_view_op(op)) return true;
    if (operand_in_store(op)) return obstacle(op).empty() || host_cpu_supports(op);
    return is_plain_attention(op) || writes_to_stand_in(op) || is_forwarded(op);
}

bool prepare_stores(ggml_cgraph * graph) {
    bool touched = false;
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
        const ggml_tensor * operand = is_view_op(node) ? nullptr : operand_in_store(node);
        if (!operand) continue;
        std::string why = obstacle(node);
        if (why.empty()) why = learn_head_dims(node);
        const bool plain = !why.empty() && make_plain(operand, why);
        touched = touched || !plain;
    }
    return touched;
}

ggml_status place_rows(ggml_cgraph * graph, int index, int threads) {
    const ggml_tensor * node = ggml_graph_node(graph, index);
    const KvStore * store = store_of(node);
    Placement * placement = store ? store->placement() : nullptr;
    if (!placement) return GGML_STATUS_SUCCESS;
    const std::vector<int64_t> targets = target_rows(node);
    const auto n = static_cast<int64_t>(targets.size());
    BatchMasks masks;
    if (placement->is_new_batch(*store, targets.data(), n)) {
        if (const ggml_tensor * attention = next_attention(graph, index, placement)) masks = masks_of(attention);
    }
    return placement->begin_batch(*store, targets.data(), n, masks, threads) ? GGML_STATUS_SUCCESS : failed(node);
}

ggml_status compute_op(ggml_tensor * node, HostCpu & cpu) {
    if (is_view_op(node)) return GGML_STATUS_SUCCESS;
    const bool attends = node->op == GGML_OP_FLASH_ATTN_EXT;
    // A cache may have become plain after this node was accepted.
    if (!store_of(attends ? node->src[1] : node)) return cpu.compute(node);
    switch (node->op) {
    case GGML_OP_SET_ROWS: return set_rows(node);
    case GGML_OP_FLASH_ATTN_EXT: return attention(node, cpu.threads());
    case GGML_OP_ROPE: return rope(node, cpu);
    default: GGML_LOG_ERROR("vidkv: %s was never accepted\n", ggml_op_name(node->op)); return GGML_STATUS_FAILED;
    }
}

} // namespace vidkv_ggml
