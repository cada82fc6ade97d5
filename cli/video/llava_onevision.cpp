#include "video/llava_onevision.h"

#include <algorithm>

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

// Where a pooled pixel lies between two others.
struct Between {
    size_t low, high;
    float share; // of high
};

Between between(size_t i, size_t from, size_t to) {
    const float scale = static_cast<float>(from) / static_cast<float>(to);
    const float place = std::max(0.0f, (static_cast<float>(i) + 0.5f) * scale - 0.5f);
    const size_t low = std::min(static_cast<size_t>(place), from - 1);
    return {low, std::min(low + 1, from - 1), place - static_cast<float>(low)};
}

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

std::vector<float> pool_bilinear(const float * embeddings, size_t from, size_t to, size_t width) {
    std::vector<float> pooled(to * to * width);
    for (size_t y = 0; y < to; ++y) {
        const Between row = between(y, from, to);
        for (size_t x = 0; x < to; ++x) {
            const Between column = between(x, from, to);
            const auto at = [&](size_t r, size_t c) { return embeddings + (r * from + c) * width; };
            const float *a = at(row.low, column.low), *b = at(row.low, column.high), *c = at(row.high, column.low),
                        *d = at(row.high, column.high);
            float * out = &pooled[(y * to + x) * width];
            for (size_t i = 0; i < width; ++i) {
                const float upper = a[i] + (b[i] - a[i]) * column.share, lower = c[i] + (d[i] - c[i]) * column.share;
                out[i] = upper + (lower - upper) * row.share;
            }
        }
    }
    return pooled;
}

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

void LlavaOnevisionEncoder::add_frame(const Frame & frame) {
    const Chunks chunks = to_chunks(model_, resize_bicubic(frame, own_.frame_pixels, own_.frame_pixels));
    const mtmd_input_chunk * chunk = mtmd_input_chunks_get(chunks.get(), 0);
    if (mtmd_input_chunk_get_n_tokens(chunk) != size_t(own_.frame_side) * own_.frame_side)
        throw Error("the vision tower gives " + std::to_string(mtmd_input_chunk_get_n_tokens(chunk)) +
                    " embeddings a frame, not " + std::to_string(own_.frame_side) + " x " +
                    std::to_string(own_.frame_side) + ": convert the mmproj anew with models/convert_llava_onevision");
    if (mtmd_encode_chunk(model_.vision(), chunk) != 0)
        throw Error("the vision tower failed on a frame: " + logged_error());
    add_embeddings(pool_bilinear(mtmd_get_output_embd(model_.vision()), own_.frame_side, own_.pooled_side,
                                 static_cast<size_t>(llama_model_n_embd_inp(model_.text()))));
    ++video_.frames;
}

void LlavaOnevisionEncoder::end_video() { add_embeddings(own_.newline); }

EncodedVideo encode_llava_onevision(const Model & model, const Readers & readers, Progress & progress) {
    LlavaOnevisionEncoder encoder(model);
    for (const auto & reader : readers) {
        int64_t frames = 0;
        while (const std::optional<Frame> frame = reader->next()) {
            check_interrupt();
            encoder.add_frame(*frame);
            progress.show("reading video", ++frames, reader->expected(), "frames");
        }
        encoder.end_video();
    }
    return encoder.take();
}

} // namespace vidkv::cli
