#include "engine/llava_onevision_encoder.h"

#include "engine/logs.h"
#include "error.h"
#include "interrupt.h"
#include "video/resize.h"

namespace vidkv::cli {

namespace {

struct BitmapDeleter {
    void operator()(mtmd_bitmap * bitmap) const { mtmd_bitmap_free(bitmap); }
};
struct ChunksDeleter {
    void operator()(mtmd_input_chunks * chunks) const { mtmd_input_chunks_free(chunks); }
};
using Chunks = std::unique_ptr<mtmd_input_chunks, ChunksDeleter>;

// The frame as libmtmd takes it: one chunk.
Chunks to_chunks(const Model & model, const Frame & frame) {
    const std::unique_ptr<mtmd_bitmap, BitmapDeleter> bitmap(mtmd_bitmap_init(frame.width, frame.height, frame.rgb.data()));
    const mtmd_input_part part = {nullptr, bitmap.get()};
    const mtmd_input_part * parts[] = {&part};
    Chunks chunks(mtmd_input_chunks_init());
    if (mtmd_tokenize_from_parts(model.vision(), chunks.get(), parts, 1, false) != 0 ||
        mtmd_input_chunks_size(chunks.get()) != 1)
        throw Error("the vision tower does not take a frame: " + logged_error());
    return chunks;
}

} // namespace

LlavaOnevisionEncoder::LlavaOnevisionEncoder(const Model & model) : model_(model), own_(*model.llava_onevision()) {
    Piece start;
    start.tokens = model.tokenize(model.format("").before, true);
    video_.tokens = start.size();
    video_.pieces.push_back(std::move(start));
}

void LlavaOnevisionEncoder::add_embeddings(std::vector<float> rows) {
    const auto width = static_cast<size_t>(llama_model_n_embd_inp(model_.text()));
    Piece piece;
    piece.rows = static_cast<int64_t>(rows.size() / width);
    video_.visual_tokens += piece.rows;
    video_.tokens += piece.rows;
    piece.embeddings = std::move(rows);
    video_.pieces.push_back(std::move(piece));
}

Map LlavaOnevisionEncoder::encode(const Frame & square) const {
    const Chunks chunks = to_chunks(model_, square);
    const mtmd_input_chunk * chunk = mtmd_input_chunks_get(chunks.get(), 0);
    const size_t side = own_.frame_side, width = static_cast<size_t>(llama_model_n_embd_inp(model_.text()));
    if (mtmd_input_chunk_get_n_tokens(chunk) != side * side)
        throw Error("the vision tower gives " + std::to_string(mtmd_input_chunk_get_n_tokens(chunk)) +
                    " embeddings a frame, not " + std::to_string(side) + " x " + std::to_string(side) +
                    ": convert the mmproj anew with models/convert_llava_onevision");
    if (mtmd_encode_chunk(model_.vision(), chunk) != 0)
        throw Error("the vision tower failed on a frame: " + logged_error());
    const float * embeddings = mtmd_get_output_embd(model_.vision());
    return {side, side, width, {embeddings, embeddings + side * side * width}};
}

void LlavaOnevisionEncoder::add_frame(const Frame & frame) {
    const Map map = encode(resize_bicubic(frame, own_.frame_pixels, own_.frame_pixels));
    add_embeddings(resized(map, own_.pooled_side, own_.pooled_side).values);
    ++video_.frames;
}

void LlavaOnevisionEncoder::add_picture(const Frame & picture) {
    const Size grid = best_grid(picture, own_.grids);
    std::vector<Map> tiles;
    for (const Frame & tile : tiles_of(picture, grid, own_.frame_pixels)) {
        check_interrupt();
        tiles.push_back(encode(tile));
    }
    const size_t side = own_.frame_side;
    const Map map = at_most(without_margins(joined(tiles, grid.width / own_.frame_pixels), {picture.height, picture.width}),
                            own_.most_tiles * side * side);
    std::vector<float> rows = encode(resize_bicubic(picture, own_.frame_pixels, own_.frame_pixels)).values;
    for (size_t y = 0; y < map.height; ++y) {
        rows.insert(rows.end(), map.at(y, 0), map.at(y, 0) + map.width * map.channels);
        rows.insert(rows.end(), own_.newline.begin(), own_.newline.end());
    }
    add_embeddings(std::move(rows));
    ++video_.frames;
}

void LlavaOnevisionEncoder::end_video() { add_embeddings(own_.newline); }

EncodedVideo encode_llava_onevision(const Model & model, const Readers & readers, Progress & progress) {
    LlavaOnevisionEncoder encoder(model);
    const bool tiled = readers.size() == 1 && readers.front()->is_image() && !model.llava_onevision()->grids.empty();
    for (const auto & reader : readers) {
        int64_t frames = 0;
        std::optional<Frame> frame = reader->next(), next = frame ? reader->next() : std::nullopt;
        if (tiled && frame && !next) {
            encoder.add_picture(*frame);
            return encoder.take();
        }
        for (; frame; frame = std::move(next), next = frame ? reader->next() : std::nullopt) {
            check_interrupt();
            encoder.add_frame(*frame);
            progress.show("reading video", ++frames, reader->expected(), "frames");
        }
        encoder.end_video();
    }
    return encoder.take();
}

} // namespace vidkv::cli
