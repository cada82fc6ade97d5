#include "engine/encode.h"

#include <array>
#include <cstdio>

#include "error.h"
#include "interrupt.h"
#include "engine/logs.h"
#include "engine/llava_onevision_encoder.h"
#include "engine/prompt_tokens.h"

namespace vidkv::cli {

namespace {

// What libmtmd puts before the frames; several videos have numbers.
std::string video_prompt(size_t number, size_t videos) {
    return videos == 1 ? "Video:" : "Video " + std::to_string(number) + ":";
}

struct BitmapDeleter {
    void operator()(mtmd_bitmap * bitmap) const { mtmd_bitmap_free(bitmap); }
};
using Bitmap = std::unique_ptr<mtmd_bitmap, BitmapDeleter>;

struct ChunksDeleter {
    void operator()(mtmd_input_chunks * chunks) const { mtmd_input_chunks_free(chunks); }
};

class VideoEncoder {
  public:
    VideoEncoder(const Model & model, EncodedVideo & video) : model_(model), video_(video) {}

    void add_text(const std::string & words, bool start) { add_tokens(model_.tokenize(words, start)); }

    void add_video(FrameReader & reader, size_t number, double timestamp_seconds, Progress & progress);
    // Up to two frames that follow each other; models with temporal patches merge them.
    void add_frames(const std::vector<Bitmap> & frames);

  private:
    void add_tokens(const std::vector<llama_token> & tokens);
    void add_image(const mtmd_input_chunk * chunk);

    const Model & model_;
    EncodedVideo & video_;
};

void VideoEncoder::add_tokens(const std::vector<llama_token> & tokens) {
    if (tokens.empty()) return;
    if (video_.pieces.empty() || video_.pieces.back().chunk) video_.pieces.emplace_back();
    auto & last = video_.pieces.back().tokens;
    last.insert(last.end(), tokens.begin(), tokens.end());
    video_.tokens += static_cast<int64_t>(tokens.size());
}

void VideoEncoder::add_image(const mtmd_input_chunk * chunk) {
    if (mtmd_encode_chunk(model_.vision(), chunk) != 0)
        throw Error("the vision tower failed on a frame: " + logged_error());
    Piece piece;
    piece.chunk.reset(mtmd_input_chunk_get_placeholder(chunk));
    const size_t n = mtmd_input_chunk_get_n_tokens(chunk) * static_cast<size_t>(llama_model_n_embd_inp(model_.text()));
    const float * embeddings = mtmd_get_output_embd(model_.vision());
    piece.embeddings.assign(embeddings, embeddings + n);
    video_.visual_tokens += piece.size();
    video_.tokens += piece.size();
    video_.pieces.push_back(std::move(piece));
}

void VideoEncoder::add_frames(const std::vector<Bitmap> & frames) {
    std::vector<mtmd_input_part> parts;
    parts.reserve(frames.size());
    for (const Bitmap & frame : frames) parts.push_back({nullptr, frame.get()});
    std::vector<const mtmd_input_part *> pointers;
    pointers.reserve(parts.size());
    for (const mtmd_input_part & part : parts) pointers.push_back(&part);
    const std::unique_ptr<mtmd_input_chunks, ChunksDeleter> chunks(mtmd_input_chunks_init());
    if (mtmd_tokenize_from_parts(model_.vision(), chunks.get(), pointers.data(), pointers.size(), false) != 0)
        throw Error("the vision tower does not take a frame: " + logged_error());
    for (size_t i = 0; i < mtmd_input_chunks_size(chunks.get()); ++i) {
        const mtmd_input_chunk * chunk = mtmd_input_chunks_get(chunks.get(), i);
        if (mtmd_input_chunk_get_type(chunk) == MTMD_INPUT_CHUNK_TYPE_TEXT) {
            size_t n = 0;
            const llama_token * tokens = mtmd_input_chunk_get_tokens_text(chunk, &n);
            add_tokens({tokens, tokens + n});
        } else {
            add_image(chunk);
        }
    }
}

// Named as llama-server names them: after the video, and by their number in it.
Bitmap to_bitmap(const Frame & frame, const std::string & video, int64_t number) {
    Bitmap bitmap(mtmd_bitmap_init(frame.width, frame.height, frame.rgb.data()));
    mtmd_bitmap_set_id(bitmap.get(), (video + '+' + std::to_string(number)).c_str());
    mtmd_bitmap_set_mergeable(bitmap.get(), true);
    return bitmap;
}

// "[1m2.50s]", as libmtmd writes it.
std::string timestamp(double seconds) {
    std::array<char, 32> text;
    const int minutes = static_cast<int>(seconds / 60);
    std::snprintf(text.data(), text.size(), "[%dm%.2fs]", minutes, seconds - minutes * 60.0);
    return text.data();
}

void VideoEncoder::add_video(FrameReader & reader, size_t number, double timestamp_seconds, Progress & progress) {
    std::vector<Bitmap> waiting;
    double next_stamp = 0;
    int64_t frames = 0;
    while (const std::optional<Frame> frame = reader.next()) {
        check_interrupt();
        waiting.push_back(to_bitmap(*frame, video_stand_in(number), frames));
        ++video_.frames;
        progress.show("reading video", ++frames, reader.expected(), "frames");
        const bool stamp = timestamp_seconds > 0 && frame->seconds >= next_stamp;
        if (stamp || waiting.size() == 2) {
            add_frames(waiting);
            waiting.clear();
        }
        if (!stamp) continue;
        add_text(timestamp(frame->seconds), false);
        next_stamp = frame->seconds + timestamp_seconds;
    }
    if (!waiting.empty()) add_frames(waiting);
}

} // namespace

int64_t Piece::size() const {
    return chunk ? static_cast<int64_t>(mtmd_input_chunk_get_n_tokens(chunk.get()))
                 : rows + static_cast<int64_t>(tokens.size());
}

Readers open_videos(const std::vector<std::string> & names, const Sampling & sampling) {
    Readers readers;
    for (const std::string & name : names) readers.push_back(std::make_unique<FrameReader>(name, sampling));
    return readers;
}

namespace {

EncodedVideo encode(const Model & model, const Readers & readers, double timestamp_seconds, Progress & progress) {
    if (model.llava_onevision() && timestamp_seconds > 0)
        throw Error("LLaVA-OneVision has no time stamps in its prompt: leave --timestamps out");
    if (model.llava_onevision()) return encode_llava_onevision(model, readers, progress);
    EncodedVideo video;
    VideoEncoder encoder(model, video);
    encoder.add_text(model.format("").before, true);
    for (size_t i = 0; i < readers.size(); ++i) {
        encoder.add_text(video_prompt(i + 1, readers.size()), false);
        encoder.add_video(*readers[i], i, timestamp_seconds, progress);
    }
    return video;
}

} // namespace

EncodedVideo encode_videos(const Model & model, const Readers & readers, double timestamp_seconds, Progress & progress) {
    EncodedVideo video = encode(model, readers, timestamp_seconds, progress);
    for (const auto & reader : readers) {
        video.seconds += reader->shown_seconds();
        video.pictures += reader->fingerprint(timestamp_seconds > 0);
    }
    return video;
}

std::string pictures_of(const Readers & readers, double timestamp_seconds, Progress & progress) {
    std::string pictures;
    for (const auto & reader : readers) {
        for (int64_t frames = 0; reader->next(); ++frames) {
            check_interrupt();
            progress.show("looking at the video", frames, reader->expected(), "frames");
        }
        pictures += reader->fingerprint(timestamp_seconds > 0);
    }
    return pictures;
}

} // namespace vidkv::cli
