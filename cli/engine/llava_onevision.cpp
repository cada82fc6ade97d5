#include "engine/llava_onevision.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>

#include "error.h"
#include "ggml.h"
#include "gguf.h"

namespace vidkv::cli {

namespace {

constexpr const char * NEWLINE = "v.image_newline";

// The keys "vidkv.llava_onevision.*" of a GGUF file.
class Keys {
  public:
    explicit Keys(const std::string & path)
        : path_(path), gguf_(gguf_init_from_file(path.c_str(), {true, nullptr}), gguf_free) {}

    bool present() const { return gguf_ && has("frames"); }
    bool has(const char * name) const { return find(name) >= 0; }

    uint32_t number(const char * name) const { return gguf_get_val_u32(gguf_.get(), demand(name, GGUF_TYPE_UINT32)); }
    std::string text(const char * name) const { return gguf_get_val_str(gguf_.get(), demand(name, GGUF_TYPE_STRING)); }

    std::vector<uint32_t> numbers(const char * name) const {
        const int64_t key = demand(name, GGUF_TYPE_ARRAY);
        if (gguf_get_arr_type(gguf_.get(), key) != GGUF_TYPE_UINT32) bad(name);
        const auto * first = static_cast<const uint32_t *>(gguf_get_arr_data(gguf_.get(), key));
        return {first, first + gguf_get_arr_n(gguf_.get(), key)};
    }

    std::vector<float> newline() const {
        const int64_t tensor = gguf_find_tensor(gguf_.get(), NEWLINE);
        if (tensor < 0 || gguf_get_tensor_type(gguf_.get(), tensor) != GGML_TYPE_F32) bad(NEWLINE);
        std::vector<float> numbers(gguf_get_tensor_size(gguf_.get(), tensor) / sizeof(float));
        std::ifstream file(path_, std::ios::binary);
        file.seekg(
            static_cast<std::streamoff>(gguf_get_data_offset(gguf_.get()) + gguf_get_tensor_offset(gguf_.get(), tensor)));
        if (!file.read(reinterpret_cast<char *>(numbers.data()),
                       static_cast<std::streamsize>(numbers.size() * sizeof(float))))
            throw Error("'" + path_ + "' is cut off: " + NEWLINE + " cannot be read");
        return numbers;
    }

  private:
    int64_t find(const char * name) const {
        return gguf_find_key(gguf_.get(), (std::string("vidkv.llava_onevision.") + name).c_str());
    }
    int64_t demand(const char * name, gguf_type type) const {
        const int64_t key = find(name);
        if (key < 0 || gguf_get_kv_type(gguf_.get(), key) != type) bad(name);
        return key;
    }
    [[noreturn]] void bad(const char * name) const {
        throw Error("'" + path_ + "' has no " + name +
                    " as LLaVA-OneVision needs it: convert it anew with models/convert_llava_onevision");
    }

    std::string path_;
    std::unique_ptr<gguf_context, decltype(&gguf_free)> gguf_;
};

// What tiles need; files that were converted before do not have it.
void read_grids(const Keys & keys, LlavaOnevision & model) {
    if (!keys.has("grids")) return;
    model.most_tiles = keys.number("most_tiles");
    const std::vector<uint32_t> sides = keys.numbers("grids");
    for (size_t i = 0; i + 1 < sides.size(); i += 2) model.grids.push_back({sides[i], sides[i + 1]});
}

bool fit(const LlavaOnevision & model) {
    if (model.frame_pixels == 0) return false;
    const auto whole = [&](uint32_t side) { return side > 0 && side <= 65536 && side % model.frame_pixels == 0; };
    const bool tiles =
        std::ranges::all_of(model.grids, [&](const Size & grid) { return whole(grid.height) && whole(grid.width); });
    return model.frames > 0 && model.pooled_side > 0 && model.pooled_side <= model.frame_side && tiles &&
           (model.grids.empty() || model.most_tiles > 0);
}

} // namespace

std::optional<LlavaOnevision> read_llava_onevision(const std::string & mmproj) {
    std::error_code missing;
    if (!std::filesystem::is_regular_file(mmproj, missing)) return std::nullopt; // whoever loads it says so
    const Keys keys(mmproj);
    if (!keys.present()) return std::nullopt;
    LlavaOnevision model;
    model.frames = keys.number("frames");
    model.frame_pixels = keys.number("frame_pixels");
    model.frame_side = keys.number("frame_side");
    model.pooled_side = keys.number("pooled_side");
    model.prompt_before = keys.text("prompt_before");
    model.prompt_between = keys.text("prompt_between");
    model.prompt_after = keys.text("prompt_after");
    model.newline = keys.newline();
    read_grids(keys, model);
    if (!fit(model))
        throw Error("'" + mmproj + "' states sizes that cannot be: convert it anew with models/convert_llava_onevision");
    return model;
}

} // namespace vidkv::cli
