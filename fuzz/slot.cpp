// llama-server's slot files and packed slots that somebody altered, behind right checksums where there are any. An input's first byte
// says what it is: a slot file; changes of a sound one, in rows, tags, pages and head; changes of a packed one, in its sections.
// vidkv pack gives each byte back or one line, vidkv unpack a slot file or one line, and the plug-in takes any rows.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <string>

#include <sys/mman.h>
#include <unistd.h>

#include "engine/packed_store.h"
#include "engine/slot_file.h"
#include "engine/state_layout.h"
#include "engine/state_section.h"
#include "error.h"
#include "hidden_pages.h"
#include "input.h"
#include "plugin/forged_slot.h"

namespace fs = std::filesystem;
using namespace vidkv::cli;
using namespace vidkv_ggml;

namespace {

using Bytes = std::vector<uint8_t>;

constexpr const char * presets[] = {"t1.65", "t2.2", "t1.15", "k1.5v1.58", "k1.5v2"};
constexpr int head_dim = 32;
constexpr int64_t channels = 4 * head_dim, pages = 2, cells = pages * VIDKV_PAGE + 9;
constexpr uint64_t row_bytes = channels * 2;

// Files in memory.
class Folder {
  public:
    Folder() : path_("/dev/shm/vidkv-fuzz-" + std::to_string(getpid())) { fs::create_directories(path_); }
    ~Folder() { fs::remove_all(path_); }
    std::string file(const std::string & name) const { return (path_ / name).string(); }

  private:
    fs::path path_;
};
const Folder folder;

void write_file(const std::string & path, const Bytes & bytes) {
    std::FILE * file = std::fopen(path.c_str(), "wb");
    demand(file && std::fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size(), "a file in /dev/shm");
    std::fclose(file);
}

Bytes read_file(const std::string & path) {
    Bytes bytes(fs::file_size(path));
    std::FILE * file = std::fopen(path.c_str(), "rb");
    demand(file && std::fread(bytes.data(), 1, bytes.size(), file) == bytes.size(), "a file in /dev/shm");
    std::fclose(file);
    return bytes;
}

template <typename T> void append(Bytes & to, T value) { append_bytes(to, &value, sizeof(value)); }

// Rows as llama.cpp writes them, with their packed pages in them.
void append_rows(Bytes & to, vidkv_side side, const vidkv_params & params) {
    const PackedStore store = make_store(side, channels, head_dim, pages + 1, params);
    std::vector<float> rows(static_cast<size_t>(cells * channels));
    for (size_t i = 0; i < rows.size(); ++i) {
        rows[i] = static_cast<float>(i * 7919 % 1000) / 500 - 1;
        if (side == VIDKV_VALUES) rows[i] = scene(i % channels, i / channels) + 0.1f * rows[i];
    }
    std::vector<int64_t> places(cells);
    std::iota(places.begin(), places.end(), 0);
    check_status(vidkv_store_write_f32(store.get(), 0, places.data(), cells, rows.data(), channels));
    check_status(vidkv_store_seal(store.get(), 1));
    append(to, int32_t{1}); // f16
    append(to, row_bytes);
    std::vector<uint16_t> page(VIDKV_PAGE * channels);
    for (int64_t p = 0; p <= pages; ++p) {
        read_page_to_save(store.get(), channels, p, p, page.data());
        append_bytes(to, page.data(),
                     static_cast<size_t>(std::min<int64_t>(VIDKV_PAGE, cells - p * VIDKV_PAGE)) * row_bytes);
    }
}

Bytes sound_slot(const vidkv_params & params) {
    Bytes slot = head_of_slot(Bytes(40));
    append(slot, uint32_t{1}); // streams
    append(slot, static_cast<uint32_t>(cells));
    for (int32_t i = 0; i < cells; ++i) {
        append(slot, i);
        append(slot, uint32_t{1});
        append(slot, int32_t{0});
    }
    for (const uint32_t number : {0, 1, 0, 0}) append(slot, number); // not transposed, layers, rotations
    append_rows(slot, VIDKV_KEYS, params);
    append_rows(slot, VIDKV_VALUES, params);
    return slot;
}

const Bytes & slot_of(uint32_t preset) {
    static std::map<uint32_t, Bytes> made;
    Bytes & slot = made[preset];
    if (!slot.empty()) return slot;
    vidkv_params params;
    demand(vidkv_params_from_preset(presets[preset], &params) == VIDKV_OK, "a preset");
    params.residual_length = VIDKV_PAGE;
    return slot = sound_slot(params);
}

// The rows of keys (0) or values (1) in the slot.
uint16_t * row_of(Bytes & slot, uint32_t side, uint32_t cell) {
    const uint64_t from_end = (side % 2 == 0 ? 2 * cells * row_bytes + 12 : cells * row_bytes) - cell % cells * row_bytes;
    return reinterpret_cast<uint16_t *>(slot.data() + slot.size() - from_end);
}

void change_tag(uint16_t * row, Input & input) {
    auto tag = find_tag(row, channels);
    if (!tag) return;
    Bytes bytes(static_cast<size_t>(hidden_bytes(channels, tag->bits)));
    reveal(row, channels, tag->bits, bytes.data());
    const uint32_t what = input.byte();
    (what % 3 == 0   ? tag->page
     : what % 3 == 1 ? reinterpret_cast<uint32_t &>(tag->token)
                     : reinterpret_cast<uint32_t &>(tag->first)) = what % 3 == 0 ? input.number() : input.byte() % 64;
    hide(row, channels, *tag, bytes.data());
}

// The page with other bytes, and their checksum.
void change_page(Bytes & slot, Input & input) {
    const uint32_t side = input.byte(), page = input.byte() % pages * VIDKV_PAGE;
    const auto last = find_tag(row_of(slot, side, page + VIDKV_PAGE - 1), channels);
    if (!last) return;
    const auto each = static_cast<size_t>(hidden_bytes(channels, last->bits));
    Bytes hidden(each * static_cast<size_t>(VIDKV_PAGE - last->first));
    for (int token = last->first; token < VIDKV_PAGE; ++token)
        reveal(row_of(slot, side, page + static_cast<uint32_t>(token)), channels, last->bits,
               &hidden[static_cast<size_t>(token - last->first) * each]);
    auto bytes = from_hidden(hidden);
    if (!bytes || bytes->empty()) return;
    if (input.byte() % 8 == 0) bytes->resize(bytes->size() * input.byte() / 255);
    for (uint32_t n = input.byte() % 8; n > 0 && !bytes->empty(); --n)
        (*bytes)[input.number() % bytes->size()] ^= static_cast<uint8_t>(input.byte());
    const HiddenPage again = to_hidden(*bytes, channels, last->first);
    if (again.bits == 0) return;
    const auto more = static_cast<size_t>(hidden_bytes(channels, again.bits));
    for (int token = last->first; token < VIDKV_PAGE; ++token)
        hide(row_of(slot, side, page + static_cast<uint32_t>(token)), channels,
             {last->page, token, last->first, again.bits}, &again.bytes[static_cast<size_t>(token - last->first) * more]);
}

void set_number(Bytes & bytes, size_t align, size_t within, Input & input) {
    constexpr uint64_t odd[] = {0, 1, 127, 128, 255, ~uint64_t(0), uint64_t(1) << 31, uint64_t(1) << 40};
    const size_t at = input.number() % std::max<size_t>(1, std::min(within, bytes.size()) / align) * align;
    const uint32_t which = input.byte();
    const uint64_t number = which < 0x80 ? odd[which % std::size(odd)] : input.number();
    if (at + align <= bytes.size()) std::memcpy(bytes.data() + at, &number, align);
}

Bytes altered_slot(Input & input) {
    Bytes slot = slot_of(input.byte() % std::size(presets));
    while (input.more()) {
        switch (input.byte() % 7) {
        case 0: {
            uint16_t * row = row_of(slot, input.byte(), input.number());
            std::swap_ranges(row, row + channels, row_of(slot, input.byte(), input.number()));
            break;
        }
        case 1: {
            const uint32_t side = input.byte();
            std::memmove(row_of(slot, side, input.number()), row_of(slot, side, input.number()), row_bytes);
            break;
        }
        case 2: {
            uint16_t * row = row_of(slot, input.byte(), input.number());
            row[input.byte() % channels] = static_cast<uint16_t>(input.number());
            break;
        }
        case 3: {
            const uint32_t side = input.byte();
            change_tag(row_of(slot, side, input.number()), input);
            break;
        }
        case 4: change_page(slot, input); break;
        case 5: set_number(slot, 4, 120, input); break;
        case 6: {
            const size_t keep = slot.size() * input.byte() / 255;
            if (input.byte() % 4 == 0) return slot.resize(keep), slot;
            break;
        }
        }
    }
    return slot;
}

// One line, or false.
template <typename Work> bool goes_well(Work work) {
    try {
        work();
        return true;
    } catch (const Error & error) {
        demand(std::string(error.what()).find('\n') == std::string::npos, "an error is one line");
    } catch (const std::bad_alloc &) {
    }
    return false;
}

void pack_and_unpack(const Bytes & slot) {
    const std::string original = folder.file("slot"), packed = folder.file("packed"), again = folder.file("again");
    write_file(original, slot);
    fs::remove(packed);
    if (!goes_well([&] { pack_slot(original, packed, 1); })) return demand(!fs::exists(packed), "nothing is left");
    demand(goes_well([&] { unpack_slot(packed, again, 1); }), "what was packed is unpacked");
    demand(read_file(again) == slot, "every byte comes back");
}

// As the plug-in restores them.
void restore(const Bytes & slot, bool keys, const vidkv_params & params) {
    const uint64_t head = state_of_slot(slot.data(), slot.size());
    if (head == 0) return;
    const StateLayout layout = layout_of_state(slot.data() + head, slot.size() - head);
    for (const StateRows & each : layout.rows) {
        if (each.keys != keys || each.channels != channels || layout.cells > 4 * cells) continue;
        std::vector<uint16_t> rows(static_cast<size_t>(layout.cells * channels));
        std::memcpy(rows.data(), slot.data() + head + each.at, rows.size() * 2);
        const auto tags = tags_of(rows.data(), layout.cells, channels);
        const auto former = former_places(tags);
        CellMap map(8 * cells, VIDKV_PAGE);
        std::vector<int64_t> ids(static_cast<size_t>(layout.cells));
        std::iota(ids.begin(), ids.end(), 0);
        map.restore(ids.data(), layout.cells, true, former.empty() ? nullptr : former.data());
        const PackedStore store =
            make_store(keys ? VIDKV_KEYS : VIDKV_VALUES, channels, head_dim, map.places() / VIDKV_PAGE, params);
        FoundPages found;
        found.begin(1);
        for (int64_t i = 0; i < layout.cells; ++i) {
            const int64_t place = map.where(i);
            demand(place >= 0 && place < map.places(), "each cell lies somewhere");
            const uint16_t * row = &rows[static_cast<size_t>(i * channels)];
            check_status(vidkv_store_write_f16(store.get(), 0, &place, 1, row, channels));
            const auto & tag = tags[static_cast<size_t>(i)];
            if (!tag || place % VIDKV_PAGE != tag->token) continue;
            const auto page = found.take(0, place / VIDKV_PAGE, *tag, row, channels);
            if (page) vidkv_store_import_page(store.get(), 0, place / VIDKV_PAGE, page->data(), page->size());
        }
        std::vector<uint16_t> read(static_cast<size_t>(map.places() * channels));
        check_status(vidkv_store_read_f16(store.get(), 0, 0, map.places(), read.data()));
    }
}

struct Packed {
    PackedFile file;
    std::map<std::string, Bytes> sections;
};

const Packed & packed_of(uint32_t preset) {
    static std::map<uint32_t, Packed> made;
    Packed & packed = made[preset];
    if (packed.file) return packed;
    const std::string path = folder.file(presets[preset]);
    write_file(folder.file("slot"), slot_of(preset));
    pack_slot(folder.file("slot"), path, 1);
    packed.file = open_packed(path, true, 1);
    for (int64_t i = 0; const char * name = vidkv_file_section_name(packed.file.get(), i); ++i) {
        uint64_t bytes = 0;
        const auto * data = static_cast<const uint8_t *>(vidkv_file_section(packed.file.get(), name, &bytes));
        packed.sections[name] = {data, data + bytes};
    }
    return packed;
}

// The section `state` is compressed: other numbers in what it holds, and other gaps.
void change_state(Bytes & section, Input & input) {
    std::vector<Gap> gaps;
    const auto state = unpack_state({reinterpret_cast<const char *>(section.data()), section.size()}, gaps);
    Bytes bytes(state->data(), state->data() + state->bytes());
    for (uint32_t n = input.byte() % 4; n > 0; --n) set_number(bytes, 4, 60, input);
    if (!gaps.empty() && input.byte() % 4 == 0) {
        Gap & gap = gaps[input.byte() % gaps.size()];
        gap.bytes = gap.bytes * input.byte() / 255;
    }
    section = pack_state(bytes.data(), bytes.size(), gaps);
}

void unpack_altered(Input & input) {
    const Packed & good = packed_of(input.byte() % std::size(presets));
    std::map<std::string, Bytes> sections = good.sections;
    while (input.more()) {
        constexpr const char * names[] = {"slot", "cells", "state", "state"};
        const uint32_t which = input.byte() % 4, how = input.byte();
        Bytes & section = sections[names[which]];
        if (which == 3)
            goes_well([&] { change_state(section, input); });
        else if (how % 16 == 0)
            section.resize(section.size() * input.byte() / 255);
        else
            set_number(section, 8, section.size(), input);
    }
    const std::string path = folder.file("forged");
    vidkv_test::write_forged(good.file.get(), path, sections);
    goes_well([&] { unpack_slot(path, folder.file("out"), 1); });
    demand(!fs::exists(folder.file("out.part")), "nothing is left half written");
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    Input input(data, size);
    const uint32_t kind = input.byte();
    if (kind % 8 == 0) {
        pack_and_unpack({input.rest(), input.rest() + input.left()});
    } else if (kind % 2 == 0) {
        unpack_altered(input);
    } else {
        const uint32_t preset = input.left() > 0 ? *input.rest() % std::size(presets) : 0;
        vidkv_params params;
        demand(vidkv_params_from_preset(presets[preset], &params) == VIDKV_OK, "a preset");
        params.residual_length = VIDKV_PAGE;
        const Bytes slot = altered_slot(input);
        pack_and_unpack(slot);
        restore(slot, true, params);
        restore(slot, false, params);
    }
    return 0;
}
