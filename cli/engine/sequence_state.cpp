#include "engine/sequence_state.h"

#include <algorithm>
#include <memory>
#include <string_view>

#include "engine/logs.h"
#include "engine/plugin.h"
#include "engine/state_layout.h"
#include "engine/state_section.h"
#include "engine/video_file.h"
#include "error.h"
#include "vidkv/file.h"

namespace vidkv::cli {

namespace {

constexpr const char * STATE = "state";

static_assert(SLOT_MAGIC == LLAMA_STATE_SEQ_MAGIC && SLOT_VERSION == LLAMA_STATE_SEQ_VERSION);
static_assert(GGML_TYPE_F16 == 1 && sizeof(llama_pos) == 4 && sizeof(llama_seq_id) == 4 &&
              sizeof(llama_token) == 4); // state_layout.cpp

class RowsLeftAlone {
  public:
    explicit RowsLeftAlone(int32_t when) { plugin_state().rows(when); }
    ~RowsLeftAlone() { plugin_state().rows(VIDKV_ROWS_AS_USUAL); }
    RowsLeftAlone(const RowsLeftAlone &) = delete;
    RowsLeftAlone & operator=(const RowsLeftAlone &) = delete;
};

std::vector<Gap> gaps_of(const Mapping & mapping) {
    std::vector<vidkv_bytes> left(static_cast<size_t>(plugin_state().left_alone(nullptr, 0)));
    plugin_state().left_alone(left.data(), static_cast<int64_t>(left.size()));
    std::vector<Gap> gaps;
    for (const vidkv_bytes & each : left)
        gaps.push_back({static_cast<uint64_t>(static_cast<const uint8_t *>(each.data) - mapping.data()), each.bytes});
    std::ranges::sort(gaps, {}, &Gap::at);
    return gaps;
}

// llama.cpp's state and the gaps in it.
std::vector<uint8_t> read_state(llama_context * context, bool stock) {
    const Mapping mapping(llama_state_seq_get_size(context, 0));
    const size_t written = llama_state_seq_get_data(context, mapping.data(), mapping.bytes(), 0);
    if (written == 0) throw Error("llama.cpp cannot save this model's cache: " + logged_error());
    return pack_state(mapping.data(), written, stock ? std::vector<Gap>{} : gaps_of(mapping));
}

// One token's state, which shows how this context writes its own.
std::vector<uint8_t> example_state(llama_context * context) {
    llama_token token = 0;
    if (llama_decode(context, llama_batch_get_one(&token, 1)) != 0)
        throw Error("llama.cpp failed to decode: " + logged_error());
    llama_synchronize(context);
    std::vector<uint8_t> state(llama_state_seq_get_size(context, 0));
    state.resize(llama_state_seq_get_data(context, state.data(), state.size(), 0));
    llama_memory_clear(llama_get_memory(context), true);
    return state;
}

// llama.cpp's state for cells that another engine has filled: positions up to the next one, and no rows. Masks ask of a cell only
// whether it comes before the token.
std::unique_ptr<Mapping> make_state(llama_context * context, const Manifest & manifest) {
    const std::vector<uint8_t> example = example_state(context);
    const StateLayout layout = layout_of_state(example.data(), example.size());
    if (layout.cells != 1 || layout.rows.empty() || layout.rows.back().at + layout.rows.back().bytes(1) != example.size())
        throw Error("a model with this kind of memory takes no cache of transformers'");
    constexpr uint64_t shape = 16, head = 12; // layers, rotations; type and size of a row
    const uint64_t begin = head_of_state(example.data(), example.size()) + 2 * sizeof(uint32_t); // streams and cells
    const uint64_t record = layout.rows.front().at - head - shape - begin;
    const auto cells = static_cast<uint64_t>(manifest.used);
    uint64_t rows = 0;
    for (const StateRows & each : layout.rows) rows += head + each.bytes(manifest.used);
    auto state = std::make_unique<Mapping>(begin + cells * record + shape + rows);
    uint8_t * to = state->data();
    const auto put = [&](const void * data, size_t bytes) {
        to = std::copy_n(static_cast<const uint8_t *>(data), bytes, to);
    };
    const auto count = static_cast<uint32_t>(cells);
    put(example.data(), begin - sizeof(count));
    put(&count, sizeof(count));
    for (uint32_t i = 0; i < count; ++i) {
        const llama_pos position = std::min(static_cast<llama_pos>(i), manifest.position - 1);
        put(&position, sizeof(position));
        put(example.data() + begin + sizeof(position), record - sizeof(position));
    }
    put(example.data() + begin + record, shape);
    for (const StateRows & each : layout.rows) {
        put(example.data() + each.at - head, head);
        to += each.bytes(manifest.used);
    }
    return state;
}

void write_plain(const std::string & path, const std::vector<Section> & sections) {
    vidkv_params params = {};
    vidkv_file_writer * writer = nullptr;
    bool good = vidkv_params_from_preset("f16", &params) == VIDKV_OK &&
                vidkv_file_create(path.c_str(), &params, &writer) == VIDKV_OK;
    for (const Section & each : sections)
        good = good && vidkv_file_add_section(writer, each.name.c_str(), each.bytes.data(), each.bytes.size()) == VIDKV_OK;
    good = good && vidkv_file_finish(writer) == VIDKV_OK;
    const std::string why = good ? "" : vidkv_last_error();
    vidkv_file_abandon(writer);
    if (!good) throw Error(why);
}

void write_packed(const std::string & path, const std::vector<Section> & sections) {
    std::vector<vidkv_named_bytes> named;
    for (const Section & each : sections) named.push_back({each.name.c_str(), each.bytes.data(), each.bytes.size()});
    const char * complaint = plugin_state().save(path.c_str(), named.data(), static_cast<int64_t>(named.size()));
    if (complaint) throw Error(complaint);
}

// llama.cpp logs what it does not like; the plug-in says what does not fit.
void take(llama_context * context, bool stock, const VideoFile & file, const Mapping * mapping) {
    forget_logged_error();
    if (llama_state_seq_set_data(context, mapping->data(), mapping->bytes(), 0) != mapping->bytes())
        throw Error("llama.cpp does not take its state: " + logged_error());
    if (stock) return;
    const std::string_view manifest = file.section("manifest");
    const char * complaint = plugin_state().load(file.path().c_str(), file.copied(), manifest.data(), manifest.size());
    if (complaint) throw Error(complaint);
}

} // namespace

void save_sequence(llama_context * context, bool stock, const std::string & path, std::vector<Section> sections) {
    llama_synchronize(context);
    if (stock) {
        sections.push_back({STATE, read_state(context, stock)});
        return write_plain(path, sections);
    }
    const RowsLeftAlone rows(VIDKV_ROWS_LEFT_ON_SAVE);
    sections.push_back({STATE, read_state(context, stock)});
    write_packed(path, sections);
}

void load_sequence(llama_context * context, bool stock, const VideoFile & file) {
    llama_memory_clear(llama_get_memory(context), true);
    try {
        if (stock && file.is_foreign()) throw Error("transformers saved it packed: leave --kv out");
        const std::unique_ptr<Mapping> mapping =
            file.is_foreign() ? make_state(context, file.manifest()) : unpack_state(file.section(STATE));
        if (stock) return take(context, stock, file, mapping.get());
        const RowsLeftAlone rows(VIDKV_ROWS_LEFT_ON_LOAD);
        take(context, stock, file, mapping.get());
    } catch (const Error & error) {
        llama_memory_clear(llama_get_memory(context), true);
        throw Error("the saved cache '" + file.path() + "' does not fit: " + error.what());
    }
}

} // namespace vidkv::cli
