// A slot file -> a .vidkv file.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <optional>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <xxhash.h>

#include "engine/packed_store.h"
#include "engine/slot_file.h"
#include "engine/state_layout.h"
#include "engine/state_section.h"
#include "error.h"
#include "hidden_pages.h"
#include "interrupt.h"
#include "threads.h"

namespace vidkv::cli {

namespace {

using vidkv_ggml::CellMap;
using vidkv_ggml::FormerPlace;
using vidkv_ggml::RowTag;
using vidkv_ggml::SavedCells;

// A file of others, mapped. Throws Error where it cannot be read.
class MappedFile {
  public:
    explicit MappedFile(const std::string & path) {
        const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        struct stat found = {};
        const bool there = file >= 0 && fstat(file, &found) == 0;
        const int why = errno;
        if (there && S_ISREG(found.st_mode) && found.st_size > 0) map(file, static_cast<size_t>(found.st_size));
        if (file >= 0) close(file);
        if (!there) throw Error("cannot read the slot file '" + path + "' (" + std::strerror(why) + ")");
    }
    ~MappedFile() {
        if (size_ > 0 && copy_.empty()) munmap(const_cast<uint8_t *>(data_), size_);
    }
    MappedFile(const MappedFile &) = delete;
    MappedFile & operator=(const MappedFile &) = delete;

    const uint8_t * data() const { return data_; }
    size_t size() const { return size_; }

  private:
    void map(int file, size_t size) {
        void * data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
        size_ = size;
        if (data != MAP_FAILED) return void(data_ = static_cast<const uint8_t *>(data));
        copy_.resize(size);
        size_t done = 0;
        for (ssize_t got;
             done < size && (got = pread(file, copy_.data() + done, size - done, static_cast<off_t>(done))) > 0;)
            done += static_cast<size_t>(got);
        data_ = copy_.data();
    }

    const uint8_t * data_ = nullptr;
    size_t size_ = 0;
    std::vector<uint8_t> copy_;
};

// What vidkv_store_export_page begins with.
struct PageHead {
    int32_t side;
    float bits;
    int32_t codec, group_size, sink_tokens;
    float protect;
    int32_t channels, head_dim;
};

std::optional<PageHead> head_of(const std::vector<uint8_t> & packed) {
    PageHead head = {};
    if (packed.size() < sizeof(head)) return std::nullopt;
    std::memcpy(&head, packed.data(), sizeof(head));
    return head;
}

class SlotPacker {
  public:
    SlotPacker(const uint8_t * slot, size_t size, std::string name);

    SlotReport pack(const std::string & path, int threads);

  private:
    const uint16_t * row(const StateRows & rows, int64_t cell) const {
        return reinterpret_cast<const uint16_t *>(state_ + rows.at) + cell * rows.channels;
    }
    void find_places();
    void put(int64_t cell, int64_t place);
    void find_params();
    std::optional<std::vector<uint8_t>> packed_page(const StateRows & rows, int64_t page) const;
    std::optional<PageHead> first_head(const StateRows & rows) const;
    PackedStore store_of(const StateRows & rows) const;
    void fill_page(vidkv_store * store, const StateRows & rows, int64_t page) const;
    bool is_as_saved(const vidkv_store * store, const StateRows & rows, int64_t page) const;
    void add_sections(vidkv_file_writer * writer) const;
    std::string manifest() const;
    int64_t pages() const { return static_cast<int64_t>(tags_.size()); }

    const uint8_t *slot_, *state_;
    size_t size_, state_size_;
    std::string name_;
    StateLayout layout_;
    std::vector<int64_t> place_, cell_at_;       // [cell], [place]; -1: none
    std::vector<int64_t> tags_;                  // [page], -1: none
    std::vector<int> sinks_;                     // [page]
    std::map<const StateRows *, int> head_dims_; // of the rows that become stores
    vidkv_params params_{};
};

SlotPacker::SlotPacker(const uint8_t * slot, size_t size, std::string name)
    : slot_(slot), size_(size), name_(std::move(name)) {
    const uint64_t head = state_of_slot(slot_, size_);
    if (head == 0)
        throw Error("'" + name_ +
                    "' is no slot file of this llama-server: name one that it saved (POST /slots/0?action=save)");
    state_ = slot_ + head;
    state_size_ = size_ - head;
    layout_ = layout_of_state(state_, state_size_);
    if (layout_.rows.empty())
        throw Error("'" + name_ + "' is cut off, or its model has no ordinary f16 cache: it cannot be packed");
    find_places();
    find_params();
}

void SlotPacker::put(int64_t cell, int64_t place) {
    place_[static_cast<size_t>(cell)] = place;
    cell_at_[static_cast<size_t>(place)] = cell;
}

// Cells lie in pages as they did in the server; those without a known place follow in pages of their own.
void SlotPacker::find_places() {
    std::vector<FormerPlace> former;
    for (const StateRows & rows : layout_.rows) {
        former = vidkv_ggml::former_places(vidkv_ggml::tags_of(row(rows, 0), layout_.cells, rows.channels));
        if (!former.empty()) break;
    }
    if (former.empty())
        throw Error("'" + name_ +
                    "' holds no packed pages: it comes from a server without the plug-in, or of a conversation " +
                    "shorter than a page; keep it as it is");
    std::map<int64_t, int64_t> number;
    for (const FormerPlace & each : former)
        if (each.page >= 0) number.try_emplace(each.page, 0);
    for (auto & [page, index] : number) {
        index = pages();
        tags_.push_back(page);
    }
    sinks_.resize(tags_.size());
    place_.assign(static_cast<size_t>(layout_.cells), -1);
    cell_at_.assign(tags_.size() * VIDKV_PAGE, -1);
    for (int64_t cell = 0; cell < layout_.cells; ++cell) {
        const FormerPlace & each = former[static_cast<size_t>(cell)];
        if (each.page < 0) continue;
        const int64_t page = number[each.page], place = page * VIDKV_PAGE + each.token;
        sinks_[static_cast<size_t>(page)] = each.sinks;
        if (cell_at_[static_cast<size_t>(place)] < 0) put(cell, place);
    }
    const int64_t known = pages() * VIDKV_PAGE, others = std::count(place_.begin(), place_.end(), -1);
    tags_.resize(tags_.size() + static_cast<size_t>((others + VIDKV_PAGE - 1) / VIDKV_PAGE), -1);
    sinks_.resize(tags_.size());
    cell_at_.resize(tags_.size() * VIDKV_PAGE, -1);
    for (int64_t cell = 0, next = known; cell < layout_.cells; ++cell)
        if (place_[static_cast<size_t>(cell)] < 0) put(cell, next++);
}

// The page that these rows carry; nothing where it is not whole.
std::optional<std::vector<uint8_t>> SlotPacker::packed_page(const StateRows & rows, int64_t page) const {
    using namespace vidkv_ggml;
    const int first = sinks_[static_cast<size_t>(page)];
    const int64_t * cells = &cell_at_[static_cast<size_t>(page * VIDKV_PAGE)];
    if (tags_[static_cast<size_t>(page)] < 0 || std::find(cells, cells + VIDKV_PAGE, -1) != cells + VIDKV_PAGE)
        return std::nullopt;
    std::vector<uint8_t> bytes;
    int bits = 0;
    for (int token = first; token < VIDKV_PAGE; ++token) {
        const uint16_t * from = row(rows, cells[token]);
        const std::optional<RowTag> tag = find_tag(from, rows.channels);
        if (!tag || tag->page != tags_[static_cast<size_t>(page)] || tag->token != token || tag->first != first)
            return std::nullopt;
        if (token == first) bits = tag->bits;
        if (tag->bits != bits) return std::nullopt;
        const size_t at = bytes.size();
        bytes.resize(at + static_cast<size_t>(hidden_bytes(rows.channels, bits)));
        reveal(from, rows.channels, bits, bytes.data() + at);
    }
    return from_hidden(bytes);
}

std::optional<PageHead> SlotPacker::first_head(const StateRows & rows) const {
    for (int64_t page = 0; page < pages(); ++page) {
        const auto packed = packed_page(rows, page);
        const std::optional<PageHead> head = packed ? head_of(*packed) : std::nullopt;
        if (head && head->channels == rows.channels && head->side == (rows.keys ? VIDKV_KEYS : VIDKV_VALUES)) return head;
    }
    return std::nullopt;
}

// As the first pages of keys and of values have them. A side without packed pages stays as it is.
void SlotPacker::find_params() {
    params_.key_bits = params_.value_bits = 16;
    params_.residual_length = VIDKV_PAGE;
    for (const StateRows & rows : layout_.rows) {
        const std::optional<PageHead> head = first_head(rows);
        if (!head) continue;
        (rows.keys ? params_.key_bits : params_.value_bits) = head->bits;
        (rows.keys ? params_.key_codec : params_.value_codec) = head->codec;
        params_.group_size = head->group_size;
        params_.sink_tokens = head->sink_tokens;
        params_.protect = head->protect;
        if (vidkv_params_check(&params_, head->head_dim) == VIDKV_OK) head_dims_[&rows] = head->head_dim;
    }
    if (head_dims_.empty())
        throw Error("'" + name_ +
                    "' holds no whole packed pages (its server restored a slot without the plug-in, perhaps): keep it " +
                    "as it is");
}

bool SlotPacker::is_as_saved(const vidkv_store * store, const StateRows & rows, int64_t page) const {
    std::vector<uint16_t> read(static_cast<size_t>(VIDKV_PAGE * rows.channels));
    read_page_to_save(store, rows.channels, page, tags_[static_cast<size_t>(page)], read.data());
    for (int token = 0; token < VIDKV_PAGE; ++token) {
        const int64_t cell = cell_at_[static_cast<size_t>(page * VIDKV_PAGE + token)];
        if (cell >= 0 && std::memcmp(row(rows, cell), &read[static_cast<size_t>(token * rows.channels)],
                                     static_cast<size_t>(rows.channels) * 2) != 0)
            return false;
    }
    return true;
}

// Packed where that gives the same rows again, in f16 otherwise.
void SlotPacker::fill_page(vidkv_store * store, const StateRows & rows, int64_t page) const {
    std::vector<int64_t> places;
    std::vector<uint16_t> copy;
    for (int64_t place = page * VIDKV_PAGE; place < (page + 1) * VIDKV_PAGE; ++place) {
        const int64_t cell = cell_at_[static_cast<size_t>(place)];
        if (cell < 0) continue;
        places.push_back(place);
        copy.insert(copy.end(), row(rows, cell), row(rows, cell) + rows.channels);
    }
    const auto write = [&] {
        check_status(vidkv_store_write_f16(store, 0, places.data(), static_cast<int64_t>(places.size()), copy.data(),
                                           rows.channels));
    };
    if (sinks_[static_cast<size_t>(page)] > 0) check_status(vidkv_store_begin(store, 0, page));
    write();
    const auto packed = packed_page(rows, page);
    if (packed && vidkv_store_import_page(store, 0, page, packed->data(), packed->size()) == VIDKV_OK) {
        if (is_as_saved(store, rows, page)) return;
        write();
    }
    if (!is_as_saved(store, rows, page))
        throw Error("'" + name_ + "' holds numbers that are not finite: it cannot be packed");
}

PackedStore SlotPacker::store_of(const StateRows & rows) const {
    PackedStore store =
        make_store(rows.keys ? VIDKV_KEYS : VIDKV_VALUES, rows.channels, head_dims_.at(&rows), pages() + 1, params_);
    check_status(vidkv_store_begin(store.get(), 0, pages())); // so that page 0 is one like any other
    for (int64_t page = 0; page < pages(); ++page) {
        check_interrupt();
        fill_page(store.get(), rows, page);
    }
    return store;
}

std::string SlotPacker::manifest() const {
    return nlohmann::json{{"kind", SLOT_KIND}, {"tokens", layout_.cells}, {"slot_bytes", size_}}.dump();
}

void SlotPacker::add_sections(vidkv_file_writer * writer) const {
    const auto add = [&](const char * name, const void * data, size_t bytes) {
        check_status(vidkv_file_add_section(writer, name, data, bytes));
    };
    const std::string text = manifest();
    add("manifest", text.data(), text.size());
    std::vector<Gap> gaps;
    for (const StateRows & rows : layout_.rows)
        if (head_dims_.contains(&rows)) gaps.push_back({rows.at, rows.bytes(layout_.cells)});
    const std::vector<uint8_t> state = pack_state(state_, state_size_, gaps);
    add("state", state.data(), state.size());
    const SlotSection slot{{slot_, state_}, tags_, XXH3_64bits(slot_, size_)};
    const std::vector<uint8_t> section = slot.bytes();
    add(SLOT_SECTION, section.data(), section.size());
    SavedCells cells;
    cells.text_of_page.resize(tags_.size());
    cells.texts.push_back({0, 0, 0, -1, {}});
    for (int64_t cell = 0; cell < layout_.cells; ++cell) {
        const int64_t place = place_[static_cast<size_t>(cell)];
        if (!cells.runs.empty() && cells.runs.back().place + cells.runs.back().cells == place)
            ++cells.runs.back().cells;
        else
            cells.runs.push_back({1, place, cell, cell});
    }
    const std::vector<int64_t> numbers = cells.numbers();
    add("cells", numbers.data(), numbers.size() * sizeof(int64_t));
}

SlotReport SlotPacker::pack(const std::string & path, int threads) {
    vidkv_file_writer * made = nullptr;
    check_status(vidkv_file_create(path.c_str(), &params_, &made));
    const PackedWriter writer(made);
    SlotReport report{layout_.cells, size_};
    std::vector<const StateRows *> kept;
    for (const StateRows & rows : layout_.rows)
        if (head_dims_.contains(&rows)) kept.push_back(&rows);
    std::vector<int64_t> numbers(tags_.size());
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<int64_t>(i);
    std::array<int32_t, 2> layers = {}; // of each side, so far
    for (size_t first = 0; first < kept.size(); first += static_cast<size_t>(threads)) {
        std::vector<PackedStore> stores(std::min(kept.size() - first, static_cast<size_t>(threads)));
        share_among_threads(static_cast<int64_t>(stores.size()), threads, [&](int64_t i) {
            stores[static_cast<size_t>(i)] = store_of(*kept[first + static_cast<size_t>(i)]);
        });
        for (size_t i = 0; i < stores.size(); ++i) {
            check_status(vidkv_file_add_store(writer.get(), layers[kept[first + i]->keys]++, 0, stores[i].get(), 0,
                                              numbers.data(), pages()));
            vidkv_store_stats stats = {};
            vidkv_store_get_stats(stores[i].get(), &stats);
            report.packed_rows += stats.cells_sealed;
        }
    }
    report.rows = layout_.cells * static_cast<int64_t>(layout_.rows.size());
    add_sections(writer.get());
    check_status(vidkv_file_finish(writer.get()));
    struct stat found = {};
    if (stat(path.c_str(), &found) == 0) report.file_bytes = static_cast<uint64_t>(found.st_size);
    return report;
}

} // namespace

std::vector<uint8_t> SlotSection::bytes() const {
    std::vector<uint8_t> out;
    append_number(out, head.size());
    append_bytes(out, head.data(), head.size());
    append_number(out, tags.size());
    append_bytes(out, tags.data(), tags.size() * sizeof(int64_t));
    append_number(out, checksum);
    return out;
}

SlotSection SlotSection::read(std::string_view section) {
    SectionReader in(section);
    SlotSection slot;
    const std::string_view head = in.bytes(in.number());
    slot.head.assign(head.begin(), head.end());
    const uint64_t tags = in.number();
    if (tags > in.left().size() / sizeof(int64_t)) throw Error("its slot is cut off");
    slot.tags.resize(tags);
    for (int64_t & tag : slot.tags) tag = static_cast<int64_t>(in.number());
    slot.checksum = in.number();
    return slot;
}

SlotReport pack_slot(const std::string & slot, const std::string & file, int threads) {
    const MappedFile mapped(slot);
    return SlotPacker(mapped.data(), mapped.size(), slot).pack(file, threads);
}

} // namespace vidkv::cli
