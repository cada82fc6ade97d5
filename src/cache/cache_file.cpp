// A cache in a file: sequence by sequence, layer by layer.
#include <string>

#include "base/error.h"
#include "cache/cache.h"
#include "cache/file_reader.h"
#include "cache/file_writer.h"

namespace vidkv {

vidkv_status Cache::save_sequence(FileWriter & file, int as, int sequence) const {
    return file.all_or_none([&] {
        for (size_t i = 0; i < layers_.size(); ++i) {
            for (const Store * store : {layers_[i].keys.get(), layers_[i].values.get()}) {
                if (vidkv_status status = file.add_store(static_cast<int>(i), as, *store, sequence, nullptr)) return status;
            }
        }
        return VIDKV_OK;
    });
}

vidkv_status Cache::save(const char * path) const {
    FileWriter file(path, params_);
    if (vidkv_status status = file.open()) return status;
    for (int sequence = 0; sequence < shape_.sequences; ++sequence) {
        if (vidkv_status status = save_sequence(file, sequence, sequence)) return status;
    }
    return file.finish();
}

vidkv_status Cache::check_file(const FileReader & file) const {
    int layers = 0;
    for (const FileEntry & entry : file.entries()) {
        if (entry.kind == static_cast<uint32_t>(FileKind::store)) layers = std::max(layers, entry.layer + 1);
    }
    if (layers == shape_.layers) return VIDKV_OK;
    return fail(VIDKV_E_FORMAT, "'" + file.path() + "' is of another shape: " + std::to_string(layers) + " layers, not " +
                                    std::to_string(shape_.layers));
}

vidkv_status Cache::load_into(std::vector<Layer> & layers, const FileReader & file, int from, int sequence) const {
    for (size_t i = 0; i < layers.size(); ++i) {
        Layer & layer = layers[i];
        for (Store * store : {layer.keys.get(), layer.values.get()}) {
            if (vidkv_status status = file.load(static_cast<int>(i), from, *store, sequence, nullptr, 0)) return status;
        }
        layer.lengths[static_cast<size_t>(sequence)] = layer.keys->end(sequence);
        if (layer.lengths[static_cast<size_t>(sequence)] == layer.values->end(sequence)) continue;
        return fail(VIDKV_E_FORMAT, "'" + file.path() + "' has more keys than values, or fewer: save it again");
    }
    return VIDKV_OK;
}

void Cache::take(std::vector<Layer> & layers) noexcept {
    for (size_t i = 0; i < layers.size(); ++i) {
        *layers_[i].keys = std::move(*layers[i].keys);
        *layers_[i].values = std::move(*layers[i].values);
        layers_[i].lengths = std::move(layers[i].lengths);
    }
}

vidkv_status Cache::load(const char * path) {
    vidkv_status status = VIDKV_OK;
    const std::unique_ptr<FileReader> file = FileReader::open(path, false, status);
    if (!file) return status;
    if (vidkv_status wrong = check_file(*file)) return wrong;
    std::vector<Layer> layers = make_layers();
    for (const FileEntry & entry : file->entries()) {
        if (entry.kind != static_cast<uint32_t>(FileKind::store) || entry.layer != 0 || entry.side != VIDKV_KEYS) continue;
        if (entry.sequence >= shape_.sequences) {
            return fail(VIDKV_E_ARGUMENT, "'" + file->path() + "' has a sequence " + std::to_string(entry.sequence) +
                                              ", the cache " + std::to_string(shape_.sequences) + " in all");
        }
        if (vidkv_status wrong = load_into(layers, *file, entry.sequence, entry.sequence)) return wrong;
    }
    take(layers);
    return VIDKV_OK;
}

vidkv_status Cache::load_sequence(const FileReader & file, int from, int sequence) {
    if (sequence < 0 || sequence >= shape_.sequences) return fail(VIDKV_E_ARGUMENT, "no such sequence in the cache");
    if (vidkv_status wrong = check_file(file)) return wrong;
    std::vector<Layer> layers(layers_.size()); // copies, which cost a table
    for (size_t i = 0; i < layers.size(); ++i)
        layers[i] = {layers_[i].keys->clone(), layers_[i].values->clone(), layers_[i].lengths};
    if (vidkv_status status = load_into(layers, file, from, sequence)) return status;
    take(layers);
    return VIDKV_OK;
}

} // namespace vidkv
